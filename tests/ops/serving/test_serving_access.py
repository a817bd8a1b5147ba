"""Beyond this machine nobody is answered without a certificate or a token, over either protocol."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from fednc.common.address import Address
from fednc.common.errors import ConfigError
from fednc.common.security.credentials import Holder, Role
from fednc.ops.serving.access import door_of
from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from fednc.protos import open_inference_pb2 as pb
from support.local_servers import Place
from support.served_models import LOCAL, SIZE, RunningServer, ask, export_model, json_request

INFER = "/v2/models/digits/infer"
BODY = json_request(torch.zeros(1, 1, SIZE, SIZE))
SHOP = Holder(Role.NODE, "shop")
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


def client_tls(folder: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if (folder / "cert.pem").exists():
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def over_grpc(server: RunningServer, method: str, credentials: Any, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """How a call ends that would succeed if its caller were let in."""
    request = getattr(pb, f"{method}Request")()
    if method == "ModelInfer":
        request = pb.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(4 * SIZE * SIZE)])
        request.inputs.add(name="input", datatype="FP32", shape=[1, 1, SIZE, SIZE])
    elif method.startswith("Model"):
        request.name = "digits"
    make = grpc.insecure_channel if credentials is None else lambda at: grpc.secure_channel(at, credentials)
    with make(server.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            call(request.SerializeToString(), metadata=metadata, timeout=10)
        except grpc.RpcError as e:
            return e.code()
        return grpc.StatusCode.OK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return export_model(tmp_path / "run")


def running(folder: Path, place: Place, auth: str) -> RunningServer:
    door = door_of(auth, place.authority.server_folder, [LOCAL], insecure=False)
    return RunningServer(FolderSource(), WantedModel("digits", str(folder)), door=door)


def test_tokens(folder: Path, place: Place) -> None:
    place.token("shop")
    home = place.authority.holder_folder(SHOP)
    token, ca = (home / "token").read_text().strip(), home / "ca.pem"
    tls = grpc.ssl_channel_credentials(ca.read_bytes())
    bearer = ("authorization", f"Bearer {token}")
    wrong = ("authorization", f"Bearer {token[:-1]}x")
    with running(folder, place, "token") as server:
        url, context = f"https://{server.http}", client_tls(home.with_name("nobody"), ca)
        for probe in ("/v2/health/live", "/v2/health/ready"):
            assert ask(url + probe, context=context).status == 200
        for path, body in ((INFER, BODY), ("/v2/models/digits", None), ("/metrics", None), ("/v2", None)):
            refused = ask(url + path, body, context=context)
            assert (refused.status, list(refused.json)) == (401, ["error"])
            assert refused.headers["www-authenticate"] == "Bearer"
            assert ask(url + path, body, context=context, Authorization=wrong[1]).status == 401
            assert ask(url + path, body, context=context, Authorization=bearer[1]).status == 200
        for method in METHODS:
            is_probe = method in ("ServerLive", "ServerReady")
            expected = grpc.StatusCode.OK if is_probe else grpc.StatusCode.UNAUTHENTICATED
            assert over_grpc(server, method, tls) is expected
            assert over_grpc(server, method, tls, wrong) is expected
            assert over_grpc(server, method, tls, bearer) is grpc.StatusCode.OK
        place.authority.revoke("shop")
        assert ask(url + INFER, BODY, context=context, Authorization=bearer[1]).status == 401
        assert over_grpc(server, "ModelInfer", tls, bearer) is grpc.StatusCode.UNAUTHENTICATED
        probe = f"http://{server.listening.probe}"
        assert ask(f"{probe}/v2/health/ready").status == 200
        assert ask(f"{probe}/v2/models/digits").status == 404  # nothing but health and metrics is there
        assert ask(probe + INFER, BODY).status == 404


def test_certificates(folder: Path, place: Place) -> None:
    place.certificate("shop")
    home = place.authority.holder_folder(SHOP)
    ca = home / "ca.pem"
    key, cert = (home / name for name in ("key.pem", "cert.pem"))
    tls = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())
    with running(folder, place, "mtls") as server:
        url, mine = f"https://{server.http}", client_tls(home, ca)
        assert ask(url + INFER, BODY, context=mine).status == 200
        with pytest.raises(OSError, match=r"(?i)certificate|closed|reset|eof"):
            ask(url + INFER, BODY, context=client_tls(home.with_name("nobody"), ca))
        assert over_grpc(server, "ModelInfer", tls) is grpc.StatusCode.OK
        without = grpc.ssl_channel_credentials(ca.read_bytes())
        assert over_grpc(server, "ServerLive", without) is grpc.StatusCode.UNAVAILABLE
        place.authority.revoke("shop")
        assert ask(url + INFER, BODY, context=mine).status == 401
        assert over_grpc(server, "ModelInfer", tls) is grpc.StatusCode.UNAUTHENTICATED


def test_plaintext_beyond_this_machine_must_be_asked_for(place: Place) -> None:
    everywhere, certs = [Address("0.0.0.0", 8450)], place.authority.server_folder
    with pytest.raises(ConfigError, match=r"can be reached from other machines .* --certs DIR, or .* --insecure"):
        door_of("auto", None, everywhere, insecure=False)
    assert door_of("auto", None, everywhere, insecure=True).mode == "none"
    assert door_of("auto", None, [LOCAL], insecure=False).mode == "none"
    assert door_of("auto", certs, everywhere, insecure=False).mode == "mtls"
    with pytest.raises(ConfigError, match="contradicts"):
        door_of("token", certs, everywhere, insecure=True)
    with pytest.raises(ConfigError, match="needs --certs"):
        door_of("token", None, everywhere, insecure=False)
    with pytest.raises(ConfigError, match="plaintext"):
        door_of("none", certs, [LOCAL], insecure=False)
    (certs / "key.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="cannot be used"):
        door_of("mtls", certs, everywhere, insecure=False)
