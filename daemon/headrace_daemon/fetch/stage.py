"""The stage: where the feeds of the node read long runs of shards once, and copy from memory.

Invariant: a batch never depends on it.  What is not there, or will not come, or failed, the batch
reads by itself, as if there were no stage; so neither order nor errors nor holes change, and
nobody waits for memory.  All decisions are made synchronously; tasks only cut and read.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from ..errors import SourceError
from ..source.reader import Place, RangeRequest, release
from ..source.shards.ranges import facts_of
from ..source.together import Tasks, run_in_thread, run_together
from .blocks import BLOCK_BYTES, Blocks
from .seats import Audience, Seat
from .windows import Window, grouped

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from concurrent.futures import Executor
    from types import TracebackType

    from ..errors import ObjectError
    from .budget import Budget
    from .fetcher import Fetcher
    from .seats import Member
    from .windows import Course, Group, Key

logger = logging.getLogger(__name__)

WIDTH: Final = 8
"""Groups of a window that are read side by side.  Where a reader takes places of the fetcher, two
windows can take all that there are by default, and what others read waits for its turn."""

GROUP_BYTES: Final = 3 << 20
"""Bytes of a group; with a block more, it is still one of the fetcher, unless it has so many small
pieces that the fetcher divides it (`fetcher.GROUP_REQUESTS`)."""


class Stage:
    """The windows of all courses; a context manager around the time in which there may be any.

    Args:
        budget: The memory of the node.
        fetcher: Reads for all.
        executor: Threads for cutting windows.
        limit_bytes: What it holds at most; 0 for no stage.
        block_bytes: Size of the blocks that its memory consists of.
    """

    def __init__(
        self,
        budget: Budget,
        fetcher: Fetcher,
        executor: Executor,
        limit_bytes: int,
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._fetcher = fetcher
        self._executor = executor
        self._audiences: dict[Hashable, Audience] = {}
        self._blocks = Blocks(budget, limit_bytes, block_bytes=block_bytes, shed=self._shed)
        self._tasks = Tasks("the stage")
        self._clock = 0
        self.num_pieces = 0
        """Pieces that were read."""
        self.num_bytes = 0
        """Bytes of them."""
        self.num_again_bytes = 0
        """Bytes that were read, from here or by a batch, though they had been here in this pass."""
        self.num_hits = 0
        """Values that were copied from here."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tasks.__aexit__(kind, error, traceback)
        for audience in self._audiences.values():
            for window in list(audience.windows.values()):
                self._drop(audience, window)
        self._blocks.close()

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that it has now."""
        return self._blocks.held_bytes

    @property
    def window_limit_bytes(self) -> int:
        """How large a window may be: while one is read from, the next one is filled."""
        return self._blocks.limit // 2 * self._blocks.block_bytes

    # ---- who is there --------------------------------------------------------------------------

    def join(self, key: Hashable, course: Course, member: Member) -> Seat:
        """Return a seat for a feed.

        Args:
            key: What the feeds have in common that are on this course.
            course: How they pass through their source.
            member: The feed.
        """
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(key, course)
        audience.num_expected = max(audience.num_expected, member.num_expected)
        seat = Seat(self, audience, member)
        audience.seats.append(seat)
        audience.count()
        return seat

    def leave(self, seat: Seat) -> None:
        """Forget a feed, whose batches are all over; a second call does nothing."""
        audience = seat.audience
        if seat not in audience.seats:
            return
        audience.seats.remove(seat)
        audience.count()
        if audience.seats:
            self.sweep(audience)
            return
        del self._audiences[audience.key]
        for window in list(audience.windows.values()):
            self._drop(audience, window)
        if not self._audiences:
            self._blocks.shed()

    # ---- windows -------------------------------------------------------------------------------

    def begin(self, audience: Audience, key: Key, *, is_early: bool = False) -> Window:
        """Begin to read a window."""
        window = audience.windows[key] = Window(key, is_early=is_early)
        self._tasks.start(self._load(audience, window), name=f"stage window {key[0]}.{key[1]}")
        return window

    def touch(self, window: Window, num_entries: int) -> None:
        """Take note that a batch comes for some entries, and keep the memory until `let_go`."""
        self._clock += 1
        window.used = self._clock
        window.num_taken += num_entries
        window.num_users += 1
        window.is_early = False

    def let_go(self, audience: Audience, window: Window) -> None:
        """Take note that a batch takes nothing from a window any more."""
        window.num_users -= 1
        self._settle(audience, window)
        if not window.num_users and audience.seats:
            self.sweep(audience)

    def sweep(self, audience: Audience) -> None:
        """Let go of windows that all feeds have passed.

        Where feeds are still to come, they stay until somebody needs the memory.
        """
        are_all_here = len(audience.seats) >= audience.num_expected
        for window in audience.passed():
            if are_all_here or window.is_gone:
                self._drop(audience, window)

    def _drop(self, audience: Audience, window: Window) -> None:
        if audience.windows.get(window.key) is window:
            del audience.windows[window.key]
        window.give_up()
        self._settle(audience, window)

    def _settle(self, audience: Audience, window: Window) -> None:
        """Give the memory of a window back, if it is gone and nothing uses it."""
        if window.is_gone and window.is_free and window.blocks:
            if window.arrived.any():
                audience.left = max(audience.left, window.key)
            blocks, window.blocks = window.blocks, []
            self._blocks.give_back(blocks)
            if not self._audiences:
                self._blocks.shed()

    def _shed(self) -> None:
        """Give up everything: others need the memory for what they were promised."""
        for audience in self._audiences.values():
            for window in audience.windows.values():
                window.give_up()
                self._settle(audience, window)
        self._blocks.shed()

    def _make_room(self, window: Window, count: int) -> bool:
        """Take blocks for a window, and of others that all have passed; say whether there are."""
        while (blocks := self._blocks.try_take(count)) is None:
            passed = [
                (old.used, number, audience, old)
                for number, audience in enumerate(self._audiences.values())
                for old in audience.passed()
                if old.blocks and old.loader is None
            ]
            if not passed:
                return False
            *_, audience, old = min(passed, key=lambda entry: entry[:2])
            self._drop(audience, old)
        window.blocks = blocks
        return True

    # ---- reading -------------------------------------------------------------------------------

    async def _load(self, audience: Audience, window: Window) -> None:
        if window.is_gone:  # given up before its first turn
            window.is_over = True
            window.was_cut.set()
            return
        window.loader = asyncio.current_task()
        try:
            if await self._cut(audience, window):
                groups = iter(window.groups)
                width = min(WIDTH, len(window.groups))
                jobs = (self._read(audience, window, groups) for _ in range(width))
                await run_together(jobs, name=f"stage read {window.key[0]}.{window.key[1]}")
        except Exception:
            # A bug here costs a window; batches read by themselves.
            logger.exception("window not staged epoch=%d window=%d", *window.key)
            window.is_gone = True
        finally:
            window.loader = None
            window.is_over = True
            window.was_cut.set()
            for group in window.groups:
                group.is_over.set()
            self._settle(audience, window)

    async def _cut(self, audience: Audience, window: Window) -> bool:
        """Work out the pieces of a window and take memory for them; say whether it is to be read.

        There may be none: others hold it, the window is too large, or pieces do not pay for it.
        """
        work = partial(audience.course.cut, window.key, self._blocks.block_bytes)
        pieces = await run_in_thread(self._executor, work)
        if window.is_gone:
            return False
        is_worth_it = 0 < pieces.num_blocks <= self._blocks.limit // 2
        if not is_worth_it or not self._make_room(window, pieces.num_blocks):
            window.is_gone = True
            if is_worth_it and window.is_early:
                self._drop(audience, window)  # memory may be free by the time it is needed
            return False
        window.pieces = pieces
        window.arrived = np.zeros(len(pieces), dtype=bool)
        window.groups = grouped(pieces, GROUP_BYTES)
        window.was_cut.set()
        return True

    async def _read(self, audience: Audience, window: Window, groups: Iterator[Group]) -> None:
        """Read one group of a window after the other."""
        for group in groups:
            bad: set[int] = set()
            requests = self._requests(audience.course, window, group, bad)
            try:
                await self._fetcher.fetch(audience.course.reader, requests)
            except SourceError:
                # Batches that need these find out for themselves; so do those that need more of a
                # source that does not answer.
                for other in groups:
                    other.is_over.set()
            else:
                good = [piece for piece in range(group.first, group.stop) if piece not in bad]
                window.arrived[good] = True
                self._count(audience, window, requests)
            finally:
                release(requests)
                group.is_over.set()

    def _requests(
        self, course: Course, window: Window, group: Group, bad: set[int]
    ) -> list[RangeRequest]:
        assert window.pieces is not None, "cut before it is read"
        ranges = list(window.pieces.ranges(group.first, group.stop))
        facts = facts_of(course.placement.table, [shard for shard, *_ in ranges])
        requests = []
        for piece, (shard, start, stop, block, offset) in enumerate(ranges, start=group.first):
            name, size, checksum, version = facts[shard]
            target = window.blocks[block].view[offset : offset + stop - start]
            place, note = Place(start, target), partial(_note, bad, piece)
            requests.append(
                RangeRequest(name, start, stop, size, (place,), checksum, version, note)
            )
        return requests

    def _count(self, audience: Audience, window: Window, requests: list[RangeRequest]) -> None:
        num_bytes = sum(request.num_bytes for request in requests)
        self.num_pieces += len(requests)
        self.num_bytes += num_bytes
        if window.key <= audience.left:
            self.num_again_bytes += num_bytes


def _note(bad: set[int], piece: int, error: ObjectError) -> None:
    bad.add(piece)
