"""Explains to people why a connection failed: one line that says what to check.

gRPC has one status for all causes and puts the cause into a text, which is parsed only here. Used by the link and
by commands that do not try again.
"""

from __future__ import annotations

import re

import grpc

from fednc.client.link.channel import Credentials
from fednc.common.errors import AddressError, ConfigError, FedncError, RefusedError
from fednc.common.peer_text import LONG_TEXT, one_line

_NO_FEDNC = "what answers there is not a fednc server: check host and port"
_UNKNOWN_HOST = "the host name cannot be looked up: check its spelling, and this machine's DNS"
_OTHER_AUTHORITY = "the server's certificate was not issued by the authority in {ca}"
_NO_ANSWER = "connected, but the server does not answer: it hangs, or is not a fednc server"
_UNREACHABLE = "no answer at all: the host is off, or a firewall drops the connection"
# Text of gRPC -> what it means; the first match counts.
_SIGNS = {
    "Domain name not found": _UNKNOWN_HOST,
    "address lookup failed": _UNKNOWN_HOST,
    "errors resolving": _UNKNOWN_HOST,
    "HTTP proxy returned response code 407": "HTTP 407: the proxy wants a user and password in its URL",
    "HTTP proxy returned response code": "HTTP {code} from the proxy: it does not allow this connection",
    "Connection refused": "connection refused: nothing listens on that port; is the server running?",
    "No route to host": "no route to that host: check the network, or a firewall rejects the connection",
    "Network is unreachable": "the network is unreachable from this machine",
    "Hostname Verification": "the server's certificate is not for this host; use a name or address that it lists",
    "is not yet valid": "the server's certificate is not valid yet by this machine's clock; check the clock",
    "certificate has expired": "the server's certificate has expired; its operator must renew it, unless this "
    "machine's clock is wrong",
    "unsupported certificate purpose": "the server's certificate is not a server certificate",
    "CERTIFICATE_VERIFY_FAILED": _OTHER_AUTHORITY,
    "BAD_SIGNATURE": _OTHER_AUTHORITY,
    "WRONG_VERSION_NUMBER": "the server speaks plaintext, or is not a fednc server; ask its operator, or "
    "connect without certificates",
    "http1.x server": f"{_NO_FEDNC} (it speaks HTTP/1)",
    "Received http2 header with status": f"{_NO_FEDNC} (HTTP {{code}})",
    "Failed parsing HTTP/2": f"{_NO_FEDNC} (it speaks another protocol)",
    "before receiving SETTINGS frame": _NO_ANSWER,
    "Endpoint closing": f"{_NO_ANSWER} (the TLS handshake was not answered)",
    "FD Shutdown": _UNREACHABLE,
    "FD shutdown": _UNREACHABLE,
    "timed out": _UNREACHABLE,
    "Timeout occurred": _UNREACHABLE,
}
# The server refused us in the handshake, which carries no reason.
_CLOSED = ("Socket closed", "Connection reset", "Broken pipe")
_MOST_CHARACTERS = 200  # of a text that we do not recognise
_CODE = re.compile(r"(?:response code|with status:|status) ?:? ?(\d{3})")


def explain(error: grpc.aio.AioRpcError, credentials: Credentials | None, proxy: str = "") -> str:
    """Why a connection failed. `proxy`: the one on the way, see http_proxy.py."""
    through = f" (through the proxy {proxy}; --no-proxy goes without)" if proxy else ""
    return _meaning(error, credentials) + through


def _meaning(error: grpc.aio.AioRpcError, credentials: Credentials | None) -> str:
    details = error.details() or ""
    for sign, meaning in _SIGNS.items():
        if sign in details:
            code = _CODE.search(details)
            return meaning.format(ca=credentials.ca if credentials else "--ca", code=code[1] if code else "error")
    if _was_hung_up_on(error):
        return f"the server closed the connection before it answered; {_likely(credentials)}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time: the host is off, a firewall drops the connection, or the server is overloaded"
    said = one_line(details.partition("\n")[0], _MOST_CHARACTERS)
    return error.code().name.lower().replace("_", " ") + (f": {said}" if said else "")


def as_error(
    error: grpc.aio.AioRpcError, server: str, credentials: Credentials | None, proxy: str = ""
) -> FedncError:
    """The error of a command that does not try again."""
    details = one_line(error.details() or error.code().name, LONG_TEXT)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) or _is_foreign(error):
        if is_expired_refusal(error, credentials):
            return RefusedError("this certificate has expired; `fednc certs ... --renew` makes another")
        return AddressError(f"no answer from {server}: {explain(error, credentials, proxy)}")
    if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        return ConfigError(details)
    return RefusedError(details)


def final_reason(error: grpc.aio.AioRpcError, credentials: Credentials | None, proxy: str = "") -> str:
    """Why the server, or whatever answers in its place, refuses for good."""
    if _is_foreign(error):
        return explain(error, credentials, proxy)
    return one_line(error.details() or error.code().name, LONG_TEXT)


def is_expired_refusal(error: grpc.aio.AioRpcError, credentials: Credentials | None) -> bool:
    """Whether the server hung up because our certificate has expired; TLS gives no reason."""
    return _was_hung_up_on(error) and credentials is not None and credentials.has_expired


def _is_foreign(error: grpc.aio.AioRpcError) -> bool:
    """Whether a web server answered; gRPC translates its status into one of its own."""
    return "Received http2 header" in (error.details() or "")


def _was_hung_up_on(error: grpc.aio.AioRpcError) -> bool:
    details = error.details() or ""
    return "failed to connect" in details and any(sign in details for sign in _CLOSED)


def _likely(credentials: Credentials | None) -> str:
    if credentials is None:
        return "it was stopped, or it asks for TLS (--certs)"
    if credentials.cert:
        return f"it was stopped, or it does not accept {credentials.cert}"
    return "it was stopped, or it asks for a certificate (--cert and --key)"
