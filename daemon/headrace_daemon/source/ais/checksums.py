"""Checksums of whole objects, by the names that AIStore gives to their types."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _xxh64(data: memoryview) -> str:
    return xxhash.xxh64_hexdigest(data)


_DIGESTS: Final[Mapping[bytes, Callable[[memoryview], str]]] = {
    b"xxhash": _xxh64,
    b"xxhash2": _xxh64,
    b"md5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    b"sha256": lambda data: hashlib.sha256(data).hexdigest(),
    b"sha512": lambda data: hashlib.sha512(data).hexdigest(),
}


class Digest(Protocol):
    """A checksum that grows with its bytes."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum of what was taken."""
        ...


_GROWING: Final[Mapping[bytes, Callable[[], Digest]]] = {
    b"xxhash": xxhash.xxh64,
    b"xxhash2": xxhash.xxh64,
    b"md5": lambda: hashlib.md5(usedforsecurity=False),
    b"sha256": hashlib.sha256,
    b"sha512": hashlib.sha512,
}


def begin_digest(kind: bytes) -> Digest | None:
    """Return the checksum of no bytes; None where its type is not one that can be computed here."""
    make = _GROWING.get(kind)
    return None if make is None else make()


def is_intact(data: memoryview, kind: bytes, value: bytes) -> bool:
    """Tell whether bytes have a checksum; True where its type is not one that can be checked here.

    Args:
        data: The whole object.
        kind: Type of the checksum: ``b"xxhash2"`` unless the bucket was told otherwise.
        value: In hex, as it stands in the header; empty for none.
    """
    digest = _DIGESTS.get(kind)
    return digest is None or not value or digest(data).encode() == value
