"""The key of the data manifest's fingerprint, in the client's state folder. It never leaves this machine."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from fednc.common.files import private_folder

_FILE = "manifest.key"
_BYTES = 32


def manifest_key(state: Path) -> bytes:
    """The key in the state folder, made on first use. Raises OSError."""
    private_folder(state)
    path = state / _FILE
    if not path.exists():
        _make(path)
    return path.read_bytes()


def _make(path: Path) -> None:
    """Of two clients that start at once with one folder, both use the key of the first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secrets.token_bytes(_BYTES))
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
