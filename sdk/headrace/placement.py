"""Where the values of samples lie in shards: the part of a manifest that sources of shards have.

Columns like those of a manifest, by sample and field, and the manifest of the shards themselves,
the *table*.  A sample takes some fields from each of K streams (one for `Shards`), and has one
shard in each.

Layout in the folder of a manifest: ``fields.json`` (names of the F fields, and for each the stream
it comes from), ``starts.npy`` (u64[n, F], where a value begins in its shard), ``lengths.npy``
(i64[n, F], bytes; -1 where a sample has none), ``shards.npy`` (u32[n, K], rows of the table),
``bounds.npy`` (u64[S + 1], where the samples of each shard of the first stream begin, and the
number of samples), ``table/`` (the columns of the manifest of all shards, stream by stream, without
their versions).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hashlib import _Hash
    from pathlib import Path

    from numpy.typing import NDArray

    from .manifest import Manifest

COLUMNS: Final = {"starts": "u8", "lengths": "i8", "shards": "u4", "bounds": "u8"}
FIELDS_FILE: Final = "fields.json"
TABLE_FOLDER: Final = "table"

ABSENT: Final = -1
"""Length of a value that a sample does not have."""


class Placement(NamedTuple):
    """Where each value of each sample lies."""

    fields: tuple[str, ...]
    """Names of the F fields."""

    streams: tuple[int, ...]
    """For each field, the column of `shards` that says which shard its values lie in."""

    starts: NDArray[np.uint64]  # u64[n, F]
    lengths: NDArray[np.int64]  # i64[n, F]; ABSENT where there is no value
    shards: NDArray[np.uint32]  # u32[n, K], rows of the table
    bounds: NDArray[np.uint64]  # u64[S + 1], samples by shard of the first stream
    table: Manifest
    """All shards."""

    @property
    def own_digest(self) -> bytes:
        """What tells the parts that are not by sample from others."""
        described = json.dumps([self.fields, self.streams], separators=(",", ":"))
        bounds = np.ascontiguousarray(self.bounds, dtype="<u8").tobytes()
        return described.encode() + bounds + self.table.digest.encode()

    def add_to(self, block: _Hash, start: int, stop: int) -> None:
        """Add some samples to the digest of a block."""
        for column, dtype in ((self.starts, "<u8"), (self.lengths, "<i8"), (self.shards, "<u4")):
            block.update(np.ascontiguousarray(column[start:stop], dtype=dtype).tobytes())

    def write(self, folder: Path) -> None:
        """Write all of it into a folder that has none of it."""
        for name in COLUMNS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        write_fields(folder, self.fields, self.streams)
        write_table(folder, self.table)

    @classmethod
    def map(cls, folder: Path, length: int) -> Placement | None:
        """Map what a folder has, or return None if it has nothing.

        Args:
            folder: That of the manifest.
            length: Number of samples.

        Raises:
            OSError, ValueError, TypeError, …: If it is damaged.
        """
        from .manifest import Manifest

        if not (folder / FIELDS_FILE).is_file():
            return None
        facts = json.loads((folder / FIELDS_FILE).read_bytes())
        try:
            fields, streams = tuple(map(str, facts["fields"])), tuple(map(int, facts["streams"]))
        except KeyError as error:
            raise TypeError(f"{FIELDS_FILE} has no {error}") from error
        columns: dict[str, NDArray[Any]] = {}
        for name, dtype in COLUMNS.items():
            column = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            if column.dtype != dtype:
                raise TypeError(f"column {name} has another type")
            columns[name] = column
        table = Manifest.map(folder / TABLE_FOLDER)
        placement = cls(fields, streams, **columns, table=table)
        placement.check(length)
        return placement

    def check(self, length: int) -> None:
        """Raise TypeError if the columns do not fit each other; their values do not matter."""
        num_fields = len(self.fields)
        width = self.shards.shape[1] if self.shards.ndim == 2 else 0
        if (
            self.starts.shape != (length, num_fields)
            or self.lengths.shape != (length, num_fields)
            or self.shards.shape != (length, width)
            or len(self.streams) != num_fields
            or not all(0 <= stream < width for stream in self.streams)
            or self.bounds.ndim != 1
            or not 0 < len(self.bounds) <= len(self.table) + 1
            or int(self.bounds[-1]) != length
        ):
            raise TypeError("the columns of samples in shards do not fit each other")


def write_table(folder: Path, table: Manifest) -> None:
    """Write the columns of all shards, without their versions."""
    table.with_versions(None).write(folder / TABLE_FOLDER)


def write_fields(folder: Path, fields: tuple[str, ...], streams: tuple[int, ...]) -> None:
    """Write the file that makes a folder with columns one of a `Placement`."""
    facts = {"fields": fields, "streams": streams}
    (folder / FIELDS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
