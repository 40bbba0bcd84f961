"""The order of shards and of the samples within a window, computed by position."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ..errors import PlanError
from .order import KeyedOrder, permute, round_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .data import Data
    from .order import Indices
    from .spec import ShardShuffled

_KEPT_EPOCHS: Final = 2

SHARDS_LABEL: Final = b"headrace.shards.v1"
WINDOW_LABEL: Final = b"headrace.window.v1"


class _Sequence(NamedTuple):
    """The shards of an epoch, one after the other."""

    stands: Indices  # u64[S], where each stands in the sequence, ascending
    begins: Indices  # u64[S], where the same one begins in the data
    stands_of: Indices  # u64[S], where each stands, in the order of the data


class ShardOrder:
    """Shards in a keyed order of each epoch, samples permuted within windows of that sequence.

    Args:
        shards: u64[S+1], where each shard begins, and the length.
        window: Samples of a window.
        seed: Seed of the plan.
        role: Which stream of a composition this is.
    """

    __slots__ = ("_epochs", "_lock", "_role", "_seed", "_shards", "length", "window")

    def __init__(
        self, shards: NDArray[np.uint64], window: int, seed: int, *, role: int = 0
    ) -> None:
        # Empty shards have a place too: one that is streamed is not known to be empty beforehand.
        self._shards = shards
        self.window = window
        self._seed = seed
        self._role = role
        self.length = int(shards[-1])
        self._epochs: OrderedDict[int, _Sequence] = OrderedDict()
        self._lock = Lock()

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return the sample indices at some positions of an epoch (see `Order.at`)."""
        places = self._windowed(epoch, positions)
        return self._samples(epoch, places)

    def places_of(self, epoch: int, samples: Indices) -> Indices:
        """Return where some samples stand in the sequence of an epoch (see `RunOrder`)."""
        stands = self._sequence(epoch).stands_of
        shard = np.searchsorted(self._shards, samples, side="right") - 1
        places: Indices = samples - self._shards[shard] + stands[shard]
        return places

    def samples_at(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the samples at some places of the sequence (see `RunOrder.samples_at`)."""
        return self._samples(epoch, np.arange(start, stop, dtype=np.uint64))

    def _samples(self, epoch: int, places: Indices) -> Indices:
        stands, begins, _ = self._sequence(epoch)
        shard = np.searchsorted(stands, places, side="right") - 1
        samples: Indices = places - stands[shard] + begins[shard]
        return samples

    def _sequence(self, epoch: int) -> _Sequence:
        with self._lock:
            found = self._epochs.get(epoch)
            if found is None:
                count = len(self._shards) - 1
                keyed = KeyedOrder(count, self._seed, role=self._role, label=SHARDS_LABEL)
                shuffled = keyed.at(epoch, np.arange(count, dtype=np.uint64))
                begins = self._shards[shuffled]
                sizes = self._shards[shuffled + np.uint64(1)] - begins
                stands = np.zeros(count, dtype=np.uint64)
                np.cumsum(sizes[:-1], out=stands[1:])
                stands_of = np.empty_like(stands)
                stands_of[shuffled] = stands
                found = self._epochs[epoch] = _Sequence(stands, begins, stands_of)
                while len(self._epochs) > _KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            return found

    def _windowed(self, epoch: int, positions: Indices) -> Indices:
        window = np.uint64(self.window)
        numbers, inside = np.divmod(positions, window)
        result = numbers * window
        last = self.length // self.window
        whole = numbers < np.uint64(last)
        for chosen, length in ((whole, self.window), (~whole, self.length % self.window)):
            if chosen.any():
                result[chosen] += self._permuted(epoch, numbers[chosen], inside[chosen], length)
        return result

    def _permuted(self, epoch: int, numbers: Indices, inside: Indices, length: int) -> Indices:
        """Permute positions within their windows, each window with keys of its own."""
        if length == 1:
            return inside
        keys = round_keys(self._seed, epoch, role=self._role, label=WINDOW_LABEL)
        return permute(inside, length, keys, tweak=numbers)


def shard_order(plan: ShardShuffled, data: Data, *, role: int = 0) -> ShardOrder:
    """Return the order of a plan that shuffles shards.

    Raises:
        PlanError: If the data has no shards and the plan makes none.
    """
    shards = data.shards
    if plan.samples_per_shard is not None:
        starts = np.arange(0, data.length, plan.samples_per_shard, dtype=np.uint64)
        shards = np.append(starts, np.uint64(data.length))
    if shards is None:
        raise PlanError(
            "samples_per_shard=None does not go with a source without shards: give the number of "
            "consecutive samples that are read together, or use Shuffled"
        )
    return ShardOrder(np.asarray(shards, dtype=np.uint64), plan.window, plan.seed, role=role)
