"""A feed: one subscriber's pipeline from the plan to ready batches.

Invariant: what comes out at the head is the order of the plan, whatever order the reads finish in.
Reading ahead stops by itself: no credit, so the queue stays; no free slot, so nothing is planned
into one; nothing planned, so nothing is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import FeedError, HeadraceError
from headrace.plans.engine import Flag, Largest, PlannedBatch
from headrace.protocol import messages as m

from ..assemble.layout import Layout, lay_out
from ..assemble.requests import requests_of
from ..errors import SourceError
from ..source.reader import release
from .journal import SOURCE, Journal
from .lookahead import Lookahead
from .planner import EpochEdge, Finish
from .streamed import StreamedBatch, StreamedPlanner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from numpy.typing import NDArray

    from ..assemble.slots import Slot, SlotPool
    from ..errors import ObjectError
    from ..fetch.fetcher import Fetcher
    from ..fetch.seats import Seat
    from ..source.catalog import OpenSource
    from ..source.reader import Request
    from .dictated import DictatedPlanner
    from .planner import Planner
    from .tally import Place, Tally

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ReadyBatch:
    """A batch that is being filled or is ready to be sent."""

    planned: PlannedBatch
    source: OpenSource
    names: list[str]
    layout: Layout
    slot: Slot
    # The fill; None before it was made.
    task: asyncio.Task[None] | None = None
    # True once the task runs: one that is cancelled before that never comes to its own end.
    is_started: bool = False
    is_filled: bool = False
    # True once the feed has no more use for the batch: its fill gives the slot back.
    is_dropped: bool = False
    # Why samples were left out, by row; None where the journal says so.
    holes: dict[int, ObjectError | None] = field(default_factory=dict)
    # What the journal has up to here, once the batch has become the head.
    skips: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)
    """What is new in the journal, one line for each sample."""

    @property
    def place(self) -> Place:
        """Epoch and step."""
        return self.planned.epoch, self.planned.step

    @property
    def payload(self) -> memoryview:
        """The bytes to send; a view of the slot."""
        return self.slot.view[: self.layout.num_bytes]

    @property
    def lengths(self) -> NDArray[np.uint64]:
        """Bytes of each value, u64[F * n]; `MISSING` for what was left out, or is not there."""
        lengths = self.layout.lengths
        if self.holes:
            lengths = lengths.copy()
            lengths.reshape(-1, len(self.names))[:, list(self.holes)] = np.uint64(m.MISSING)
        return lengths

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the F fields."""
        if isinstance(self.planned, StreamedBatch):
            return self.planned.fields
        return self.source.manifest.fields

    @property
    def flags(self) -> NDArray[np.uint8]:
        """Flags of the entries, u8[n]."""
        flags = self.planned.flags
        if self.holes:
            flags = flags.copy()
            flags[list(self.holes)] |= np.uint8(Flag.HOLE)
        return flags

    @property
    def is_being_filled(self) -> bool:
        """Whether something may be writing into the slot."""
        return self.is_started and self.task is not None and not self.task.done()


@dataclass(slots=True)
class FeedStatistics:
    """What a feed has done and whom it waited for."""

    epoch: int = 0
    """Epoch of the next batch to send."""

    step: int = 0
    """Step of the next batch to send."""

    num_batches: int = 0
    """Batches sent."""

    num_samples: int = 0
    """Samples sent, fillers included."""

    num_bytes: int = 0
    """Payload bytes sent."""

    num_skipped: int = 0
    """Samples that were left out, each time that they were due."""

    waited_for_credit_s: float = 0.0
    """Seconds with a ready batch and no credit: the trainer is the slower side.  This is the
    healthy state."""

    waited_for_bytes_s: float = 0.0
    """Seconds with credit and no ready batch: the source is the slower side."""

    sending_s: float = 0.0
    """Seconds from the first to the last byte of a frame: high when the client does not empty its
    socket, or when this process is short of CPU."""


Item = ReadyBatch | EpochEdge | Finish | HeadraceError

_MARKS = (EpochEdge, Finish)


@dataclass(slots=True, eq=False, kw_only=True)
class Feed:
    """One subscriber's pipeline.

    Its owner runs `run` in a task, takes items from the head, gives slots back, and calls `stop`.
    """

    name: str
    """For logs: stream and rank."""

    source_of: Callable[[str], OpenSource]
    """Returns the source of a part of the plan."""

    number_of: Callable[[str], int]
    """Returns the number of that source; 0 for the main one."""

    planner: Planner | DictatedPlanner | StreamedPlanner
    pool: SlotPool
    fetcher: Fetcher
    largest: Largest
    """The largest payload from the start of the feed to the end of that segment: what the slots of
    the pool have room for."""

    size_slots: Callable[[Largest], Awaitable[Largest]]
    """Finds the same for the segment after one."""

    on_change: Callable[[], None] = lambda: None
    """Called when the head may have become ready."""

    seat: Seat | None = None
    """Its place at the stage of the node; None where batches read just what they need."""

    journal: Journal = field(default_factory=lambda: Journal(None))
    """What was left out up to the head."""

    num_slots: int = 0
    """Slots that the client asked for; 0 for as many as the pool aims for."""

    tally: Tally | None = None
    """What all feeds of the run have left out; None where nothing may be."""

    clock: Callable[[], float] = time.monotonic
    """Monotonic seconds."""

    statistics: FeedStatistics = field(default_factory=FeedStatistics)
    # Filled or being filled, in the order of the plan.
    _items: deque[Item] = field(default_factory=deque)
    # Planned, without a slot yet.
    _planned: deque[PlannedBatch | EpochEdge | Finish] = field(default_factory=deque)
    # Bytes of slots of dropped batches whose fill has not ended yet.
    _leaving_bytes: int = 0
    # Batches up to this size fit into a slot when they are planned again.
    _room_bytes: int = field(init=False)
    # Set when batches are planned again.
    _has_shed: asyncio.Event = field(default_factory=asyncio.Event)
    # The task in `run`, for `halt`; None before and after.
    _task: asyncio.Task[None] | None = None
    _is_halted: bool = False
    # Finds how large the slots of the next segment are.
    _sizing: asyncio.Task[Largest] | None = None
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _lookahead: Lookahead = field(init=False)

    def __post_init__(self) -> None:
        self._room_bytes = self.pool.slot_bytes
        self._lookahead = Lookahead(self.num_slots or self.pool.max_slots)
        self.pool.aim_for(self._lookahead.num_slots)

    async def run(self) -> None:
        """Read ahead until the stream fails or `stop` is called."""
        try:
            if self._is_halted:
                return
            async with asyncio.TaskGroup() as tasks:
                if isinstance(self.planner, StreamedPlanner):
                    self.planner.start(tasks)
                self._task = tasks.create_task(self._look_ahead(tasks), name=f"plan {self.name}")
        except* HeadraceError as errors:
            self._end_with(_first(errors))
        except* Exception as errors:
            logger.exception("feed failed feed=%s", self.name, exc_info=errors)
            self._end_with(FeedError(f"the daemon failed: {_first(errors)}", code="internal"))
        finally:
            self._task = None
            self._is_over.set()

    async def stop(self) -> None:
        """End `run`, if it was started, and take all slots back into the pool.

        The caller has given back what it took, and runs or has run `run`.
        """
        self.halt()
        for item in self._items:
            if isinstance(item, ReadyBatch) and item.task is not None:
                item.task.cancel()
        await self._is_over.wait()
        if self.seat is not None:
            self.seat.leave()
        for item in self._items:
            if isinstance(item, ReadyBatch):
                self.pool.give_back(item.slot)
        self._items.clear()
        self._planned.clear()
        if isinstance(self.planner, StreamedPlanner):
            self.planner.memory.release_all()

    def wake(self) -> None:
        """Tell whoever takes the head that it may be another one now."""
        self.on_change()

    def halt(self) -> None:
        """Plan nothing more; what is planned and placed is still read."""
        self._is_halted = True
        if self._task is not None:
            self._task.cancel()

    # ---- the head ----------------------------------------------------------------------------

    def head(self) -> Item | None:
        """Return the next item of the stream, or None while it is not ready."""
        if not self._items:
            return None
        item = self._items[0]
        if not isinstance(item, ReadyBatch):
            return item
        if self.tally is not None and self.tally.ends(item.place):
            self._items[0] = self.tally.failure()
            self._drop(item)
            return self._items[0]
        if not item.is_filled:
            return None
        if item.skips is None:
            try:
                self._note_holes(item)
            except HeadraceError as error:
                self._items[0] = error
                self.pool.give_back(item.slot)
        return self._items[0]

    def _note_holes(self, batch: ReadyBatch) -> None:
        """Write into the journal what a batch has left out, when its turn has come."""
        planned = batch.planned
        if not self.journal.allows:
            batch.skips = self.journal.skips
            return
        self.journal.begin_epoch(planned.epoch)
        found = {
            self._sample(planned, row): error
            for row, error in batch.holes.items()
            if error is not None
        }
        if isinstance(planned, StreamedBatch):
            found.update(planned.left_out)
        batch.notes = self.journal.add(found)
        self.statistics.num_skipped += len(batch.holes)
        self.journal.begin_epoch(planned.after.epoch)
        batch.skips = self.journal.skips

    def _sample(self, planned: PlannedBatch, row: int) -> int:
        """Return the number of a sample among those of all sources."""
        return int(planned.indices[row]) + SOURCE * self.number_of(planned.stream)

    def take(self) -> Item:
        """Remove the head, which must be ready, from the feed.

        The slot of a batch belongs to the caller until it calls `pool.give_back`.
        """
        item = self._items.popleft()
        if isinstance(item, ReadyBatch):
            if self.tally is not None:
                self.tally.give(item.place)
            following = self._items[0] if self._items else None
            is_next_ready = not isinstance(following, ReadyBatch) or following.is_filled
            if self._lookahead.note_given(is_next_ready=is_next_ready):
                self.pool.aim_for(self._lookahead.num_slots)
        return item

    @property
    def num_ready(self) -> int:
        """Batches that could be sent now."""
        return sum(isinstance(item, ReadyBatch) and item.is_filled for item in self._items)

    @property
    def num_filling(self) -> int:
        """Batches that are being read."""
        return sum(isinstance(item, ReadyBatch) and not item.is_filled for item in self._items)

    # ---- reading ahead -----------------------------------------------------------------------

    async def _look_ahead(self, tasks: asyncio.TaskGroup) -> None:
        try:
            await self._place_all(tasks)
        except HeadraceError as error:
            self._append(error)  # in its place: what stands before it is still delivered
        finally:
            if self._sizing is not None:
                self._sizing.cancel()
            if isinstance(self.planner, StreamedPlanner):
                self.planner.stop()

    async def _place_all(self, tasks: asyncio.TaskGroup) -> None:
        # One segment ahead of need.
        self._sizing = tasks.create_task(self._size_next(), name=f"size {self.name}")
        while True:
            if not self._planned:
                self._planned += await self.planner.next()
            # During each `await` below, `shed` may put batches in front.
            match self._planned[0]:
                case Finish() as finish:
                    self._sizing.cancel()
                    self._planned.popleft()
                    self._append(finish)
                    while not self._planned:
                        self._has_shed.clear()
                        await self._has_shed.wait()
                case EpochEdge() as edge:
                    self._planned.popleft()
                    self._append(edge)
                case PlannedBatch() as planned if planned.segment > self.largest.segment:
                    largest = await self._sizing
                    if self._planned[0] is planned:
                        self._resize(largest)
                        self._sizing = tasks.create_task(
                            self._size_next(), name=f"size {self.name}"
                        )
                case PlannedBatch() as planned:
                    slot = await self.pool.take(planned.global_step)
                    following = self._planned.popleft()
                    assert isinstance(following, PlannedBatch)
                    batch = self._place(following, slot)
                    batch.task = tasks.create_task(
                        self._fill(batch), name=f"fill {self.name} step {following.step}"
                    )
                    self._items.append(batch)

    def _resize(self, largest: Largest) -> None:
        """Use slots of the size of a segment from now on."""
        slot_bytes = largest.weight
        # Making room may shed batches of this feed, which then have to fit into the new slots.
        self._room_bytes = min(self._room_bytes, slot_bytes)
        if isinstance(self.planner, StreamedPlanner):
            self.planner.resize(self.pool, slot_bytes, self.name)
        else:
            need = f"epoch {largest.segment} of feed {self.name} needs slots of {slot_bytes} bytes"
            self.pool.resize(slot_bytes, need=need)
        self.largest, self._room_bytes = largest, slot_bytes

    async def _size_next(self) -> Largest:
        """Find how large the batches of the segment after the present one are."""
        return await self.size_slots(self.largest)

    def _place(self, planned: PlannedBatch, slot: Slot) -> ReadyBatch:
        source = self.source_of(planned.stream)
        if isinstance(planned, StreamedBatch):
            return ReadyBatch(planned, source, planned.keys, lay_out(planned.lengths), slot)
        layout = lay_out(source.manifest.lengths_of(planned.indices))
        names = source.manifest.names_of(planned.indices)
        return ReadyBatch(planned, source, names, layout, slot)

    async def _fill(self, batch: ReadyBatch) -> None:
        batch.is_started = True
        if isinstance(batch.planned, StreamedBatch):
            await self._fill_streamed(batch, batch.planned)
            return
        layout, planned, holes = batch.layout, batch.planned, batch.holes
        allows = self.journal.allows
        if allows and len(self.journal):
            for row in range(len(batch.names)):
                if self.journal.leaves_out(self._sample(planned, row), planned.epoch):
                    holes[row] = None
        failure: SourceError | None = None
        started_s = self.clock()
        requests: Sequence[Request] = ()
        try:
            filled = None
            if self.seat is not None:
                filled = await self.seat.fill(
                    planned, layout.offsets, batch.slot.view, left_out=tuple(holes)
                )
            if filled is None or not filled.all():
                requests = requests_of(
                    batch.source.manifest,
                    planned.indices,
                    batch.names,
                    layout,
                    batch.slot.view,
                    left_out=tuple(holes),
                    filled=filled,
                    on_bad=holes.__setitem__ if allows else None,
                )
                await self.fetcher.fetch(batch.source.reader, requests)
        except SourceError as error:
            failure = error
        finally:
            release(requests)
            if batch.is_dropped:
                self._leaving_bytes -= batch.slot.size
                self.pool.give_back(batch.slot)
        if batch.is_dropped:
            return
        if failure is None:
            batch.is_filled = True
            self._lookahead.note_filled(self.clock() - started_s)
            self._count(batch)
        else:
            # In the place of the batch: those before it are still delivered.
            self._items[self._items.index(batch)] = failure
            self.pool.give_back(batch.slot)
        self.on_change()

    async def _fill_streamed(self, batch: ReadyBatch, planned: StreamedBatch) -> None:
        """Copy what was read already."""
        try:
            await planned.unload(batch.layout, batch.slot.view)
        finally:
            if batch.is_dropped:
                self._leaving_bytes -= batch.slot.size
                self.pool.give_back(batch.slot)
        if batch.is_dropped:
            return
        batch.is_filled = True
        if self.tally is not None:
            for sample, error in planned.left_out.items():
                self.tally.note(sample, error, batch.place)
        self.on_change()

    def _count(self, batch: ReadyBatch) -> None:
        """Tell the tally what a batch that is filled has left out."""
        if self.tally is None:
            return
        for row, error in batch.holes.items():
            if error is not None:
                self.tally.note(self._sample(batch.planned, row), error, batch.place)

    def _end_with(self, error: HeadraceError) -> None:
        """Put an error in the place of the first batch that will never be ready."""
        kept = 0
        for item in self._items:
            if isinstance(item, ReadyBatch) and not item.is_filled:
                break
            kept += 1
        while len(self._items) > kept:
            item = self._items.pop()
            if isinstance(item, ReadyBatch):
                self.pool.give_back(item.slot)
        self._append(error)

    def _append(self, item: EpochEdge | Finish | HeadraceError) -> None:
        self._items.append(item)
        self.on_change()

    def shed(self) -> None:
        """Give up batches that are furthest ahead, down to the guaranteed memory.

        They are planned again.  Memory that is being filled comes back when its read has ended.
        Batches that stand before an error stay, and so do those of an earlier epoch that would
        not fit into a slot of the present size, and those of streamed shards, whose samples are
        gone from where they came.
        """
        self.pool.shed()
        while self.pool.surplus_bytes > self._leaving_bytes and self._shed_last():
            pass

    def _shed_last(self) -> bool:
        """Give up the last batch, plan it and the marks behind it again; say if there is one."""
        behind = 0
        while behind < len(self._items) and isinstance(self._items[-1 - behind], _MARKS):
            behind += 1
        batch = self._items[-1 - behind] if behind < len(self._items) else None
        if not isinstance(batch, ReadyBatch) or batch.layout.num_bytes > self._room_bytes:
            return False
        if isinstance(batch.planned, StreamedBatch):
            return False
        for _ in range(behind):
            mark = self._items.pop()
            assert isinstance(mark, _MARKS)
            self._planned.appendleft(mark)
        self._items.pop()
        self._planned.appendleft(batch.planned)
        self._has_shed.set()
        if not self._drop(batch):
            self.pool.shed()
        return True

    def _drop(self, batch: ReadyBatch) -> bool:
        """Give up a batch that is in the queue no more; return whether its slot comes later."""
        is_being_filled = batch.is_being_filled
        if is_being_filled:
            batch.is_dropped = True
            self._leaving_bytes += batch.slot.size
        else:
            self.pool.give_back(batch.slot)
        if batch.task is not None:
            batch.task.cancel()
        return is_being_filled


def _first(errors: BaseExceptionGroup[BaseException]) -> HeadraceError:
    first = errors.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, HeadraceError) else FeedError(repr(first), code="internal")
