from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans import packing
from headrace.plans.packing import Limits, Packing

Number = int | float
Found = list[tuple[list[int], Number, bool]]


def plain_loop(weights: list[Number], limits: Limits) -> Found:
    """Pack one sample after the other, as the text says it."""
    batches: Found = []
    bin_: list[int] = []
    total: Number = 0
    for position, weight in enumerate(weights):
        if weight == 0 and not limits.keeps_zero:
            continue
        if weight > limits.budget:
            if limits.oversized == "own":
                batches.append(([position], weight, True))
            continue
        if total + weight > limits.budget:
            batches.append((bin_, total, False))
            bin_, total = [], 0
        bin_.append(position)
        total += weight
        if total == limits.budget:
            batches.append((bin_, total, False))
            bin_, total = [], 0
    if bin_ and (not limits.drop_last or total / limits.budget > limits.saturation_factor):
        batches.append((bin_, total, False))
    return batches


def packed(weights: list[Number], limits: Limits, dtype: Any) -> Packing:  # noqa: ANN401
    column = np.array(weights, dtype=dtype)
    return Packing(len(weights), lambda positions: column[positions], limits)


def all_of(found: Packing) -> Found:
    return [
        (batch.positions.tolist(), batch.total, batch.is_oversized)
        for batch in found.batches(0, 10**6)
    ]


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    budget = draw(st.one_of(st.integers(1, 60), st.floats(0.5, 60)))
    return Limits(
        budget,
        draw(st.sampled_from(["own", "drop"])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])),
    )


weights = st.lists(st.integers(0, 70), max_size=120)
fractions = st.lists(
    st.one_of(st.just(0.0), st.floats(0, 70, width=32), st.sampled_from([0.1, 0.2, 0.7])),
    max_size=120,
)


@pytest.mark.parametrize("entries", [1, 3, 7, 4096])
@given(weights=weights, limits=limits())
def test_integers_are_packed_as_by_the_plain_loop(
    entries: int, weights: list[Number], limits: Limits
) -> None:
    check_against_the_plain_loop(entries, weights, limits, np.int64)


@pytest.mark.parametrize("entries", [1, 7, 4096])
@given(weights=fractions, limits=limits())
def test_fractions_are_packed_as_by_the_plain_loop(
    entries: int, weights: list[Number], limits: Limits
) -> None:
    check_against_the_plain_loop(entries, weights, limits, np.float64)


def check_against_the_plain_loop(
    entries: int,
    weights: list[Number],
    limits: Limits,
    dtype: Any,  # noqa: ANN401
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SCAN_ENTRIES", entries)
        patch.setattr(packing, "_READ_ENTRIES", max(1, entries - 1))
        expected = plain_loop(weights, limits)
        found = packed(weights, limits, dtype)
        assert all_of(found) == expected
        assert all(
            total <= limits.budget for _, total, is_oversized in expected if not is_oversized
        )
        counted = packed(weights, limits, dtype)
        assert counted.num_batches == len(expected)
        samples = [len(positions) for positions, _, _ in expected]
        assert counted.num_samples == sum(samples)
        # From the end to the start: each batch is found from a checkpoint.
        for number in reversed(range(len(expected) + 2)):
            assert counted.has(number) == (number < len(expected))
            assert counted.samples_before(number) == sum(samples[:number])
            batches = counted.batches(number, 1)
            assert [batch.positions.tolist() for batch in batches] == [
                positions for positions, _, _ in expected[number : number + 1]
            ]


def test_checkpoints_are_bounded_and_any_batch_is_found_from_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "MAX_CHECKPOINTS", 10)
    monkeypatch.setattr(packing, "SCAN_ENTRIES", 50)
    draw = np.random.default_rng(1)
    sizes: list[Number] = draw.integers(0, 40, 2000).tolist()
    rule = Limits(30, "own", True, False, 0.8)
    expected = plain_loop(sizes, rule)
    found = packed(sizes, rule, np.int64)
    assert found.num_batches == len(expected)
    assert len(found._checkpoints) <= 10
    for number in draw.integers(0, len(expected), 50).tolist():
        assert found.batches(number, 1)[0].positions.tolist() == expected[number][0]


def test_an_oversized_sample_overtakes_the_open_batch() -> None:
    found = packed([30, 500, 30, 30], Limits(100, "own", True, False, 0.8), np.int64)
    assert [positions for positions, _, _ in all_of(found)] == [[1], [0, 2, 3]]


@pytest.mark.parametrize(
    ("factor", "kept"), [(0.0, True), (0.59, True), (0.6, False), (1.0, False)]
)
def test_the_last_batch_is_kept_only_above_the_factor(factor: float, kept: bool) -> None:
    found = packed([10, 20, 30], Limits(100, "drop", True, True, factor), np.int64)
    assert all_of(found) == ([([0, 1, 2], 60, False)] if kept else [])


def test_an_exact_fill_closes_a_batch_and_empty_samples_after_it_open_the_next() -> None:
    found = packed([50, 50, 0, 0, 100, 0], Limits(100, "drop", True, False, 0.8), np.int64)
    assert [positions for positions, _, _ in all_of(found)] == [[0, 1], [2, 3, 4], [5]]


def test_small_integer_types_do_not_overflow() -> None:
    found = packed([200] * 10, Limits(1000, "drop", True, False, 0.8), np.uint8)
    assert [total for _, total, _ in all_of(found)] == [1000, 1000]
