"""Checksums by the names that AIStore gives them."""

from __future__ import annotations

import hashlib

import pytest

from headrace_daemon.source.ais.checksums import is_intact

DATA = b"some bytes"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("xxhash2", "55cfd3deadcabb2a"),
        ("xxhash", "55cfd3deadcabb2a"),
        ("md5", hashlib.md5(DATA).hexdigest()),
        ("sha256", hashlib.sha256(DATA).hexdigest()),
        ("sha512", hashlib.sha512(DATA).hexdigest()),
    ],
)
def test_a_flipped_bit_is_noticed(kind: str, value: str) -> None:
    assert is_intact(memoryview(DATA), kind, value)
    assert not is_intact(memoryview(DATA[:-1] + b"x"), kind, value)


@pytest.mark.parametrize(("kind", "value"), [("none", ""), ("crc32c", "ab"), ("xxhash2", "")])
def test_what_cannot_be_checked_passes(kind: str, value: str) -> None:
    assert is_intact(memoryview(DATA), kind, value)
