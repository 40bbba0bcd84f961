"""Pieces: the long ranges that some samples are read by, and where in them each value is.

Pure: columns in, columns out.  Invariant: no byte is in two pieces, each piece begins and ends with
a value and is at most as long as a block of memory, and a value lies in one piece or in none.  In
none are those that come better by ranges of their own: large ones, and those whose neighbours are
not wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .ranges import GAP_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.placement import Placement

MIN_VALUES: Final = 4
"""Values of a piece, on average: where there are fewer, ranges of their own read them as well, and
need no copy."""

_SHARD: Final = 40
"""Bits of an address that say where in a shard it is."""

MAX_SHARDS: Final = 1 << (63 - _SHARD)
MAX_SHARD_BYTES: Final = (1 << _SHARD) - 2 * GAP_BYTES
"""So that two shards never look like neighbours."""

_Numbers = NDArray[np.int64]


class Values(NamedTuple):
    """Where the values of some samples lie, field by field: those of F fields of n samples."""

    addresses: _Numbers  # i64[F * n], shard and first byte
    lengths: _Numbers  # i64[F * n], bytes; 0 or less for nothing to read

    @classmethod
    def of(cls, placement: Placement, samples: NDArray[np.uint64]) -> Values:
        """Return the values of some samples (u64[n])."""
        shards = placement.shards[samples].astype(np.int64).T[list(placement.streams)]
        starts = placement.starts[samples].astype(np.int64).T
        return cls(((shards << _SHARD) + starts).ravel(), placement.lengths[samples].T.ravel())


class Pieces(NamedTuple):
    """Some pieces, by address, and the place of each in blocks of memory of one size."""

    starts: _Numbers  # i64[p], address of the first byte, ascending
    stops: _Numbers  # i64[p], address behind the last one
    blocks: _Numbers  # i64[p], number of the block
    offsets: _Numbers  # i64[p], first byte in the block
    num_blocks: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pieces together."""
        return int((self.stops - self.starts).sum())

    def find(self, values: Values) -> _Numbers:
        """Return the piece that each value lies in, i64[F * n]; -1 for none."""
        addresses, lengths = values
        found = np.searchsorted(self.starts, addresses, side="right") - 1
        # With none before it, -1 stands for the last one, which begins behind it.
        is_in = (addresses >= self.starts[found]) & (addresses + lengths <= self.stops[found])
        found[~is_in | (lengths <= 0)] = -1
        return found

    def ranges(self, first: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Return shard, first byte and end there, block and offset of some pieces."""
        piece = slice(first, stop)
        shards = self.starts[piece] >> _SHARD
        starts = self.starts[piece] - (shards << _SHARD)
        stops = self.stops[piece] - (shards << _SHARD)
        columns = (shards, starts, stops, self.blocks[piece], self.offsets[piece])
        return zip(*(column.tolist() for column in columns), strict=True)


def can_be_cut(placement: Placement) -> bool:
    """Return whether there are few enough shards, and small enough ones, for their addresses."""
    table = placement.table
    return len(table) < MAX_SHARDS and int(table.sizes.max(initial=0)) < MAX_SHARD_BYTES


def cut(placement: Placement, samples: NDArray[np.uint64], block_bytes: int) -> Pieces:
    """Return the pieces for some samples, each of which is given once.

    Args:
        placement: Where they lie; one that `can_be_cut`.
        samples: u64[n].
        block_bytes: Length of a block, and of a piece at most.
    """
    values = Values.of(placement, samples)
    streams = np.repeat(np.array(placement.streams), len(samples))
    is_small = (values.lengths > 0) & (values.lengths <= block_bytes)
    starts: list[_Numbers] = [np.empty(0, dtype=np.int64)]
    stops: list[_Numbers] = [np.empty(0, dtype=np.int64)]
    for stream in sorted(set(placement.streams)):
        chosen = np.flatnonzero(is_small & (streams == stream))
        if len(chosen):
            begins = values.addresses[chosen]
            found = _cut(begins, begins + values.lengths[chosen], block_bytes)
            if MIN_VALUES * len(found[0]) <= len(chosen):
                starts.append(found[0])
                stops.append(found[1])
    begins, ends = np.concatenate(starts), np.concatenate(stops)
    order = np.argsort(begins)  # by stream they are as a rule
    begins, ends = begins[order], ends[order]
    blocks, offsets, num_blocks = _pack((ends - begins).tolist(), block_bytes)
    return Pieces(begins, ends, blocks, offsets, num_blocks)


def _cut(starts: _Numbers, stops: _Numbers, limit: int) -> tuple[_Numbers, _Numbers]:
    """Return first address and end of the pieces that values of at most `limit` bytes make."""
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(stops[order])
    gaps = starts[1:] - ends[:-1]
    count = len(starts)
    # Where a piece may begin: values that overlap (a link to another member) stay together.
    may_begin = np.concatenate([[0], np.flatnonzero(gaps >= 0) + 1, [count]])
    # Where one has to: the gap is large, or the shard another one.
    begins = np.concatenate([[0], np.flatnonzero(gaps > GAP_BYTES) + 1, [count]])
    firsts: list[int] = []
    lasts: list[int] = []
    for first, stop in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        at = first
        while at < stop:
            fit = int(np.searchsorted(ends[:stop], starts[at] + limit, side="right"))
            place = int(np.searchsorted(may_begin, fit, side="right"))
            following = int(may_begin[place - 1])
            if following > at:
                firsts.append(at)
                lasts.append(following - 1)
            else:
                following = int(may_begin[place])  # too many that overlap: in no piece
            at = following
    return starts[firsts], ends[lasts]


def _pack(lengths: list[int], block_bytes: int) -> tuple[_Numbers, _Numbers, int]:
    """Return block and offset of each piece, and the number of blocks."""
    blocks: list[int] = []
    offsets: list[int] = []
    block, offset = -1, block_bytes
    for length in lengths:
        if offset + length > block_bytes:
            block, offset = block + 1, 0
        blocks.append(block)
        offsets.append(offset)
        offset += length
    return np.array(blocks, dtype=np.int64), np.array(offsets, dtype=np.int64), block + 1
