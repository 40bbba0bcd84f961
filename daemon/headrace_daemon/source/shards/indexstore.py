"""Indices of shards in the state folder: one file each, under what identifies the shard.

A shard that changed has another key, so an index is never that of other bytes.  Every process that
has the state folder uses the same files.  They are written aside and renamed, so that each is there
whole or not at all, and one that is damaged nevertheless counts as none.

What nobody has asked for in `KEPT_S` is removed (`sweep`): the file of an index that is asked for
becomes young again.  To remove one that somebody uses harms nobody, since indices are read as a
whole; it is made anew when it is wanted again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from headrace.manifest import written_aside

from ...errors import StateFolderError
from ..openfiles import version_of_file
from ..reader import Place, RangeRequest
from .index import DamagedIndexError, ShardIndex
from .policy import DEFAULT_POLICY, ShardPolicy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_S: Final = 90 * 86_400.0
"""Files of indices that nobody asked for in this time are removed."""

_YOUNG_S: Final = 86_400.0  # a file that is younger is not touched, which would cost a write
_LEFT_S: Final = 86_400.0  # what a process that was killed had begun to write
_FILE: Final = re.compile(r"[0-9a-f]{64}\.idx")
_ASIDE: Final = ".writing-"


class Shard(NamedTuple):
    """A shard, as its reader knows it, and what says that its content is the same."""

    name: str
    """Name of the object."""

    size: int
    """Bytes."""

    identity: bytes
    """Equal for equal content only; see `of_object` and `of_file`."""

    checksum: bytes = b""
    """As the manifest has it, for requests; empty where unknown."""

    version: bytes = b""
    """Likewise."""

    @property
    def is_certain(self) -> bool:
        """Whether the identity tells this content from another one of the same size.

        Not where a store says neither checksum nor version: such a shard is indexed each time.
        """
        return bool(self.checksum or self.version)

    @classmethod
    def of_object(
        cls, location: str, name: str, size: int, checksum: bytes, version: bytes
    ) -> Self:
        """Return an object of a store.

        Storing the same bytes again changes the version, so it counts only without a checksum.

        Args:
            location: The bucket, with whatever tells stores apart.
            name: Name in the bucket.
            size: Bytes.
            checksum: As the store writes it, with its type; may be empty.
            version: What the store calls the version; may be empty.
        """
        facts = (
            b"object",
            location.encode(),
            name.encode(),
            checksum,
            b"" if checksum else version,
        )
        return cls(name, size, _packed(size, *facts), checksum, version)

    @classmethod
    def of_file(cls, name: str, path: Path) -> Self:
        """Return a file, as it is now; its path, size, time of change and inode identify it.

        Args:
            name: As the reader knows it.
            path: Absolute.

        Raises:
            OSError: If it is not there.
        """
        facts = os.stat(path)
        numbers = struct.pack("<qQ", facts.st_mtime_ns, facts.st_ino)
        packed = _packed(facts.st_size, b"file", os.fsencode(path), numbers)
        return cls(name, facts.st_size, packed, version=version_of_file(facts.st_mtime_ns))

    def request(self, start: int, target: memoryview) -> RangeRequest:
        """Return the request for the bytes from a place on, as many as the target takes."""
        stop, places = start + len(target), (Place(start, target),)
        return RangeRequest(self.name, start, stop, self.size, places, self.checksum, self.version)


def _packed(size: int, *facts: bytes) -> bytes:
    """Return facts as bytes that no other facts have."""
    return b"".join(
        [struct.pack("<Q", size), *(struct.pack("<Q", len(one)) + one for one in facts)]
    )


class IndexStore:
    """Indices in the state folder; methods block and may be called from any thread.

    Args:
        root: The state folder; made when it is needed.
        policy: That the indices are made by: those made by another one are others.
        clock: Seconds since the epoch.
        known: Another state folder, whose indices are taken where there are none; nothing in it is
            changed, and what cannot be read there counts as nothing.
    """

    def __init__(
        self,
        root: Path,
        policy: ShardPolicy = DEFAULT_POLICY,
        clock: Callable[[], float] = time.time,
        *,
        known: Path | None = None,
    ) -> None:
        self.folder = root / "shards"
        """Where the files are, in folders by the beginning of their names."""
        self.policy = policy
        self._clock = clock
        self._known = None if known is None else known / "shards"

    def load(self, shard: Shard) -> ShardIndex | None:
        """Return the index of a shard; None if there is none that is whole.

        Raises:
            StateFolderError: If the folder cannot be read.
        """
        key = self._key(shard)
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                data = file.read()
                now = self._clock()
                if now - os.fstat(file.fileno()).st_mtime > _YOUNG_S:
                    with suppress(OSError):  # it may belong to somebody else
                        os.utime(file.fileno(), (now, now))
            return ShardIndex.load(data, key, shard.size)
        except FileNotFoundError:
            return self._load_known(shard, key)
        except DamagedIndexError as error:
            logger.warning("index damaged shard=%s file=%s: %s", shard.name, path, error)
            return None
        except OSError as error:
            raise StateFolderError(
                shard.name,
                f"the index of shard {shard.name} cannot be read from {path}: "
                f"{error.strerror or error}: give the daemon's user access to it, or remove it, "
                "and it is made anew; or set [daemon] state_dir to another folder",
            ) from error

    def _load_known(self, shard: Shard, key: bytes) -> ShardIndex | None:
        if self._known is None:
            return None
        with suppress(OSError, DamagedIndexError):
            path = self._known / self._path(key).relative_to(self.folder)
            return ShardIndex.load(path.read_bytes(), key, shard.size)
        return None

    def keep(self, shard: Shard, index: ShardIndex) -> None:
        """Store the index of a shard, in place of one that is there.

        Raises:
            StateFolderError: If it cannot be written.
        """
        key = self._key(shard)
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(path) as aside:
                index.save(aside, key)
        except OSError as error:
            raise StateFolderError(
                shard.name,
                f"the index of shard {shard.name} cannot be kept in {self.folder}: "
                f"{error.strerror or error}: make room there, or set [daemon] state_dir to another "
                "folder",
            ) from error

    def sweep(self) -> int:
        """Remove what nobody has asked for in `KEPT_S`, and return how many files that were.

        Only files that this class has written are removed.
        """
        removed = 0
        now = self._clock()
        with suppress(FileNotFoundError):
            for folder in sorted(self.folder.iterdir()):
                with suppress(OSError):  # no folder, or another process was faster
                    for entry in sorted(folder.iterdir()):
                        age = now - entry.stat().st_mtime
                        is_left = entry.name.startswith(_ASIDE) and age > _LEFT_S
                        if is_left or (_FILE.fullmatch(entry.name) and age > KEPT_S):
                            entry.unlink()
                            removed += 1
        return removed

    def _key(self, shard: Shard) -> bytes:
        return hashlib.sha256(_packed(0, shard.identity, self.policy.identity)).digest()

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}.idx"
