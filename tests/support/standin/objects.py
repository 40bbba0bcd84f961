"""What is stored: objects with version and checksum, in the store of each target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import xxhash

from .names import file_of

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
    """The files on the disks of one target: two names of the same file are the same object."""

    def __init__(self) -> None:
        # By their file.
        self._buckets: dict[Bucket, dict[str, StoredObject]] = {}
        # The names of objects that are not those of their files, by the file.
        self._odd: dict[Bucket, dict[str, str]] = {}
        # Folders that there are or were: nobody removes them.
        self._folders: dict[Bucket, set[str]] = {}
        # Files in order; without an entry when they have changed since.
        self._sorted: dict[Bucket, list[str]] = {}

    def get(self, bucket: Bucket, name: str) -> StoredObject | None:
        """Return an object, or None."""
        return self._buckets.get(bucket, {}).get(file_of(name))

    def put(self, bucket: Bucket, name: str, stored: StoredObject) -> None:
        """Keep an object in the place of an older one."""
        file = file_of(name)
        self._buckets.setdefault(bucket, {})[file] = stored
        folders = self._folders.setdefault(bucket, set())
        folder = file.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
        if file != name:
            self._odd.setdefault(bucket, {})[file] = name
        self._sorted.pop(bucket, None)

    def pop(self, bucket: Bucket, name: str) -> StoredObject | None:
        """Remove an object and return it, or None."""
        file = file_of(name)
        self._odd.get(bucket, {}).pop(file, None)
        self._sorted.pop(bucket, None)
        return self._buckets.get(bucket, {}).pop(file, None)

    def drop(self, bucket: Bucket) -> None:
        """Remove a bucket's objects."""
        for known in (self._buckets, self._odd, self._folders, self._sorted):
            known.pop(bucket, None)

    def buckets(self) -> list[Bucket]:
        """Return the buckets that have objects here."""
        return [bucket for bucket, objects in self._buckets.items() if objects]

    def has_folder(self, bucket: Bucket, path: str) -> bool:
        """Return whether a path is that of a folder, empty or not."""
        return path in self._folders.get(bucket, ())

    def names(self, bucket: Bucket) -> list[str]:
        """Return the names of a bucket's objects."""
        odd = self._odd.get(bucket, {})
        return [odd.get(file, file) for file in self._buckets.get(bucket, ())]

    def files(self, bucket: Bucket) -> tuple[list[str], dict[str, str]]:
        """Return the names of a bucket's files, and of the objects in those with another name.

        The names are in the order of their UTF-8 bytes.  Not to be changed.
        """
        files = self._sorted.get(bucket)
        if files is None:
            # Code points and UTF-8 bytes sort alike.
            files = self._sorted[bucket] = sorted(self._buckets.get(bucket, ()))
        return files, self._odd.get(bucket, {})
