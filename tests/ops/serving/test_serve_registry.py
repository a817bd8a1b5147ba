"""From a registered run to an answer: a real store's aliases are followed, and a tampered version is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("mlflow")
registry = pytest.importorskip("fednc.ops.registry.registry")
registration = pytest.importorskip("fednc.ops.registry.registration")

from fednc.common.errors import DataError  # noqa: E402
from fednc.ops.serving.models import WantedModel  # noqa: E402
from fednc.ops.serving.sources import RegistrySource, open_registry  # noqa: E402
from support.command_processes import wait_for  # noqa: E402
from support.served_models import SIZE, RunningServer, export_model, json_request  # noqa: E402

INFER = "/v2/models/digits/infer"
BODY = json_request(torch.zeros(1, 1, SIZE, SIZE))


@pytest.mark.timeout(300)  # MLflow makes its database first
def test_aliases_of_a_store_are_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = registry.ModelRegistry(str(tmp_path / "store"))
    for seed in (1, 2, 3):
        run = export_model(tmp_path / f"run-{seed}", seed)
        (run / "summary.json").write_text(json.dumps({"classes": ["ant", "bee", "cat"], "clients": []}))
        registration.register(store, run, "digits", "champion" if seed == 1 else "")
    with RunningServer(
        RegistrySource(open_registry(str(tmp_path / "store"))), WantedModel("digits", "digits@champion")
    ) as server:

        def version() -> str:
            answer = server.ask(INFER, BODY).json
            assert (
                answer["parameters"]["model_digest"] == store.resolve(f"digits/{answer['model_version']}").digest
            )
            found: str = answer["model_version"]
            return found

        assert version() == "1"
        store.set_alias("digits", "champion", 2)
        wait_for(lambda: version() == "2", timeout_s=10)
        assert store.rollback("digits", "champion") == 1
        wait_for(lambda: version() == "1", timeout_s=10)
        weights = store.resolve("digits/3").folder / "model" / "model.safetensors"
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
        store.store.client.set_registered_model_alias("digits", "champion", "3")  # as somebody with access might
        wait_for(lambda: "cannot be served" in caplog.text, timeout_s=10)
        assert version() == "1"
    again = RegistrySource(open_registry(str(tmp_path / "store")))
    with pytest.raises(DataError, match="not what was registered"):
        again.find("digits@champion")
