"""Windows: stretches of an epoch whose bytes are read as a whole, and copied out of memory.

A `Course` says how a plan passes through a source: which samples are near each other in every
epoch.  Its sequence is cut into windows; a window's samples are read in pieces, and the batches of
all feeds that are on that course take their values from there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.plans.flat import FlatProgram

from ..source.shards.pieces import Pieces, can_be_cut, cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.manifest import Manifest
    from headrace.placement import Placement
    from headrace.plans.engine import BoundPlan
    from headrace.plans.order import Indices, RunOrder

    from ..source.reader import Reader
    from ..source.roots import Roots
    from .memory import Memory

WINDOW_BYTES: Final = 4 << 20
"""Bytes of a window at least: where a plan has smaller ones, several are one."""

MAX_VALUES: Final = 1 << 20
"""Values of a window at most: cutting it takes some 50 bytes and 0.2 µs for each."""

_HEADER_BYTES: Final = 1024
"""What stands before a sample in a tar, about."""

_FEW: Final = 16
"""A batch with so many windows of a plan in it reads nearly all of its samples in long ranges."""

_LONG_BYTES: Final = 1 << 20
"""A batch of so much in one run costs less by ranges of its own: they need no copy.  A smaller one
costs more: it is a read for itself."""

Key = tuple[int, int]
"""Epoch, and number of the window in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How a plan passes through a source."""

    order: RunOrder
    placement: Placement
    reader: Reader | Roots
    repeats: int
    """How many entries of the plan each place of the sequence makes."""

    length: int
    """Places of the sequence that an epoch comes to."""

    window: int
    """Places of a window."""

    @classmethod
    def of(
        cls,
        bound: BoundPlan,
        manifest: Manifest,
        reader: Reader | Roots,
        world_size: int,
        *,
        is_alone: bool,
        limit_bytes: int,
    ) -> Course | None:
        """Return the course of a plan, or None where ranges of its own serve each batch as well.

        Args:
            bound: The plan.
            manifest: Of its source.
            reader: Likewise.
            world_size: Number of ranks.
            is_alone: Whether one feed reads all of it, batch by batch.
            limit_bytes: What a window takes at most.
        """
        program, placement = bound.program, manifest.placement
        if placement is None or not isinstance(program, FlatProgram) or not len(manifest):
            return None
        order = program.entries.runs
        if order is None or not can_be_cut(placement):
            return None
        mean = manifest.total_bytes / len(manifest) + _HEADER_BYTES
        batch = program.sizes(1).largest
        is_in_order = order.window == 1 or _FEW * order.window <= batch
        if is_alone and is_in_order and batch * mean >= _LONG_BYTES:
            return None
        window = order.window * max(1, int(WINDOW_BYTES / (order.window * mean)))
        repeats = program.entries.repeats
        samples = min(program.samples(0, world_size), program.entries.length)
        length = -(-samples // repeats)
        window = min(window, length)
        is_small = window * mean <= limit_bytes and window * len(placement.fields) <= MAX_VALUES
        if not window or not is_small:
            return None
        return cls(order, placement, reader, repeats, length, window)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.length // self.window)

    def number_at(self, position: int) -> int:
        """Return the number of the window that a position of the plan is in."""
        return position // (self.repeats * self.window)

    def numbers_of(self, epoch: int, samples: Indices) -> Indices:
        """Return the number of the window that each sample is in, u64[n]."""
        numbers: Indices = self.order.places_of(epoch, samples) // np.uint64(self.window)
        return numbers

    def num_entries(self, number: int) -> int:
        """Return how many entries of the plan a window makes."""
        start = number * self.window
        return (min(start + self.window, self.length) - start) * self.repeats

    def cut(self, key: Key, block_bytes: int) -> Pieces:
        """Return the pieces of a window; may take some milliseconds, and touch the disk."""
        epoch, number = key
        start = number * self.window
        samples = self.order.samples_at(epoch, start, min(start + self.window, self.length))
        return cut(self.placement, samples, block_bytes)


class Window:
    """A window that is read, or was, or was given up.

    Args:
        key: Which one it is.
        is_early: Nobody needs it yet.
    """

    __slots__ = (
        "arrived",
        "blocks",
        "groups",
        "has_tried_next",
        "is_early",
        "is_gone",
        "is_over",
        "key",
        "loader",
        "num_taken",
        "num_users",
        "pieces",
        "used",
        "was_cut",
    )

    def __init__(self, key: Key, *, is_early: bool) -> None:
        self.key = key
        self.is_early = is_early
        self.is_gone = False
        """Nothing more comes: there was no memory for it, others needed that, or all passed it."""
        self.is_over = False
        """Whether all has been read that ever will be."""
        self.was_cut = asyncio.Event()
        """Set once `pieces` and `blocks` are there, or never will be."""
        self.pieces: Pieces | None = None
        self.blocks: list[Memory] = []
        self.arrived = np.zeros(0, dtype=bool)  # bool[p], which pieces are in memory
        self.groups: list[Group] = []
        self.loader: asyncio.Task[None] | None = None
        """The task that cuts and reads it, while it runs."""
        self.num_users = 0
        """Batches that may be taking values from it at the moment."""
        self.num_taken = 0
        """Entries that batches have come for."""
        self.has_tried_next = False
        """Whether the window after it was begun early, or could not be."""
        self.used = 0
        """When a batch last came, as a running number."""

    def give_up(self) -> None:
        """Read no more of it; its memory goes when nobody uses it."""
        self.is_gone = True
        if self.loader is not None:
            self.loader.cancel()

    def groups_of(self, found: NDArray[np.int64]) -> list[Group]:
        """Return the groups that some pieces (i64[m], -1 for none) are in."""
        firsts = [group.first for group in self.groups]
        numbers = np.unique(np.searchsorted(firsts, found, side="right") - 1)
        return [self.groups[number] for number in numbers.tolist() if number >= 0]

    @property
    def is_free(self) -> bool:
        """Whether nothing writes into its memory, nor reads from it."""
        return self.loader is None and not self.num_users


class Group:
    """Pieces that are read together."""

    __slots__ = ("first", "is_over", "stop")

    def __init__(self, first: int, stop: int) -> None:
        self.first = first
        self.stop = stop
        self.is_over = asyncio.Event()
        """Set when they have arrived, or were given up."""


def grouped(pieces: Pieces, group_bytes: int) -> list[Group]:
    """Return groups of neighbouring pieces of about so many bytes."""
    ends = np.cumsum(pieces.stops - pieces.starts)
    numbers = (ends - 1) // group_bytes
    firsts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(pieces)]
    return [Group(first, stop) for first, stop in pairwise(firsts)]
