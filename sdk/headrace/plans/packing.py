"""Packing: cuts an order into batches that keep within a budget, greedily, without look-ahead.

A batch is closed by the first sample that does not fit, which opens the next one, or by an exact
fill, at once.  A sample above the budget never enters the open batch: it is left out, or overtakes
it as a batch of its own.  Where all sums are integers, the edges of batches are found in prefix
sums of chunks; where they are not, each batch adds its samples one after the other, in their order,
so that rounding is that of the plain loop.

Of a whole epoch, checkpoints are kept: places where a batch begins and none is open.  Their number
is bounded; any batch is reached from the checkpoint before it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .order import Indices

SCAN_ENTRIES: Final = 1 << 16
"""Entries that a scan of the epoch looks at in one go."""

_READ_ENTRIES: Final = 4096
"""Entries that are packed in one go where batches are wanted."""

MAX_CHECKPOINTS: Final = 1 << 15
"""Checkpoints of an epoch at most; when there are more, every other one is forgotten."""

_READERS: Final = 8
"""Places of an epoch at which reading can continue without going back to a checkpoint."""

_READER_BATCHES: Final = 2048


class Limits(NamedTuple):
    """What goes into a batch."""

    budget: int | float
    oversized: str
    """``"own"`` or ``"drop"``: what a sample above the budget does."""

    keeps_zero: bool
    drop_last: bool
    saturation_factor: float


class Batch(NamedTuple):
    """One batch: positions in the order, in their sequence."""

    positions: Indices
    total: int | float
    is_oversized: bool


class Checkpoint(NamedTuple):
    """A place where no batch is open."""

    batch: int
    """Batches before it."""

    position: int
    """Entries of the order before it."""

    samples: int
    """Samples of those batches."""


class _Chunk(NamedTuple):
    """What a chunk of entries closes."""

    positions: Indices
    """u64[m]: positions of the samples that enter batches, in their sequence."""

    starts: list[int]
    """Where in `positions` each closed batch begins; the first continues the open one."""

    ends: list[int]
    triggers: list[int]
    """Which of `positions` closed each batch."""

    exact: list[bool]
    """Whether that one filled the batch exactly, and so is part of it."""

    totals: list[int | float]
    oversized: Indices
    """Positions of the samples that make batches of their own."""

    weights: NDArray[np.int64] | NDArray[np.float64]
    """Weights of `oversized`."""


class Scan:
    """Packs from a checkpoint on, a chunk of entries at a time.

    Args:
        packing: What is packed.
        position: Where to begin.
        keeps: Whether the open batch is remembered, and not only counted.
    """

    def __init__(self, packing: Packing, position: int, *, keeps: bool = True) -> None:
        self._packing = packing
        self._keeps = keeps
        self.position = position
        """Entries that are packed."""

        # The open batch: pieces of positions, and their weight.
        self._open: list[Indices] = []
        self.open_samples = 0
        self.open_total: int | float = 0

    @property
    def is_done(self) -> bool:
        """True when all entries are packed."""
        return self.position >= self._packing.length

    def chunk(self, num_entries: int) -> _Chunk:
        """Pack the next entries and return what they close; moves on."""
        packing = self._packing
        last = min(self.position + num_entries, packing.length)
        positions = np.arange(self.position, last, dtype=np.uint64)
        weights = packing.weigh(positions)
        limits = packing.limits
        self.position = last
        above = weights > limits.budget
        taken = ~above
        if not limits.keeps_zero:
            taken &= weights != 0
        own = above if limits.oversized == "own" else np.zeros(0, dtype=bool)
        if not taken.all():
            own_positions = positions[own] if own.size else positions[:0]
            own_weights = weights[own] if own.size else weights[:0]
            positions, weights = positions[taken], weights[taken]
        else:
            own_positions, own_weights = positions[:0], weights[:0]
        close = self._close_integers if weights.dtype.kind in "iu" else self._close_floats
        starts, ends, triggers, exact, totals = close(weights)
        found = _Chunk(positions, starts, ends, triggers, exact, totals, own_positions, own_weights)
        return found

    def open_batch(self, found: _Chunk) -> list[Indices]:
        """Return the pieces that the first batch closed by a chunk has from before it, and go on.

        Call it once for each chunk: the open batch is then what the chunk leaves open.
        """
        before = self._open
        tail = found.positions[found.ends[-1] if found.ends else 0 :]
        if found.ends:
            self._open, self.open_samples = [], 0
        self.open_samples += len(tail)
        if self._keeps and len(tail):
            # A copy: a piece must not hold its whole chunk.
            self._open = [*self._open, tail.copy()]
        return before

    @property
    def has_last(self) -> bool:
        """Whether the batch that nothing closed is one."""
        limits = self._packing.limits
        if not self.open_samples:
            return False
        return not limits.drop_last or self.open_total / limits.budget > limits.saturation_factor

    def last_batch(self) -> Batch:
        """Return the batch that nothing closed; only if `has_last`."""
        return Batch(np.concatenate(self._open), self.open_total, False)

    def _close_integers(
        self, weights: NDArray[Any]
    ) -> tuple[list[int], list[int], list[int], list[bool], list[int | float]]:
        budget = math.floor(self._packing.limits.budget)
        fills = budget == self._packing.limits.budget
        sums: list[int] = np.cumsum(weights, dtype=np.int64).tolist()
        starts: list[int] = []
        ends: list[int] = []
        triggers: list[int] = []
        exact: list[bool] = []
        totals: list[int | float] = []
        count, start = len(sums), 0
        before = -int(self.open_total)  # what the prefix sums had where the open batch began
        search = bisect_left if fills else bisect_right
        while (found := search(sums, before + budget, start)) < count:
            is_exact = fills and sums[found] == before + budget
            end = found + is_exact
            starts.append(start)
            ends.append(end)
            triggers.append(found)
            exact.append(is_exact)
            total = sums[end - 1] if end else 0
            totals.append(total - before)
            before, start = total, end
        self.open_total = (sums[-1] if sums else 0) - before
        return starts, ends, triggers, exact, totals

    def _close_floats(
        self, weights: NDArray[Any]
    ) -> tuple[list[int], list[int], list[int], list[bool], list[int | float]]:
        budget = self._packing.limits.budget
        starts: list[int] = []
        ends: list[int] = []
        triggers: list[int] = []
        exact: list[bool] = []
        totals: list[int | float] = []
        count, start, total, span = len(weights), 0, float(self.open_total), 64
        while start < count:
            # `accumulate` adds one after the other, as the plain loop does.
            sums = np.empty(min(span, count - start) + 1)
            sums[0] = total
            sums[1:] = weights[start : start + len(sums) - 1]
            np.add.accumulate(sums, out=sums)
            found = int(np.searchsorted(sums[1:], budget, side="left"))
            if found == len(sums) - 1:
                if start + found < count:
                    span *= 2
                    continue
                total = float(sums[-1])
                break
            is_exact = bool(sums[found + 1] == budget)
            starts.append(start)
            ends.append(start + found + is_exact)
            triggers.append(start + found)
            exact.append(is_exact)
            totals.append(float(sums[found + is_exact]))
            span = max(64, 2 * found)
            start, total = ends[-1], 0.0
        self.open_total = total
        return starts, ends, triggers, exact, totals


class _Reader:
    """Batches from a checkpoint on, as far as they were wanted."""

    def __init__(self, packing: Packing, checkpoint: Checkpoint) -> None:
        self._scan = Scan(packing, checkpoint.position)
        self.first = checkpoint.batch
        self.batches: list[Batch] = []
        self.is_done = False

    @property
    def end(self) -> int:
        return self.first + len(self.batches)

    def extend(self) -> None:
        """Pack one more chunk."""
        surplus = len(self.batches) - _READER_BATCHES
        if surplus > 0:
            del self.batches[:surplus]
            self.first += surplus
        if self._scan.is_done:
            if self._scan.has_last:
                self.batches.append(self._scan.last_batch())
            self.is_done = True
            return
        found = self._scan.chunk(_READ_ENTRIES)
        pieces = self._scan.open_batch(found)
        own = iter(zip(found.oversized.tolist(), found.weights.tolist(), strict=True))
        next_own = next(own, None)
        for number, (start, end) in enumerate(zip(found.starts, found.ends, strict=True)):
            trigger = int(found.positions[found.triggers[number]])
            while next_own is not None and next_own[0] < trigger:
                self._append_own(next_own)
                next_own = next(own, None)
            positions = found.positions[start:end]
            if pieces:
                positions, pieces = np.concatenate([*pieces, positions]), []
            self.batches.append(Batch(positions, found.totals[number], False))
        while next_own is not None:
            self._append_own(next_own)
            next_own = next(own, None)

    def _append_own(self, found: tuple[int, int | float]) -> None:
        position, weight = found
        self.batches.append(Batch(np.array([position], dtype=np.uint64), weight, True))


class Packing:
    """The batches of one epoch, found as far as they are asked for.

    Args:
        length: Entries of the order.
        weigh: Maps positions of the order, u64[m], to weights, i64[m] or f64[m], all >= 0.
        limits: What goes into a batch.
    """

    def __init__(
        self,
        length: int,
        weigh: Callable[[Indices], NDArray[np.int64] | NDArray[np.float64]],
        limits: Limits,
    ) -> None:
        self.length = length
        self.weigh = weigh
        self.limits = limits
        self._lock = Lock()
        # How far the epoch is known: a scan, and what it has closed.
        self._scan = Scan(self, 0, keeps=False)
        self._num_batches = 0
        self._num_samples = 0
        self._is_done = False
        self._checkpoints = [Checkpoint(0, 0, 0)]
        self._stride = 1
        self._readers: list[_Reader] = []

    @property
    def num_batches(self) -> int:
        """Batches of the whole epoch; packs all of it the first time."""
        with self._lock:
            self._know(None)
            return self._num_batches

    @property
    def num_samples(self) -> int:
        """Samples of the whole epoch; packs all of it the first time."""
        with self._lock:
            self._know(None)
            return self._num_samples

    def has(self, number: int) -> bool:
        """Return whether there is a batch of this number."""
        with self._lock:
            if number < self._num_batches:
                return True
            if self._is_done:
                return False
            return self._find(number) is not None

    def batches(self, first: int, count: int) -> list[Batch]:
        """Return some batches; fewer at the end of the epoch."""
        found = []
        with self._lock:
            for number in range(first, first + count):
                batch = self._find(number)
                if batch is None:
                    break
                found.append(batch)
        return found

    def heaviest(self, weigh: Callable[[Indices], NDArray[np.int64]]) -> int:
        """Return the largest batch of the epoch by another weight; packs all of it.

        Args:
            weigh: Maps positions of the order, u64[m], to weights, i64[m].
        """
        scan = Scan(self, 0, keeps=False)
        largest = carried = 0
        while not scan.is_done:
            found = scan.chunk(SCAN_ENTRIES)
            scan.open_batch(found)
            sums = np.zeros(len(found.positions) + 1, dtype=np.int64)
            np.cumsum(weigh(found.positions), out=sums[1:])
            if found.ends:
                closed = sums[found.ends] - sums[found.starts]
                closed[0] += carried
                largest, carried = max(largest, int(closed.max())), -int(sums[found.ends[-1]])
            carried += int(sums[-1])
            if len(found.oversized):
                largest = max(largest, int(weigh(found.oversized).max()))
        return max(largest, carried) if scan.has_last else largest

    def samples_before(self, number: int) -> int:
        """Return the samples of the batches before one."""
        with self._lock:
            if self._is_done and number >= self._num_batches:
                return self._num_samples
            checkpoint = self._checkpoint(number)
            samples = checkpoint.samples
            for batch in range(checkpoint.batch, number):
                found = self._find(batch)
                if found is None:
                    break
                samples += len(found.positions)
            return samples

    def _find(self, number: int) -> Batch | None:
        reader = self._reader(number)
        while number >= reader.end and not reader.is_done:
            reader.extend()
        return None if number >= reader.end else reader.batches[number - reader.first]

    def _reader(self, number: int) -> _Reader:
        for at, reader in enumerate(self._readers):
            if reader.first <= number <= reader.end:
                self._readers.append(self._readers.pop(at))
                return reader
        reader = _Reader(self, self._checkpoint(number))
        self._readers = [*self._readers[1 - _READERS :], reader]
        return reader

    def _checkpoint(self, number: int) -> Checkpoint:
        self._know(number)
        at = bisect_right(self._checkpoints, number, key=lambda found: found.batch)
        return self._checkpoints[at - 1]

    def _know(self, number: int | None) -> None:
        """Scan the epoch until a batch is closed; None: to its end."""
        while not self._is_done and (number is None or self._num_batches < number):
            if self._scan.is_done:
                if self._scan.has_last:
                    self._num_batches += 1
                    self._num_samples += self._scan.open_samples
                self._is_done = True
                return
            carried = self._scan.open_samples
            found = self._scan.chunk(SCAN_ENTRIES)
            self._scan.open_batch(found)
            self._note(found, carried)

    def _note(self, found: _Chunk, carried: int) -> None:
        """Count what a chunk has closed, and keep checkpoints of it."""
        closed = len(found.ends)
        if closed:
            where = found.positions[found.triggers].astype(np.int64)
            own = np.searchsorted(found.oversized, found.positions[found.triggers])
            batches = self._num_batches + 1 + np.arange(closed) + own
            samples = self._num_samples + carried + np.array(found.ends) + own
            groups = batches // self._stride
            latest = self._checkpoints[-1].batch // self._stride
            kept = np.flatnonzero(np.diff(groups, prepend=latest))
            for at in kept.tolist():
                self._checkpoints.append(
                    Checkpoint(int(batches[at]), int(where[at]) + found.exact[at], int(samples[at]))
                )
            self._num_samples += carried + found.ends[-1]
        self._num_batches += closed + len(found.oversized)
        self._num_samples += len(found.oversized)
        while len(self._checkpoints) > MAX_CHECKPOINTS:
            del self._checkpoints[1::2]
            self._stride *= 2
