"""Cuts: how many entries of the global order make one step of all ranks.

The cut is made on the global order, so that all ranks have the same number of steps and a resume
under another world size continues the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import numpy as np

from ..checks import check_choice, check_integer
from ..errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tail = Literal["short", "drop", "wrap", "wrap-once"]
TAILS: Final = ("short", "drop", "wrap", "wrap-once")
Uneven = Literal["fill", "drop"]


class Step(NamedTuple):
    """One step of all ranks: a piece of the global order and its fillers."""

    num_entries: int
    """Entries of the order that the step consumes."""

    num_padding: int
    """Fillers after them, taken from the start of the order."""


class Sizes(Protocol):
    """Samples per rank of each step: a function of epoch and step, the same on all ranks."""

    @property
    def largest(self) -> int:
        """Upper bound of all sizes."""
        ...

    def at(self, epoch: int, step: int) -> int:
        """Return the size of one step."""
        ...

    def many(self, epoch: int, step: int, count: int) -> NDArray[np.int64]:
        """Return the sizes of `count` steps from `step` on, i64[count]."""
        ...

    def total(self, epoch: int, step: int, count: int) -> int:
        """Return the sum of the sizes of `count` steps from `step` on."""
        ...

    def covering(self, epoch: int, step: int, samples: int) -> int:
        """Return how many steps from `step` on it takes to get at least `samples`."""
        ...

    def meta(self, epoch: int, step: int) -> dict[str, Any]:
        """Return what else belongs to a step: image size, frames, clips."""
        ...


class Constant(NamedTuple):
    """The same size for all steps."""

    size: int

    @property
    def largest(self) -> int:
        """The size."""
        return self.size

    def at(self, epoch: int, step: int) -> int:
        """Return the size."""
        return self.size

    def many(self, epoch: int, step: int, count: int) -> NDArray[np.int64]:
        """Return the size, over and over."""
        return np.full(count, self.size, dtype=np.int64)

    def total(self, epoch: int, step: int, count: int) -> int:
        """Return the size times `count`."""
        return self.size * count

    def covering(self, epoch: int, step: int, samples: int) -> int:
        """Return the quotient, rounded up."""
        return -(-samples // self.size)

    def meta(self, epoch: int, step: int) -> dict[str, Any]:
        """Return nothing."""
        return {}


class Rule(NamedTuple):
    """How the steps of an epoch end, whatever their sizes.

    `rest` counts entries of the order that are left, `ranks` those that share them.
    """

    tail: Tail
    fills: bool
    """True if the last entries are filled up to a multiple of the ranks, False if they are left
    out."""

    def per_rank(self, rest: int, ranks: int) -> int:
        """Return the samples that each rank still gets, fillers of the tail not included."""
        return -(-rest // ranks) if self.fills else rest // ranks

    def steps(self, sizes: Sizes, epoch: int, step: int, rest: int, ranks: int) -> int:
        """Return how many steps the last `rest` entries of an epoch make, from `step` on."""
        left = self.per_rank(rest, ranks)
        if left <= 0:
            return 0
        count = sizes.covering(epoch, step, left)
        if self.tail == "drop" and sizes.total(epoch, step, count) > left:
            count -= 1
        return count

    def step(self, sizes: Sizes, epoch: int, step: int, rest: int, ranks: int, length: int) -> Step:
        """Return step `step` where `rest` > 0 of `length` entries are left.

        Must not be called where `steps` is 0.
        """
        size = sizes.at(epoch, step)
        if rest >= size * ranks:
            return Step(size * ranks, 0)
        left = min(self.per_rank(rest, ranks), size)
        entries = min(rest, left * ranks)
        assert left > 0, "nothing left is no step"
        assert self.tail != "drop" or left == size, "a dropped tail is no step"
        filled = left
        if self.tail == "wrap":
            filled = size
        elif self.tail == "wrap-once":
            filled = min(size, left + self.per_rank(length, ranks))
        return Step(entries, filled * ranks - entries)

    def taken(self, sizes: Sizes, epoch: int, step: int, rest: int, ranks: int, count: int) -> int:
        """Return the entries that `count` steps consume, at most those that `steps` allows."""
        most = self.per_rank(rest, ranks) * ranks
        return min(rest, most, sizes.total(epoch, step, count) * ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCut:
    """Batches whose size is known before the data: sizes and tail as the user gives them.

    Raises:
        PlanError: If not exactly one of the sizes is given, or one is below 1.
    """

    batch_size: int | None
    global_batch_size: int | None
    tail: Tail
    uneven: Uneven | None = None

    def __post_init__(self) -> None:
        sizes = {"batch_size": self.batch_size, "global_batch_size": self.global_batch_size}
        given = {name: size for name, size in sizes.items() if size is not None}
        if len(given) != 1:
            raise PlanError(
                "a plan takes exactly one of batch_size= (per rank) and global_batch_size= "
                f"(all ranks); got {given or 'neither'}"
            )
        ((name, size),) = given.items()
        check_integer(name, size, 1, 2**31, PlanError)
        check_choice("tail", self.tail, TAILS, PlanError)
        if self.uneven is not None:
            check_choice("uneven", self.uneven, ("fill", "drop"), PlanError)

    @property
    def rule(self) -> Rule:
        """How an epoch ends."""
        return Rule(
            self.tail, (self.uneven or ("drop" if self.tail == "drop" else "fill")) == "fill"
        )

    def rank_size(self, world_size: int) -> int:
        """Return the samples of a whole step of one rank.

        Raises:
            PlanError: If the world size does not divide the global batch size.
        """
        return self.step_size(world_size) // world_size

    def step_size(self, world_size: int) -> int:
        """Return the samples of a whole step of all ranks.

        Raises:
            PlanError: If the world size does not divide the global batch size.
        """
        if self.batch_size is not None:
            return self.batch_size * world_size
        size = self.global_batch_size
        assert size is not None
        if size % world_size:
            raise PlanError(
                f"global_batch_size={size} cannot be dealt to world_size={world_size} ranks "
                f"equally; usable world sizes: {', '.join(map(str, _divisors(size)))}"
            )
        return size


def _divisors(number: int) -> list[int]:
    small = [low for low in range(1, math.isqrt(number) + 1) if number % low == 0]
    return sorted({*small, *(number // low for low in small)})
