"""The planner of streamed shards: reads them in their order, and makes batches of what comes.

What a batch has is in memory when it is planned; filling its slot is a copy.  A batch like that
cannot be planned again, so its feed keeps to the memory that it was promised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import BudgetError, HeadraceError, PlanError
from headrace.plans.cutter import Cutter
from headrace.plans.engine import PlannedBatch
from headrace.plans.program import Place
from headrace.plans.streamed import SAMPLE_BITS, Spot, StreamedProgram, sample_index

from ..assemble.layout import room_of
from ..errors import ObjectError, ObjectUnreadableError, SourceEmptyError
from ..source.together import run_in_thread
from .lanes import LANE_BYTES, Lanes, LaneWork
from .planner import EpochEdge, Finish
from .rooms import Rooms

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from headrace.plans.cutter import CutStep
    from headrace.plans.engine import Largest
    from headrace.plans.order import Indices

    from ..assemble.layout import Layout
    from ..assemble.slots import SlotPool
    from ..fetch.fetcher import Fetcher
    from ..fetch.growing import GrowingMemory
    from ..source.shards.grouping import StreamedSample
    from .lanes import Lane
    from .streams import BoundStream


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedBatch(PlannedBatch):
    """A batch whose samples are in memory."""

    keys: list[str]
    """Names of the n samples."""

    fields: tuple[str, ...]
    """Names of the F fields."""

    lengths: NDArray[np.int64]
    """i64[F, n], bytes of each value; -1 for one that is absent."""

    unload: Callable[[Layout, memoryview], Awaitable[None]]
    """Copies the values to where a layout says, once, and lets go of them; in a thread."""

    left_out: Mapping[int, ObjectError] = field(default_factory=dict)
    """Shards that broke off before it, by the index of the first sample that is left out."""


# A sample, and the index that names it.
_Entry = tuple[int, "StreamedSample"]


class StreamedPlanner:
    """Walks through streamed shards: every `stride`-th step from `first` on.

    Args:
        stream: What is read, and from where on.
        fetcher: Reads for all feeds.
        executor: Threads that unpack and copy.
        memory: For all that is not in slots; the planner's own until `close`.
        first: Steps to leave out at the beginning.
        stride: Distance between the steps; above 1 for one epoch only.
        epochs: Epochs to walk through, that of the cursor included; None: without end.
    """

    def __init__(
        self,
        stream: BoundStream,
        *,
        fetcher: Fetcher,
        executor: Executor,
        memory: GrowingMemory,
        first: int = 0,
        stride: int = 1,
        epochs: int | None = None,
    ) -> None:
        source, program = stream.stream.source, stream.bound.program
        assert isinstance(program, StreamedProgram)
        assert not memory.held_bytes, "what another planner held is let go of"
        self.memory = memory
        self._stream = stream
        self._program = program
        self._executor = executor
        self._work = LaneWork(
            source=source,  # type: ignore[arg-type]  # streamed sources are shards
            opened=stream.source,
            fetcher=fetcher,
            executor=executor,
            memory=memory,
            max_sample_bytes=stream.stream.sample_limit,
        )
        self._epochs_left = 1 if stride > 1 else epochs
        self._stride = stride
        self._rooms = Rooms(stream.cursor)
        # Owns the tasks of lanes; None outside of `start` and `stop`.
        self._tasks: asyncio.TaskGroup | None = None
        # The shards in the order of the epoch, and those that are being read; None before any is.
        self._rows: Indices = np.empty(0, dtype=np.uint64)
        self._lanes: Lanes | None = None
        # Samples after which the rest of a shard is left out, by row; and those that are news.
        skip = stream.stream.skip
        self._skips, self._repairs = skip is not None, skip is not None and skip.repair
        self._stops = _stops(stream.cursor.skips) if self._skips else {}
        self._found: dict[int, ObjectError] = {}
        # What ended the reading, to be raised behind the batches before it.
        self._failure: HeadraceError | None = None
        cursor = stream.cursor
        self._begin(
            Place(
                cursor.epoch,
                cursor.step,
                cursor.position,
                cursor.update,
                cursor.sample,
                cursor.child,
            ),
            first,
        )

    def _begin(self, place: Place, first: int = 0) -> None:
        """Begin an epoch, or go on in one."""
        topology = self._stream.topology
        self._epoch = place.epoch
        self._spot = Spot.of(place)
        # Whether a step has to follow: a cursor within an epoch is not made behind its last one.
        self._owes_step = place.step > 0 and not first and self._stride == 1
        self._cutter: Cutter[_Entry] = Cutter(
            self._program,
            place,
            topology.rank,
            topology.world_size,
            first=first,
            stride=self._stride,
            drop=lambda entry: self.memory.release(entry[1].held_bytes),
        )

    # ---- life ----------------------------------------------------------------------------------

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to read; the group owns the tasks, and `stop` ends them."""
        self._tasks = tasks

    def stop(self) -> None:
        """Read nothing more; the tasks end soon."""
        if self._lanes is not None:
            self._lanes.stop()
            self._lanes = None
        self._tasks = None

    # ---- memory --------------------------------------------------------------------------------

    def resize(self, pool: SlotPool, slot_bytes: int, name: str) -> None:
        """Use larger slots; where memory is short, those come before shards that are read ahead.

        Args:
            pool: Has the slots.
            slot_bytes: Size of a slot from now on.
            name: That of the feed.

        Raises:
            BudgetError: If not even one slot can be promised; not retryable.
        """
        need = f"a batch of feed {name}, whose shards are streamed, needs {slot_bytes} bytes"
        try:
            pool.resize(slot_bytes, need=need)
        except BudgetError:
            self.memory.make_way(LANE_BYTES)
            try:
                pool.resize(slot_bytes, need=need)
            except BudgetError as error:
                raise BudgetError(str(error), retryable=False) from None

    # ---- what comes next -----------------------------------------------------------------------

    async def largest(self, after: int) -> Largest:
        """Return the room of the segment after another; waits until there is one."""
        return await self._rooms.largest(after)

    async def next(self) -> list[PlannedBatch | EpochEdge | Finish]:
        """Return what comes next: a batch, and the edge where an epoch ends.

        Raises:
            SourceError: If a shard cannot be read, or its members form no samples.
            PlanError: If the epoch makes no step.
            BudgetError: If what has to be held is more than the budget has.
        """
        if self._failure is not None:
            raise self._failure
        if self._epochs_left == 0:
            return [Finish()]
        cutter = self._cutter
        try:
            while not cutter.steps and not cutter.is_over:
                await self._read_on(cutter)
        except HeadraceError as error:
            cutter.give_up()
            if not cutter.steps:
                raise
            self._failure = error
        items: list[PlannedBatch | EpochEdge | Finish] = []
        while cutter.steps:
            self._owes_step = False
            items.append(self._planned(cutter.steps.popleft()))
        if cutter.is_over:
            if self._owes_step:
                raise self._nothing_left(cutter)
            items.append(self._edge(cutter))
        return items

    def _edge(self, cutter: Cutter[_Entry]) -> EpochEdge:
        """End an epoch, and begin the next one."""
        after = self._stream.bound.cursor(cutter.after, self._stream.topology.world_size)
        edge = EpochEdge(self._epoch, after)
        if self._lanes is not None:
            self._lanes.stop()
            self._lanes = None
        if self._epochs_left is not None:
            self._epochs_left -= 1
        if self._repairs:
            self._stops, self._found = {}, {}
        self._begin(cutter.after)
        return edge

    async def _read_on(self, cutter: Cutter[_Entry]) -> None:
        """Cut what is there, or get more of the present shard, or go on to the next one."""
        if not cutter.is_hungry:
            cutter.pump()
            return
        if self._lanes is None:
            shards = partial(self._program.shards, self._epoch)
            self._rows = await run_in_thread(self._executor, shards)
            self._lanes = self._open_lanes(self._spot.shard, self._spot.sample)
        lane = self._lanes.first()
        if lane is None:
            self._end_lap(cutter)
        elif await lane.more():
            while not cutter.steps and cutter.is_hungry and (sample := lane.pop()) is not None:
                index = sample_index(lane.row, sample.number)
                cutter.add(lane.place, sample.number, (index, sample))
                cutter.pump()
        else:
            if lane.error is not None:
                self._leave_out(lane, lane.error, cutter.num_given)
            self._lanes.leave_first()

    def _open_lanes(self, shard: int, sample: int) -> Lanes:
        assert self._tasks is not None, "the planner was not started"
        return Lanes(self._work, self._tasks, self._rows, shard, sample, self._stops)

    def _end_lap(self, cutter: Cutter[_Entry]) -> None:
        if cutter.is_blank:
            raise self._empty()
        cutter.end_lap()
        # It begins anew if there is another lap; if not, nobody asks.
        self._lanes = self._open_lanes(0, 0)

    def _nothing_left(self, cutter: Cutter[_Entry]) -> SourceEmptyError:
        location, following = self._stream.stream.source.location, cutter.after.epoch
        found = "".join(f"; {error}" for error in list(self._found.values())[:1])
        return SourceEmptyError(
            location,
            f"no step is left of epoch {self._epoch} of {location} where the state stands, though "
            f"there was one when it was taken: a shard is shorter now, or was left out{found}; "
            f"restore it, or go on with seek(epoch={following})",
        )

    def _empty(self) -> SourceEmptyError:
        location, count = self._stream.stream.source.location, len(self._rows)
        if self._found:
            error = next(iter(self._found.values()))
            return SourceEmptyError(
                location,
                f"no sample is left of the {count} shards of {location}: {len(self._found)} broke "
                f"off before their first one; {error}",
            )
        return SourceEmptyError(
            location,
            f"the {count} shards of {location} have no sample with any of the fields "
            f"{', '.join(self._work.source.fields or ())}: a sample has a name with a dot in "
            "its last component, as in 000.jpg",
        )

    def _leave_out(self, lane: Lane, error: HeadraceError, num_given: int) -> None:
        """Leave out the rest of a shard that broke off.

        Args:
            lane: That of the shard.
            error: What broke it off.
            num_given: Samples of the present window that were given when the shard was whole.

        Raises:
            HeadraceError: If that is not allowed.
        """
        if not self._skips or not isinstance(error, ObjectError):
            raise error
        if num_given:
            # Others would follow in its place, and the window have another order.
            raise ObjectUnreadableError(
                error.what,
                f"{error}; it cannot be left out here: {num_given} samples of its window were "
                "given while it could be read, and the rest would come in another order; restore "
                "the shard, or go on at the start of an epoch",
            )
        self._stops[lane.row] = lane.num_samples
        self._found[sample_index(lane.row, lane.num_samples)] = error

    # ---- batches -------------------------------------------------------------------------------

    def _planned(self, step: CutStep[_Entry]) -> StreamedBatch:
        before, topology = step.before, self._stream.topology
        samples = [sample for _, sample in step.items]
        fields = tuple(self._work.source.fields or ())
        values = [sample.values[number] for number in range(len(fields)) for sample in samples]
        lengths = np.fromiter(
            (-1 if value is None else len(value) for value in values), np.int64, len(values)
        ).reshape(len(fields), -1)
        found, self._found = self._found, {}
        held_bytes = sum(sample.held_bytes for sample in samples)
        self.memory.leaving_bytes += held_bytes
        return StreamedBatch(
            epoch=before.epoch,
            step=before.step,
            global_step=before.update,
            rank=topology.rank,
            world_size=topology.world_size,
            indices=np.fromiter((index for index, _ in step.items), np.uint64, len(samples)),
            flags=np.array(step.flags, dtype=np.uint8),
            after=self._stream.bound.cursor(step.after, topology.world_size),
            segment=self._rooms.take_in(int(room_of(lengths).sum()), before.step),
            keys=[sample.key for sample in samples],
            fields=fields,
            lengths=lengths,
            unload=partial(self._unload, values, held_bytes),
            left_out=found,
        )

    async def _unload(
        self, values: list[Any], held_bytes: int, layout: Layout, view: memoryview
    ) -> None:
        def copy() -> None:
            for value, offset in zip(values, layout.offsets.tolist(), strict=True):
                if value:
                    view[offset : offset + len(value)] = value
            values.clear()

        try:
            await run_in_thread(self._executor, copy)
        finally:
            self.memory.leaving_bytes -= held_bytes
            self.memory.release(held_bytes)


def _stops(skips: tuple[int, ...]) -> dict[int, int]:
    """Return where shards break off, by row, as a cursor says it."""
    return {skip >> SAMPLE_BITS: skip & ((1 << SAMPLE_BITS) - 1) for skip in reversed(skips)}


def check_alone(stream: BoundStream, stride: int) -> None:
    """Refuse to leave anything out of shards that several feeds read, each for itself.

    What one finds damaged another may find whole, and their shares would no longer be of one order.

    Raises:
        PlanError: If it could be.
    """
    world_size = stream.topology.world_size
    if stream.stream.skip is not None and (world_size > 1 or stride > 1):
        readers = f"world_size={world_size}" if world_size > 1 else f"{stride} DataLoader workers"
        raise PlanError(
            f"on_bad='skip' does not go with shards that are streamed by {readers}: each reads "
            "them for itself, and what one leaves out would shift the others' samples; use "
            "on_bad='fail', one rank without workers, or an index (plain .tar)"
        )
