"""Runs of a plan, and the same run written down as lists: the oracle of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headrace.plans import engine
from headrace.plans.base import FixedBatches
from headrace.plans.engine import BoundPlan, Flag, PlannedBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.plans import Cursor
    from headrace.plans.base import Described
    from headrace.topology import Topology

MANIFEST = "ab" * 32


class Row(NamedTuple):
    """What one rank gets in one step."""

    epoch: int
    step: int
    global_step: int
    rank: int
    ids: list[int]
    flags: list[int]


def bind(plan: Described, length: int, manifest: str = MANIFEST) -> BoundPlan:
    """Return a plan over `length` samples of no particular data."""
    return BoundPlan(plan, length, manifest)


def row(batch: PlannedBatch) -> Row:
    """Return a batch as plain values, for comparing."""
    return Row(
        batch.epoch,
        batch.step,
        batch.global_step,
        batch.rank,
        batch.indices.tolist(),
        batch.flags.tolist(),
    )


def samples(batch: PlannedBatch) -> list[int]:
    """Return the sample indices of a batch without its fillers."""
    return [int(i) for i in batch.indices[batch.flags & Flag.PADDING == 0]]


def global_samples(batches: list[PlannedBatch]) -> list[int]:
    """Return the samples of one step of all ranks in global order, without fillers."""
    by_column = zip(*(row(batch).ids for batch in batches), strict=True)
    flags = zip(*(row(batch).flags for batch in batches), strict=True)
    return [
        index
        for indices, marks in zip(by_column, flags, strict=True)
        for index, mark in zip(indices, marks, strict=True)
        if not mark & Flag.PADDING
    ]


def steps(
    bound: BoundPlan, world_size: int, *, start: Cursor | None = None
) -> Iterator[tuple[list[PlannedBatch], Cursor]]:
    """Yield, without end, the batches of all ranks and the cursor after them."""
    cursor = start or bound.start()
    while True:
        batches, cursor = engine.next_step(bound, cursor, world_size)
        yield batches, cursor


def epoch_of(
    bound: BoundPlan, world_size: int, *, start: Cursor | None = None
) -> list[list[PlannedBatch]]:
    """Return the steps from a cursor to the end of its epoch, with the batches of all ranks."""
    found = []
    for batches, _ in steps(bound, world_size, start=start):
        found.append(batches)
        if batches[0].is_last_of_epoch:
            break
        assert len(found) < bound.length, "the epoch does not end"
    return found


def rank_epoch(bound: BoundPlan, cursor: Cursor, topology: Topology) -> list[PlannedBatch]:
    """Return the batches of one rank from a cursor to the end of its epoch."""
    found: list[PlannedBatch] = []
    while not found or not found[-1].is_last_of_epoch:
        assert len(found) < bound.length, "the epoch does not end"
        found += engine.next_batches(
            bound, found[-1].after if found else cursor, topology, max_batches=1000
        )
    return found


def expected_epoch(bound: BoundPlan, world_size: int, epoch: int = 0) -> list[list[Row]]:
    """Return an epoch from its start as lists say it, steps of ranks."""
    plan, n = bound.plan, bound.length
    assert isinstance(plan, FixedBatches)
    order = bound.order.at(epoch, np.arange(n, dtype=np.uint64)).tolist()
    size = plan.global_batch_size or (plan.batch_size or 0) * world_size
    pieces = [order[at : at + size] for at in range(0, n, size)]
    if plan.tail == "drop" and len(pieces[-1]) < size:
        del pieces[-1]
    found = []
    for step, piece in enumerate(pieces):
        filler = Flag.PADDING | Flag.WRAPPED if plan.tail == "wrap" else Flag.PADDING
        ids, flags = list(piece), [0] * len(piece)
        while len(ids) % (size if plan.tail == "wrap" else world_size):
            ids.append(order[(len(ids) - len(piece)) % n])
            flags.append(int(filler))
        global_step = epoch * len(pieces) + step
        found.append(
            [
                Row(epoch, step, global_step, rank, ids[rank::world_size], flags[rank::world_size])
                for rank in range(world_size)
            ]
        )
    return found
