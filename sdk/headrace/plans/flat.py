"""Programs over one order: entries × sizes × tail × split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ..errors import CursorError, NoStepError, PlanError
from .cut import Constant, FixedCut, Rule, Sizes
from .entries import Entries
from .flags import Flag
from .program import (
    CHUNK_ENTRIES,
    NO_META,
    EpochProgram,
    Largest,
    Place,
    Share,
    weighs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import FixedBatches, OrderName, Slice
    from .data import Data
    from .exact import ExactOrder
    from .order import Indices
    from .program import Weigh, Weighing
    from .scaled import ScaledBatches
    from .spec import ShardShuffled


_SCAN_ENTRIES: Final = 1 << 16
"""Entries that `FlatProgram` weighs at a time: 512 KiB per array of them, which stays in the
processor's cache; with 2 MiB per array the scan takes twice as long."""


class Split(NamedTuple):
    """Which ranks share a lane, and which of them one is."""

    lane: int
    rank: int
    ranks: int
    """Ranks of the lane."""


class FlatProgram(EpochProgram):
    """Cuts one order into steps.

    Args:
        plan: The plan, for its options and for errors.
        entries: The order with its modifiers.
        sizes_for: Maps the samples per rank of a whole step to the sizes of all steps.
        is_constant: Whether all epochs have the same steps.
    """

    def __init__(
        self,
        plan: FixedBatches,
        entries: Entries,
        sizes_for: Callable[[int], Sizes],
        *,
        is_constant: bool,
        role: int,
    ) -> None:
        self.plan = plan
        self.entries = entries
        self.cut: FixedCut = plan.cut()
        self.rule: Rule = self.cut.rule
        self.is_constant = is_constant
        self._sizes_for = sizes_for
        self._role = role
        self._sizes: dict[int, Sizes] = {}

    def sizes(self, world_size: int) -> Sizes:
        """Return the sizes of the steps under a world size."""
        ranks = 1 if self.plan.replicated else world_size
        size = self.cut.rank_size(ranks)
        if size not in self._sizes:
            self._sizes[size] = self._sizes_for(size)
        return self._sizes[size]

    def split(self, rank: int, world_size: int) -> Split:
        """Return the share of a rank.

        Raises:
            PlanError: If the nodes do not divide the world size.
        """
        if self.plan.replicated:
            return Split(0, 0, 1)
        lanes = self.entries.lanes
        if world_size % lanes:
            raise PlanError(
                f"node_blocks={lanes} does not divide world_size={world_size}: each node must have "
                "equally many ranks"
            )
        ranks = world_size // lanes
        return Split(rank // ranks, rank % ranks, ranks)

    # ---- where steps are -----------------------------------------------------------------------

    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of a whole epoch."""
        return self._steps(Place(epoch), world_size)

    def samples(self, epoch: int, world_size: int) -> int:
        """Return the entries of the order that a whole epoch consumes."""
        steps = self.steps(epoch, world_size)
        return self._taken(Place(epoch), world_size, steps) * self.entries.lanes

    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps that are left of the epoch of a place."""
        return self._steps(place, world_size)

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return the place some steps later."""
        taken = self._taken(place, world_size, steps) * self.entries.lanes
        moved = Place(
            place.epoch,
            place.step + steps,
            place.position + taken,
            place.update + steps,
            place.sample + taken,
        )
        return self.settle(moved, world_size)

    def rank_samples(self, place: Place, world_size: int, steps: int) -> int:
        """Return the entries, fillers included, that each rank gets in some steps."""
        sizes = self.sizes(world_size)
        if steps < self._steps(place, world_size):
            return sizes.total(place.epoch, place.step, steps)
        whole = sizes.total(place.epoch, place.step, steps - 1)
        ranks, length = self.split(0, world_size).ranks, self.entries.length
        rest = length - place.position // self.entries.lanes
        rest -= self.rule.taken(sizes, place.epoch, place.step, rest, ranks, steps - 1)
        last = self.rule.step(sizes, place.epoch, place.step + steps - 1, rest, ranks, length)
        return whole + sum(last) // ranks

    def check(self, place: Place) -> None:
        """Refuse a place outside of the epoch."""
        whole = self.entries.length * self.entries.lanes
        if place.position >= max(1, whole):
            raise CursorError(
                f"cursor position={place.position} is outside 0..{whole - 1}, the epoch has "
                f"{whole} samples"
            )
        if place.position % self.entries.lanes:
            raise CursorError(
                f"cursor position={place.position} is no multiple of "
                f"node_blocks={self.entries.lanes}: all nodes stand at the same place of "
                "their block"
            )

    def no_steps(self, epoch: int, world_size: int) -> NoStepError:
        """Return the error of a plan that makes no step."""
        if not self.entries.length:
            return NoStepError(
                "the plan makes no step: the data has no samples, or its subset none"
            )
        size = self.sizes(world_size).largest * self.split(0, world_size).ranks * self.entries.lanes
        return NoStepError(
            f"tail={self.plan.tail!r} leaves no step: the manifest has {self.entries.num_samples} "
            f"samples, one step of {world_size} rank(s) takes {size}; use a smaller batch "
            "or tail='short'"
        )

    def batch_samples(self, world_size: int) -> int | None:
        """Return the samples of the largest batch of a rank."""
        return self.sizes(world_size).largest

    def _steps(self, place: Place, world_size: int) -> int:
        ranks = self.split(0, world_size).ranks
        rest = self.entries.length - place.position // self.entries.lanes
        return self.rule.steps(self.sizes(world_size), place.epoch, place.step, rest, ranks)

    def _taken(self, place: Place, world_size: int, steps: int) -> int:
        ranks = self.split(0, world_size).ranks
        rest = self.entries.length - place.position // self.entries.lanes
        return self.rule.taken(self.sizes(world_size), place.epoch, place.step, rest, ranks, steps)

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The order, if it is made as a whole for each epoch."""
        return self.entries.exact_orders

    @property
    def is_heavy(self) -> bool:
        """Whether an epoch of the order is made as a whole."""
        return self.entries.is_heavy

    def prepare(self, epoch: int) -> None:
        """Make the order of an epoch, if it is made as a whole."""
        self.entries.prepare(epoch)

    # ---- what steps have -----------------------------------------------------------------------

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Return the next steps of one rank."""
        split, sizes = self.split(rank, world_size), self.sizes(world_size)
        lanes, length, ranks = self.entries.lanes, self.entries.length, split.ranks
        epoch = place.epoch
        left = self.remaining(place, world_size)
        planned: list[tuple[Place, Place]] = []
        positions: list[Indices] = []
        num_entries = 0
        while left > 0 and len(planned) < max_batches and num_entries < CHUNK_ENTRIES:
            at = place.position // lanes
            step = self.rule.step(sizes, epoch, place.step, length - at, ranks, length)
            piece = np.arange(split.rank, sum(step), ranks, dtype=np.uint64)
            if step.num_padding:
                # Fillers lie past the end: they come from the start of the order.
                piece[piece >= np.uint64(step.num_entries)] += np.uint64(
                    length - at - step.num_entries
                )
            piece += np.uint64(at)
            positions.append(piece)
            num_entries += len(piece)
            taken = step.num_entries * lanes
            after = Place(
                epoch,
                place.step + 1,
                place.position + taken,
                place.update + 1,
                place.sample + taken,
            )
            left -= 1
            if left == 0:
                after = self.settle(after, world_size)
            planned.append((place, after))
            place = after
            if stride > 1:
                skipped = min(stride - 1, left)
                left -= skipped
                if skipped and left:
                    place = self.advance(place, world_size, skipped)
        everywhere = np.concatenate(positions)
        return self._shares(planned, positions, everywhere, split, sizes)

    def _shares(
        self,
        planned: list[tuple[Place, Place]],
        positions: list[Indices],
        everywhere: Indices,
        split: Split,
        sizes: Sizes,
    ) -> list[Share]:
        length = np.uint64(self.entries.length)
        epoch = planned[0][0].epoch
        last = int(positions[-1][-1]) if len(positions[-1]) else 0
        flags = np.zeros(len(everywhere), dtype=np.uint8)
        if last >= length:
            fillers = everywhere >= length
            flags[fillers] = Flag.PADDING | (
                Flag.WRAPPED if self.plan.tail.startswith("wrap") else 0
            )
            everywhere = everywhere % length
        indices, padding = self.entries.at(epoch, split.lane, everywhere)
        if padding is not None:
            flags[padding] |= np.uint8(Flag.PADDING)
        shares, first = [], 0
        has_meta = not isinstance(sizes, Constant)
        for (before, after), piece in zip(planned, positions, strict=True):
            end = first + len(piece)
            shares.append(
                Share(
                    before,
                    after,
                    indices[first:end],
                    flags[first:end],
                    sizes.meta(epoch, before.step) if has_meta else NO_META,
                    role=self._role,
                )
            )
            first = end
        return shares

    def largest(self, place: Place, rank: int, world_size: int, weigh: Weighing) -> Largest:
        """Return the largest weight up to the end of the epoch; exact."""
        measure, segment = weighs(weigh, ""), self.segment(place)
        largest, place = self._largest_whole(place, rank, world_size, measure)
        if self.segment(place) > segment:
            return Largest(largest, place)
        last = super().largest(place, rank, world_size, weigh)
        return Largest(max(largest, last.weight), last.after)

    def _largest_whole(
        self, place: Place, rank: int, world_size: int, weigh: Weigh
    ) -> tuple[int, Place]:
        """Return the largest weight of the whole steps, and the place after them."""
        sizes, split = self.sizes(world_size), self.split(rank, world_size)
        epoch, lanes, ranks = place.epoch, self.entries.lanes, split.ranks
        at, left = place.position // lanes, self._steps(place, world_size)
        # A batch that is larger than the data must not be allocated: there is no whole step then.
        chunk = max(1, _SCAN_ENTRIES // sizes.largest)
        largest = done = 0
        while done < left:
            per_step = sizes.many(epoch, place.step + done, min(chunk, left - done))
            ends = np.cumsum(per_step)
            whole = int(np.searchsorted(ends, (self.entries.length - at) // ranks, side="right"))
            if whole:
                positions = np.arange(ends[whole - 1], dtype=np.uint64) * np.uint64(ranks)
                positions += np.uint64(at + split.rank)
                indices, _ = self.entries.at(epoch, split.lane, positions)
                starts = ends[:whole] - per_step[:whole]
                largest = max(largest, int(np.add.reduceat(weigh(indices), starts).max()))
                at += int(ends[whole - 1]) * ranks
                done += whole
            if whole < len(per_step):
                break
        return largest, self.advance(place, world_size, done) if done else place


def fixed_program(
    plan: FixedBatches, data: Data, order: OrderName, *, seed: int, role: int
) -> FlatProgram:
    """Return the program of a plan with batches of one size."""
    entries = Entries(plan, data.length, order, seed=seed, role=role)
    program = FlatProgram(plan, entries, Constant, is_constant=True, role=role)
    program.is_repeating = order == "sequential"
    return program


def slice_program(plan: FixedBatches, shards: Slice, data: Data, *, role: int) -> FlatProgram:
    """Return the program of a plan that takes some of the shards, in the order of the data."""
    from .shardslice import shard_slice

    order = shard_slice(shards, data)
    entries = Entries(plan, order.length, "sequential", order=order)
    program = FlatProgram(plan, entries, Constant, is_constant=True, role=role)
    program.is_repeating = True
    return program


def scaled_program(plan: ScaledBatches, data: Data, *, role: int) -> FlatProgram:
    """Return the program of a plan with a table of sizes."""
    from .tables import scaled_sizes

    entries = Entries(plan, data.length, plan.order, seed=plan.seed, role=role)

    def sizes_for(size: int) -> Sizes:
        return scaled_sizes(plan, size, entries.orders[0], role=role)

    return FlatProgram(plan, entries, sizes_for, is_constant=False, role=role)


def shard_program(plan: ShardShuffled, data: Data, *, role: int) -> FlatProgram:
    """Return the program of a plan that shuffles shards."""
    from .shards import shard_order

    order = shard_order(plan, data, role=role)
    entries = Entries(plan, data.length, "keyed", order=order)
    return FlatProgram(plan, entries, Constant, is_constant=True, role=role)
