"""The layout of a batch: every value at its place, aligned, none upon another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.messages import MISSING
from headrace_daemon.assemble.layout import ALIGNMENT, lay_out, padded, room_of

SIZES = st.lists(st.integers(0, 1000) | st.integers(0, 2**40), max_size=200)


def test_values_follow_each_other_at_the_next_multiple_of_64() -> None:
    layout = lay_out(np.array([1, 64, 0, 65, 10]))
    assert layout.offsets.tolist() == [0, 64, 128, 128, 256]
    assert layout.lengths.tolist() == [1, 64, 0, 65, 10]
    assert layout.num_bytes == 266
    assert layout.offsets.dtype == layout.lengths.dtype == np.uint64


def test_a_batch_of_nothing_has_no_bytes() -> None:
    assert lay_out(np.array([], dtype=np.int64)).num_bytes == 0
    assert lay_out(np.array([0, 0, 0])).num_bytes == 0


@given(sizes=SIZES)
def test_values_are_aligned_do_not_overlap_and_fit(sizes: list[int]) -> None:
    layout = lay_out(np.array(sizes, dtype=np.int64))
    end = 0
    for offset, length, size in zip(
        layout.offsets.tolist(), layout.lengths.tolist(), sizes, strict=True
    ):
        assert offset % ALIGNMENT == 0
        assert end <= offset < end + ALIGNMENT
        assert length == size
        end = offset + length
    assert layout.num_bytes == end


@given(sizes=SIZES)
def test_a_slot_of_the_padded_sizes_is_large_enough(sizes: list[int]) -> None:
    array = np.array(sizes, dtype=np.int64)
    room = int(padded(array).sum())
    assert lay_out(array).num_bytes <= room < lay_out(array).num_bytes + ALIGNMENT


def test_padding_keeps_the_shape() -> None:
    assert padded(np.array([[0, 1], [64, 65]])).tolist() == [[0, 64], [64, 128]]


ABSENT = st.lists(st.lists(st.integers(-1, 200), min_size=3, max_size=3), max_size=12)


@given(rows=ABSENT)
def test_values_that_are_absent_take_no_room_and_are_marked(rows: list[list[int]]) -> None:
    sizes = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    layout, present = lay_out(sizes), lay_out(np.maximum(sizes, 0))
    flat = sizes.ravel()
    assert layout.offsets.tolist() == present.offsets.tolist()
    assert [length == MISSING for length in layout.lengths.tolist()] == (flat < 0).tolist()
    assert layout.lengths[flat >= 0].tolist() == flat[flat >= 0].tolist()
    assert layout.num_bytes <= room_of(sizes).sum()
    assert room_of(sizes).tolist() == room_of(np.maximum(sizes, 0)).tolist()
    for offset, size in zip(layout.offsets.tolist(), flat.tolist(), strict=True):
        assert offset + max(size, 0) <= layout.num_bytes
