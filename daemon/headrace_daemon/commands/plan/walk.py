"""The batches of a range of steps: one after the other, or a bounded number spread over it.

Memory is bounded: at a time there are the batches of one chunk of the order, for the ranks that are
looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.plans.engine import is_finished, next_batches
from headrace.topology import Topology

from .places import forward

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.plans import Cursor
    from headrace.plans.engine import BoundPlan, PlannedBatch

CHUNK_STEPS: Final = 256
"""Steps that are planned in one go."""

MAX_BATCHES: Final = 1 << 16
MAX_ENTRIES: Final = 1 << 23
"""Batches, and samples in them, of all ranks that are looked at in a range that is not walked as a
whole: a few seconds."""

MIN_STEPS: Final = 64
"""Steps that are looked at in any case."""

RUN_STEPS: Final = 16
"""Steps that are looked at together where not all are: planning one step alone takes as long."""


class Extent(NamedTuple):
    """A range of steps."""

    first: Cursor
    """The settled cursor before its first step."""

    num_steps: int

    num_counted: int
    """Steps that are looked at: all, or runs of `RUN_STEPS` evenly spread from the first step to
    the last."""

    @property
    def is_whole(self) -> bool:
        """Whether each step is looked at."""
        return self.num_counted == self.num_steps


def extent(
    bound: BoundPlan,
    first: Cursor,
    num_steps: int,
    ranks: Sequence[int],
    world_size: int,
    *,
    whole: bool,
) -> Extent:
    """Return a range, and how many of its steps can be looked at.

    Args:
        bound: What is planned.
        first: The settled cursor before it.
        num_steps: How many steps it has.
        ranks: The ranks that are looked at.
        world_size: Number of ranks.
        whole: Whether each step is looked at, however long it takes.
    """
    counted = num_steps
    if not whole and num_steps > MIN_STEPS:
        seen = next_batches(bound, first, Topology(ranks[0], world_size), max_batches=MIN_STEPS)
        mean = sum(len(batch.indices) for batch in seen) / len(seen)
        most = min(MAX_BATCHES, int(MAX_ENTRIES / max(mean, 1))) // len(ranks)
        counted = max(MIN_STEPS, most) // RUN_STEPS * RUN_STEPS
        counted = num_steps if counted >= num_steps else counted
    return Extent(first, num_steps, counted)


def batches(
    bound: BoundPlan, within: Extent, ranks: Sequence[int], world_size: int
) -> Iterator[list[list[PlannedBatch]]]:
    """Yield chunks of steps; a step has the batches of the ranks that are looked at."""
    cursor = within.first
    if within.is_whole:
        left = within.num_steps
        while left and not is_finished(bound, cursor):
            steps = _chunk(bound, cursor, ranks, world_size, min(left, CHUNK_STEPS))
            left -= len(steps)
            cursor = steps[-1][0].after
            yield steps
        return
    at, runs = 0, within.num_counted // RUN_STEPS
    for number in range(runs):
        wanted = number * (within.num_steps - RUN_STEPS) // (runs - 1)
        cursor = forward(bound, cursor, world_size, wanted - at)
        left, at = RUN_STEPS, wanted + RUN_STEPS
        while left:
            steps = _chunk(bound, cursor, ranks, world_size, left)
            left -= len(steps)
            cursor = steps[-1][0].after
            yield steps


def _chunk(
    bound: BoundPlan, cursor: Cursor, ranks: Sequence[int], world_size: int, max_steps: int
) -> list[list[PlannedBatch]]:
    """Return the next steps: as many as one call gives for each of the ranks."""
    by_rank = [
        next_batches(bound, cursor, Topology(rank, world_size), max_batches=max_steps)
        for rank in ranks
    ]
    return [list(step) for step in zip(*by_rank, strict=False)]
