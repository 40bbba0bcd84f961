"""Entries: the order of one epoch with all its modifiers, by position.

A *sample* is an index into the data.  Samples (or a subset of them), padded to a multiple, are the
*slots*; blocks of slots are the *lanes*, one for each node; the order permutes the slots of a lane;
and each of them, repeated, is an *entry*.  Nothing of it is stored: all is arithmetic on positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import PlanError
from .base import Slice
from .exact import ExactOrder
from .order import KeyedOrder, RunOrder, SequentialOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .base import Ordered, OrderName
    from .order import Indices, Order


class Entries:
    """What stands at which position of an epoch.

    Args:
        options: The modifiers.
        data_length: Samples of the data.
        name: The order of the slots.
        seed: Its seed.
        role: Which stream of a composition this is.
        order: In place of the order that `name` names.

    Raises:
        PlanError: If the modifiers do not fit the number of samples.
    """

    def __init__(
        self,
        options: Ordered,
        data_length: int,
        name: OrderName,
        *,
        seed: int = 0,
        role: int = 0,
        order: Order | None = None,
    ) -> None:
        self._subset = options.subset
        self._chosen, self.num_samples = _choose(options.subset, data_length)
        self._num_slots = _padded(self.num_samples, options.pad_to)
        self.lanes = options.node_blocks
        # Slots of each lane; the last lanes may have fewer of their own and are padded.
        self._lane_slots = -(-self._num_slots // self.lanes)
        if (
            self.lanes > 1
            and self._num_slots
            and (self.lanes - 1) * self._lane_slots >= self._num_slots
        ):
            raise PlanError(
                f"node_blocks={self.lanes} leaves a node without a sample: the order has "
                f"{self._num_slots} entries, {self._lane_slots} for each node"
            )
        self._is_padded = (
            self._num_slots > self.num_samples or self._lane_slots * self.lanes > self._num_slots
        )
        self._reverse = options.reverse
        self.repeats = options.repeats
        """How many times in a row each entry of the order is taken."""
        self._part = options.part
        entries = self._lane_slots * (1 if options.truncate else options.repeats)
        self.length = (
            entries
            if options.part is None
            else len(range(options.part[0], entries, options.part[1]))
        )
        """Entries of each lane."""
        if order is not None:
            self.orders = [order]
        else:
            self.orders = [
                make_order(name, self._lane_slots, seed, role=role, lane=lane)
                # Exact permutations are the same in all lanes, as in cvnets.
                for lane in range(self.lanes if name == "keyed" else 1)
            ]

    @property
    def is_heavy(self) -> bool:
        """Whether an epoch of the order is made as a whole."""
        return bool(self.exact_orders)

    @property
    def runs(self) -> RunOrder | None:
        """The order, if it reads the data in long runs and the modifiers leave all of them whole.

        Position p of an epoch is then position ``p // repeats`` of the order.
        """
        order = self.orders[0]
        is_changed = (
            self._subset is not None
            or self._part is not None
            or self.lanes > 1
            or self._is_padded
            or self._reverse
        )
        return order if isinstance(order, RunOrder) and not is_changed else None

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The orders that are made as a whole for each epoch."""
        return tuple(order for order in self.orders if isinstance(order, ExactOrder))

    def prepare(self, epoch: int) -> None:
        """Make the order of an epoch, if it is made as a whole; blocks."""
        for order in self.exact_orders:
            order.permutation(epoch)

    def at(
        self, epoch: int, lane: int, positions: Indices
    ) -> tuple[Indices, NDArray[np.bool_] | None]:
        """Return the samples at some positions of a lane.

        Args:
            epoch: Epoch, >= 0.
            lane: Lane, < `lanes`.
            positions: u64[m], each < `length`; left unchanged.

        Returns:
            Sample indices u64[m], a new array; and which of them are padding, or None for none.
        """
        places = positions
        if self._part is not None:
            places = places * np.uint64(self._part[1]) + np.uint64(self._part[0])
        if self.repeats > 1:
            places = places // np.uint64(self.repeats)
        if self._reverse:
            places = np.uint64(self._lane_slots - 1) - places
        slots = self.orders[lane % len(self.orders)].at(epoch, places)
        padding = None
        if self._is_padded:
            slots, padding = self._unpadded(slots, lane)
        elif lane:
            slots += np.uint64(lane * self._lane_slots)
        if isinstance(self._subset, Slice):
            slots *= np.uint64(self._subset.step)
            slots += np.uint64(self._subset.start)
        elif self._chosen is not None:
            slots = self._chosen[slots]
        return slots, padding

    def _unpadded(self, slots: Indices, lane: int) -> tuple[Indices, NDArray[np.bool_]]:
        first = lane * self._lane_slots
        own = min(self._lane_slots, self._num_slots - first)
        padding = slots >= np.uint64(own)
        slots = slots % np.uint64(own) + np.uint64(first)
        beyond = slots >= np.uint64(self.num_samples)
        return slots % np.uint64(self.num_samples), padding | beyond


def make_order(name: OrderName, length: int, seed: int, *, role: int = 0, lane: int = 0) -> Order:
    """Return an order by its name.

    Raises:
        PlanError: If it is an exact one and there are too many samples.
    """
    if name == "sequential":
        return SequentialOrder(length)
    if name == "keyed":
        return KeyedOrder(length, seed, role=role, repeat=lane)
    return ExactOrder.of(name, length, seed)


class _Chosen(NamedTuple):
    indices: Indices | None
    number: int


def _choose(subset: Slice | tuple[int, ...] | None, length: int) -> _Chosen:
    if subset is None:
        return _Chosen(None, length)
    if isinstance(subset, Slice):
        stop = length if subset.stop is None else subset.stop
        if stop > length:
            raise PlanError(f"subset stop={stop} is out of range: the data has {length} samples")
        return _Chosen(None, len(range(subset.start, stop, subset.step)))
    indices = np.array(subset, dtype=np.uint64)
    if int(indices.max()) >= length:
        raise PlanError(
            f"subset index={int(indices.max())} is out of range: the data has samples "
            f"0..{length - 1}"
        )
    return _Chosen(indices, len(indices))


def _padded(count: int, pad_to: int) -> int:
    padded = -(-count // pad_to) * pad_to
    if padded - count > count:
        raise PlanError(
            f"pad_to={pad_to} is out of range: it would repeat the {count} samples more than once; "
            f"it must be at most {2 * count}"
        )
    return padded
