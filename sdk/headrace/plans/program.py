"""Programs: plans bound to data, as pure functions of a place.

A `Place` is where a stream stands between two steps, the inside of a cursor without digests.  A
program says what follows it.  Programs hold the plan and the data and, at most, caches of what can
be computed again; no method has an effect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ..errors import CursorError, NoStepError, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from .cursor import Seek
    from .exact import ExactOrder
    from .order import Indices

    Weigh = Callable[[Indices], NDArray[np.int64]]
    Weighing = Weigh | Mapping[str, Weigh]

CHUNK_ENTRIES: Final = 8192
"""Entries that a program orders in one go: enough to spread numpy's cost per call (0.2 ms for a
keyed order) over many batches, few enough to stay below a millisecond."""

_SCAN_BATCHES: Final = 4096
"""Batches that `Program.largest` plans at a time where they differ in size."""

_EMPTY_EPOCHS: Final = 100
"""Epochs without a step that are passed over before that is an error."""


NO_META: Final[Mapping[str, Any]] = {}


class Place(NamedTuple):
    """Where a stream stands; the fields are those of `headrace.plans.Cursor`."""

    epoch: int = 0
    step: int = 0
    position: int = 0
    update: int = 0
    sample: int = 0
    child: Mapping[str, Any] | None = None


class Share(NamedTuple):
    """What one rank gets in one step."""

    before: Place
    after: Place
    indices: Indices
    flags: NDArray[np.uint8]
    meta: Mapping[str, Any] = NO_META
    stream: str = ""
    role: int = 0
    origin: tuple[int, int] | None = None
    """Epoch and step within the stream of that name, where they are not those of `before`."""


class Largest(NamedTuple):
    """What `Program.largest` finds."""

    weight: int
    """Weight of the largest step; 0 if there is none."""

    after: Place
    """Where the next segment begins, or the run ends."""


def weighs(weigh: Weighing, name: str) -> Weigh:
    """Return what weighs the samples of a part."""
    return weigh if callable(weigh) else weigh[name]


class Program(ABC):
    """What executes a plan over data."""

    ends: bool = False
    """True if the whole run is one pass that ends."""

    def start(self) -> Place:
        """Return the place before the first step."""
        return Place()

    @abstractmethod
    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of a whole epoch; 0 is possible.

        Raises:
            PlanError: If the plan does not fit the world size.
        """

    @abstractmethod
    def samples(self, epoch: int, world_size: int) -> int:
        """Return the samples that all ranks together get in a whole epoch, without fillers."""

    @abstractmethod
    def settle(self, place: Place, world_size: int) -> Place:
        """Return the canonical form of a place under a world size.

        Raises:
            PlanError: If no step follows in any epoch.
        """

    @abstractmethod
    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps that are left of the epoch of a settled place."""

    def has_steps(self, place: Place, world_size: int) -> bool:
        """Return whether a step is left of the epoch of a place; cheaper than to count them."""
        return self.remaining(place, world_size) > 0

    @abstractmethod
    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return the place some steps after a settled one, at most those that remain."""

    @abstractmethod
    def seek(self, where: Seek, world_size: int) -> Place:
        """Return the place of a `Seek`, as if the whole run had this world size."""

    @abstractmethod
    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Return the next steps of one rank, all of one epoch, from a settled place.

        At least one and at most `max_batches`, every `stride`-th step; fewer at the end of the
        epoch or where a chunk is full.
        """

    @abstractmethod
    def check(self, place: Place) -> None:
        """Refuse a place that the program cannot have made.

        Raises:
            CursorError: If it lies outside of its epoch, or is of another kind.
        """

    def rank_samples(self, place: Place, world_size: int, steps: int) -> int:
        """Return the entries, fillers included, that each rank gets in some steps of an epoch.

        Raises:
            PlanError: If ranks get different numbers.
        """
        raise PlanError("samples_of='rank' does not go with a plan whose ranks differ in samples")

    def prepare(self, epoch: int) -> None:  # noqa: B027 - most programs have nothing to compute
        """Compute what an epoch needs as a whole, if it needs anything; blocks.

        Orders of torch and Python, and the packing of a budget: O(n) time.  Without it the first
        one who needs it waits for it.  What was computed is kept for the last epochs.
        """

    @property
    def is_heavy(self) -> bool:
        """Whether `prepare` has something to compute."""
        return False

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The orders that are made as a whole for each epoch."""
        return ()

    def largest(self, place: Place, rank: int, world_size: int, weigh: Weighing) -> Largest:
        """Return the largest weight of the steps of one rank up to the end of a segment.

        An upper bound, and exact where that takes no longer.  Enumerates the order in chunks: O(1)
        memory, O(entries of the rank) time.

        Args:
            place: A settled place.
            rank: Rank.
            world_size: Number of ranks.
            weigh: Maps sample indices u64[m] to their weights, i64[m]; for a composition it may be
                a map of these by name of the part.
        """
        segment, largest = self.segment(place), 0
        measure = weighs(weigh, "")
        while self.segment(place) == segment and not self.is_finished(place):
            shares = self.shares(place, rank, world_size, max_batches=_SCAN_BATCHES)
            place = shares[-1].after
            found = [share.indices for share in shares if len(share.indices)]
            if found:
                first = np.cumsum([0, *map(len, found[:-1])])
                weights = np.add.reduceat(measure(np.concatenate(found)), first)
                largest = max(largest, int(weights.max()))
        return Largest(largest, place)

    def is_finished(self, place: Place) -> bool:
        """Return whether a settled place is the end of the run."""
        return False

    def segment(self, place: Place) -> int:
        """Return the number of the stretch of the run that a place lies in; it never decreases.

        What has to be known ahead for each step (the largest batch, orders made as a whole) is
        found for one segment at a time.  It is the epoch, or that of the main plan.
        """
        return place.epoch

    def batch_samples(self, world_size: int) -> int | None:
        """Return the samples of the largest batch of a rank; None where only the data says it."""
        return None

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams in a composition, the main one first; empty for a single one."""
        return ()


class EpochProgram(Program):
    """A program over epochs that each begin anew: what all single plans share."""

    is_constant: bool = False
    """True if all epochs have the same steps and samples."""

    is_repeating: bool = False
    """True if all epochs have the same samples in the same steps."""

    def find_sample(self, epoch: int, sample: int, world_size: int) -> tuple[int, int, int]:
        """Return the step of an epoch that holds a sample, counted from the start of the epoch.

        Returns:
            ``(step, first, end)``: samples ``first <= sample < end`` come with that step.
        """
        low, high = 0, self.steps(epoch, world_size)

        def before(step: int) -> int:
            return self.advance(Place(epoch), world_size, step).sample

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if before(middle) <= sample else (low, middle)
        return low, before(low), before(low + 1)

    def no_steps(self, epoch: int, world_size: int) -> NoStepError:
        """Return the error of a plan that makes no step."""
        return NoStepError(f"the plan makes no step in epoch {epoch} on {world_size} rank(s)")

    def settle(self, place: Place, world_size: int) -> Place:
        """Return the canonical form of a place: epochs without a step are passed over."""
        if self.has_steps(place, world_size):
            return place
        epoch = place.epoch
        for _ in range(1 if self.is_constant else _EMPTY_EPOCHS):
            epoch += 1
            if self.has_steps(Place(epoch), world_size):
                return Place(epoch, 0, 0, place.update, place.sample)
        raise self.no_steps(place.epoch, world_size)

    def seek(self, where: Seek, world_size: int) -> Place:
        """Return the place of a `Seek`; O(1), or O(epochs) where epochs differ."""
        if where.epoch is not None:
            updates, samples = self._before(where.epoch, world_size)
            return self.settle(Place(where.epoch, 0, 0, updates, samples), world_size)
        if where.update is not None:
            epoch, done, samples = self._walk(where.update, world_size, by_samples=False)
            place = Place(epoch, 0, 0, where.update - done, samples)
            return self._forward(place, world_size, done)
        assert where.sample is not None
        epoch, inside, updates = self._walk(where.sample, world_size, by_samples=True)
        place = Place(epoch, 0, 0, updates, where.sample - inside)
        if not inside:
            return self.settle(place, world_size)
        step, first, end = self.find_sample(epoch, inside, world_size)
        if first != inside:
            edge = where.sample - inside
            raise CursorError(
                f"seek sample={where.sample} is not the edge of a batch: the nearest are "
                f"{edge + first} and {edge + end}"
            )
        return self._forward(place, world_size, step)

    def _forward(self, place: Place, world_size: int, steps: int) -> Place:
        return self.advance(self.settle(place, world_size), world_size, steps)

    def _before(self, epoch: int, world_size: int) -> tuple[int, int]:
        """Return the steps and samples of all epochs before one."""
        if self.is_constant:
            return epoch * self.steps(0, world_size), epoch * self.samples(0, world_size)
        steps = samples = 0
        for before in range(epoch):  # both of an epoch at once: it may have to be packed for them
            steps += self.steps(before, world_size)
            samples += self.samples(before, world_size)
        return steps, samples

    def _walk(self, count: int, world_size: int, *, by_samples: bool) -> tuple[int, int, int]:
        """Return the epoch that `count` steps (or samples) lead into, the rest, and the others."""
        measure, other = (self.samples, self.steps) if by_samples else (self.steps, self.samples)
        if self.is_constant:
            if not self.steps(0, world_size):
                raise self.no_steps(0, world_size)
            epoch, rest = divmod(count, measure(0, world_size))
            return epoch, rest, epoch * other(0, world_size)
        epoch = others = empty = 0
        while count >= (size := measure(epoch, world_size)):
            empty = 0 if size else empty + 1
            if empty > _EMPTY_EPOCHS:
                raise self.no_steps(epoch, world_size)
            count -= size
            others += other(epoch, world_size)
            epoch += 1
        return epoch, count, others
