"""Lanes: shards that are streamed side by side, to be used one after the other.

The first lane is what the feed waits for; the others read ahead, as far as memory is promised and
their queues have room.  Whatever lanes do at the same time, samples leave in the order of the
shards, and the error of a shard stands behind the samples before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.errors import HeadraceError

from ..source.shards.archives import READ_BYTES, stream_members
from ..source.shards.grouping import Grouper
from ..source.shards.indexstore import Shard
from ..source.shards.policy import ShardPolicy
from ..source.shards.stream import STEP_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor

    from headrace.plans.order import Indices
    from headrace.shards import Shards

    from ..fetch.fetcher import Fetcher
    from ..fetch.growing import GrowingMemory
    from ..source.catalog import OpenSource
    from ..source.reader import RangeRequest
    from ..source.shards.grouping import StreamedSample

WIDTH: Final = 3
"""Shards under way at a time: one that is used, and those behind it."""

QUEUE_BYTES: Final = 1 << 20
"""What a lane has ready; one sample in any case."""

QUEUE_SAMPLES: Final = 256
"""Likewise: as many as are put into batches in one turn of the loop."""

LANE_BYTES: Final = 2 * READ_BYTES + 2 * STEP_BYTES + QUEUE_BYTES
"""What a lane takes up where samples are small."""


class LaneWork(NamedTuple):
    """What all lanes of a feed have in common."""

    source: Shards
    opened: OpenSource
    fetcher: Fetcher
    executor: Executor
    memory: GrowingMemory
    max_sample_bytes: int


class _FetchedRanges:
    """Reads ranges as all reads of the node: bounded, and shared with who wants the same."""

    def __init__(self, work: LaneWork) -> None:
        self._work = work

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        await self._work.fetcher.fetch(self._work.opened.reader, requests)


class Lane:
    """One shard that is streamed.

    Args:
        work: What lanes have in common.
        place: Place of the shard in the order of the epoch.
        row: Its place in the manifest.
        skip: Samples at its beginning that are not wanted.
        stop: Samples after which the rest of it is left out; None: nothing is.
    """

    def __init__(
        self, work: LaneWork, place: int, row: int, *, skip: int = 0, stop: int | None = None
    ) -> None:
        self.place = place
        self.row = row
        self.error: HeadraceError | None = None
        """What ended the shard early."""
        self.is_over = False
        """All that it has is in the queue, or was taken."""
        self.num_samples = 0
        """Samples that were found so far, those that are not wanted included."""
        self.is_first = False
        """Whether the feed waits for it."""
        self._work = work
        self._skip = skip
        self._stop = stop
        self._queue: deque[StreamedSample] = deque()
        self._queued_bytes = 0
        # What the members that are being read take up, and the sample that has begun.
        self._reading_bytes = self._open_bytes = 0
        self._has_more, self._has_room = asyncio.Event(), asyncio.Event()
        # What it gives back when it has ended, if it was stopped.
        self._leaving_bytes = 0
        # The task that runs it.
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Read the shard; what fails stands behind what was read before."""
        try:
            await self._run()
        except HeadraceError as error:
            self.error = error.with_traceback(None)  # frames would keep what was read
        finally:
            memory = self._work.memory
            memory.leaving_bytes -= self._leaving_bytes
            memory.release(self._reading_bytes + self._open_bytes)
            self._reading_bytes = self._open_bytes = self._leaving_bytes = 0
            self.is_over = True
            self._has_more.set()

    def stop(self) -> None:
        """Read nothing more; what is queued is let go of, and the rest when the task has ended."""
        assert self.task is not None
        self.task.cancel()
        if not self.is_over:
            self._leaving_bytes = self._reading_bytes + self._open_bytes
            self._work.memory.leaving_bytes += self._leaving_bytes
        while (sample := self.pop()) is not None:
            self._work.memory.release(sample.held_bytes)

    async def _run(self) -> None:
        work, manifest = self._work, self._work.opened.manifest
        checksum = b"" if manifest.checksums is None else bytes(manifest.checksums[self.row])
        version = b"" if manifest.versions is None else bytes(manifest.versions[self.row])
        name, size = manifest[self.row]
        shard = Shard(name, size, b"", checksum, version)
        grouper = Grouper(work.source, name, work.max_sample_bytes)
        if self._stop == 0:
            return
        members = stream_members(
            shard,
            _FetchedRanges(work),
            executor=work.executor,
            max_member_bytes=work.max_sample_bytes,
            policy=ShardPolicy(links=work.source.links),
            hold=self._hold_reading,
        )
        async with aclosing(members):
            async for member in members:
                sample = grouper.add(member)
                if sample is not None:
                    await self._put(sample)
                    if self.num_samples == self._stop:
                        return
                if grouper.open_bytes > self._open_bytes:
                    await self._hold(grouper.open_bytes - self._open_bytes)
                    self._open_bytes = grouper.open_bytes
        sample = grouper.finish()
        if sample is not None:
            await self._put(sample)

    async def _hold(self, num_bytes: int) -> None:
        await self._work.memory.hold(num_bytes, may_grow=lambda: self.is_first)

    async def _hold_reading(self, num_bytes: int) -> None:
        more = num_bytes - self._reading_bytes
        if more > 0:
            await self._hold(more)
        else:
            self._work.memory.release(-more)
        self._reading_bytes = num_bytes

    async def _put(self, sample: StreamedSample) -> None:
        """Queue the sample that was open."""
        self._open_bytes = 0
        self.num_samples += 1
        if self.num_samples <= self._skip:
            self._work.memory.release(sample.held_bytes)
            return
        self._queue.append(sample)
        self._queued_bytes += sample.held_bytes
        self._has_more.set()
        while self._queued_bytes >= QUEUE_BYTES or len(self._queue) >= QUEUE_SAMPLES:
            self._has_room.clear()
            await self._has_room.wait()

    # ---- the other end -------------------------------------------------------------------------

    def pop(self) -> StreamedSample | None:
        """Return the next sample, whose memory is the caller's now; None if there is none yet."""
        if not self._queue:
            return None
        sample = self._queue.popleft()
        self._queued_bytes -= sample.held_bytes
        self._has_room.set()
        return sample

    async def more(self) -> bool:
        """Wait until there is a sample or the shard is over; say whether there is one."""
        while not self._queue and not self.is_over:
            self._has_more.clear()
            await self._has_more.wait()
        return bool(self._queue)

    def lead(self) -> None:
        """Take note that the feed waits for it now."""
        if not self.is_first:
            self.is_first = True
            self._work.memory.wake()


class Lanes:
    """The shards of one lap of an epoch, from one of them on.

    Args:
        work: What lanes have in common.
        tasks: Owns their tasks.
        rows: The shards in the order of the epoch, u64[S]: places in the manifest.
        shard: Place in that order to begin at.
        sample: Sample of that shard to begin with.
        stop_of: Samples after which the rest of a shard is left out, by row.
    """

    def __init__(
        self,
        work: LaneWork,
        tasks: asyncio.TaskGroup,
        rows: Indices,
        shard: int,
        sample: int,
        stop_of: Mapping[int, int],
    ) -> None:
        self._work = work
        self._tasks = tasks
        self._rows = rows
        self._next = shard
        self._skip = sample
        self._stop_of = stop_of
        self._lanes: deque[Lane] = deque()
        self._width = WIDTH
        work.memory.make_room = self._retreat

    def _retreat(self) -> None:
        """Read no shard ahead any more, as memory is short."""
        self._width = 1
        while len(self._lanes) > 1:
            lane = self._lanes.pop()
            lane.stop()
            self._next = lane.place

    def first(self) -> Lane | None:
        """Return the lane that comes next; None behind the last shard."""
        while len(self._lanes) < self._width and self._next < len(self._rows):
            row = int(self._rows[self._next])
            lane = Lane(self._work, self._next, row, skip=self._skip, stop=self._stop_of.get(row))
            lane.task = self._tasks.create_task(lane.run(), name=f"stream shard {row}")
            self._lanes.append(lane)
            self._next, self._skip = self._next + 1, 0
        if not self._lanes:
            return None
        self._lanes[0].lead()
        return self._lanes[0]

    def leave_first(self) -> None:
        """Go on to the next shard; the first one is over, and has nothing left."""
        lane = self._lanes.popleft()
        assert lane.is_over

    def stop(self) -> None:
        """Read nothing more; what is queued is let go of."""
        for lane in self._lanes:
            lane.stop()
        self._lanes.clear()
