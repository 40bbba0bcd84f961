"""Sources of samples in shards that exist in memory only, and readers of them that keep a log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from headrace.manifest import Manifest
from headrace.placement import ABSENT, Placement
from headrace_daemon.errors import ObjectUnreadableError
from headrace_daemon.source.catalog import OpenSource
from headrace_daemon.source.reader import RangeRequest, leave_out

from .reading import value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from headrace_daemon.source.reader import Request

HEADER = 32


@dataclass(eq=False)
class ShardReader:
    """Reads shards that are in memory.

    Args:
        shards: Their content, by name.
        bad: Names of those that cannot be read.
    """

    shards: dict[str, bytes]
    bad: set[str] = field(default_factory=set)
    location: str = "memory"
    paces_itself: bool = False
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, start and stop of all ranges, in the order in which they were asked for."""
    gate: asyncio.Event | None = None
    """Reads wait for it, if there is one; while they wait they may be cancelled."""
    lingers: bool = False
    """Whether a read that is cancelled there ends only when the gate opens, as one in a thread."""
    failure: Exception | None = None
    """What reads raise that go through."""

    async def read(self, requests: Sequence[Request]) -> None:
        for request in requests:
            assert isinstance(request, RangeRequest)
            self.asked.append((request.name, request.start, request.stop))
        if self.gate is not None:
            await self._pass(self.gate)
        for _ in range(len(self.asked) % 5):  # reads end in another order than they began
            await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        for request in requests:
            assert isinstance(request, RangeRequest)
            content = self.shards[request.name]
            assert request.object_bytes == len(content)
            assert request.start < request.stop <= len(content)
            if request.name in self.bad:
                leave_out(request, ObjectUnreadableError(request.name, f"bad {request.name}"))
                continue
            for place in request.places:
                assert request.start <= place.start
                assert place.start + len(place.target) <= request.stop
                place.target[:] = content[place.start : place.start + len(place.target)]

    async def _pass(self, gate: asyncio.Event) -> None:
        is_cancelled = False
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                if not self.lingers:
                    raise
                is_cancelled = True
        if is_cancelled:
            raise asyncio.CancelledError

    def times_asked(self) -> dict[str, NDArray[np.int64]]:
        """Return how many times each byte of each shard was asked for."""
        times = {name: np.zeros(len(content), np.int64) for name, content in self.shards.items()}
        for name, start, stop in self.asked:
            times[name][start:stop] += 1
        return times


def placed(
    sizes: Sequence[Sequence[Sequence[int]]], *, gap: int = HEADER
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the samples of some shards, and the shards.

    Args:
        sizes: By shard and sample, the size of each value; negative for none.
        gap: Bytes before each value.
    """
    names: list[str] = []
    shards: dict[str, bytes] = {}
    starts: list[list[int]] = []
    lengths: list[list[int]] = []
    rows: list[list[int]] = []
    bounds = [0]
    for number, samples in enumerate(sizes):
        content = bytearray()
        for values in samples:
            key = f"s{len(names):03}"
            at: list[int] = []
            for column, size in enumerate(values):
                content += b"-" * gap
                at.append(len(content))
                content += value_of(f"{key}.{column} ", max(size, 0))
            names.append(key)
            starts.append(at)
            lengths.append([size if size >= 0 else ABSENT for size in values])
            rows.append([number])
        shards[f"shard{number:02}"] = bytes(content)
        bounds.append(len(names))
    num_fields = len(lengths[0])
    table = Manifest.build([(name.encode(), len(one)) for name, one in shards.items()])
    placement = Placement(
        tuple(f"f{column}" for column in range(num_fields)),
        (0,) * num_fields,
        np.array(starts, dtype=np.uint64),
        np.array(lengths, dtype=np.int64),
        np.array(rows, dtype=np.uint32),
        np.array(bounds, dtype=np.uint64),
        table,
    )
    return with_placement(names, placement), shards


def with_placement(names: Sequence[str], placement: Placement) -> Manifest:
    """Return the manifest of samples that lie somewhere."""
    totals = np.maximum(placement.lengths, 0).sum(axis=1).tolist()
    plain = Manifest.build(
        [(name.encode(), total) for name, total in zip(names, totals, strict=True)]
    )
    return Manifest(plain.sizes, plain.offsets, plain.names, placement=placement)


def shard_source(sizes: Sequence[Sequence[Sequence[int]]]) -> tuple[OpenSource, ShardReader]:
    """Return a source of samples in shards, and its reader."""
    manifest, shards = placed(sizes)
    reader = ShardReader(shards)
    return OpenSource(manifest, reader), reader


def value_in(manifest: Manifest, sample: int, column: int) -> bytes:
    """Return what a value must be."""
    assert manifest.placement is not None
    size = int(manifest.placement.lengths[sample, column])
    return value_of(f"{manifest.name(sample)}.{column} ", max(size, 0))
