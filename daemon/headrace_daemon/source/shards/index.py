"""The index of one shard: name, place and size of each member, in the order of the archive.

24 bytes for each member, and its name.  An index is written as one file, which says what it is the
index of; a file that is damaged, or is that of another shard, is noticed when it is read.

Layout of the file, little-endian: ``_HEAD`` (a magic that has the version of the format, the key of
the shard, its size, the number of members, the bytes of all names), the XXH3-128 of the head and of
what follows, then where each name ends (u64[n]), where the data of each begin (u64[n]), their
sizes (i64[n]), and the names.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import xxhash

if TYPE_CHECKING:
    from typing import IO, Self

    from numpy.typing import NDArray

    from .walk import Found

_MAGIC: Final = b"HRSHARD\x01"
_HEAD: Final = struct.Struct("<8s32sQQQ")
_DIGEST_BYTES: Final = 16
_MEMBER_BYTES: Final = 24


class DamagedIndexError(Exception):
    """A file is not the index that it should be."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """Where the members of a shard are.  The columns are read-only, and belong to the index."""

    shard_bytes: int
    """Size of the shard."""

    names: NDArray[np.uint8]  # u8[…]
    """The names, UTF-8, one after the other."""

    ends: NDArray[np.uint64]  # u64[n]
    """Where each name ends."""

    starts: NDArray[np.uint64]  # u64[n]
    """Where the data of each member begin in the shard."""

    sizes: NDArray[np.int64]  # i64[n]
    """Bytes of each."""

    @classmethod
    def of(cls, found: Found, shard_bytes: int) -> Self:
        """Return the index of what a walker found; its memory is taken over, not copied."""
        index = cls(
            shard_bytes,
            np.frombuffer(found.names, np.uint8),
            np.frombuffer(found.ends, np.uint64),
            np.frombuffer(found.starts, np.uint64),
            np.frombuffer(found.sizes, np.int64),
        )
        for column in (index.names, index.ends, index.starts, index.sizes):
            column.flags.writeable = False
        return index

    def __len__(self) -> int:
        return len(self.sizes)

    def all_names(self) -> list[str]:
        """Return the names of all members, for `headrace.members`; some 80 B more for each."""
        blob = self.names.data
        ends = self.ends.tolist()
        return [
            str(blob[first:end], "utf-8")
            for first, end in zip([0, *ends[:-1]], ends, strict=bool(ends))
        ]

    def save(self, file: IO[bytes], key: bytes) -> None:
        """Write the index.

        Args:
            file: Where to; nobody reads it before it is whole.
            key: Of the shard, 32 bytes.
        """
        columns = [
            np.ascontiguousarray(self.ends, "<u8").data,
            np.ascontiguousarray(self.starts, "<u8").data,
            np.ascontiguousarray(self.sizes, "<i8").data,
            self.names.data,
        ]
        head = _HEAD.pack(_MAGIC, key, self.shard_bytes, len(self), len(self.names))
        digest = xxhash.xxh3_128(head)
        for column in columns:
            digest.update(column)
        file.write(head + digest.digest())
        for column in columns:
            file.write(column)

    @classmethod
    def load(cls, data: bytes, key: bytes, shard_bytes: int) -> Self:
        """Return the index in a file.

        Args:
            data: All of the file; the index is a view of it.
            key: Of the shard, 32 bytes.
            shard_bytes: Its size.

        Raises:
            DamagedIndexError: If it is not, as a whole, the index of that shard.
        """
        at = _HEAD.size + _DIGEST_BYTES
        if len(data) < at:
            raise DamagedIndexError(f"it has {len(data)} bytes")
        magic, of, size, count, name_bytes = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise DamagedIndexError("it begins like something else, or has another version")
        if of != key or size != shard_bytes:
            raise DamagedIndexError("it is the index of another shard")
        owed = at + count * _MEMBER_BYTES + name_bytes
        if len(data) != owed:
            raise DamagedIndexError(f"it has {len(data)} bytes, its head says {owed}")
        digest = xxhash.xxh3_128(data[: _HEAD.size])
        digest.update(memoryview(data)[at:])
        if digest.digest() != data[_HEAD.size : at]:
            raise DamagedIndexError("its checksum is another one")
        columns = []
        for kind in ("<u8", "<u8", "<i8"):
            columns.append(np.frombuffer(data, kind, count, at))
            at += 8 * count
        index = cls(size, np.frombuffer(data, np.uint8, name_bytes, at), *columns)
        index._check()
        return index

    def _check(self) -> None:
        """Check what readers rely on: a checksum says nothing about who wrote the file.

        Raises:
            DamagedIndexError: If names or places are not those of members.
        """
        if not len(self):
            if len(self.names):
                raise DamagedIndexError("it has names without members")
            return
        lengths = np.diff(self.ends, prepend=np.uint64(0))
        limit = np.uint64(self.shard_bytes)
        if (
            int(self.ends[-1]) != len(self.names)
            or bool((self.ends[1:] <= self.ends[:-1]).any())
            or not lengths[0]
        ):
            raise DamagedIndexError("its names are not one after the other")
        if (
            bool((self.sizes < 0).any())
            or bool((self.starts > limit).any())
            or bool((self.sizes.astype(np.uint64) > limit - self.starts).any())
        ):
            raise DamagedIndexError("it has members beyond the end of the shard")
        # UTF-8 as a whole, and no name that begins within a character.
        try:
            str(self.names.data, "utf-8")
        except UnicodeDecodeError as error:
            raise DamagedIndexError("its names are not UTF-8") from error
        if bool(((self.names[self.ends[:-1]] & 0xC0) == 0x80).any()):
            raise DamagedIndexError("its names are not UTF-8")
