from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans.cut import Constant, FixedCut, Step, Tail, Uneven

TAILS: tuple[Tail, ...] = ("short", "drop", "wrap")


def per_rank(batch_size: int, tail: Tail = "short") -> FixedCut:
    return FixedCut(batch_size=batch_size, global_batch_size=None, tail=tail)


def all_ranks(global_batch_size: int, tail: Tail = "short") -> FixedCut:
    return FixedCut(batch_size=None, global_batch_size=global_batch_size, tail=tail)


def steps(cut: FixedCut, rest: int, world_size: int) -> int:
    return cut.rule.steps(Constant(cut.rank_size(world_size)), 0, 0, rest, world_size)


def step(cut: FixedCut, rest: int, world_size: int, length: int = 10**6) -> Step:
    sizes = Constant(cut.rank_size(world_size))
    return cut.rule.step(sizes, 0, 0, rest, world_size, length)


@st.composite
def cuts(draw: st.DrawFn, world_size: int) -> FixedCut:
    size, tail = draw(st.integers(1, 40)), draw(st.sampled_from(TAILS))
    return draw(st.sampled_from([per_rank(size, tail), all_ranks(size * world_size, tail)]))


def test_a_batch_per_rank_grows_the_step_with_the_world() -> None:
    assert [per_rank(32).step_size(world) for world in (1, 2, 7)] == [32, 64, 224]


def test_a_global_batch_stays_the_same_on_any_world() -> None:
    assert [all_ranks(24).step_size(world) for world in (1, 2, 3, 24)] == [24] * 4


@pytest.mark.parametrize(
    ("tail", "last"),
    [("short", Step(10, 2)), ("wrap", Step(10, 6))],
)
def test_the_rest_of_an_epoch_is_filled_as_the_tail_says(tail: Tail, last: Step) -> None:
    cut = per_rank(4, tail)
    assert step(cut, 26, world_size=4) == Step(16, 0)
    assert step(cut, 16, world_size=4) == Step(16, 0)
    assert step(cut, 10, world_size=4) == last


def test_a_dropped_tail_is_no_step() -> None:
    cut = per_rank(4, "drop")
    assert steps(cut, 26, world_size=4) == 1
    assert steps(cut, 15, world_size=4) == 0
    with pytest.raises(AssertionError):
        step(cut, 15, world_size=4)


@pytest.mark.parametrize("tail", TAILS)
def test_nothing_left_is_no_step(tail: Tail) -> None:
    assert steps(per_rank(4, tail), 0, world_size=3) == 0


def test_fewer_entries_than_ranks_still_make_a_step_for_each_rank() -> None:
    assert step(per_rank(5), 3, world_size=8) == Step(3, 5)
    assert step(per_rank(5, "wrap"), 3, world_size=8) == Step(3, 37)


def test_wrapping_once_takes_each_entry_of_the_order_at_most_once_more() -> None:
    cut = per_rank(20, "wrap-once")
    assert step(cut, 6, world_size=3, length=12) == Step(6, 12)
    assert step(cut, 6, world_size=3, length=600) == Step(6, 54)


@pytest.mark.parametrize(
    ("tail", "uneven", "found"),
    [
        # 7 samples, 2 ranks, batches of 2: the ranks have 4 or 3 samples each.
        ("drop", "fill", [Step(4, 0), Step(3, 1)]),
        ("drop", "drop", [Step(4, 0)]),
        ("short", "drop", [Step(4, 0), Step(2, 0)]),
        ("short", "fill", [Step(4, 0), Step(3, 1)]),
        ("wrap", "drop", [Step(4, 0), Step(2, 2)]),
    ],
)
def test_entries_that_the_ranks_do_not_divide_are_filled_up_or_left_out_before_the_tail(
    tail: Tail, uneven: Uneven, found: list[Step]
) -> None:
    cut = FixedCut(batch_size=2, global_batch_size=None, tail=tail, uneven=uneven)
    rest, taken = 7, []
    while steps(cut, rest, world_size=2):
        taken.append(step(cut, rest, world_size=2, length=7))
        rest -= taken[-1].num_entries
    assert taken == found


@given(data=st.data(), rest=st.integers(1, 10**6), world_size=st.integers(1, 16))
def test_steps_are_as_many_as_one_gets_by_taking_them(
    data: st.DataObject, rest: int, world_size: int
) -> None:
    cut = data.draw(cuts(world_size))
    rest = min(rest, 50 * cut.step_size(world_size))
    announced = steps(cut, rest, world_size)
    taken = 0
    while steps(cut, rest, world_size):
        found = step(cut, rest, world_size)
        size = cut.step_size(world_size)
        assert sum(found) % world_size == 0
        assert 0 < found.num_entries <= sum(found) <= size
        if cut.tail == "short":
            assert found.num_padding < world_size
        else:
            assert sum(found) == size
        taken += 1
        rest -= found.num_entries
    assert taken == announced
    assert 0 <= rest < cut.step_size(world_size)
    assert rest == 0 or cut.tail == "drop"


def test_a_world_that_does_not_divide_the_global_batch_is_told_the_ones_that_do() -> None:
    with pytest.raises(PlanError) as refused:
        all_ranks(24).step_size(7)
    text = str(refused.value)
    assert "global_batch_size=24" in text
    assert "world_size=7" in text
    assert "usable world sizes: 1, 2, 3, 4, 6, 8, 12, 24" in text


@given(size=st.integers(1, 2000))
def test_the_usable_worlds_are_all_divisors(size: int) -> None:
    with pytest.raises(PlanError) as refused:
        all_ranks(size).step_size(size + 1)
    listed = [int(word) for word in str(refused.value).rpartition(": ")[2].split(", ")]
    assert listed == [world for world in range(1, size + 1) if size % world == 0]


@pytest.mark.parametrize(
    ("sizes", "got"),
    [
        ({"batch_size": None, "global_batch_size": None}, "got neither"),
        ({"batch_size": 8, "global_batch_size": 16}, "'batch_size': 8, 'global_batch_size': 16"),
    ],
)
def test_exactly_one_batch_size_is_given(sizes: dict[str, Any], got: str) -> None:
    with pytest.raises(PlanError, match=r"exactly one of batch_size= .* global_batch_size=") as no:
        FixedCut(**sizes, tail="short")
    assert got in str(no.value)


@pytest.mark.parametrize("name", ["batch_size", "global_batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2**31, 1.0, True, "8"])
def test_a_batch_size_out_of_range_is_named_with_its_range(name: str, value: object) -> None:
    sizes: dict[str, Any] = {"batch_size": None, "global_batch_size": None, name: value}
    with pytest.raises(PlanError) as refused:
        FixedCut(**sizes, tail="short")
    assert f"{name}={value!r}" in str(refused.value)
    assert f"1..{2**31 - 1}" in str(refused.value)


def test_an_unknown_tail_is_told_the_known_ones() -> None:
    with pytest.raises(PlanError, match="tail='pad' is unknown: choose 'short', 'drop', 'wrap' or"):
        per_rank(8, "pad")  # type: ignore[arg-type]
