"""Checksums of whole objects, by the names that AIStore gives to their types."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

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


def is_intact(data: memoryview, kind: bytes, value: bytes) -> bool:
    """Tell whether bytes have a checksum; True where its type is not one that can be checked here.

    Args:
        data: The whole object.
        kind: Type of the checksum: ``b"xxhash2"`` unless the bucket was told otherwise.
        value: In hex, as it stands in the header; empty for none.
    """
    digest = _DIGESTS.get(kind)
    return digest is None or not value or digest(data).encode() == value
