"""A data set in shards whose samples say which one they are, and what a run over it must deliver.

The shards are uneven, as those of real data are: of 1, 3, 7, 50, 100 and 333 samples, one without
any, one of 2,000.  A sample has its payload (``jpg``: 8 bytes of its number, their CRC, and more of
the same), a label (``cls``), which every ninth sample lacks, and one with a dot in its name.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.batch import Batch
from headrace.plans import Data
from headrace.plans.engine import BoundPlan, next_batch
from headrace.shards import Shards
from headrace.sources import Stream
from headrace.testing import Ledger
from headrace.topology import Topology

from .shards import tar_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from headrace.plans import Cursor, Plan

COUNTS: Final = (1, 3, 7, 0, 50, 100, 2000, 333)
"""Samples of each shard."""

SMALL: Final = (1, 3, 7, 0, 13, 20)
"""Those of a set for quadratic tests."""

FIELDS: Final = ("cls", "jpg", "seg.png")


def payload(number: int, size: int) -> bytes:
    """Return a payload that says which one it is."""
    own = struct.pack("<Q", number)
    own += struct.pack("<I", zlib.crc32(own))
    return (own * (size // len(own) + 1))[:size]


@dataclass(frozen=True, eq=False)
class ShardSet:
    """Shards, and the samples in them.

    Args:
        counts: Samples of each shard.
        max_bytes: Of a payload; sizes are log-uniform from 0 on.
        seed: Of the sizes.
        first: Number of the first sample.
    """

    counts: Sequence[int]
    max_bytes: int
    seed: int
    first: int

    @property
    def length(self) -> int:
        """Samples."""
        return sum(self.counts)

    @cached_property
    def keys(self) -> list[str]:
        """Name of each sample."""
        return [
            f"d{number % 3}/{number:06}" for number in range(self.first, self.first + self.length)
        ]

    def values(self, row: int) -> dict[str, bytes | None]:
        """Return the values of a sample by field; None for one that it lacks."""
        return self._rows[row]

    @cached_property
    def _rows(self) -> list[dict[str, bytes | None]]:
        return [self._values(row) for row in range(self.length)]

    def _values(self, row: int) -> dict[str, bytes | None]:
        number = self.first + row
        size = int(self.max_bytes ** random.Random(self.seed * 1_000_003 + number).random()) - 1
        label = None if number % 9 == 8 else b"%d" % number
        return {"cls": label, "jpg": payload(number, size), "seg.png": b"m" * (number % 4)}

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each sample."""
        return [
            sum(len(value or b"") for value in self.values(row).values())
            for row in range(self.length)
        ]

    @property
    def bounds(self) -> list[int]:
        """Where the samples of each shard begin, and the number of samples."""
        return [sum(self.counts[:number]) for number in range(len(self.counts) + 1)]

    def shards(self) -> dict[str, bytes]:
        """Return the shards by name."""
        return _shards(self)

    def write(self, folder: Path) -> Path:
        """Write the shards into a folder, and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.shards().items():
            (folder / name).write_bytes(data)
        return folder

    def expected(
        self,
        plan: Plan,
        *,
        epochs: int = 1,
        topology: Topology | None = None,
        start: Cursor | None = None,
        parts: Mapping[str, ShardSet] | None = None,
        fields: Sequence[str] = FIELDS,
    ) -> Ledger:
        """Return the ledger of a run up to an epoch, from the plan and the content alone."""
        sets = {"": self, **(parts or {})}
        data = {name: one.data for name, one in sets.items()}
        main = data.pop("")
        bound = BoundPlan.to(plan, Data(main.length, "", main.columns, main.shards, data))
        topology = topology or Topology()
        ledger, cursor = Ledger(), start or bound.start()
        while cursor.epoch < epochs:
            planned, cursor = next_batch(bound, cursor, topology)
            own = sets.get(planned.stream, self)
            rows = [own.values(row) for row in planned.indices.tolist()]
            batch = Batch(
                {field: [row[field] for row in rows] for field in fields},
                sample_keys=[],
                indices=planned.indices,
                flags=planned.flags,
                meta={"epoch": planned.epoch, "step": planned.step, "stream": planned.stream},
                cursor=cursor,
            )
            ledger.record(batch, topology)
        return ledger

    @property
    def data(self) -> Data:
        """What a plan has to know."""
        return Data(
            self.length,
            "",
            {"sizes": np.array(self.sizes, dtype=np.int64)},
            np.array(self.bounds, dtype=np.uint64),
        )

    def check(self, batches: Iterable[Batch]) -> list[int]:
        """Return the numbers of all samples of some batches; fail if one has other bytes."""
        keys = self.keys
        found = []
        for batch in batches:
            for row, (key, sample) in zip(batch.indices.tolist(), batch, strict=True):
                assert key == keys[row]
                assert sample == self.values(row), key
                found.append(row)
        return found


@cache
def shard_set(
    counts: Sequence[int] = COUNTS, *, max_bytes: int = 2000, seed: int = 0, first: int = 0
) -> ShardSet:
    """Return a set of shards; the same one for the same arguments."""
    return ShardSet(tuple(counts), max_bytes, seed, first)


@cache
def _shards(whole: ShardSet) -> dict[str, bytes]:
    shards, row, keys = {}, 0, whole.keys
    for number, count in enumerate(whole.counts):
        members = [
            (f"{keys[at]}.{field}", value)
            for at in range(row, row + count)
            for field, value in whole.values(at).items()
            if value is not None
        ]
        shards[f"s-{number:03}.tar"] = tar_of(members)
        row += count
    return shards


def stream_of(place: str, plan: Plan, **options: Any) -> Stream:  # noqa: ANN401 - of Shards
    """Return the stream of the shards in a place."""
    return Stream(Shards(place, **{"missing": "none", **options}), plan)
