"""The checksum: the same however the bytes are cut, different after any damage."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.wire.checksum import FINGERPRINT_BYTES, Fingerprint, fingerprint


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_how_the_bytes_are_cut_does_not_matter(pieces):
    found = Fingerprint()
    for piece in pieces:
        found.update(memoryview(piece))
    assert found.finish() == fingerprint(b"".join(pieces))


@given(data=st.binary(min_size=1, max_size=200), bit=st.integers(0))
def test_any_flipped_bit_changes_it(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8 % len(data)] ^= 1 << bit % 8
    assert fingerprint(damaged) != fingerprint(data)


@given(st.binary(max_size=100))
def test_a_missing_or_extra_byte_changes_it(data):
    assert len({fingerprint(data), fingerprint(data + b"\0"), fingerprint(b"\0" + data + b"\0")}) == 3


def test_it_is_the_standard_gmac():
    """This must never change: a new client must understand an old server."""
    reference = AESGCM(b"fednc/fngrprnt/1").encrypt(bytes(12), b"", b"some bytes")
    assert fingerprint(b"some bytes") == reference
    assert len(reference) == FINGERPRINT_BYTES
