"""Manifests: the immutable inventory of one version of a source.

A manifest is a few columns, memory-mapped from files whose folder is named by the digest of
their content.  It holds relative names, sizes and, where the listing gives them, checksums, and
neither times nor absolute paths: copies of the same data have the same manifest.

Layout of ``<root>/<digest>/``: ``header.json``, ``sizes.npy`` (i64[n]), ``offsets.npy``
(u64[n + 1]), ``names.npy`` (u8[…], the UTF-8 names one after the other), and for objects of a store
``checksums.npy`` and ``versions.npy`` (S[n], ASCII, empty where unknown).  Versions are what the
store calls them; they are not part of the digest, since storing the same bytes again changes them.
Samples that lie in shards have more columns (`headrace.placement`); a sample's size is the sum of
those of its values then, and its name is its key, which need not be unique.  Versions of shards are
not kept with them: those of files are times, which copies of the same data do not have in common.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tokenize
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import numpy as np

from .errors import ManifestMismatchError
from .placement import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

FORMAT: Final = 1
NUM_BLOCKS: Final = 64
_LABEL: Final = b"headrace.manifest.v1"
COLUMNS: Final = ("sizes", "offsets", "names")
OPTIONAL: Final = ("checksums", "versions")

UNREADABLE: Final = (
    OSError,
    ValueError,
    IndexError,
    TypeError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
)
"""What numpy raises for a damaged file; the last ones for one that is empty or has a bad header."""


class Entry(NamedTuple):
    """One sample of a manifest."""

    name: str
    """Relative name."""

    size: int
    """Size in bytes."""


class Extent(NamedTuple):
    """How large the samples of a manifest are."""

    total_bytes: int
    largest_bytes: int


_CHUNK: Final = 1 << 20


class Manifest:
    """Names and sizes of all samples, by index; where they lie in shards, of their values too.

    The columns are read-only and may be memory-mapped; the manifest owns them.
    """

    __slots__ = (
        "__weakref__",
        "_extent",
        "_origin",
        "blocks",
        "checksums",
        "digest",
        "names",
        "offsets",
        "placement",
        "sizes",
        "versions",
    )

    def __init__(
        self,
        sizes: NDArray[np.int64],
        offsets: NDArray[np.uint64],
        names: NDArray[np.uint8],
        checksums: NDArray[np.bytes_] | None = None,
        versions: NDArray[np.bytes_] | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.sizes = sizes  # i64[n], bytes of each sample
        self.offsets = offsets  # u64[n + 1], where each name begins in `names`
        self.names = names  # u8[...], UTF-8
        self.checksums = checksums  # S[n], as the store writes them; None if it gives none
        self.versions = versions  # S[n], likewise
        self.placement = placement  # None for whole objects
        self._extent: Extent | None = None
        self._origin: Manifest | None = None  # keeps alive what this is a copy of
        self.digest, self.blocks = _digests(sizes, offsets, names, checksums, placement)

    @classmethod
    def build(cls, entries: Sequence[tuple[bytes, int]]) -> Manifest:
        """Make a manifest of (UTF-8 name, size in bytes) pairs, in their order."""
        sizes = np.fromiter((size for _, size in entries), dtype=np.int64, count=len(entries))
        offsets = np.zeros(len(entries) + 1, dtype=np.uint64)
        lengths = np.fromiter((len(name) for name, _ in entries), np.uint64, count=len(entries))
        np.cumsum(lengths, out=offsets[1:])
        blob = b"".join([name for name, _ in entries])
        return cls(sizes, offsets, np.frombuffer(blob, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Entry:
        length = len(self)
        if not -length <= index < length:
            raise IndexError(f"sample {index} is outside the manifest of {length} samples")
        return Entry(self.name(index % length), int(self.sizes[index]))

    def name(self, index: int) -> str:
        """Return the name of sample `index`, 0 <= index < len."""
        return self.names[self.offsets[index] : self.offsets[index + 1]].tobytes().decode()

    def names_of(self, indices: NDArray[np.uint64]) -> list[str]:
        """Return the names of some samples, in the order of `indices` (u64[m])."""
        blob = self.names.data
        starts = self.offsets[indices].tolist()
        stops = self.offsets[indices + np.uint64(1)].tolist()
        return [str(blob[start:stop], "utf-8") for start, stop in zip(starts, stops, strict=True)]

    def checksums_of(self, indices: NDArray[np.uint64]) -> list[bytes]:
        """Return the checksums of some samples, in the order of `indices`; empty where unknown."""
        return _values(self.checksums, indices)

    def versions_of(self, indices: NDArray[np.uint64]) -> list[bytes]:
        """Return the versions of some samples, in the order of `indices`; empty where unknown."""
        return _values(self.versions, indices)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the F fields of each sample."""
        return ("data",) if self.placement is None else self.placement.fields

    @property
    def bounds(self) -> NDArray[np.uint64] | None:
        """u64[S + 1], where the samples of each shard begin, and the length; None without any."""
        return None if self.placement is None else self.placement.bounds

    def lengths_of(self, indices: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the bytes of each value of some samples, i64[F, m]; -1 for one that is absent."""
        if self.placement is None:
            return self.sizes[indices][np.newaxis]
        return self.placement.lengths[indices].T

    def with_versions(self, versions: NDArray[np.bytes_] | None) -> Manifest:
        """Return a manifest with other versions, which shares all else and has the same digest."""
        copy = self._copy()
        copy.versions = versions
        return copy

    def with_shard_versions(self, versions: NDArray[np.bytes_] | None) -> Manifest:
        """Return a manifest whose shards have other versions; samples must lie in shards.

        Args:
            versions: By row of the table of shards.
        """
        assert self.placement is not None, "samples lie in shards"
        copy = self._copy()
        table = self.placement.table.with_versions(versions)
        copy.placement = self.placement._replace(table=table)
        return copy

    def _copy(self) -> Manifest:
        copy = object.__new__(Manifest)
        for name in self.__slots__:
            if name != "__weakref__":
                setattr(copy, name, getattr(self, name))
        copy._origin = self
        return copy

    @property
    def total_bytes(self) -> int:
        """Bytes of all samples together."""
        return self.extent.total_bytes

    @property
    def extent(self) -> Extent:
        """How large the samples are; looks at each of them the first time."""
        if self._extent is None:
            largest = total = 0
            for first in range(0, len(self), _CHUNK):
                piece = self.sizes[first : first + _CHUNK]
                largest, total = max(largest, int(piece.max())), total + int(piece.sum())
            self._extent = Extent(total, largest)
        return self._extent

    def save(self, root: Path) -> Path:
        """Write the columns under `root` and return their folder.

        The folder is written aside and renamed, so that it is there whole or not at all.
        """
        if (root / self.digest).is_dir():
            return self.install(None, root)
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
        try:
            self.write(aside)
            return self.install(aside, root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def write(self, folder: Path) -> None:
        """Write the columns into a folder that has none; made if it is not there."""
        folder.mkdir(exist_ok=True)
        for column in (*COLUMNS, *OPTIONAL):
            values = getattr(self, column)
            if values is not None:
                np.save(folder / f"{column}.npy", values)
        if self.placement is not None:
            self.placement.write(folder)

    def install(self, aside: Path | None, root: Path) -> Path:
        """Make a folder with the columns the one of this manifest under `root`, and return it.

        Args:
            aside: Has the columns, and is moved; None if the manifest is there already.
            root: Where manifests are.
        """
        target = root / self.digest
        if aside is not None and not target.is_dir():
            header = {
                "format": FORMAT,
                "digest": self.digest,
                "length": len(self),
                "total_bytes": self.total_bytes,
                "blocks": self.blocks,
            }
            (aside / "header.json").write_text(json.dumps(header, indent=1) + "\n")
            try:
                aside.rename(target)
            except OSError:
                if not target.is_dir():  # lost a race against the same content: theirs is as good
                    raise
        self._renew_versions(target)
        return target

    def _renew_versions(self, folder: Path) -> None:
        """Store the versions in the folder of this manifest where those there are older ones."""
        if self.versions is None:
            return
        path = folder / "versions.npy"
        # By content, because the same bytes that were stored again have the same digest.
        if path.is_file() and np.array_equal(np.load(path, mmap_mode="r"), self.versions):
            return
        with written_aside(path) as aside:
            np.save(aside, self.versions)

    @classmethod
    def load(cls, root: Path, digest: str) -> Manifest:
        """Map the manifest that `save` wrote under `root`.

        Raises:
            FileNotFoundError: If there is none with this digest.
            ManifestMismatchError: If the files do not have the content of their name.
        """
        folder = root / digest
        if not (folder / "header.json").is_file():
            raise FileNotFoundError(os.fspath(folder))
        try:
            manifest = cls.map(folder)
        except UNREADABLE as error:
            raise ManifestMismatchError(
                f"the manifest files in {folder} cannot be read ({error}): remove that folder, it "
                "is made anew"
            ) from error
        if manifest.digest != digest:
            raise ManifestMismatchError(
                f"the manifest files in {folder} have the content of {manifest.digest[:12]}…: "
                "remove that folder, it is made anew"
            )
        return manifest

    @classmethod
    def map(cls, folder: Path) -> Manifest:
        """Map the columns in a folder, whatever its name.

        Raises:
            OSError, ValueError, TypeError, …: If they cannot be read (see `UNREADABLE`).
        """
        columns = {}
        for column in (*COLUMNS, *OPTIONAL):
            path = folder / f"{column}.npy"
            if column in COLUMNS or path.is_file():
                # Plain arrays over the mapping: indexing a memmap costs three times as much.
                columns[column] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if [columns[column].dtype for column in COLUMNS] != ["i8", "u8", "u1"]:
            raise TypeError("a column has another type")
        for column in OPTIONAL:
            if column in columns and (
                columns[column].dtype.kind != "S" or len(columns[column]) != len(columns["sizes"])
            ):
                raise TypeError(f"column {column} has another type or length")
        return cls(**columns, placement=Placement.map(folder, len(columns["sizes"])))


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Return a file to write, which replaces that of a path when all went well."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as aside:
        try:
            yield aside
            aside.flush()
            os.replace(aside.name, path)
        except BaseException:
            os.unlink(aside.name)
            raise


class Difference(NamedTuple):
    """What one manifest has and another has not, by name."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """Names in both whose size or checksum differs."""


def compare(old: Manifest, new: Manifest) -> Difference:
    """Return what changed between two manifests; O(n) memory, not for an event loop."""
    before = dict(_facts(old))
    after = dict(_facts(new))
    return Difference(
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        changed=[name for name, facts in after.items() if _differ(before.get(name, facts), facts)],
    )


def _differ(before: tuple[int, bytes], after: tuple[int, bytes]) -> bool:
    # A checksum that one of them does not have says nothing.
    return before[0] != after[0] or (before[1] != after[1] and b"" not in (before[1], after[1]))


def _facts(manifest: Manifest) -> Iterator[tuple[str, tuple[int, bytes]]]:
    checksums = manifest.checksums
    for index in range(len(manifest)):
        checksum = b"" if checksums is None else bytes(checksums[index])
        yield manifest.name(index), (int(manifest.sizes[index]), checksum)


def _values(column: NDArray[np.bytes_] | None, indices: NDArray[np.uint64]) -> list[bytes]:
    if column is None:
        return [b""] * len(indices)
    values: list[bytes] = column[indices].tolist()
    return values


def _digests(
    sizes: NDArray[np.int64],
    offsets: NDArray[np.uint64],
    names: NDArray[np.uint8],
    checksums: NDArray[np.bytes_] | None,
    placement: Placement | None,
) -> tuple[str, list[str]]:
    """Return the SHA-256 of a manifest and the digests of its blocks, in hex.

    Block k holds the samples ``k*n//64 .. (k+1)*n//64``: their sizes, the lengths of their names,
    their names and, if there are any, their checksums with the width of the column and where they
    lie in shards.  The digest of the manifest is over the length and all block digests, and where
    there are shards, over what is known of these.
    """
    length = len(sizes)
    whole = hashlib.sha256(_LABEL + length.to_bytes(8, "little"))
    blocks = []
    for number in range(NUM_BLOCKS):
        start, stop = number * length // NUM_BLOCKS, (number + 1) * length // NUM_BLOCKS
        block = hashlib.sha256()
        block.update(np.ascontiguousarray(sizes[start:stop], dtype="<i8").data)
        lengths = np.diff(offsets[start : stop + 1])
        block.update(np.ascontiguousarray(lengths, dtype="<u8").data)
        block.update(np.ascontiguousarray(names[offsets[start] : offsets[stop]]).data)
        if checksums is not None:
            block.update(b"checksums" + checksums.dtype.itemsize.to_bytes(4, "little"))
            block.update(checksums[start:stop].tobytes())
        if placement is not None:
            placement.add_to(block, start, stop)
        whole.update(block.digest())
        blocks.append(block.hexdigest()[:16])
    if placement is not None:
        whole.update(placement.own_digest)
    return whole.hexdigest(), blocks
