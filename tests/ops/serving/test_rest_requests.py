"""REST: a request gets the exported model's answer; anything else gets one error and never a traceback."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import json
import re
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fednc.common.model_export import load
from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from support.served_models import CLASSES, SIZE, Answer, RunningServer, export_model, json_request

INPUTS = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
INFER = "/v2/models/digits/infer"
BODY_MIB = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with RunningServer(FolderSource(), WantedModel("digits", str(folder)), body_mib=BODY_MIB) as running:
        yield running


def output(answer: Answer, name: str) -> Any:
    found = {each["name"]: each for each in answer.json["outputs"]}[name]
    return np.array(found["data"]).reshape(found["shape"])


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_image_files_and_pixels_give_what_predict_gives(
    server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)
    files = [png(each) for each in pixels]
    model = load(folder)
    for place, content in enumerate(files):
        (tmp_path / f"{place}.png").write_bytes(content)
    data = model.task.load_input(str(tmp_path))
    with torch.no_grad():
        expected = torch.cat([model(batch[0]) for batch in data.eval_batches(4)]).softmax(1).numpy()
    text = [base64.b64encode(content).decode() for content in files]
    as_files = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [4], "data": text}]}
    values = pixels[..., None].tolist()
    as_pixels = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [4, SIZE, SIZE, 1], "data": values}]}
    raw = b"".join(struct.pack("<I", len(each)) + each for each in files)
    head = json.dumps(
        {
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [4], "parameters": {"binary_data_size": len(raw)}}
            ]
        }
    ).encode()
    for answer in (
        server.ask(INFER, as_files),
        server.ask(INFER, as_pixels),
        server.ask(INFER, head + raw, Inference_Header_Content_Length=str(len(head))),
    ):
        assert answer.status == 200, answer.body
        assert np.allclose(output(answer, "probabilities"), expected, atol=1e-5)
        assert output(answer, "label").ravel().tolist() == [CLASSES[k] for k in expected.argmax(1)]


def test_the_best_classes_are_in_order(server: RunningServer) -> None:
    answer = server.ask(INFER, json_request(INPUTS, id="7", parameters={"top_k": 3}))
    assert answer.json["id"] == "7"
    prob, confidence, labels = (output(answer, name) for name in ("probabilities", "confidence", "label"))
    assert np.allclose(confidence, -np.sort(-prob, axis=1))
    assert [[CLASSES.index(each) for each in row] for row in labels] == np.argsort(-prob, axis=1).tolist()


def test_confidences_are_calibrated(tmp_path: Path) -> None:
    manifest = export_model(tmp_path) / "model" / "model.json"
    with torch.no_grad():
        expected = (load(tmp_path)(INPUTS) / 0.2).softmax(1).numpy()  # before there is a temperature
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "temperature": 0.2}))
    with RunningServer(FolderSource(), WantedModel("digits", str(tmp_path))) as server:
        found = server.ask(INFER, json_request(INPUTS))
    assert np.allclose(output(found, "probabilities"), expected, atol=1e-5)
    assert np.allclose(output(found, "confidence").ravel(), expected.max(1), atol=1e-5)


def test_an_answer_names_version_digest_and_run(server: RunningServer, folder: Path) -> None:
    answer = server.ask(INFER, json_request(INPUTS)).json
    found = FolderSource().find(str(folder))
    assert answer["model_version"] == found.version
    assert answer["parameters"]["model_digest"] == found.digest
    assert answer["parameters"]["run_digest"] == load(folder).run.digest
    assert answer["id"]  # the server's own, so that an answer can be found again
    again = server.ask(f"/v2/models/digits/versions/{found.version}/infer", json_request(INPUTS))
    assert again.json["model_version"] == found.version


def test_health_metadata_and_metrics(server: RunningServer) -> None:
    assert server.ask("/v2/health/live").json == {"live": True}
    assert server.ask("/v2/health/ready").json == {"ready": True}
    assert server.ask("/v2").json["name"] == "fednc"
    assert server.ask("/v2/models").json == {"models": ["digits"]}
    assert server.ask("/v2/models/digits/ready").json == {"name": "digits", "ready": True}
    before = server.ask("/metrics").body.decode()
    assert 'fednc_serve_ready{model="digits"} 1.0' in before
    assert "fednc_serve_batch_examples_bucket" in before


def one(**changes: Any) -> dict[str, Any]:
    """A request with one input, changed."""
    return {"inputs": [{**json_request(INPUTS)["inputs"][0], **changes}]}


FILE = {"name": "image", "datatype": "BYTES", "shape": [1]}


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[" * 100_000, 400, ""),
        ({}, 400, "inputs: Field required"),
        ({"inputs": []}, 400, "exactly one input, one of image, pixels, input"),
        ({"inputs": [1]}, 400, "inputs.0"),
        (one(name="nothing"), 400, "exactly one input"),
        (one(shape=[3, 1, 8]), 400, "values, but shape"),
        (one(shape=[3, 8, 8, 1]), 400, r"shape \[3, 8, 8, 1\] was given, expected FP32 of shape \[-1, 1, 8, 8\]"),
        (one(shape=[-1, 1, 8, 8]), 400, "none negative"),
        (one(shape=[]), 400, "1 to 8 axes"),
        (one(shape=[0, 1, 8, 8], data=[]), 400, "0 examples; send 1 to"),
        (one(shape=[2**62, 2**62]), 400, "values, but shape"),
        (one(datatype="BYTES", data=["a"] * 192), 400, "BYTES was given"),
        (one(data=None), 400, "has no data"),
        (one(parameters={"binary_data_size": 4}), 400, "both data and binary data"),
        (one(parameters={"shared_memory_region": "a"}), 415, "shared memory"),
        (one(data=[1e39] * 192), 400, "no finite scores"),
        ({**one(), "parameters": {"top_k": 4}}, 400, "from 1 to 3"),
        ({**one(), "parameters": {"top_k": True}}, 400, "from 1 to 3"),
        ({**one(), "id": "x" * 300}, 400, "at most 256"),
        ({**one(), "outputs": [{"name": "nothing"}]}, 400, "no output 'nothing'; this model has label"),
        ({**one(), "outputs": [{"name": "label", "parameters": {"classification": 3}}]}, 415, "top_k"),
        ({"inputs": [{**FILE, "data": ["*"]}]}, 400, "base64"),
        ({"inputs": [{**FILE, "data": ["AAAA"]}]}, 400, "not an image that can be decoded"),
    ],
)
def test_a_bad_request_gets_one_sentence(server: RunningServer, body: Any, status: int, why: str) -> None:
    answer = server.ask(INFER, body)
    assert answer.status == status, answer.body
    assert list(answer.json) == ["error"]
    assert re.search(why, answer.json["error"]), answer.json
    assert "Traceback" not in answer.json["error"]
    assert server.ask(INFER, json_request(INPUTS)).status == 200


def bomb(side: int) -> bytes:
    """A PNG file of a few kB that declares and holds `side` * `side` grey pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_by_its_header(server: RunningServer) -> None:
    answer = server.ask(INFER, {"inputs": [{**FILE, "data": [base64.b64encode(bomb(6000)).decode()]}]})
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert "6000x6000 pixels, more than the limit" in answer.json["error"]


def test_bodies_are_bounded(server: RunningServer) -> None:
    large = b" " * ((BODY_MIB << 20) + 1)
    stated = http.client.HTTPConnection(server.http)
    stated.putrequest("POST", INFER)
    stated.putheader("Content-Length", str(1 << 40))
    stated.endheaders()  # refused before a byte of it is sent
    assert stated.getresponse().status == 413
    stated.close()
    chunked = http.client.HTTPConnection(server.http)
    chunked.request("POST", INFER, iter([large]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    found = chunked.getresponse()
    assert (found.status, list(json.loads(found.read()))) == (413, ["error"])
    chunked.close()
    packed = server.ask(INFER, gzip.compress(json.dumps(one()).encode()), Content_Encoding="gzip")
    assert (packed.status, list(packed.json)) == (415, ["error"])


def test_headers_are_bounded(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.listening.http.port), timeout=20) as stranger:
        stranger.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n")
        try:
            for _ in range(100_000):
                stranger.sendall(b"a: " + b"b" * 1000 + b"\r\n")
        except OSError:
            return
        pytest.fail("a hundred megabytes of headers were read")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/digits/versions/9", 404),
        ("GET", "/v2/models/digits/versions/9/ready", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/models/digits", 405),
        ("POST", "/v2/models/digits", 404),
        ("GET", "/v2/models/%00%0a", 404),
    ],
)
def test_other_addresses_get_an_error(server: RunningServer, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection(server.http)
    connection.request(method, path, body=b"" if method == "POST" else None)
    found = connection.getresponse()
    assert (found.status, list(json.loads(found.read()))) == (status, ["error"])
    connection.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
KEYS = ["name", "shape", "datatype", "parameters", "data"]


@settings(max_examples=60)
@given(
    key=st.sampled_from(KEYS),
    value=JSON,
    more=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), JSON),
)
def test_no_json_of_a_stranger_breaks_the_server(server: RunningServer, key: str, value: Any, more: Any) -> None:
    answer = server.ask(INFER, {**one(**{key: value}), **more})
    assert answer.status in (200, 400, 415)
    assert answer.status == 200 or list(answer.json) == ["error"]


@settings(max_examples=40)
@given(
    body=st.binary(max_size=300),
    length=st.none() | st.integers(0, 400).map(str) | st.sampled_from(["-1", "x", "9" * 30]),
)
def test_no_bytes_of_a_stranger_break_the_server(server: RunningServer, body: bytes, length: str | None) -> None:
    headers = {} if length is None else {"Inference_Header_Content_Length": length}
    answer = server.ask(INFER, body, **headers)
    assert answer.status == 400
    assert list(answer.json) == ["error"]
