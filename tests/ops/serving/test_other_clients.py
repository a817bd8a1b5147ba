"""Other people's clients, tritonclient and KServe's, get the answers that the exported model gives."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednc.common.model_export import load
from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from support.served_models import CLASSES, SIZE, RunningServer, export_model

INPUTS = torch.randn(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer(FolderSource(), WantedModel("digits", str(folder))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray[Any, Any]:
    """Probabilities, by the exported model alone."""
    with torch.no_grad():
        found: np.ndarray[Any, Any] = load(folder)(INPUTS).softmax(dim=1).numpy()
    return found


def as_expected(probabilities: Any, labels: Any, expected: np.ndarray[Any, Any]) -> bool:
    names = [CLASSES[k] for k in expected.argmax(axis=1)]
    found = [each.decode() if isinstance(each, bytes) else each for each in np.ravel(labels).tolist()]
    return found == names and np.allclose(np.reshape(probabilities, expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize(("protocol", "binary"), [("http", True), ("http", False), ("grpc", True)])
def test_tritonclient(server: RunningServer, expected: np.ndarray[Any, Any], protocol: str, binary: bool) -> None:
    module = pytest.importorskip(f"tritonclient.{protocol}")
    options = {"binary_data": binary} if protocol == "http" else {}
    with module.InferenceServerClient(server.http if protocol == "http" else server.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        described = client.get_model_metadata("digits", **({} if protocol == "http" else {"as_json": True}))
        assert described["name"] == "digits"
        assert {each["name"] for each in described["inputs"]} == {"image", "pixels", "input"}
        if protocol == "http":  # tritonclient's own messages have no properties
            assert json.loads(described["properties"]["class_names"]) == CLASSES
        given = module.InferInput("input", list(INPUTS.shape), "FP32")
        given.set_data_from_numpy(INPUTS.numpy(), **options)
        wanted = [module.InferRequestedOutput(name, **options) for name in ("label", "probabilities")]
        for outputs in (None, wanted):
            found = client.infer("digits", [given], outputs=outputs, request_id="mine")
            response = found.get_response()
            assert (response["id"] if protocol == "http" else response.id) == "mine"
            assert as_expected(found.as_numpy("probabilities"), found.as_numpy("label"), expected)
        assert found.as_numpy("confidence") is None  # it was not asked for
        with pytest.raises(Exception, match="no model 'other' here; served: digits"):
            client.infer("other", [given])
        with pytest.raises(Exception, match="no version '9'"):
            client.infer("digits", [given], model_version="9")


KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

http, grpc, binary = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
values = np.array(json.load(sys.stdin), dtype=np.float32)

def request():
    given = InferInput(name="input", shape=list(values.shape), datatype="FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model_name="digits", infer_inputs=[given], request_id="mine")

async def main():
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    over_grpc = InferenceGRPCClient(url=grpc)
    url = "http://" + http
    ready = [
        await rest.is_server_live(url), await rest.is_server_ready(url), await rest.is_model_ready(url, "digits"),
        await over_grpc.is_server_live(), await over_grpc.is_server_ready(), await over_grpc.is_model_ready("digits"),
    ]
    found = [await rest.infer(url, request(), model_name="digits"), await over_grpc.infer(request())]
    answers = [
        {
            "id": each.id,
            "version": each.model_version,
            "outputs": {out.name: np.array(out.as_numpy()).astype(str).tolist() for out in each.outputs},
        }
        for each in found
    ]
    await over_grpc.close()
    print(json.dumps({"ready": ready, "answers": answers}))

asyncio.run(main())
"""


@pytest.mark.parametrize("binary", [True, False])
def test_kserve_client(server: RunningServer, expected: np.ndarray[Any, Any], binary: bool) -> None:
    """In another process, because its messages have the names of tritonclient's."""
    if importlib.util.find_spec("kserve") is None:
        pytest.skip("kserve is not installed")
    command = [sys.executable, "-W", "ignore", "-c", KSERVE, server.http, server.grpc, str(binary)]
    asked = subprocess.run(command, input=json.dumps(INPUTS.tolist()), capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr[-2000:]
    found = json.loads(asked.stdout.splitlines()[-1])
    assert found["ready"] == [True] * 6
    for answer in found["answers"]:
        assert answer["id"] == "mine"
        probabilities = np.array(answer["outputs"]["probabilities"], dtype=float)
        assert as_expected(probabilities, answer["outputs"]["label"], expected)
