from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.errors import CursorError, ManifestMismatchError, PlanError, TopologyError
from headrace.plans import (
    ByteBudget,
    Chain,
    Data,
    Every,
    Interleaved,
    Limits,
    PlanBatchSampler,
    Sequential,
    Shuffled,
    VariableBatch,
)

if TYPE_CHECKING:
    from headrace.plans import Plan

PLAN = Shuffled(batch_size=3, seed=4)


def taken(sampler: PlanBatchSampler, count: int) -> list[list[int]]:
    batches = iter(sampler)
    return [next(batches) for _ in range(count)]


# --- Passes ---------------------------------------------------------------------------------------


def test_each_pass_is_the_next_epoch() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    assert sampler.epoch == 0
    epochs = [list(sampler) for _ in range(3)]
    assert sampler.epoch == 3
    for epoch, batches in enumerate(epochs):
        other = PLAN.batch_sampler(10, 0, 1)
        other.set_epoch(epoch)
        assert list(other) == batches
        assert sorted(index for batch in batches for index in batch) == list(range(10))
        assert all(type(index) is int for batch in batches for index in batch)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_pass_that_is_left_early_is_abandoned() -> None:
    sampler, whole = PLAN.batch_sampler(10, 0, 1), PLAN.batch_sampler(10, 0, 1)
    first, second = list(whole), list(whole)
    for batch in sampler:
        assert batch == first[0]
        break
    assert sampler.remaining == 3
    assert list(sampler) == second


def test_an_iterator_has_no_effect_before_its_first_batch() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    iter(sampler)
    assert list(sampler) == list(PLAN.batch_sampler(10, 0, 1))


def test_a_new_pass_ends_the_one_before() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    old = iter(sampler)
    next(old)
    new = iter(sampler)
    next(new)
    with pytest.raises(StopIteration):
        next(old)


def test_ranks_share_a_pass() -> None:
    whole = [list(PLAN.batch_sampler(12, rank, 2)) for rank in range(2)]
    assert len(whole[0]) == len(whole[1]) == 2
    assert sorted(index for rank in whole for batch in rank for index in batch) == list(range(12))


def test_the_batches_themselves_carry_what_belongs_to_them() -> None:
    sampler = ByteBudget(max_bytes=10, order="sequential").batch_sampler([4, 5, 6, 3], 0, 1)
    assert [(b.indices.tolist(), b.meta["bytes"]) for b in sampler.batches()] == [
        ([0, 1], 9),
        ([2, 3], 9),
    ]


# --- Lengths --------------------------------------------------------------------------------------


def test_the_length_is_that_of_the_whole_epoch_and_remaining_that_of_the_rest() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    assert (len(sampler), sampler.remaining) == (4, 4)
    left = []
    for _ in sampler:
        left.append(sampler.remaining)
        if left[-1]:
            assert len(sampler) == 4
    assert left == [3, 2, 1, 4]  # after the last batch the next pass is meant
    assert len(sampler) == 4


@pytest.mark.parametrize(
    "plan",
    [
        Sequential(batch_size=4),
        Sequential(batch_size=40, tail="drop"),
        ByteBudget(max_bytes=10, zero="drop"),
        Interleaved(
            train=Sequential(batch_size=2),
            limits=Limits(epochs=0),
        ),
    ],
    ids=lambda plan: type(plan).__name__,
)
def test_what_makes_no_batch_is_an_empty_pass(plan: Plan) -> None:
    data = [0, 0, 0] if isinstance(plan, ByteBudget) else (20 if plan.digest == DROPS else 0)
    sampler = plan.batch_sampler(data, 0, 1)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        assert list(sampler) == []
        assert len(sampler) == sampler.remaining == 0
    json.dumps(sampler.state_dict())


DROPS = Sequential(batch_size=40, tail="drop").digest


# --- State ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(9))
def test_a_state_continues_after_the_batches_that_were_taken(count: int) -> None:
    plan = Shuffled(batch_size=3, seed=1)
    whole = plan.batch_sampler(12, 1, 2)
    expected = [batch for _ in range(6) for batch in whole]
    sampler = plan.batch_sampler(12, 1, 2)
    batches, got = iter(sampler), []
    for _ in range(count):
        try:
            got.append(next(batches))
        except StopIteration:
            batches = iter(sampler)
            got.append(next(batches))
    state = json.loads(json.dumps(sampler.state_dict()))
    restored = plan.batch_sampler(12, 1, 2)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert got + [batch for _ in range(2) for batch in restored] == expected[: count // 2 * 2 + 4]


def test_a_state_can_be_that_after_fewer_batches_than_were_yielded() -> None:
    sampler = PLAN.batch_sampler(30, 0, 2)
    expected = list(PLAN.batch_sampler(30, 0, 2))
    taken(sampler, 4)  # a loader with workers is ahead of the loop
    for used in range(5):
        restored = PLAN.batch_sampler(30, 1, 2)
        restored.load_state_dict(sampler.state_dict(after=used))
        assert len(list(restored)) == 5 - used or used == 5
        same = PLAN.batch_sampler(30, 0, 2)
        same.load_state_dict(sampler.state_dict(after=used))
        assert list(same) == expected[used:]
    with pytest.raises(CursorError, match="after=6 is out of range"):
        sampler.state_dict(after=6)


def test_a_state_loads_on_any_number_of_ranks() -> None:
    sampler = PLAN.batch_sampler(24, 0, 2)
    seen = {index for batch in taken(sampler, 2) for index in batch}
    other = PLAN.batch_sampler(24, 1, 2)
    seen |= {index for batch in taken(other, 2) for index in batch}
    rest = []
    for rank in range(3):
        restored = PLAN.batch_sampler(24, rank, 3)
        restored.load_state_dict(sampler.state_dict())
        rest += [index for batch in restored for index in batch]
    assert seen.isdisjoint(rest)
    assert len(seen) + len(set(rest)) == 24


def test_a_loaded_state_wins_over_the_epoch_it_belongs_to_but_not_over_another() -> None:
    sampler = PLAN.batch_sampler(30, 0, 1)
    taken(sampler, 2)
    state = sampler.state_dict()
    expected = list(PLAN.batch_sampler(30, 0, 1))
    restored = PLAN.batch_sampler(30, 0, 1)
    restored.load_state_dict(state)
    restored.set_epoch(0)
    assert list(restored) == expected[2:]
    restored.load_state_dict(state)
    restored.set_epoch(1)
    assert len(list(restored)) == 10


def test_seeking_goes_anywhere() -> None:
    sampler = PLAN.batch_sampler(30, 0, 1)
    whole = [batch for _ in range(2) for batch in PLAN.batch_sampler(30, 0, 1)]
    sampler.seek(update=7)
    assert list(sampler) == whole[7:10]
    sampler.seek(sample=9)
    assert list(sampler) == whole[3:10]
    sampler.seek(epoch=1)
    assert sampler.epoch == 1


# --- Refusals -------------------------------------------------------------------------------------


def test_a_state_of_another_plan_is_refused_with_the_fields_that_differ() -> None:
    state = Shuffled(batch_size=4, seed=4, repeats=2).batch_sampler(10, 0, 1).state_dict()
    with pytest.raises(CursorError) as refused:
        PLAN.batch_sampler(10, 0, 1).load_state_dict(state)
    text = str(refused.value)
    assert "batch_size was 4 and is 3" in text
    assert "repeats was 2 and is at its default" in text
    assert "seed was" not in text
    state = Sequential(batch_size=3).batch_sampler(10, 0, 1).state_dict()
    with pytest.raises(CursorError, match='type was "Sequential" and is "Shuffled"'):
        PLAN.batch_sampler(10, 0, 1).load_state_dict(state)


def test_a_state_over_other_data_is_refused() -> None:
    state = PLAN.batch_sampler(10, 0, 1).state_dict()
    with pytest.raises(ManifestMismatchError, match="the source has manifest"):
        PLAN.batch_sampler(11, 0, 1).load_state_dict(state)
    budget = ByteBudget(max_bytes=10)
    state = budget.batch_sampler([3, 4, 5], 0, 1).state_dict()
    budget.batch_sampler(np.array([3, 4, 5]), 0, 1).load_state_dict(state)
    with pytest.raises(ManifestMismatchError):
        budget.batch_sampler([3, 4, 6], 0, 1).load_state_dict(state)


def test_a_newer_state_is_refused() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    for field in ("format", "plan_version"):
        with pytest.raises(CursorError, match="upgrade Headrace"):
            sampler.load_state_dict({**sampler.state_dict(), field: 99})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("abc", "neither the length of a dataset nor the sizes"),
        (True, "neither the length"),
        (-1, "length=-1 is out of range"),
        ([[1, 2]], "neither the length"),
        ({}, "the map of data is empty"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError, match=told):
        PLAN.batch_sampler(data, 0, 1)


def test_rank_and_world_size_come_together() -> None:
    with pytest.raises(TopologyError, match="give both, or neither"):
        PLAN.batch_sampler(10, 0)
    with pytest.raises(TopologyError, match="rank=2 is out of range"):
        PLAN.batch_sampler(10, 2, 2)
    assert PLAN.batch_sampler(10).topology.world_size == 1


# --- Epochs without what comes before them --------------------------------------------------------

SCALED = VariableBatch(batch_size=4, seed=2)


def test_begin_is_the_epoch_that_set_epoch_names() -> None:
    counted, uncounted = (SCALED.batch_sampler(40, 0, 1) for _ in range(2))
    counted.set_epoch(5)
    uncounted.begin(5)
    owed = list(counted)
    assert list(uncounted) == owed
    assert uncounted.epoch == 6
    assert (counted.state_dict()["update"], uncounted.state_dict()["update"]) == (
        sum(SCALED.batch_sampler(40, 0, 1).steps(epoch) for epoch in range(6)),
        len(owed),
    )


def test_begin_counts_on_where_it_is_the_next_epoch() -> None:
    sampler = SCALED.batch_sampler(40, 0, 1)
    whole = list(sampler), list(sampler)
    other = SCALED.batch_sampler(40, 0, 1)
    for epoch, batches in enumerate(whole):
        other.begin(epoch)
        assert list(other) == batches
    assert other.state_dict() == sampler.state_dict()


def test_begin_begins_the_epoch_of_a_pass_anew() -> None:
    sampler = PLAN.batch_sampler(10, 0, 1)
    first = list(sampler)
    sampler.begin(0)
    batches = iter(sampler)
    assert next(batches) == first[0]
    sampler.begin(0)
    assert next(batches, None) is None  # that pass is over
    assert list(sampler) == first


def test_begin_at_an_epoch_without_a_batch_is_an_empty_pass() -> None:
    sampler = Shuffled(batch_size=3, tail="drop").batch_sampler(2, 0, 1)
    sampler.begin(4)
    assert sampler.steps(4) == 0
    assert list(sampler) == []


def test_begin_does_not_go_with_a_plan_of_one_pass() -> None:
    run = Interleaved(train=PLAN, limits=Limits(epochs=2))
    with pytest.raises(CursorError, match=r"epoch=1: this plan runs in one pass to its limits"):
        run.batch_sampler(10, 0, 1).begin(1)
    with pytest.raises(CursorError, match=r"epoch=-1 is out of range"):
        PLAN.batch_sampler(10, 0, 1).begin(-1)


# --- Compositions ---------------------------------------------------------------------------------


def test_a_map_of_data_names_parts_of_the_plan() -> None:
    plan = Chain(plans={"a": Sequential(batch_size=2), "b": Sequential(batch_size=2)})
    with pytest.raises(PlanError, match=r"^data\['c'\]: the plan has no .*; its parts: a, b$"):
        plan.batch_sampler({"a": 3, "c": 4}, 0, 1)
    assert list(plan.batch_sampler({"any": 3}, 0, 1)) == [[0, 1], [2], [0, 1], [2]]


def test_indices_of_several_datasets_count_through_their_concatenation() -> None:
    plan = Chain(plans={"a": Sequential(batch_size=2), "b": Sequential(batch_size=2)})
    assert list(plan.batch_sampler({"a": 3, "b": 4}, 0, 1)) == [[0, 1], [2], [3, 4], [5, 6]]
    assert list(plan.batch_sampler(3, 0, 1)) == [[0, 1], [2], [0, 1], [2]]
    run = Interleaved(
        train=Sequential(batch_size=2),
        extras={"val": Every(Sequential(batch_size=3), epochs=1)},
        limits=Limits(epochs=2),
    )
    sampler = run.batch_sampler({"train": 3, "val": Data(2)}, 0, 1)
    assert len(sampler) == 6
    assert list(sampler) == [[0, 1], [2], [3, 4], [0, 1], [2], [3, 4]]
    assert list(sampler) == []  # the run is over
    assert sampler.remaining == 0


def test_it_drives_a_torch_loader() -> None:
    data = pytest.importorskip("torch.utils.data")
    sampler = PLAN.batch_sampler(10, 0, 1)
    loader = data.DataLoader(list(range(10)), batch_sampler=sampler, collate_fn=list)
    assert len(loader) == 4
    first = list(loader)
    assert first == list(PLAN.batch_sampler(10, 0, 1))
    assert sampler.epoch == 1
