from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Data, ShardShuffled
from headrace.plans.engine import BoundPlan
from headrace.plans.order import RunOrder
from headrace.plans.shards import ShardOrder


def order(sizes: list[int], window: int, seed: int = 0, role: int = 0) -> ShardOrder:
    shards = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    return ShardOrder(shards, window, seed, role=role)


def listed(found: ShardOrder, epoch: int = 0) -> list[int]:
    ids: list[int] = found.at(epoch, np.arange(found.length, dtype=np.uint64)).tolist()
    return ids


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    window=st.integers(1, 20),
    epoch=st.integers(0, 3),
)
def test_each_sample_has_one_place(sizes: list[int], window: int, epoch: int) -> None:
    found = order(sizes, window)
    assert sorted(listed(found, epoch)) == list(range(sum(sizes)))


@given(sizes=st.lists(st.integers(0, 9), min_size=2, max_size=9), window=st.integers(1, 12))
def test_a_window_holds_the_samples_of_the_shards_that_stand_there(
    sizes: list[int], window: int
) -> None:
    plain, mixed = listed(order(sizes, 1)), listed(order(sizes, window))
    for first in range(0, len(plain), window):
        assert sorted(mixed[first : first + window]) == sorted(plain[first : first + window])
    shards = [list(np.arange(size) + sum(sizes[:at])) for at, size in enumerate(sizes)]
    runs = iter(plain)
    left = {tuple(shard) for shard in shards if len(shard)}
    while left:
        head = next(runs)
        shard = next(found for found in left if found[0] == head)
        assert [head, *(next(runs) for _ in shard[1:])] == list(shard)
        left.remove(shard)


def test_epochs_seeds_roles_and_windows_differ() -> None:
    sizes = [7] * 20
    orders = {
        tuple(listed(order(sizes, 10, seed=seed, role=role), epoch))
        for seed, role, epoch in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(orders) == 4
    windows = np.array(listed(order([10] * 20, 10))).reshape(20, 10) % 10
    assert len({tuple(window) for window in windows.tolist()}) > 15


def test_any_position_is_that_of_the_whole_order() -> None:
    found = order([5, 0, 9, 3], 4, seed=2)
    whole = listed(found, 6)
    for position in range(found.length):
        assert found.at(6, np.array([position], dtype=np.uint64)).tolist() == [whole[position]]


def test_shards_come_from_the_data_or_from_the_plan() -> None:
    data = Data(10, shards=np.array([0, 4, 10], dtype=np.uint64))
    of_data = BoundPlan.to(ShardShuffled(batch_size=2), data)
    of_plan = BoundPlan.to(ShardShuffled(batch_size=2, samples_per_shard=4), Data(10))
    assert isinstance(of_data.order, ShardOrder)
    assert isinstance(of_plan.order, ShardOrder)
    with pytest.raises(PlanError, match="samples_per_shard=None does not go with a source without"):
        BoundPlan.to(ShardShuffled(batch_size=2), Data(10))


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    window=st.integers(1, 20),
    epoch=st.integers(0, 3),
)
def test_a_window_of_positions_has_the_samples_of_the_same_places(
    sizes: list[int], window: int, epoch: int
) -> None:
    found = order(sizes, window)
    everywhere = np.arange(found.length, dtype=np.uint64)
    assert isinstance(found, RunOrder)
    sequence = found.samples_at(epoch, 0, found.length)
    assert found.places_of(epoch, sequence).tolist() == everywhere.tolist()
    places = found.places_of(epoch, found.at(epoch, everywhere))
    assert (places // np.uint64(window) == everywhere // np.uint64(window)).all()
