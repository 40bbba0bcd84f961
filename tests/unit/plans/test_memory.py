"""Memory and cost do not grow with the length: at step 0 and at 99 % of 10^9 samples."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from headrace.plans import (
    Chain,
    Data,
    Every,
    Interleaved,
    Limits,
    MultiScale,
    Plan,
    Seek,
    Sequential,
    ShardShuffled,
    Shuffled,
    VariableBatch,
    VideoVariable,
    engine,
    packing,
)
from headrace.plans.engine import BoundPlan
from headrace.topology import Topology

BILLION = 10**9
MIB = 1 << 20

PLANS: list[tuple[Plan, int]] = [
    (Sequential(batch_size=64), MIB),
    (Shuffled(batch_size=64, repeats=3, pad_to=7), MIB),
    (Shuffled(batch_size=64, node_blocks=2), MIB),
    (ShardShuffled(batch_size=64, samples_per_shard=100_000), 2 * MIB),  # 10^4 shards
    (MultiScale(batch_size=256), 4 * MIB),
    (VariableBatch(batch_size=4096), 4 * MIB),
    (VideoVariable(batch_size=4096, random_clips=True), 4 * MIB),
    (Chain(plans={"a": Shuffled(batch_size=64), "b": Sequential(batch_size=64)}), MIB),
    (
        Interleaved(
            train=Shuffled(batch_size=4096),
            extras={"val": Every(Sequential(batch_size=64), updates=20_000)},
            limits=Limits(epochs=1),
        ),
        2 * MIB,
    ),
]


@pytest.mark.parametrize(("plan", "limit"), PLANS, ids=lambda value: type(value).__name__)
def test_a_billion_samples_take_no_more_memory_than_few(plan: Plan, limit: int) -> None:
    topology = Topology(1, 2)
    tracemalloc.start()
    try:
        bound = BoundPlan.to(plan, Data(BILLION, "ab"))
        engine.next_batches(bound, bound.start(), topology, max_batches=10)
        _, first = tracemalloc.get_traced_memory()
        update = bound.program.steps(0, 2) * 99 // 100
        if bound.program.ends:
            cursor = engine.advance(bound, engine.settle(bound, bound.start(), 2), 2, update)
        else:
            cursor = engine.seek(bound, Seek(update=update), 2)
        batches = engine.next_batches(bound, cursor, topology, max_batches=10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first < limit
    assert peak < limit
    assert batches[0].step == update
    assert all(int(batch.indices.max()) < BILLION for batch in batches)


def test_packing_keeps_a_bounded_part_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_CHECKPOINTS", 1000)
    length = 300_000
    weights = np.arange(length, dtype=np.int64) % 7
    rule = packing.Limits(10, "own", True, False, 0.8)
    tracemalloc.start()
    try:
        found = packing.Packing(length, lambda positions: weights[positions], rule)
        count = found.num_batches
        found.batches(count - 5, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count > 90_000
    assert len(found._checkpoints) <= 1000
    assert peak < 20 * MIB


def test_a_batch_that_is_never_full_is_counted_and_not_held() -> None:
    length = 1_000_000
    rule = packing.Limits(1 << 60, "own", True, False, 0.8)
    tracemalloc.start()
    try:
        found = packing.Packing(length, lambda positions: np.ones(len(positions), np.int64), rule)
        assert (found.num_batches, found.num_samples) == (1, length)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB  # its positions alone are as large
