"""Why a connection fails: each cause has its own message, tried with real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.client.link.channel import Credentials, credentials_from, open_channel
from fednc.client.link.connection_errors import explain
from fednc.client.link.http_proxy import proxy_on_the_way, proxy_options
from fednc.client.link.reconnect_messages import ReconnectLog
from fednc.common.errors import AddressError, ConfigError, FedncError
from fednc.common.security import certificates
from fednc.ops.operator_client import OperatorLink
from support.local_servers import Place, serving

PROXIES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


class Peer:
    """Listens, and answers the first bytes of every connection with `answer`, then hangs up."""

    def __init__(self, answer: bytes) -> None:
        self.heard: list[bytes] = []
        self._answer, self._socket = answer, socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                with self._socket.accept()[0] as connection:
                    self.heard.append(connection.recv(4096))
                    connection.sendall(self._answer)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


def closed_port() -> Iterator[str]:
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def complaint(server: str, credentials: Credentials | None = None, *, direct: bool = False) -> str:
    """What `fednc status` says."""
    link = OperatorLink(server, credentials, direct)
    with pytest.raises(FedncError) as raised:
        asyncio.run(link.status())
    assert isinstance(raised.value, AddressError)
    assert server in str(raised.value)
    return str(raised.value)


def answered(answer: bytes, credentials: Credentials | None = None) -> str:
    with closing(Peer(answer)) as peer:
        return complaint(peer.address, credentials)


def test_each_cause_has_its_own_message(place: Place) -> None:
    mine = place.certificate("a")
    http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    said = {
        "refused": next(complaint(address) for address in closed_port()),
        "unknown": complaint("no-such-host.invalid:8440", mine),
        "http": answered(http),
        "ssh": answered(b"SSH-2.0-OpenSSH_9.2\r\n"),
        "plaintext": answered(http, mine),
        "hung up": answered(b""),
    }
    assert "connection refused" in said["refused"]
    assert "host name" in said["unknown"]
    assert "not a fednc server" in said["http"]
    assert "HTTP/1" in said["http"]
    assert "another protocol" in said["ssh"]
    assert "plaintext" in said["plaintext"]
    assert "closed the connection" in said["hung up"]
    assert len(set(said.values())) == len(said)


def shifted(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Make certificates as if the authority's clock were wrong."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + by

    monkeypatch.setattr(certificates, "datetime", Clock)


@pytest.mark.parametrize(
    ("by_days", "words"), [(5, "not valid yet by this machine's clock"), (-500, "has expired")]
)
def test_a_wrong_clock_is_not_reported_as_another_authority(
    by_days: int, words: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = place.certificate("ops")
    shifted(monkeypatch, timedelta(days=by_days))
    made = certificates.issue_to_server(place.authority._authority(), ["127.0.0.1"], timedelta(days=365))

    async def trial() -> str:
        server = grpc.aio.server()
        pair = [(made.key_pem, made.cert_pem)]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
        await server.start()
        try:
            async with open_channel(f"127.0.0.1:{port}", mine, 5) as channel:
                call = channel.unary_unary("/a/b")
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call(b"", timeout=10)
                return explain(failed.value, mine)
        finally:
            await server.stop(None)

    said = asyncio.run(trial())
    assert words in said
    assert "authority" not in said


# ---- proxies ----------------------------------------------------------------------------------------------


def test_loopback_never_goes_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Peer(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")

        async def trial() -> None:
            async with serving(tmp_path, {}) as server:
                for host in ("127.0.0.1", "localhost"):
                    await OperatorLink(f"{host}:{server.listening.port}").status()

        asyncio.run(trial())
        assert proxy.heard == []


def test_a_proxy_that_refuses_is_named_and_can_be_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Peer(b"HTTP/1.1 403 Forbidden\r\n\r\n")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:secret@{proxy.address}")
        said = complaint("192.0.2.1:8440")
        assert "HTTP 403 from the proxy" in said
        assert f"through the proxy {proxy.address}" in said
        assert "--no-proxy" in said
        assert "secret" not in said
        assert proxy.heard[0].startswith(b"CONNECT 192.0.2.1:8440")
    assert proxy_options("192.0.2.1:8440", direct=True) == [("grpc.enable_http_proxy", 0)]
    assert proxy_on_the_way("192.0.2.1:8440", direct=True) == ""


@pytest.mark.parametrize(
    ("exceptions", "is_used"),
    [("", True), ("other.org", True), ("example.org", False), ("10.0.0.0/8", True), (" fl.example.org ,x", False)],
)
def test_exceptions_are_read_as_grpc_reads_them(
    exceptions: str, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.corp:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert proxy_on_the_way("fl.example.org:8440") == ("proxy.corp:3128" if is_used else "")


@given(st.text(max_size=30).filter(lambda text: "\0" not in text))
def test_a_malformed_proxy_is_ignored(text: str) -> None:
    if text.encode("utf-8", "ignore").decode() != text:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("grpc_proxy", text)
        assert isinstance(proxy_on_the_way("fl.example.org:8440"), str)


# ---- what is said, and how often --------------------------------------------------------------------------


def test_the_same_cause_is_logged_less_and_less_often_and_a_new_one_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("fednc.client.link.reconnect_messages.time.monotonic", lambda: clock[0])
    caplog.set_level("INFO", "fednc.client")
    patience = ReconnectLog("h:1", 10)

    def hours(count: float, why: str) -> int:
        caplog.clear()
        for _ in range(int(count * 720)):
            clock[0] += 5
            patience.note(why)
        return len(caplog.records)

    assert hours(24, "refused") <= 8 + 24
    assert hours(1 / 60, "unknown host") >= 2
    patience.connected()
    patience.wait_for_next_run()
    assert hours(24, "refused") == 0
    patience.connected()
    assert hours(1 / 60, "refused") >= 2


# ---- files that cannot be used ----------------------------------------------------------------------------

SPOILT: dict[str, tuple[Callable[[Credentials], None], str]] = {
    "ca is not one": (lambda files: files.ca.write_bytes(b"hello") and None, "not an authority.s certificate"),
    "ca is empty": (lambda files: files.ca.write_bytes(b"") and None, "not an authority.s certificate"),
    "ca is not text": (
        lambda files: files.ca.write_bytes(bytes(range(256))) and None,
        "not an authority.s certificate",
    ),
    "cert is missing": (lambda files: files.cert.unlink(), "cert.pem"),  # type: ignore[union-attr]
    "cert is not one": (lambda files: files.cert.write_bytes(b"x") and None, "cannot be used"),  # type: ignore[union-attr]
    "key is encrypted": (lambda files: encrypt(files.key), "encrypted"),
    "key is another's": (lambda files: files.key.write_bytes(other_key()) and None, "belong together"),  # type: ignore[union-attr]
}


def other_key() -> bytes:
    return certificates.make_authority("other", timedelta(days=1)).key_pem


def encrypt(path: Path | None) -> None:
    from cryptography.hazmat.primitives import serialization

    assert path
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


@pytest.mark.parametrize("how", SPOILT)
def test_files_that_cannot_be_used_are_named(how: str, place: Place) -> None:
    spoil, words = SPOILT[how]
    files = place.certificate("a")
    spoil(files)
    with pytest.raises(ConfigError, match=words):
        credentials_from("h:1", ca=files.ca, cert=files.cert, key=files.key).for_channel()  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"no token", b"\xff\xfe", b"node.a.x\nnode.b.y", b"node.a.\xc3\xa9\n"])
def test_a_file_without_a_token_is_named(content: bytes, place: Place) -> None:
    files = place.token("a")
    assert files.token
    files.token.write_bytes(content)
    with pytest.raises(ConfigError, match="has no token in it"):
        files.for_channel()
