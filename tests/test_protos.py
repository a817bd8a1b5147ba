"""The generated code matches the .proto files: nobody edits it, nobody forgets `make protos`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "protos").glob("*.proto"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protos")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    names = [f"fednc/protos/{path.name}" for path in SOURCES]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Ifednc/protos={ROOT / 'protos'}", *outputs, *names]
    subprocess.run(command, check=True)
    return folder / "fednc" / "protos"


def test_every_file_is_generated_and_up_to_date(made: Path) -> None:
    fresh = {path.name: path.read_text() for path in made.iterdir()}
    assert len(fresh) == 3 * len(SOURCES) > 3
    for name, text in fresh.items():
        assert (ROOT / "protos" / name).read_text() == text, f"{name} is not what `make protos` makes"


def test_make_protos_generates_all_of_them() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nprotos:")[2].partition("\n\n")[0]
    assert set(re.findall(r"fednc/protos/(\w+\.proto)", recipe)) == {path.name for path in SOURCES}
