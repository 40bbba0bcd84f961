"""The layout of a batch: every value at its place, aligned, none upon another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.assemble.layout import ALIGNMENT, lay_out, padded

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
