"""The program of `ByteBudget`: batches packed over the whole order, dealt to the ranks."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import CursorError, NoStepError, PlanError
from .base import Slice
from .entries import Entries
from .flags import Flag
from .packing import Batch, Limits, Packing
from .program import CHUNK_ENTRIES, EpochProgram, Largest, Place, Share, weighs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .data import Data
    from .exact import ExactOrder
    from .order import Indices
    from .program import Weighing
    from .spec import ByteBudget

_KEPT_EPOCHS: Final = 3
_CHECK_ENTRIES: Final = 1 << 20


class BudgetProgram(EpochProgram):
    """Deals batch ``position + rank`` of an epoch to a rank; `position` counts dealt batches.

    Packing needs the weights of all samples before a place, so `steps`, and a place that is far
    ahead, cost a scan of the epoch the first time; what was found is kept for some epochs.
    """

    def __init__(self, plan: ByteBudget, data: Data, *, role: int = 0) -> None:
        self.plan = plan
        self.entries = Entries(plan, data.length, plan.order, seed=plan.seed, role=role)
        self._role = role
        self._total = "bytes" if plan.max_bytes is not None else "total"
        name = "sizes" if plan.max_bytes is not None else plan.column
        if not data.columns:
            raise PlanError(
                f"column={name!r} is not in the data, which has: none; give the sizes of the "
                "samples, or Data(length, columns={name: numbers}), in place of their number"
            )
        self._weights = data.column(name)
        self._limits = Limits(
            plan.budget,
            plan.oversized,
            plan.zero == "keep",
            plan.drop_last,
            plan.saturation_factor,
        )
        self._check_weights()
        self.is_constant = self.is_repeating = plan.order == "sequential"
        self._packings: OrderedDict[int, Packing] = OrderedDict()
        self._lock = Lock()

    def packing(self, epoch: int) -> Packing:
        """Return the batches of an epoch."""
        epoch = 0 if self.is_constant else epoch
        with self._lock:
            found = self._packings.get(epoch)
            if found is None:

                def weigh(positions: Indices) -> NDArray[np.int64] | NDArray[np.float64]:
                    found: NDArray[np.int64] = self._weights[self._at(epoch, positions)]
                    return found

                found = self._packings[epoch] = Packing(self.entries.length, weigh, self._limits)
                while len(self._packings) > _KEPT_EPOCHS:
                    self._packings.popitem(last=False)
            else:
                self._packings.move_to_end(epoch)
            return found

    @property
    def is_heavy(self) -> bool:
        """True: the weights of the whole epoch are packed."""
        return True

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The order, if it is made as a whole for each epoch."""
        return self.entries.exact_orders

    def prepare(self, epoch: int) -> None:
        """Pack a whole epoch, so that any place of it is reached at once; blocks."""
        self.entries.prepare(epoch)
        _ = self.packing(epoch).num_batches

    # ---- where steps are -----------------------------------------------------------------------

    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of a whole epoch."""
        return self._rounds(self.packing(epoch).num_batches, world_size)

    def samples(self, epoch: int, world_size: int) -> int:
        """Return the samples of a whole epoch."""
        packing = self.packing(epoch)
        dealt = self._dealt(self.steps(epoch, world_size), packing.num_batches, world_size)
        return packing.samples_before(dealt)

    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps that are left of the epoch of a place."""
        return self._rounds(self.packing(place.epoch).num_batches - place.position, world_size)

    def has_steps(self, place: Place, world_size: int) -> bool:
        """Return whether a step is left, without packing more than it."""
        ranks = self._ranks(world_size)
        return self.packing(place.epoch).has(
            place.position + (ranks - 1 if self.plan.tail == "drop" else 0)
        )

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return the place some steps later."""
        packing = self.packing(place.epoch)
        position = place.position + steps * self._ranks(world_size)
        if position and not packing.has(position - 1):
            position = min(position, packing.num_batches)
        samples = packing.samples_before(position) - packing.samples_before(place.position)
        moved = Place(
            place.epoch,
            place.step + steps,
            position,
            place.update + steps,
            place.sample + samples,
        )
        return self.settle(moved, world_size)

    def check(self, place: Place) -> None:
        """Refuse a place outside of the epoch."""
        if place.position and not self.packing(place.epoch).has(place.position - 1):
            batches = self.packing(place.epoch).num_batches
            raise CursorError(
                f"cursor position={place.position} is outside 0..{batches}, epoch {place.epoch} "
                f"has {batches} batches"
            )

    def no_steps(self, epoch: int, world_size: int) -> NoStepError:
        """Return the error of a plan that makes no step."""
        if not self.entries.length:
            return NoStepError(
                "the plan makes no step: the data has no samples, or its subset none"
            )
        return NoStepError(
            f"the budget of {self.plan.budget} leaves no step in epoch {epoch}: "
            f"{self.entries.num_samples} samples make "
            f"{self.packing(epoch).num_batches} batches for {world_size} rank(s); use "
            "tail='short' or 'wrap', drop_last=False, or a larger budget"
        )

    # ---- what steps have -----------------------------------------------------------------------

    def largest(self, place: Place, rank: int, world_size: int, weigh: Weighing) -> Largest:
        """Return the largest weight of all batches of the epoch, whoever gets them."""
        epoch, measure = place.epoch, weighs(weigh, "")
        found = self.packing(epoch).heaviest(lambda positions: measure(self._at(epoch, positions)))
        left = self.remaining(place, world_size)
        return Largest(found, self.advance(place, world_size, left))

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Return the next steps of one rank."""
        ranks, packing = self._ranks(world_size), self.packing(place.epoch)
        mine = 0 if self.plan.replicated else rank
        epoch = place.epoch
        planned: list[tuple[Place, Place, Batch | None, bool]] = []
        num_entries = 0
        while place.epoch == epoch and len(planned) < max_batches and num_entries < CHUNK_ENTRIES:
            dealt = packing.batches(place.position, ranks)
            batch = dealt[mine] if mine < len(dealt) else None
            is_filler = batch is None and self.plan.tail == "wrap"
            if is_filler:
                batch = self._filler(packing, mine, len(dealt), place.position)
            samples = sum(len(one.positions) for one in dealt)
            after = Place(
                epoch,
                place.step + 1,
                place.position + len(dealt),
                place.update + 1,
                place.sample + samples,
            )
            after = self.settle(after, world_size)
            planned.append((place, after, batch, is_filler))
            num_entries += len(batch.positions) if batch is not None else 1
            place = after
            for _ in range(stride - 1):
                if place.epoch == epoch:
                    place = self.advance(place, world_size, 1)
        return self._shares(epoch, planned)

    def _shares(
        self, epoch: int, planned: list[tuple[Place, Place, Batch | None, bool]]
    ) -> list[Share]:
        pieces = [batch.positions for _, _, batch, _ in planned if batch is not None]
        nothing = np.empty(0, dtype=np.uint64)
        everywhere = np.concatenate(pieces) if pieces else nothing
        indices, padding = self.entries.at(epoch, 0, everywhere)
        flags = np.zeros(len(everywhere), dtype=np.uint8)
        if padding is not None:
            flags[padding] = Flag.PADDING
        shares, first = [], 0
        for before, after, batch, is_filler in planned:
            end = first + (len(batch.positions) if batch is not None else 0)
            if is_filler:
                flags[first:end] |= np.uint8(Flag.PADDING | Flag.WRAPPED)
            if batch is not None and batch.is_oversized:
                flags[first:end] |= np.uint8(Flag.OVERSIZED)
            meta = {self._total: 0 if batch is None else batch.total}
            shares.append(
                Share(before, after, indices[first:end], flags[first:end], meta, role=self._role)
            )
            first = end
        return shares

    def _filler(self, packing: Packing, mine: int, dealt: int, position: int) -> Batch:
        """Return the batch of a rank that the last round leaves without one."""
        # That round is the last one: all batches of the epoch are `position + dealt`.
        number = (mine - dealt) % (position + dealt)
        return packing.batches(number, 1)[0]

    def _ranks(self, world_size: int) -> int:
        return 1 if self.plan.replicated else world_size

    def _rounds(self, batches: int, world_size: int) -> int:
        ranks = self._ranks(world_size)
        return batches // ranks if self.plan.tail == "drop" else -(-batches // ranks)

    def _dealt(self, steps: int, batches: int, world_size: int) -> int:
        return min(steps * self._ranks(world_size), batches)

    def _at(self, epoch: int, positions: Indices) -> Indices:
        indices, _ = self.entries.at(epoch, 0, positions)
        return indices

    def _check_weights(self) -> None:
        """Refuse weights that are no sizes, or above the budget where that is an error.

        Raises:
            PlanError: It names the first sample.
        """
        weights, plan = self._weights, self.plan
        name = "sizes" if plan.max_bytes is not None else plan.column
        for first in range(0, len(weights), _CHECK_ENTRIES):
            piece = weights[first : first + _CHECK_ENTRIES]
            with np.errstate(invalid="ignore"):
                wrong = ~((piece >= 0) & (piece < np.inf))
            if wrong.any():
                at = int(np.argmax(wrong))
                raise PlanError(
                    f"column {name!r} has {piece[at]} for sample {first + at}: a weight must be 0 "
                    "or more, and finite"
                )
            if plan.oversized != "error":
                continue
            above = piece > plan.budget
            if plan.subset is not None and above.any():
                above &= self._is_chosen(first, len(piece))
            if above.any():
                at = int(np.argmax(above))
                limit = "max_bytes" if plan.max_bytes is not None else "max_total"
                raise PlanError(
                    f"sample {first + at} has {piece[at]} in column {name!r}, above "
                    f"{limit}={plan.budget}: raise it, or choose oversized='own' or 'drop'"
                )

    def _is_chosen(self, first: int, count: int) -> NDArray[np.bool_]:
        """Return which samples of a range the subset has."""
        samples = np.arange(first, first + count)
        subset = self.plan.subset
        if isinstance(subset, Slice):
            stop = subset.stop if subset.stop is not None else first + count
            inside = (samples >= subset.start) & (samples < stop)
            found: NDArray[np.bool_] = inside & ((samples - subset.start) % subset.step == 0)
            return found
        return np.isin(samples, np.array(subset, dtype=np.int64))
