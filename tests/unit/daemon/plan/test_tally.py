"""Counts: equal to those of a list, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans import ByteBudget, Data, VariableBatch
from headrace.plans.engine import BoundPlan, Flag
from headrace_daemon.commands.plan import tally
from headrace_daemon.commands.plan.subject import Subject
from headrace_daemon.commands.plan.tally import Spread, Tally
from headrace_daemon.commands.plan.walk import Extent, batches


@given(st.lists(st.lists(st.integers(0, 10**15)), min_size=1))
def test_a_spread_is_that_of_the_list(pieces: list[list[int]]) -> None:
    spread = Spread()
    for piece in pieces:
        spread.add(np.array(piece, dtype=np.int64))
    values = [value for piece in pieces for value in piece]
    assert spread.count == len(values)
    facts = spread.facts()
    if not values:
        assert facts is None
        assert spread.bins() == []
        return
    assert facts is not None
    assert (facts["min"], facts["max"]) == (min(values), max(values))
    assert facts["median"] == pytest.approx(float(np.median(values)))
    assert facts["mean"] == pytest.approx(sum(values) / len(values))
    bins = spread.bins()
    assert sum(one["count"] for one in bins) == len(values)
    for one in bins:
        inside = [value for value in values if one["from"] <= value < one["to"]]
        assert one["count"] == len(inside)


def test_a_spread_of_many_numbers_keeps_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_KEPT", 100)
    spread = Spread()
    for first in range(0, 10_000, 37):
        spread.add(np.arange(first, min(first + 37, 10_000)))
        assert spread._num_kept <= 100
    facts = spread.facts()
    assert facts is not None
    assert (facts["min"], facts["mean"], facts["max"]) == (0, 4999.5, 9999)
    assert facts["median"] == pytest.approx(5000, abs=150)


def counted(subject: Subject, steps: int, ranks: int, budget: ByteBudget | None = None) -> Tally:
    bound = BoundPlan.to(subject.plan, subject.data)
    found = Tally(subject, budget)
    within = Extent(bound.start(), steps, steps)
    for chunk in batches(bound, within, range(ranks), ranks):
        found.add([batch for step in chunk for batch in step])
    return found


def test_fill_counts_neither_fillers_nor_ranks_without_a_batch() -> None:
    sizes = np.array([30, 30, 30, 100, 60, 40, 50])
    for tail in ("wrap", "short"):
        plan = ByteBudget(max_bytes=90, order="sequential", oversized="own", tail=tail)
        facts = counted(Subject(plan, Data.of(sizes), {}, {}), 2, 3, plan).facts()
        assert facts["batches"] == 6
        assert facts["samples"] == 7
        # 90, 100 alone, 60, then 40 + 50.
        assert facts["budget"] == {
            "limit": 90,
            "column": "sizes",
            "batches": 4,
            "oversized": 1,
            "fill": {
                "min": 60 / 90,
                "median": 1,
                "mean": pytest.approx((90 + 100 + 60 + 90) / 4 / 90),
                "max": 100 / 90,
            },
        }


def test_scales_are_counted_with_their_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = VariableBatch(batch_size=8)
    subject = Subject(plan, Data(4000), {}, {})
    bound = BoundPlan.to(plan, subject.data)
    steps = bound.program.steps(0, 2)
    facts = counted(subject, steps, 2).facts()
    expected: dict[tuple[int, int], int] = {}
    for chunk in batches(bound, Extent(bound.start(), steps, steps), [0, 1], 2):
        for batch in (one for step in chunk for one in step):
            key = (batch.meta["height"], len(batch.indices))
            expected[key] = expected.get(key, 0) + 1
            assert not batch.flags[0] & Flag.WRAPPED or batch.step == steps - 1
    scales = {(one["height"], one["batch_size"]): one["count"] for one in facts["scales"]}
    assert scales == expected
    assert not facts["has_more_scales"]
    monkeypatch.setattr(tally, "MAX_SCALES", 2)
    few = counted(subject, steps, 2).facts()
    assert len(few["scales"]) == 2
    assert few["has_more_scales"]


def test_without_sizes_there_are_no_bytes() -> None:
    facts = counted(Subject(VariableBatch(batch_size=8), Data(40), {}, {}), 2, 1).facts()
    assert facts["bytes"] is facts["batch_bytes"] is facts["sample_bytes"] is None
