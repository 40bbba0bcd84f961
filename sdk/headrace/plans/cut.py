"""Cuts: how many entries of the global order make one step of all ranks.

The cut is made on the global order, so that all ranks have the same number of steps and a resume
under another world size continues the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..checks import check_integer
from ..errors import PlanError

Tail = Literal["short", "drop", "wrap"]


class Step(NamedTuple):
    """One step of all ranks: a piece of the global order and its fillers."""

    num_entries: int
    """Entries of the order that the step consumes."""

    num_padding: int
    """Fillers after them, taken from the start of the order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCut:
    """Steps of a fixed number of samples.

    Raises:
        PlanError: If not exactly one of the sizes is given, or one is below 1.
    """

    batch_size: int | None
    global_batch_size: int | None
    tail: Tail

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
        if self.tail not in ("short", "drop", "wrap"):
            raise PlanError(f"tail={self.tail!r} is unknown: choose 'short', 'drop' or 'wrap'")

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

    def whole_steps(self, rest: int, world_size: int) -> int:
        """Return how many unpadded whole steps fit into `rest` entries."""
        return rest // self.step_size(world_size)

    def steps(self, rest: int, world_size: int) -> int:
        """Return how many steps the last `rest` entries of an epoch make."""
        whole, left = divmod(rest, self.step_size(world_size))
        return whole + (1 if left and self.tail != "drop" else 0)

    def step(self, rest: int, world_size: int) -> Step:
        """Return the next step when `rest` > 0 entries of the epoch are left.

        Must not be called where `steps` is 0.
        """
        size = self.step_size(world_size)
        if rest >= size:
            return Step(size, 0)
        assert self.tail != "drop", "a dropped tail is no step"
        filled = size if self.tail == "wrap" else -(-rest // world_size) * world_size
        return Step(rest, filled - rest)


def _divisors(number: int) -> list[int]:
    small = [low for low in range(1, math.isqrt(number) + 1) if number % low == 0]
    return sorted({*small, *(number // low for low in small)})
