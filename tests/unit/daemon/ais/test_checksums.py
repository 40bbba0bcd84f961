"""Checksums by the names that AIStore gives them."""

from __future__ import annotations

import hashlib

import pytest

from headrace_daemon.source.ais.checksums import is_intact

DATA = b"some bytes"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (b"xxhash2", b"55cfd3deadcabb2a"),
        (b"xxhash", b"55cfd3deadcabb2a"),
        (b"md5", hashlib.md5(DATA).hexdigest().encode()),
        (b"sha256", hashlib.sha256(DATA).hexdigest().encode()),
        (b"sha512", hashlib.sha512(DATA).hexdigest().encode()),
    ],
)
def test_a_flipped_bit_is_noticed(kind: bytes, value: bytes) -> None:
    assert is_intact(memoryview(DATA), kind, value)
    assert not is_intact(memoryview(DATA[:-1] + b"x"), kind, value)


@pytest.mark.parametrize(("kind", "value"), [(b"none", b""), (b"crc32c", b"ab"), (b"xxhash2", b"")])
def test_what_cannot_be_checked_passes(kind: bytes, value: bytes) -> None:
    assert is_intact(memoryview(DATA), kind, value)
