"""Pieces: long ranges that have all values of some samples, each byte once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.source.shards.pieces import MIN_VALUES, Pieces, Values, can_be_cut, cut
from headrace_daemon.source.shards.ranges import GAP_BYTES
from tests.support.sharded import placed, with_placement

if TYPE_CHECKING:
    from headrace.placement import Placement

BLOCK = 1000

SIZES = st.integers(1, 3).flatmap(
    lambda fields: st.lists(
        st.lists(
            st.lists(st.integers(-1, 300), min_size=fields, max_size=fields),
            min_size=1,
            max_size=12,
        ),
        min_size=1,
        max_size=4,
    )
)


def placement_of(sizes: list[list[list[int]]], gap: int = 10) -> Placement:
    placement = placed(sizes, gap=gap)[0].placement
    assert placement is not None
    return placement


def all_of(placement: Placement) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.arange(len(placement.starts), dtype=np.uint64)


def check_pieces(pieces: Pieces, block_bytes: int) -> None:
    """Fail unless pieces ascend, have no byte in common, and lie in blocks without overlap."""
    assert (pieces.starts < pieces.stops).all()
    assert (pieces.stops[:-1] <= pieces.starts[1:]).all()
    lengths = pieces.stops - pieces.starts
    assert (lengths <= block_bytes).all()
    assert (pieces.offsets + lengths <= block_bytes).all()
    at = pieces.blocks * block_bytes + pieces.offsets
    assert (at[1:] >= at[:-1] + lengths[:-1]).all()
    assert set(pieces.blocks.tolist()) == set(range(pieces.num_blocks))
    for first in range(len(pieces)):
        for shard, start, stop, block, offset in pieces.ranges(first, first + 1):
            assert (shard << 40) + start == pieces.starts[first]
            assert stop - start == lengths[first]
            assert (block, offset) == (pieces.blocks[first], pieces.offsets[first])


@given(sizes=SIZES, data=st.data())
def test_each_value_lies_in_one_piece_and_a_piece_begins_and_ends_with_one(
    sizes: list[list[list[int]]], data: st.DataObject
) -> None:
    placement = placement_of(sizes)
    samples = all_of(placement)
    first = data.draw(st.integers(0, len(samples) - 1))
    samples = samples[first : data.draw(st.integers(first + 1, len(samples)))]
    pieces = cut(placement, samples, BLOCK)
    values = Values.of(placement, samples)
    wanted = values.lengths > 0
    if not len(pieces):  # they do not pay: so few values, or so large ones, that each is alone
        assert wanted.sum() < MIN_VALUES * max(1, len(placement.bounds) + wanted.sum() // 3)
        return
    check_pieces(pieces, BLOCK)
    assert wanted.sum() >= MIN_VALUES * len(pieces)
    found = pieces.find(values)
    assert (found[wanted] >= 0).all()
    assert (found[~wanted] == -1).all()
    begins, ends = values.addresses[wanted], (values.addresses + values.lengths)[wanted]
    assert set(pieces.starts.tolist()) <= set(begins.tolist())
    assert set(pieces.stops.tolist()) <= set(ends.tolist())
    # And they have nothing but these values and what is between two of them.
    assert (pieces.stops - pieces.starts).sum() <= values.lengths[wanted].sum() + 10 * 2 * len(
        found
    )


def test_what_is_not_of_the_window_is_in_no_piece() -> None:
    placement = placement_of([[[100]] * 20])
    pieces = cut(placement, np.arange(5, 15, dtype=np.uint64), BLOCK)
    found = pieces.find(Values.of(placement, all_of(placement)))
    assert (found[:5] == -1).all()
    assert (found[5:15] >= 0).all()
    assert (found[15:] == -1).all()


def test_large_values_are_in_no_piece() -> None:
    placement = placement_of([[[100]] * 4 + [[BLOCK + 1]] + [[100]] * 4])
    pieces = cut(placement, all_of(placement), BLOCK)
    found = pieces.find(Values.of(placement, all_of(placement)))
    assert (found >= 0).tolist() == [True] * 4 + [False] + [True] * 4


def test_a_large_gap_parts_pieces() -> None:
    sizes = [[[10, 10]] * 8]
    near = cut(placement_of(sizes, gap=GAP_BYTES), all_of(placement_of(sizes)), 1 << 20)
    far = cut(placement_of(sizes, gap=GAP_BYTES + 1), all_of(placement_of(sizes)), 1 << 20)
    assert (len(near), len(far)) == (1, 0)


def test_no_pieces_where_each_would_have_a_few_values_only() -> None:
    placement = placement_of([[[BLOCK // 2]] * 20])
    pieces = cut(placement, all_of(placement), BLOCK)
    assert (len(pieces), pieces.num_blocks, pieces.num_bytes) == (0, 0, 0)


def test_a_stream_whose_samples_are_scattered_is_left_out_and_the_other_is_not() -> None:
    # Two streams of one field each: samples of the second are in another order.
    left = placement_of([[[50]] * 40], gap=10)
    order = np.random.default_rng(1).permutation(4000)[:40]
    placement = left._replace(
        fields=("a", "b"),
        streams=(0, 1),
        starts=np.stack([left.starts[:, 0], order.astype(np.uint64) * np.uint64(20_000)], axis=1),
        lengths=np.repeat(left.lengths, 2, axis=1),
        shards=np.stack([left.shards[:, 0], left.shards[:, 0] + np.uint32(1)], axis=1),
    )
    pieces = cut(placement, all_of(left), BLOCK)
    found = pieces.find(Values.of(placement, all_of(left)))
    assert (found[:40] >= 0).all()
    assert (found[40:] == -1).all()
    in_order = placement._replace(starts=np.repeat(left.starts, 2, axis=1))
    assert (cut(in_order, all_of(left), BLOCK).find(Values.of(in_order, all_of(left))) >= 0).all()


def test_values_that_share_bytes_stay_in_one_piece() -> None:
    placement = placement_of([[[100]] * 20])
    starts = placement.starts.copy()
    starts[11] = starts[10]  # a link to the member before
    linked = placement._replace(starts=starts)
    pieces = cut(linked, all_of(linked), BLOCK)
    check_pieces(pieces, BLOCK)
    found = pieces.find(Values.of(linked, all_of(linked)))
    assert found[10] == found[11] >= 0
    assert (found >= 0).all()


def test_shards_may_be_too_large_for_addresses() -> None:
    placement = placement_of([[[100]] * 20])
    assert can_be_cut(placement)
    placement.table.sizes[0] = 1 << 40
    assert not can_be_cut(placement)
    assert len(with_placement(["a"] * 20, placement)) == 20
