"""Manifests: the immutable inventory of one version of a source.

A manifest is a few columns, memory-mapped from files whose folder is named by the digest of
their content.  It holds relative names and sizes, and neither times nor absolute paths: copies of
the same data have the same manifest.

Layout of ``<root>/<digest>/``: ``header.json``, ``sizes.npy`` (i64[n]), ``offsets.npy``
(u64[n + 1]) and ``names.npy`` (u8[…], the UTF-8 names one after the other).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from .errors import ManifestMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

FORMAT: Final = 1
NUM_BLOCKS: Final = 64
_LABEL: Final = b"headrace.manifest.v1"
_COLUMNS: Final = ("sizes", "offsets", "names")

# What numpy raises for a damaged file; the last ones for one that is empty or has a bad header.
_UNREADABLE: Final = (
    OSError,
    ValueError,
    IndexError,
    TypeError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
)


class Entry(NamedTuple):
    """One sample of a manifest."""

    name: str
    """Relative name."""

    size: int
    """Size in bytes."""


class Manifest:
    """Names and sizes of all samples, by index.

    The columns are read-only and may be memory-mapped; the manifest owns them.
    """

    __slots__ = ("__weakref__", "blocks", "digest", "names", "offsets", "sizes")

    def __init__(
        self, sizes: NDArray[np.int64], offsets: NDArray[np.uint64], names: NDArray[np.uint8]
    ) -> None:
        self.sizes = sizes  # i64[n], bytes of each sample
        self.offsets = offsets  # u64[n + 1], where each name begins in `names`
        self.names = names  # u8[...], UTF-8
        self.digest, self.blocks = _digests(sizes, offsets, names)

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

    @property
    def total_bytes(self) -> int:
        """Bytes of all samples together."""
        return int(self.sizes.sum())

    def save(self, root: Path) -> Path:
        """Write the columns under `root` and return their folder.

        The folder is written aside and renamed, so that it is there whole or not at all.
        """
        target = root / self.digest
        if target.is_dir():
            return target
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
        try:
            for column in _COLUMNS:
                np.save(aside / f"{column}.npy", getattr(self, column))
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
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return target

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
            sizes, offsets, names = (
                # Plain arrays over the mapping: indexing a memmap costs three times as much.
                np.asarray(np.load(folder / f"{column}.npy", mmap_mode="r", allow_pickle=False))
                for column in _COLUMNS
            )
            if [sizes.dtype, offsets.dtype, names.dtype] != ["i8", "u8", "u1"]:
                raise TypeError("a column has another type")
            manifest = cls(sizes, offsets, names)
        except _UNREADABLE as error:
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


class Difference(NamedTuple):
    """What one manifest has and another has not, by name."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    """Names in both whose size differs."""


def compare(old: Manifest, new: Manifest) -> Difference:
    """Return what changed between two manifests; O(n) memory, not for an event loop."""
    before = dict(_entries(old))
    after = dict(_entries(new))
    return Difference(
        added=[name for name in after if name not in before],
        removed=[name for name in before if name not in after],
        changed=[name for name, size in after.items() if before.get(name, size) != size],
    )


def _entries(manifest: Manifest) -> Iterator[Entry]:
    return (manifest[index] for index in range(len(manifest)))


def _digests(
    sizes: NDArray[np.int64], offsets: NDArray[np.uint64], names: NDArray[np.uint8]
) -> tuple[str, list[str]]:
    """Return the SHA-256 of a manifest and the digests of its blocks, in hex.

    Block k holds the samples ``k*n//64 .. (k+1)*n//64``: their sizes, the lengths of their names
    and their names.  The digest of the manifest is over the length and all block digests.
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
        whole.update(block.digest())
        blocks.append(block.hexdigest()[:16])
    return whole.hexdigest(), blocks
