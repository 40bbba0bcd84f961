from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans import ByteBudget, Data, engine
from headrace.plans.engine import BoundPlan, Flag, PlannedBatch
from headrace.topology import Topology

SIZES = [3, 4, 3, 9, 1, 1, 1, 1, 7, 2]
"""With a budget of 10: [0 1 2] [3 4] [5 6 7 8] [9]."""


def steps(plan: ByteBudget, sizes: list[int], world_size: int) -> list[list[PlannedBatch]]:
    bound = BoundPlan.to(plan, Data.of(sizes))
    cursor = engine.settle(bound, bound.start(), world_size)
    found = []
    while cursor.epoch == 0:
        step, cursor = engine.next_step(bound, cursor, world_size)
        found.append(step)
    return found


def listed(found: list[list[PlannedBatch]]) -> list[list[list[int]]]:
    return [[batch.indices.tolist() for batch in step] for step in found]


def plan(**options: Any) -> ByteBudget:  # noqa: ANN401
    return ByteBudget(**{"max_bytes": 10, "order": "sequential", **options})


def test_batches_are_packed_over_the_whole_order_and_dealt_one_by_one() -> None:
    assert listed(steps(plan(), SIZES, 2)) == [[[0, 1, 2], [3, 4]], [[5, 6, 7, 8], [9]]]
    assert listed(steps(plan(), SIZES, 1)) == [[[0, 1, 2]], [[3, 4]], [[5, 6, 7, 8]], [[9]]]


def test_the_last_round_is_filled_shortened_or_dropped() -> None:
    whole = [[0, 1, 2], [3, 4], [5, 6, 7, 8]]
    wrapped = steps(plan(), SIZES, 3)
    assert listed(wrapped) == [whole, [[9], [0, 1, 2], [3, 4]]]
    marks = [set(batch.flags.tolist()) for batch in wrapped[1]]
    assert marks == [{0}, {Flag.PADDING | Flag.WRAPPED}, {Flag.PADDING | Flag.WRAPPED}]
    assert wrapped[1][0].after.sample == 10  # fillers are no samples
    assert listed(steps(plan(tail="short"), SIZES, 3)) == [whole, [[9], [], []]]
    assert listed(steps(plan(tail="drop"), SIZES, 3)) == [whole]
    few = listed(steps(plan(), [1, 2], 4))
    assert few == [[[0, 1]] * 4]


def test_an_oversized_sample_is_marked_and_alone() -> None:
    (first, *_) = steps(plan(oversized="own"), [3, 30, 4], 2)
    assert listed([first]) == [[[1], [0, 2]]]
    assert [batch.flags.tolist() for batch in first] == [[Flag.OVERSIZED], [0, 0]]
    assert [batch.meta["bytes"] for batch in first] == [30, 7]


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    world_size=st.integers(1, 8),
    oversized=st.sampled_from(["own", "drop"]),
    tail=st.sampled_from(["short", "wrap"]),
    data=st.data(),
)
def test_nothing_is_lost_or_above_the_budget_on_any_worlds(
    sizes: list[int],
    world_size: int,
    oversized: Literal["own", "drop"],
    tail: Literal["short", "wrap"],
    data: st.DataObject,
) -> None:
    budget = plan(oversized=oversized, tail=tail, order="keyed")
    bound = BoundPlan.to(budget, Data.of(sizes))
    if not bound.program.steps(0, world_size):
        return
    cursor, got = bound.start(), []
    while cursor.epoch == 0:
        step, cursor = engine.next_step(bound, cursor, world_size)
        for batch in step:
            assert batch.meta["bytes"] == sum(sizes[index] for index in batch.indices.tolist())
            if not (batch.flags & Flag.OVERSIZED).any():
                assert batch.meta["bytes"] <= 10
            got += [
                index
                for index, flag in zip(batch.indices.tolist(), batch.flags.tolist(), strict=True)
                if not flag & Flag.PADDING
            ]
        world_size = data.draw(st.integers(1, 8))  # the ranks change after every step
        if cursor.epoch == 0:
            cursor = engine.settle(bound, cursor, world_size)
    wanted = [at for at, size in enumerate(sizes) if oversized == "own" or size <= 10]
    assert sorted(got) == wanted
    assert cursor.sample == len(wanted)


def test_fractions_of_a_column_are_added_one_after_the_other() -> None:
    tenths = Data(20, columns={"seconds": np.full(20, 0.1)})
    bound = BoundPlan.to(plan(max_bytes=None, max_total=1.0, column="seconds"), tenths)
    batch, _ = engine.next_batch(bound, bound.start(), Topology())
    total, count = 0.0, 0
    while total + 0.1 <= 1.0:
        total, count = total + 0.1, count + 1
    assert (len(batch.indices), batch.meta["total"]) == (count, total)


@pytest.mark.parametrize("order", ["keyed", "torch", "python", "torch-continued"])
def test_the_order_is_packed_anew_in_each_epoch(order: Any) -> None:  # noqa: ANN401
    sampler = plan(order=order).batch_sampler([1] * 30, 0, 1)
    epochs = [list(sampler) for _ in range(3)]
    assert len({str(batches) for batches in epochs}) == 3
    for batches in epochs:
        assert sorted(index for batch in batches for index in batch) == list(range(30))
