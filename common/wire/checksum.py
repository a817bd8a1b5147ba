"""The fingerprint of bytes: it names blobs, and shows whether what has arrived is what was sent.

AES-GMAC under a key that everybody knows: 128 bits at several times the speed of sha256 and of zlib's crc32, which
matters where every byte of every round is checked at both ends. It finds damage. Forgery is not its business: TLS
prevents that on the way, and all named blobs are made by the server.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fednc.common.wire.arrays import Buffer

FINGERPRINT_BYTES = 16
_PIECE_BYTES = 64 << 20
_GMAC = Cipher(algorithms.AES128(b"fednc/fngrprnt/1"), modes.GCM(bytes(12)))


class Fingerprint:
    """Of bytes that come in pieces."""

    def __init__(self) -> None:
        self._gmac = _GMAC.encryptor()

    def update(self, *data: Buffer) -> None:
        """The next bytes."""
        for view in [memoryview(each) for each in data]:
            for start in range(0, len(view), _PIECE_BYTES):
                self._gmac.authenticate_additional_data(view[start : start + _PIECE_BYTES])

    def finish(self) -> bytes:
        """The fingerprint of all of them; nothing can follow."""
        self._gmac.finalize()
        return self._gmac.tag


def fingerprint(*data: Buffer) -> bytes:
    """Of bytes that are all there, in one piece or in several."""
    found = Fingerprint()
    found.update(*data)
    return found.finish()
