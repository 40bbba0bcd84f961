"""The engine: executes a plan over a manifest, one step at a time, as pure functions.

`next_batch(bound, cursor, topology)` maps a position to a batch and the position after it, with
no I/O, no clock, no live random generator and O(1) memory in the length.  Everything that needs
to know what comes next (the daemon's lookahead, the command line, a native sampler) asks here,
so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from ..errors import CursorError, ManifestMismatchError, PlanError
from ..topology import Topology
from .cursor import Cursor, Seek
from .split import stride

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .cut import FixedCut
    from .order import Indices, Order
    from .spec import Plan


_CHUNK_ENTRIES: Final = 8192
"""Entries that `next_batches` orders in one go: enough to spread numpy's cost per call (0.2 ms for
a keyed order) over many batches, few enough to stay below a millisecond."""

_SCAN_ENTRIES: Final = 1 << 16
"""Entries that `largest_batch` holds at a time: 512 KiB per array of them, which stays in the
processor's cache; with 2 MiB per array the scan takes twice as long."""


class Flag(IntFlag):
    """Marks on single entries of a batch."""

    PADDING = 1
    """A filler that makes ranks or steps equal; not counted as a sample."""

    WRAPPED = 2
    """A filler of a whole step (``tail="wrap"``)."""

    OVERSIZED = 4
    """A sample above the budget of its plan."""

    HOLE = 8
    """A sample that could not be read and was left out by policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """One step of one rank: what is read, and where the stream stands after it."""

    epoch: int
    step: int
    """Index of the step within the epoch."""

    global_step: int
    """Index of the step within the run."""

    rank: int
    world_size: int
    indices: Indices
    """u64[n] sample indices into the manifest, in the order of delivery."""

    flags: NDArray[np.uint8]
    """u8[n] of `Flag`."""

    after: Cursor
    """The cursor that follows this batch."""

    @property
    def is_last_of_epoch(self) -> bool:
        """True when the next batch belongs to another epoch."""
        return self.after.epoch != self.epoch


@dataclass(frozen=True, slots=True)
class BoundPlan:
    """A plan, and the size and name of the data it is executed over.

    Raises:
        PlanError: If there is no data.
    """

    plan: Plan
    length: int
    """Samples in the manifest."""

    manifest: str
    """Digest of the manifest."""

    cut: FixedCut = field(init=False)
    order: Order = field(init=False)
    digest: str = field(init=False)
    """Digest of the plan."""

    def __post_init__(self) -> None:
        if not 1 <= self.length < 2**63:
            raise PlanError(f"a plan needs at least one sample, the manifest has {self.length}")
        object.__setattr__(self, "cut", self.plan.cut())
        object.__setattr__(self, "order", self.plan.make_order(self.length))
        object.__setattr__(self, "digest", self.plan.digest)

    def start(self) -> Cursor:
        """Return the cursor before the first batch of epoch 0."""
        return Cursor(plan=self.digest, manifest=self.manifest)


def check(bound: BoundPlan, cursor: Cursor) -> None:
    """Refuse a cursor that was made by another plan or over other data.

    Raises:
        CursorError: If the plan differs, or the position lies outside the epoch.
        ManifestMismatchError: If the data differs.
    """
    if cursor.plan != bound.digest:
        raise CursorError(
            f"the cursor belongs to plan {cursor.plan[:12]}…, this stream runs plan "
            f"{bound.digest[:12]}… ({bound.plan!r}): load it into a stream with the plan that "
            "made it, or start anew with seek()"
        )
    if cursor.manifest != bound.manifest:
        raise ManifestMismatchError(
            f"the cursor belongs to manifest {cursor.manifest[:12]}…, the source has manifest "
            f"{bound.manifest[:12]}… ({bound.length} samples): files were added, removed or "
            "changed in size since; restore the data, or start anew with seek()"
        )
    if cursor.position >= bound.length:
        raise CursorError(
            f"cursor position={cursor.position} is outside 0..{bound.length - 1}, the epoch has "
            f"{bound.length} samples"
        )


def seek(bound: BoundPlan, where: Seek, world_size: int) -> Cursor:
    """Return the cursor of a place, counted as if the whole run had this world size.

    Raises:
        CursorError: If `where.sample` is not the edge of a batch.
        PlanError: If the plan does not fit the world size.
    """
    steps = epoch_steps(bound, world_size)
    size = bound.cut.step_size(world_size)
    samples = steps * size if bound.cut.tail == "drop" else bound.length
    if where.sample is not None:
        epoch, position = divmod(where.sample, samples)
        step, inside = divmod(position, size)
        if inside:
            edge = where.sample - inside
            upper = min(edge + size, (epoch + 1) * samples)
            raise CursorError(
                f"seek sample={where.sample} is not the edge of a batch: the nearest are "
                f"{edge} and {upper}"
            )
    elif where.update is not None:
        epoch, step = divmod(where.update, steps)
    else:
        assert where.epoch is not None
        epoch, step = where.epoch, 0
    return Cursor(
        plan=bound.digest,
        manifest=bound.manifest,
        epoch=epoch,
        step=step,
        position=step * size,
        update=epoch * steps + step,
        sample=epoch * samples + step * size,
        world_size=world_size,
    )


def epoch_steps(bound: BoundPlan, world_size: int) -> int:
    """Return the steps of an epoch that runs from its start under one world size.

    Raises:
        PlanError: If the plan does not fit the world size, or makes no step at all.
    """
    steps = bound.cut.steps(bound.length, world_size)
    if not steps:
        raise PlanError(
            f"tail='drop' leaves no step: the manifest has {bound.length} samples, one step of "
            f"{world_size} rank(s) takes {bound.cut.step_size(world_size)}; use a smaller batch "
            "or tail='short'"
        )
    return steps


def settle(bound: BoundPlan, cursor: Cursor, world_size: int) -> Cursor:
    """Return the canonical form of a cursor under a world size.

    Where the rest of the epoch makes no step (a dropped tail), that is the start of the next
    epoch.
    """
    epoch_steps(bound, world_size)
    if bound.cut.steps(bound.length - cursor.position, world_size):
        return cursor
    return msgspec.structs.replace(cursor, epoch=cursor.epoch + 1, step=0, position=0)


def remaining_steps(bound: BoundPlan, cursor: Cursor, world_size: int) -> int:
    """Return the steps that are left of the epoch of a settled cursor."""
    return bound.cut.steps(bound.length - cursor.position, world_size)


def next_batch(bound: BoundPlan, cursor: Cursor, topology: Topology) -> tuple[PlannedBatch, Cursor]:
    """Return the batch that one rank gets at a cursor, and the cursor after it."""
    (batch,) = next_batches(bound, cursor, topology, max_batches=1)
    return batch, batch.after


def next_step(
    bound: BoundPlan, cursor: Cursor, world_size: int
) -> tuple[list[PlannedBatch], Cursor]:
    """Return the batches that all ranks get at a cursor, by rank, and the cursor after them."""
    batches = [
        next_batch(bound, cursor, Topology(rank, world_size))[0] for rank in range(world_size)
    ]
    return batches, batches[0].after


def next_batches(
    bound: BoundPlan,
    cursor: Cursor,
    topology: Topology,
    *,
    max_batches: int,
    step_stride: int = 1,
) -> list[PlannedBatch]:
    """Return the next batches of one rank, all of one epoch.

    Args:
        bound: What is executed.
        cursor: Where to begin.
        topology: Which rank of how many.
        max_batches: Upper limit, >= 1.
        step_stride: 1 for every step; k for every k-th, beginning with the one at the cursor.

    Returns:
        At least one batch and at most `max_batches`; fewer at the end of the epoch or where a
        chunk of the order is full.  Their cursors follow *all* steps up to theirs, also those
        that a stride leaves out.
    """
    world_size = topology.world_size
    cursor = settle(bound, cursor, world_size)
    epoch = cursor.epoch
    planned: list[tuple[Cursor, Indices, Cursor]] = []  # before, positions, after
    num_entries = 0
    while len(planned) < max_batches and num_entries < _CHUNK_ENTRIES and cursor.epoch == epoch:
        step = bound.cut.step(bound.length - cursor.position, world_size)
        positions = stride(cursor.position, sum(step), topology.rank, world_size)
        planned.append((cursor, positions, advance(bound, cursor, world_size, 1)))
        num_entries += len(positions)
        if step_stride >= remaining_steps(bound, cursor, world_size):
            break
        cursor = advance(bound, cursor, world_size, step_stride)
    # Fillers lie past the end: they come from the start of the order, several times if need be.
    everywhere = np.concatenate([positions for _, positions, _ in planned])
    ordered = bound.order.at(epoch, everywhere % np.uint64(bound.length))
    edges = np.cumsum([len(positions) for _, positions, _ in planned])[:-1]
    return [
        PlannedBatch(
            epoch=before.epoch,
            step=before.step,
            global_step=before.update,
            rank=topology.rank,
            world_size=world_size,
            indices=indices,
            flags=_flags(bound, positions),
            after=after,
        )
        for (before, positions, after), indices in zip(
            planned, np.split(ordered, edges), strict=True
        )
    ]


def advance(bound: BoundPlan, cursor: Cursor, world_size: int, steps: int) -> Cursor:
    """Return the cursor some steps later, in O(1).

    Args:
        bound: What is executed.
        cursor: A settled cursor.
        world_size: Number of ranks.
        steps: At most the steps that remain in the epoch of the cursor.
    """
    rest = bound.length - cursor.position
    taken = min(rest, steps * bound.cut.step_size(world_size))
    moved = msgspec.structs.replace(
        cursor,
        step=cursor.step + steps,
        position=cursor.position + taken,
        update=cursor.update + steps,
        sample=cursor.sample + taken,
        world_size=world_size,
    )
    return settle(bound, moved, world_size)


def largest_batch(
    bound: BoundPlan,
    cursor: Cursor,
    topology: Topology,
    weigh: Callable[[Indices], NDArray[np.int64]],
) -> int:
    """Return the largest batch weight that one rank meets from a cursor to the end of its epoch.

    Enumerates the order in chunks: O(1) memory, O(entries of the rank) time; not for an event
    loop.

    Args:
        bound: What is executed.
        cursor: Where to begin.
        topology: Which rank of how many.
        weigh: Maps sample indices u64[…] to their weights (bytes, say), i64 of the same shape.
    """
    cursor = settle(bound, cursor, topology.world_size)
    epoch, world_size = cursor.epoch, topology.world_size
    step_size = bound.cut.step_size(world_size)
    per_rank = step_size // world_size
    whole = bound.cut.whole_steps(bound.length - cursor.position, world_size)
    # A batch that is larger than the data must not be allocated: there is no whole step then.
    first = np.arange(per_rank if whole else 0, dtype=np.uint64) * np.uint64(world_size)
    first += np.uint64(cursor.position + topology.rank)
    chunk = max(1, _SCAN_ENTRIES // per_rank)
    largest = 0
    for done in range(0, whole, chunk):
        steps = np.arange(done, min(done + chunk, whole), dtype=np.uint64)
        positions = first + steps[:, None] * np.uint64(step_size)  # (steps, per_rank)
        indices = bound.order.at(epoch, positions.ravel()).reshape(positions.shape)
        largest = max(largest, int(weigh(indices).sum(axis=1).max()))
    if whole:
        cursor = advance(bound, cursor, world_size, whole)
    if cursor.epoch == epoch:
        batch, _ = next_batch(bound, cursor, topology)
        largest = max(largest, int(weigh(batch.indices).sum()))
    return largest


def _flags(bound: BoundPlan, positions: Indices) -> NDArray[np.uint8]:
    flags = np.zeros(len(positions), dtype=np.uint8)
    if len(positions) and positions[-1] >= bound.length:
        filler = Flag.PADDING | (Flag.WRAPPED if bound.cut.tail == "wrap" else 0)
        flags[positions >= bound.length] = filler
    return flags
