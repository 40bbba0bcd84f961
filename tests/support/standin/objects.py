"""What is stored: objects with version and checksum, in the store of each target."""

from __future__ import annotations

from dataclasses import dataclass, field
from posixpath import normpath
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from .archives import Contents
    from .names import Bucket


@dataclass(slots=True)
class StoredObject:
    """One object.

    Args:
        data: Its bytes.
        version: A count for `ais` buckets, the backend's own word otherwise.
        written_ns: When it was written, in ns since the epoch.
        custom: Metadata that a user or a backend gave it.
    """

    data: bytes
    version: str
    written_ns: int
    custom: dict[str, str] = field(default_factory=dict)
    checksum: str = field(init=False)
    """xxHash64 of the bytes in 16 hexadecimal digits: AIStore calls it `xxhash2`."""
    read_ns: int = field(init=False)
    """When it was last written or read, in ns since the epoch."""

    contents: Contents | None = field(default=None, init=False, repr=False)
    """What is in it, if it was read as an archive."""

    def __post_init__(self) -> None:
        self.checksum = xxhash.xxh64_hexdigest(self.data)
        self.read_ns = self.written_ns


class Store:
    """The objects on the disks of one target."""

    def __init__(self) -> None:
        self._buckets: dict[Bucket, dict[str, StoredObject]] = {}
        # A bucket's names as lists show them, sorted, and the real names of those that differ; it
        # has no entry when its names have changed since.
        self._shown: dict[Bucket, tuple[list[str], dict[str, str]]] = {}

    def get(self, bucket: Bucket, name: str) -> StoredObject | None:
        """Return an object, or None."""
        return self._buckets.get(bucket, {}).get(name)

    def put(self, bucket: Bucket, name: str, stored: StoredObject) -> None:
        """Keep an object in the place of an older one."""
        self._buckets.setdefault(bucket, {})[name] = stored
        self._shown.pop(bucket, None)

    def pop(self, bucket: Bucket, name: str) -> StoredObject | None:
        """Remove an object and return it, or None."""
        self._shown.pop(bucket, None)
        return self._buckets.get(bucket, {}).pop(name, None)

    def drop(self, bucket: Bucket) -> None:
        """Remove a bucket's objects."""
        self._shown.pop(bucket, None)
        self._buckets.pop(bucket, None)

    def buckets(self) -> list[Bucket]:
        """Return the buckets that have objects here."""
        return [bucket for bucket, objects in self._buckets.items() if objects]

    def names(self, bucket: Bucket) -> list[str]:
        """Return the names of a bucket's objects."""
        return list(self._buckets.get(bucket, ()))

    def shown(self, bucket: Bucket) -> tuple[list[str], dict[str, str]]:
        """Return a bucket's names as lists show them, and the real ones of those that differ.

        An object is a file: a list shows its cleaned path.  The names are in the order of their
        UTF-8 bytes.  Not to be changed.
        """
        known = self._shown.get(bucket)
        if known is None:
            objects = self._buckets.get(bucket, {})
            odd = {
                normpath(f"/{name}").lstrip("/"): name
                for name in objects
                if "//" in name or name.startswith("/")
            }
            # Code points and UTF-8 bytes sort alike.
            names = (
                sorted({*objects}.difference(odd.values()).union(odd)) if odd else sorted(objects)
            )
            known = self._shown[bucket] = (names, odd)
        return known
