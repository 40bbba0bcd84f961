"""The samples of some shards, in the order of the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ..errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .base import Slice
    from .data import Data
    from .order import Indices


class ShardSlice:
    """The samples of the shards of a slice, the same in each epoch; a `RunOrder`.

    Args:
        shards: u64[S+1], where each shard begins, and the length.
        chosen: Which shards are taken, whole.

    Raises:
        PlanError: If the slice ends behind the last shard.
    """

    __slots__ = ("_begins", "_stands", "length")

    window: Final = 1

    def __init__(self, shards: NDArray[np.uint64], chosen: Slice) -> None:
        count = len(shards) - 1
        if chosen.stop is not None and chosen.stop > count:
            raise PlanError(f"shards stop={chosen.stop} is out of range: the data has {count}")
        rows = slice(chosen.start, chosen.stop, chosen.step)
        begins, ends = shards[:-1][rows], shards[1:][rows]
        # Empty shards have no place in an order of samples.
        has_any = ends > begins
        self._begins = begins[has_any]
        after = np.cumsum((ends - begins)[has_any], dtype=np.uint64)
        # Where each stands among those that are taken.
        self._stands = np.concatenate([np.zeros(1, dtype=np.uint64), after[:-1]])[: len(after)]
        self.length = int(after[-1]) if len(after) else 0

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return the sample indices at some positions (see `Order.at`)."""
        shard = np.searchsorted(self._stands, positions, side="right") - 1
        samples: Indices = positions - self._stands[shard] + self._begins[shard]
        return samples

    def places_of(self, epoch: int, samples: Indices) -> Indices:
        """Return where some samples stand among those that are taken (see `RunOrder`)."""
        shard = np.searchsorted(self._begins, samples, side="right") - 1
        places: Indices = samples - self._begins[shard] + self._stands[shard]
        return places

    def samples_at(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the samples at some places (see `RunOrder.samples_at`)."""
        return self.at(epoch, np.arange(start, stop, dtype=np.uint64))


def shard_slice(chosen: Slice, data: Data) -> ShardSlice:
    """Return the order of the chosen shards of some data.

    Raises:
        PlanError: If the data has no shards.
    """
    if data.shards is None:
        raise PlanError(
            f"shards={chosen!r} does not go with a source without shards: leave it out, or choose "
            "samples by subset="
        )
    return ShardSlice(np.asarray(data.shards, dtype=np.uint64), chosen)
