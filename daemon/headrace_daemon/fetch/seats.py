"""Seats at the stage: what one feed has come to, and how its batches get their values from there.

Invariant: a seat begins windows that it comes to for the first time, and no others, nor the one
that it was opened in, unless that is the first of an epoch; so a feed that takes up a run within an
epoch, or goes back, reads only what it was asked for.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from headrace.plans.flags import Flag

from ..source.shards.pieces import Values

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from numpy.typing import NDArray

    from headrace.plans.engine import PlannedBatch

    from .stage import Stage
    from .windows import Course, Key, Window

MIN_SHARE: Final = 0.5
"""The share of the bytes that the feeds of this node must want; below it they read just theirs."""

COPY_BYTES: Final = 4 << 20
"""What is copied in one turn of the loop, at most: a millisecond."""

PATIENCE_S: Final = 30.0
"""How long a batch waits for pieces, seconds; then it reads its values itself, with deadlines of
their own."""

_BEFORE: Final = (-1, -1)


class Audience:
    """The feeds of the node that are on one course, and the windows of it."""

    __slots__ = ("course", "key", "left", "num_expected", "seats", "share", "windows")

    def __init__(self, key: Hashable, course: Course) -> None:
        self.key = key
        self.course = course
        self.seats: list[Seat] = []
        self.num_expected = 1
        """Feeds that are, or will be, here."""
        self.windows: dict[Key, Window] = {}
        """Those that were begun; those that were given up too, until all have passed them."""
        self.left: Key = _BEFORE
        """The furthest window whose memory was given back."""
        self.share = 0.0
        """The share of all batches that is read here."""

    def count(self) -> None:
        """Work out the share anew: a feed has come or gone."""
        members = [seat.member for seat in self.seats]
        parts = {member.part: member.share for member in members}
        declared = max((member.declared_share for member in members), default=0.0)
        self.share = max(sum(parts.values()), declared)

    def passed(self) -> list[Window]:
        """Return the windows that no feed here needs any more, nor takes anything from."""
        first = min(seat.current for seat in self.seats)
        return [
            window for key, window in self.windows.items() if key < first and not window.num_users
        ]


class Member(NamedTuple):
    """What is known of a feed beforehand."""

    part: Hashable
    """Tells feeds that read different batches from each other."""

    share: float
    """The share of all batches that it reads."""

    declared_share: float
    """The share that it and the others of its run read on this node."""

    num_expected: int
    """Feeds that will be on its course."""

    start: tuple[int, int]
    """Epoch and position where it begins."""

    last_epoch: int | None
    """The last one that it reads; None: without end."""


class Seat:
    """The place of one feed; its owner calls `leave` when all calls of `fill` are over.

    Args:
        stage: Has the windows.
        audience: All who are on the same course.
        member: Who this is.
    """

    def __init__(self, stage: Stage, audience: Audience, member: Member) -> None:
        self._stage = stage
        self.audience = audience
        self.member = member
        epoch, position = member.start
        number = audience.course.number_at(position)
        self.current: Key = (epoch, number)
        """The window that the last batch came for."""
        # The last one that is not to be begun by this feed.
        self._furthest: Key = (epoch, number if position else -1)

    def leave(self) -> None:
        """Give the seat up; a second call does nothing."""
        self._stage.leave(self)

    async def fill(
        self,
        planned: PlannedBatch,
        offsets: NDArray[np.uint64],
        view: memoryview,
        *,
        left_out: Collection[int] = (),
    ) -> NDArray[np.bool_] | None:
        """Copy what is on the stage of a batch, and wait for what is on its way there.

        Cancelled, it writes nothing any more.

        Args:
            planned: The batch.
            offsets: Where each value goes in the view, u64[F * n], field by field.
            view: Writable.
            left_out: Places of samples in the batch that are not read.

        Returns:
            Which values are there, empty ones included, bool[F * n]; None for none of them.
        """
        numbers = self.audience.course.numbers_of(planned.epoch, planned.indices)
        windows, left = self._enter(planned, numbers), self.audience.left
        is_late = left[0] == planned.epoch and int(numbers.min()) <= left[1]
        if not windows and not is_late:
            return None
        try:
            placement = self.audience.course.placement
            values = Values.of(placement, planned.indices)
            if left_out:
                values.lengths.reshape(-1, len(planned.indices))[:, list(left_out)] = 0
            filled = values.lengths <= 0
            for window in windows:
                found = await _arrived(window, values)
                if found is not None:
                    chosen = ((found >= 0) & ~filled).nonzero()[0]
                    await self._copy(window, values, chosen, found[chosen], offsets, view)
                    filled[chosen] = True
            if is_late:
                again = np.tile(numbers <= np.uint64(left[1]), len(placement.fields)) & ~filled
                self._stage.num_again_bytes += int(values.lengths[again].clip(min=0).sum())
            return filled
        finally:
            for window in windows:
                self._stage.let_go(self.audience, window)

    def _enter(self, planned: PlannedBatch, numbers: NDArray[np.uint64]) -> Sequence[Window]:
        """Return the windows that a batch takes values from, and begin what is new."""
        windows, is_shared = self.audience.windows, self.audience.share >= MIN_SHARE
        epoch, furthest = planned.epoch, self._furthest
        counted = _counted(numbers)
        low, high = counted[0][0], counted[-1][0]
        has_own = True
        if low < high and planned.flags.any():
            # Fillers come from where the epoch began: they are no progress.
            own = numbers[(planned.flags & np.uint8(Flag.PADDING)) == 0]
            has_own = len(own) > 0
            if has_own:
                low, high = int(own.min()), int(own.max())
        before = self.current
        if has_own:
            self.current, self._furthest = (epoch, low), max(furthest, (epoch, high))
        entered: list[Window] = []
        for number, count in counted:
            key = (epoch, number)
            window = windows.get(key)
            if window is None and key > furthest and is_shared:
                window = self._stage.begin(self.audience, key)
            if window is not None:
                self._stage.touch(window, count)
                entered.append(window)
        if self.current != before:
            self._stage.sweep(self.audience)
        if is_shared and entered:
            self._begin_next(windows.get(self._furthest))
        return entered

    def _begin_next(self, window: Window | None) -> None:
        """Begin the window after one that is half used up."""
        audience = self.audience
        course = audience.course
        if window is None or window.has_tried_next:
            return
        epoch, number = window.key
        if 2 * window.num_taken < course.num_entries(number) * min(1.0, audience.share):
            return
        window.has_tried_next = True
        last_epoch = self.member.last_epoch
        following = (epoch, number + 1)
        if number + 1 == course.num_windows:
            following = (epoch + 1, 0)
        if following not in audience.windows and (last_epoch is None or following[0] <= last_epoch):
            self._stage.begin(audience, following, is_early=True)

    async def _copy(
        self,
        window: Window,
        values: Values,
        chosen: NDArray[np.int64],
        found: NDArray[np.int64],
        offsets: NDArray[np.uint64],
        view: memoryview,
    ) -> None:
        """Copy values that are in pieces of a window.

        Args:
            window: The one.
            values: All that the batch has.
            chosen: Those to copy, i64[m].
            found: Their pieces, i64[m].
            offsets: As for `fill`.
            view: Likewise.
        """
        pieces = window.pieces
        assert pieces is not None, "its pieces have arrived"
        lengths = values.lengths[chosen]
        sources = values.addresses[chosen] - pieces.starts[found] + pieces.offsets[found]
        targets = offsets[chosen].astype(np.int64)
        blocks = [block.view for block in window.blocks]
        columns = (
            pieces.blocks[found].tolist(),
            sources.tolist(),
            (sources + lengths).tolist(),
            targets.tolist(),
            (targets + lengths).tolist(),
        )
        edges = [0, len(chosen)]
        if lengths.sum() > COPY_BYTES:
            turns = (lengths.cumsum() - 1) // COPY_BYTES
            edges[1:1] = (np.diff(turns).nonzero()[0] + 1).tolist()
        for first, stop in pairwise(edges):
            if first:
                await asyncio.sleep(0)  # let others run; the window stays as long as it has users
            for block, start, end, target, target_end in zip(
                *(column[first:stop] for column in columns), strict=True
            ):
                view[target:target_end] = blocks[block][start:end]
        self._stage.num_hits += len(chosen)


async def _arrived(window: Window, values: Values) -> NDArray[np.int64] | None:
    """Return the piece of each value, -1 for one that the window has not; waits for what comes."""
    found = None
    # As long as it has users, memory that is there stays, also if it was given up.
    if window.was_cut.is_set() and window.pieces is not None and window.blocks:
        found = window.pieces.find(values)
    if not window.is_over:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await window.was_cut.wait()
                if window.pieces is not None and window.blocks:
                    found = window.pieces.find(values) if found is None else found
                    for group in window.groups_of(found):
                        await group.is_over.wait()
        except TimeoutError:
            pass
    if found is not None:
        found[~window.arrived[found]] = -1
    return found


def _counted(numbers: NDArray[np.uint64]) -> Sequence[tuple[int, int]]:
    """Return each number, and how many times it is there, ascending."""
    first = int(numbers[0])
    if bool((numbers == numbers[0]).all()):
        return [(first, len(numbers))]
    distinct, counts = np.unique(numbers, return_counts=True)
    return list(zip(distinct.tolist(), counts.tolist(), strict=True))
