"""Ranges: each step once, or runs of steps spread over it, reached without walking there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from headrace.plans import ByteBudget, Chain, Data, Sequential, Shuffled, VariableBatch
from headrace.plans.engine import BoundPlan, settle
from headrace_daemon.commands.plan import walk
from headrace_daemon.commands.plan.places import forward
from tests.support.rows import data, rows

ROWS = {row.name: row for row in rows()}


@pytest.mark.parametrize("name", ROWS)
def test_forward_goes_where_single_steps_lead(name: str) -> None:
    row = ROWS[name]
    bound = BoundPlan.to(row.plan, data(20))
    world_size = 2 * row.node_blocks
    cursors = [settle(bound, bound.start(), world_size)]
    for _ in range(30):
        cursors.append(forward(bound, cursors[-1], world_size, 1))
    for at, first in enumerate(cursors[:20]):
        for steps in (2, 10):
            assert forward(bound, first, world_size, steps) == cursors[at + steps]


def test_forward_passes_over_like_epochs_by_arithmetic() -> None:
    bound = BoundPlan.to(Shuffled(batch_size=3), Data(10))
    found = forward(bound, bound.start(), 2, 2 * 10**12 + 1)
    assert (found.epoch, found.step, found.update) == (10**12, 1, 2 * 10**12 + 1)
    assert found.sample == 10 * 10**12 + 6


@pytest.mark.parametrize("name", ROWS)
def test_a_whole_range_has_each_step_of_each_rank_once(name: str) -> None:
    row = ROWS[name]
    bound = BoundPlan.to(row.plan, data(20))
    world_size = 3 * row.node_blocks
    first = forward(bound, settle(bound, bound.start(), world_size), world_size, 1)
    within = walk.extent(bound, first, 12, range(world_size), world_size, whole=False)
    assert within.is_whole
    steps = [
        step for chunk in walk.batches(bound, within, range(world_size), world_size)
        for step in chunk
    ]  # fmt: skip
    assert 1 <= len(steps) <= 12
    for step in steps:
        assert [batch.rank for batch in step] == list(range(world_size))
        assert len({(batch.epoch, batch.step, batch.after) for batch in step}) == 1
    last = forward(bound, first, world_size, 12)
    assert steps[-1][0].after == last


@pytest.mark.parametrize(
    "plan",
    [
        Shuffled(batch_size=8),
        VariableBatch(batch_size=8),
        Chain(plans={"a": Sequential(batch_size=2), "b": Shuffled(batch_size=3)}),
        ByteBudget(max_bytes=100),
    ],
    ids=lambda plan: type(plan).__name__,
)
def test_a_long_range_is_looked_at_in_runs_from_its_first_to_its_last_step(
    plan: Shuffled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "MAX_BATCHES", 200)
    bound = BoundPlan.to(plan, Data.of(np.arange(10**4) % 50))
    within = walk.extent(bound, bound.start(), 700, [0, 1], 2, whole=False)
    assert within.num_counted == 96
    chunks = list(walk.batches(bound, within, [0, 1], 2))
    updates = [step[0].global_step for chunk in chunks for step in chunk]
    assert len(updates) == within.num_counted
    assert updates == sorted(set(updates))
    assert (updates[0], updates[-1]) == (0, 699)
    breaks = [after - before for before, after in itertools.pairwise(updates)]
    assert max(breaks) - min(gap for gap in breaks if gap > 1) <= 1
    whole = walk.extent(bound, bound.start(), 700, [0, 1], 2, whole=True)
    assert whole.is_whole


def test_a_huge_epoch_is_not_walked() -> None:
    bound = BoundPlan.to(Shuffled(batch_size=256), Data(10**9))
    steps = bound.program.steps(0, 4)
    within = walk.extent(bound, bound.start(), steps, range(4), 4, whole=False)
    assert within.num_counted * 4 * 256 <= walk.MAX_ENTRIES
    one = walk.extent(BoundPlan.to(Shuffled(batch_size=10**6), Data(10**9)), bound.start(), 500,
                      [0], 1, whole=False)  # fmt: skip
    assert one.num_counted == walk.MIN_STEPS
