"""Tries to connect to a server that must refuse it: in plaintext, without a certificate, with a wrong one.

Uses plain sockets and TLS, so that the check sees the server's answer and not that of a client library. Used by
`verify.py`. Each function says how it was refused. Raises ValueError if it was not refused, OSError if no server
answers.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
from datetime import timedelta
from pathlib import Path

from fednc.common.security.certificates import issue_to_holder, make_authority
from fednc.common.security.credentials import Holder, Role

_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_BYTES, _SETTINGS = 9, 4  # an HTTP/2 server that accepts us answers with a settings frame
_TIMEOUT_S = 10.0
_FOREIGN_LIFETIME = timedelta(hours=1)


def knock_in_plaintext(server: str) -> str:
    """HTTP/2 without TLS."""
    return _knock(server, None)


def knock_without_certificate(server: str) -> str:
    """TLS without a client certificate."""
    return _knock(server, _context())


def knock_with_foreign_one(server: str) -> str:
    """TLS with the certificate of a node from another authority."""
    authority = make_authority("nobody", _FOREIGN_LIFETIME)
    pair = issue_to_holder(authority, Holder(Role.NODE, "edge-0"), _FOREIGN_LIFETIME)
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "pair.pem"
        both.write_bytes(pair.cert_pem + pair.key_pem)
        context.load_cert_chain(both)
    return _knock(server, context)


def _context() -> ssl.SSLContext:
    """Accepts any server certificate: the check is whether the server accepts ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _knock(server: str, context: ssl.SSLContext | None) -> str:
    host, _, port = server.rpartition(":")
    door: socket.socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
    try:
        if context:
            door = context.wrap_socket(door, server_hostname=host)
        door.sendall(_HTTP2_HELLO)
        answer = door.recv(_FRAME_BYTES)
    except ssl.SSLError as e:
        if "ALERT" not in str(e.reason):
            raise ValueError(f"the server has no TLS 1.3: {e}") from e
        return f"TLS alert {e.reason}"
    except ConnectionError as e:
        return f"closed ({type(e).__name__})"
    finally:
        door.close()
    if answer[3:4] == bytes([_SETTINGS]):
        raise ValueError("the server let us in")
    return "closed without an HTTP/2 answer"
