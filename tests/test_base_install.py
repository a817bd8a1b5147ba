"""The base installation: an edge client gets no dependency more, and nothing in it imports an extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = {
    *("flwr", "torch", "numpy", "grpcio", "grpcio-health-checking", "grpcio-reflection", "protobuf"),
    *("cryptography", "safetensors", "prometheus-client", "pydantic", "typer", "rich", "pillow"),
}
# What the extras bring, by the name under which it is imported.
EXTRAS = [
    *("mlflow", "optuna", "kserve", "tritonclient", "sklearn", "skimage", "pandas", "pyarrow", "matplotlib"),
    *("onnx", "onnxruntime", "onnxscript", "wandb", "tensorboard", "datasets", "flwr_datasets", "psutil"),
]
BLOCKED = f"""
import sys
from importlib.abc import MetaPathFinder
class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def test_the_base_install_has_not_grown() -> None:
    assert {re.split(r"[<>=!~;\[ ]", each)[0] for each in PROJECT["dependencies"]} == BASE


def test_nothing_imports_an_extra_before_it_is_needed() -> None:
    code = (
        "import fednc; fednc.run, fednc.load; import fednc.cli.main\n"
        "import fednc.client.link.link, fednc.client.app.flower_app, fednc.client.policy.guard, fednc.cli.client\n"
        "import fednc.server.main, fednc.server.operations.servicer, fednc.cli.server\n"
        "import fednc.cli.models, fednc.ops.registry.registration, fednc.ops.registry.lineage"
    )
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_registry_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "from fednc.ops.registry.store import Store\n"
        "from fednc.common.errors import MissingExtraError\n"
        f"try: Store({str(tmp_path / 'store')!r}).client\n"
        "except MissingExtraError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True)
    assert "pip install 'fednc[ops]'" in done.stdout, done.stderr
