"""The engine: executes a plan over data, one step at a time, as pure functions.

`next_batch(bound, cursor, topology)` maps a position to a batch and the position after it, with
no I/O, no clock and no live random generator.  Everything that needs to know what comes next (the
daemon's lookahead, the command line, a native sampler) asks here, so that they cannot disagree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CursorError, ManifestMismatchError, PlanError
from ..topology import Topology
from .cursor import Cursor, Seek
from .data import Data
from .flags import Flag
from .flat import FlatProgram
from .program import Place

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from .base import Described
    from .cut import FixedCut
    from .from_sampler import FromSampler
    from .order import Indices, Order
    from .program import Program, Share, Weighing

__all__ = [
    "BoundPlan",
    "Flag",
    "Largest",
    "PlannedBatch",
    "advance",
    "check",
    "epoch_steps",
    "is_finished",
    "largest_batch",
    "next_batch",
    "next_batches",
    "next_step",
    "remaining_steps",
    "seek",
    "settle",
]


class Largest(NamedTuple):
    """What `largest_batch` finds."""

    weight: int
    """Weight of the largest batch."""

    segment: int
    """The segment that was searched."""

    after: Cursor
    """Where the next segment begins, or the run ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBatch:
    """One step of one rank: what is read, and where the stream stands after it."""

    epoch: int
    step: int
    """Index of the step within the epoch."""

    global_step: int
    """Index of the step within the run; in an interleaved stream, of the next main step."""

    rank: int
    world_size: int
    indices: Indices
    """u64[n] sample indices into the manifest, in the order of delivery."""

    flags: NDArray[np.uint8]
    """u8[n] of `Flag`."""

    after: Cursor
    """The cursor that follows this batch."""

    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else belongs to the batch: ``height width frames clips`` of scaled plans, ``total`` of
    budgets."""

    stream: str = ""
    """Name of the part of a composition; empty for a single plan."""

    role: int = 0
    """0 for a single or main plan; the number of an extra, from 1 on, or of a link of a chain."""

    origin: tuple[int, int] | None = None
    """Epoch and step within the part, where `epoch` and `step` count those of the whole."""

    segment: int = 0
    """The stretch of the run that it belongs to (see `Program.segment`)."""

    @property
    def is_last_of_epoch(self) -> bool:
        """True when the next batch belongs to another epoch."""
        return self.after.epoch != self.epoch


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BoundPlan:
    """A plan, and the data it is executed over.

    Raises:
        PlanError: If there is no data, or the plan does not fit it.
    """

    plan: Described
    length: int
    """Samples in the manifest."""

    manifest: str
    """Digest of the manifest."""

    data: Data | None = None
    """Sizes, shards and parts, for the plans that need them."""

    allow_empty: bool = False
    """Whether there may be no data; then there is no step."""

    program: Program = field(init=False)
    digest: str = field(init=False)
    """Digest of the plan."""

    description: str = field(init=False)
    """What the digest covers, in short, for telling a difference."""

    def __post_init__(self) -> None:
        if not (0 if self.allow_empty else 1) <= self.length < 2**63:
            raise PlanError(f"a plan needs at least one sample, the manifest has {self.length}")
        data = self.data or Data(self.length, self.manifest)
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "program", self.plan.program(data))
        object.__setattr__(self, "digest", self.plan.digest)
        object.__setattr__(self, "description", self.plan.description)

    @classmethod
    def to(cls, plan: Described, data: Data, *, allow_empty: bool = False) -> BoundPlan:
        """Return a plan over data that describes itself."""
        return cls(plan, data.length, data.digest, data, allow_empty)

    @property
    def cut(self) -> FixedCut:
        """The cut of a plan with batches of a size that is known before the data."""
        assert isinstance(self.program, FlatProgram), f"{self.plan!r} has no fixed cut"
        return self.program.cut

    @property
    def order(self) -> Order:
        """The order of a plan over one order, without its modifiers."""
        assert isinstance(self.program, FlatProgram), f"{self.plan!r} has no single order"
        return self.program.entries.orders[0]

    def start(self) -> Cursor:
        """Return the cursor before the first batch of epoch 0."""
        return self.cursor(self.program.start(), 1)

    def cursor(self, place: Place, world_size: int) -> Cursor:
        """Return the cursor of a place."""
        epoch, step, position, update, sample, child = place
        return Cursor(
            plan=self.digest,
            manifest=self.manifest,
            epoch=epoch,
            step=step,
            position=position,
            update=update,
            sample=sample,
            world_size=world_size,
            child=None if child is None else dict(child),
            about=self.description,
        )


def check(bound: BoundPlan, cursor: Cursor) -> None:
    """Refuse a cursor that was made by another plan or over other data.

    Raises:
        CursorError: If the plan differs, or the position lies outside the epoch.
        ManifestMismatchError: If the data differs.
    """
    check_plan(bound.plan, cursor)
    if cursor.manifest != bound.manifest:
        raise ManifestMismatchError(
            f"the cursor belongs to manifest {cursor.manifest[:12]}…, the source has manifest "
            f"{bound.manifest[:12]}… ({bound.length} samples): files were added, removed or "
            "changed in size since; restore the data, or start anew with seek()"
        )
    bound.program.check(_place(cursor))


def check_plan(plan: Described | FromSampler, cursor: Cursor) -> None:
    """Refuse a cursor that was made by another plan.

    Raises:
        CursorError: If the plan differs; the message names the fields.
    """
    if cursor.plan != plan.digest:
        difference = differences(cursor.about, plan.description)
        raise CursorError(
            f"the cursor belongs to plan {cursor.plan[:12]}…, this stream runs plan "
            f"{plan.digest[:12]}… ({plan!r}){difference}: load it into a stream with the plan that "
            "made it, or start anew with seek()"
        )


def differences(theirs: str, ours: str) -> str:
    """Return what differs between two plan descriptions, to stand in a sentence; or nothing."""
    try:
        before, after = json.loads(theirs), json.loads(ours)
    except ValueError:
        return ""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return ""
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    told = [
        f"{name} was {_told(before.get(name))} and is {_told(after.get(name))}" for name in names
    ]
    return f"; {', '.join(told)}" if told else ""


def _told(value: object) -> str:
    return "at its default" if value is None else json.dumps(value)


def seek(bound: BoundPlan, where: Seek, world_size: int) -> Cursor:
    """Return the cursor of a place, counted as if the whole run had this world size.

    Raises:
        CursorError: If `where.sample` is not the edge of a batch.
        PlanError: If the plan does not fit the world size.
    """
    return bound.cursor(bound.program.seek(where, world_size), world_size)


def epoch_steps(bound: BoundPlan, world_size: int, epoch: int = 0) -> int:
    """Return the steps of an epoch that runs from its start under one world size.

    Raises:
        PlanError: If the plan does not fit the world size, or makes no step at all.
    """
    steps = bound.program.steps(epoch, world_size)
    if not steps:
        bound.program.settle(Place(epoch), world_size)  # raises if no epoch has any
    return steps


def settle(bound: BoundPlan, cursor: Cursor, world_size: int) -> Cursor:
    """Return the canonical form of a cursor under a world size.

    Where the rest of the epoch makes no step (a dropped tail), that is the start of the next
    epoch.
    """
    place = _place(cursor)
    settled = bound.program.settle(place, world_size)
    return cursor if settled == place else bound.cursor(settled, cursor.world_size)


def is_finished(bound: BoundPlan, cursor: Cursor) -> bool:
    """Return whether nothing follows a settled cursor: the limits of the run are reached."""
    return bound.program.is_finished(_place(cursor))


def remaining_steps(bound: BoundPlan, cursor: Cursor, world_size: int) -> int:
    """Return the steps that are left of the epoch of a settled cursor."""
    return bound.program.remaining(_place(cursor), world_size)


def next_batch(bound: BoundPlan, cursor: Cursor, topology: Topology) -> tuple[PlannedBatch, Cursor]:
    """Return the batch that one rank gets at a cursor, and the cursor after it.

    Raises:
        CursorError: If the run is finished.
    """
    found = next_batches(bound, cursor, topology, max_batches=1)
    if not found:
        raise CursorError("the run is finished: its limits are reached, no batch follows")
    return found[0], found[0].after


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
        that a stride leaves out.  Nothing where the run is finished.
    """
    world_size = topology.world_size
    place = bound.program.settle(_place(cursor), world_size)
    if bound.program.is_finished(place):
        return []
    shares = bound.program.shares(
        place, topology.rank, world_size, max_batches=max_batches, stride=step_stride
    )
    return [_planned(bound, share, topology) for share in shares]


def advance(bound: BoundPlan, cursor: Cursor, world_size: int, steps: int) -> Cursor:
    """Return the cursor some steps later.

    Args:
        bound: What is executed.
        cursor: A settled cursor.
        world_size: Number of ranks.
        steps: At most the steps that remain in the epoch of the cursor.
    """
    return bound.cursor(bound.program.advance(_place(cursor), world_size, steps), world_size)


def largest_batch(bound: BoundPlan, cursor: Cursor, topology: Topology, weigh: Weighing) -> Largest:
    """Return the largest batch weight that one rank meets from a cursor to the end of its segment.

    A segment is an epoch, or one of the main plan.  An upper bound, exact for most plans.
    Enumerates the order in chunks: O(1) memory, O(entries of the rank) time; not for an event loop.

    Args:
        bound: What is executed.
        cursor: Where to begin.
        topology: Which rank of how many.
        weigh: Maps sample indices u64[m] to their weights (bytes, say), i64[m]; for compositions it
            may be a map of these by name of the part.
    """
    rank, world_size = topology.rank, topology.world_size
    program = bound.program
    place = program.settle(_place(cursor), world_size)
    weight, after = program.largest(place, rank, world_size, weigh)
    return Largest(weight, program.segment(place), bound.cursor(after, world_size))


def _place(cursor: Cursor) -> Place:
    return Place(
        cursor.epoch, cursor.step, cursor.position, cursor.update, cursor.sample, cursor.child
    )


def _planned(bound: BoundPlan, share: Share, topology: Topology) -> PlannedBatch:
    before = share.before
    return PlannedBatch(
        epoch=before.epoch,
        step=before.step,
        global_step=before.update,
        rank=topology.rank,
        world_size=topology.world_size,
        indices=share.indices,
        flags=share.flags,
        after=bound.cursor(share.after, topology.world_size),
        meta=share.meta,
        stream=share.stream,
        role=share.role,
        origin=share.origin,
        segment=bound.program.segment(before),
    )
