"""The planner: turns a part of a stream into the sequence of what a feed has to do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from headrace.plans.engine import (
    BoundPlan,
    PlannedBatch,
    advance,
    next_batches,
    remaining_steps,
    settle,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from headrace.plans.cursor import Cursor
    from headrace.topology import Topology

CHUNK_BATCHES = 256
"""Batches planned in one go at most; the engine ends a chunk earlier where batches are large."""


class EpochEdge(NamedTuple):
    """All batches of an epoch are planned."""

    epoch: int
    cursor: Cursor
    """Start of the next epoch."""


class Finish(NamedTuple):
    """The stream has no more batches."""


class Planner:
    """Walks through one part of a stream: every `stride`-th step from `first` on.

    Args:
        bound: What is executed.
        cursor: Where the stream begins.
        topology: Which rank of how many.
        first: Steps to leave out at the beginning.
        stride: Distance between the steps of this part; above 1 for one epoch only.
        epochs: Epochs to walk through, that of the cursor included; None: without end.
        executor: Threads for `next`.
    """

    def __init__(
        self,
        bound: BoundPlan,
        cursor: Cursor,
        topology: Topology,
        *,
        first: int = 0,
        stride: int = 1,
        epochs: int | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._executor = executor
        self._bound = bound
        self._topology = topology
        self._stride = stride
        self._epochs_left = 1 if stride > 1 else epochs
        self._cursor = settle(bound, cursor, topology.world_size)
        self._epoch = self._cursor.epoch
        if first:
            self._skip(first)

    @property
    def epoch(self) -> int:
        """The epoch that is being planned."""
        return self._epoch

    @property
    def last_epoch(self) -> int | None:
        """The epoch after which nothing follows; None: without end."""
        return None if self._epochs_left is None else self._epoch + self._epochs_left - 1

    async def next(self) -> list[PlannedBatch | EpochEdge | Finish]:
        """Return what comes next, planned in a thread (see `next_items`)."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.next_items)

    def next_items(self) -> list[PlannedBatch | EpochEdge | Finish]:
        """Return what comes next: a chunk of batches, and the edge where an epoch ends.

        Takes about a millisecond of CPU: not for an event loop.
        """
        if self._epochs_left == 0:
            return [Finish()]
        items: list[PlannedBatch | EpochEdge | Finish] = []
        if self._cursor.epoch == self._epoch:
            batches = next_batches(
                self._bound,
                self._cursor,
                self._topology,
                max_batches=CHUNK_BATCHES,
                step_stride=self._stride,
            )
            if not batches:
                return [Finish()]  # the limits of the run are reached
            items += batches
            self._cursor = batches[-1].after
            if self._cursor.epoch == self._epoch:
                self._skip(self._stride - 1)
        if self._cursor.epoch != self._epoch:
            items.append(EpochEdge(self._epoch, self._cursor))
            self._epoch = self._cursor.epoch
            if self._epochs_left is not None:
                self._epochs_left -= 1
        return items

    def _skip(self, steps: int) -> None:
        """Move the cursor by some steps, at most to the start of the next epoch."""
        world_size = self._topology.world_size
        left = remaining_steps(self._bound, self._cursor, world_size)
        self._cursor = advance(self._bound, self._cursor, world_size, min(steps, left))
