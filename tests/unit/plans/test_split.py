from __future__ import annotations

from itertools import chain, zip_longest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans.split import stride


def test_positions_are_dealt_like_cards() -> None:
    assert stride(8, 6, rank=0, world_size=2).tolist() == [8, 10, 12]
    assert stride(8, 6, rank=1, world_size=2).tolist() == [9, 11, 13]


@given(
    start=st.integers(0, 2**62),
    rounds=st.integers(0, 20),
    world_size=st.integers(1, 12),
)
def test_ranks_share_a_step_without_gap_or_overlap(
    start: int, rounds: int, world_size: int
) -> None:
    num_entries = rounds * world_size
    parts = [stride(start, num_entries, rank, world_size) for rank in range(world_size)]
    assert {part.dtype for part in parts} == {np.dtype(np.uint64)}
    assert {len(part) for part in parts} == {rounds}
    dealt = chain.from_iterable(zip_longest(*(part.tolist() for part in parts)))
    assert list(dealt) == list(range(start, start + num_entries))


def test_positions_above_the_exact_integers_of_a_float_stay_exact() -> None:
    start = 2**62 + 1
    assert stride(start, 6, rank=1, world_size=2).tolist() == [start + 1, start + 3, start + 5]
