from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from headrace.errors import CursorError, ManifestMismatchError, PlanError
from headrace.plans import (
    Cursor,
    Drawn,
    Every,
    FromSampler,
    Interleaved,
    Limits,
    Sequential,
)
from headrace.topology import Topology
from tests.support.planning import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.plans.engine import PlannedBatch

ALONE = Topology()


class Epochs:
    """A sampler whose order is a function of the epoch."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.length))
        random.Random(self.epoch).shuffle(order)
        return iter(order)


class Stateful:
    """A batch sampler with a live generator and a state, as torchdata's loaders want it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.generator = random.Random(1)
        self.given = 0
        self.begin: Any = None
        self.is_restored = False

    def state_dict(self) -> dict[str, Any]:
        begin = self.begin or self.generator.getstate()
        return {"given": self.given, "begin": [begin[0], list(begin[1]), begin[2]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, numbers, gauss = state["begin"]
        self.generator.setstate((version, tuple(numbers), gauss))
        self.given, self.is_restored = state["given"], True

    def __iter__(self) -> Iterator[list[int]]:
        skip = self.given if self.is_restored else 0
        self.is_restored = False
        self.begin = self.generator.getstate()
        order = list(range(self.length))
        self.generator.shuffle(order)
        self.given = skip
        for at in range(skip * 3, self.length, 3):
            self.given += 1
            yield order[at : at + 3]
        self.given, self.begin = 0, None


def drawn(
    plan: FromSampler, length: int, epochs: int, cursor: Cursor | None = None, window: int = 2
) -> list[PlannedBatch]:
    run = plan.run(length, MANIFEST, ALONE, cursor or plan.start(MANIFEST, ALONE))
    found: list[PlannedBatch] = []
    while run.cursor.epoch < epochs:
        batches = run.draw(window)
        assert 1 <= len(batches) <= window
        assert len({batch.epoch for batch in batches}) == 1
        found += batches
    return found


def listed(batches: list[PlannedBatch]) -> list[tuple[int, int, int, list[int]]]:
    return [(b.epoch, b.step, b.global_step, b.indices.tolist()) for b in batches]


def samplers() -> dict[str, Any]:
    return {
        "by epoch": lambda: FromSampler(Epochs(10), batch_size=3),
        "dropped": lambda: FromSampler(Epochs(10), batch_size=3, drop_last=True),
        "stateful": lambda: FromSampler(Stateful(10)),
        "plain list": lambda: FromSampler([[3, 1], [2], [0, 4]]),
    }


@pytest.mark.parametrize("name", samplers())
@pytest.mark.parametrize("window", [1, 2, 100])
def test_from_every_cursor_a_new_sampler_continues_exactly(name: str, window: int) -> None:
    make = samplers()[name]
    whole = drawn(make(), 10, 3, window=window)
    assert [batch.step == 0 for batch in whole].count(True) == 3
    assert len({tuple(batch.indices.tolist()) for batch in whole}) > 2
    for at, batch in enumerate(whole[:-1], 1):
        state = json.loads(json.dumps(batch.after.to_state()))
        rest = drawn(make(), 10, 3, Cursor.from_state(state), window)
        assert listed(rest) == listed(whole[at:])


def test_the_end_of_an_epoch_is_the_start_of_the_next() -> None:
    whole = drawn(FromSampler(Epochs(6), batch_size=3), 6, 2)
    assert [batch.is_last_of_epoch for batch in whole] == [False, True, False, True]
    after = whole[1].after
    assert (after.epoch, after.step, after.position, after.update, after.sample) == (1, 0, 0, 2, 6)


def test_reading_ahead_does_not_move_the_state_of_a_batch() -> None:
    plan = FromSampler(Stateful(10))
    (first, *_) = plan.run(10, MANIFEST, ALONE, plan.start(MANIFEST, ALONE)).draw(3)
    assert first.after.child is not None
    assert first.after.child["state"]["given"] == 1


def test_samplers_of_torch_are_taken_as_they_are() -> None:
    data = pytest.importorskip("torch.utils.data")
    inner = data.DistributedSampler(range(11), num_replicas=2, rank=1, seed=3)
    plan = FromSampler(data.BatchSampler(inner, 2, drop_last=False))
    whole = drawn(plan, 11, 2)
    inner.set_epoch(1)
    assert [batch.indices.tolist() for batch in whole if batch.epoch == 1] == list(
        data.BatchSampler(inner, 2, drop_last=False)
    )
    live = FromSampler(data.RandomSampler(range(11)), batch_size=4)
    (first, *_) = drawn(live, 11, 1)
    with pytest.raises(CursorError, match="step 1 of RandomSampler cannot be found again"):
        drawn(live, 11, 1, first.after)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata uses it
def test_samplers_of_torchdata_continue_exactly_or_not_at_all() -> None:
    module = pytest.importorskip("torchdata.stateful_dataloader.sampler")

    def make() -> FromSampler:
        inner = module.StatefulDistributedSampler(range(11), num_replicas=2, rank=1, seed=3)
        return FromSampler(inner, batch_size=2)

    whole = drawn(make(), 11, 3)
    assert len(whole) == 9
    for at, batch in enumerate(whole[:-1], 1):  # at the end of an epoch the state says just that
        assert listed(drawn(make(), 11, 3, batch.after)) == listed(whole[at:])
    live = FromSampler(module.RandomSampler(range(11)), batch_size=4)
    (first, *_) = drawn(live, 11, 1)
    with pytest.raises(CursorError, match="step 1 of RandomSampler cannot be found again"):
        drawn(live, 11, 1, first.after)


def test_a_sampler_is_iterated_by_its_passes_only() -> None:
    class Counting:
        num_passes = 0

        def __iter__(self) -> Iterator[list[int]]:
            self.num_passes += 1
            return iter([[self.num_passes]])

    assert [batch.indices.tolist() for batch in drawn(FromSampler(Counting()), 10, 2)] == [[1], [2]]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FromSampler(5), "sampler=5 is no sampler"),  # type: ignore[arg-type]
        (lambda: FromSampler(iter([1])), "can be iterated only once"),
        (lambda: FromSampler([1], batch_size=0), "batch_size=0 is out of range"),
        (
            lambda: FromSampler([1], batch_size=1, drop_last=2),  # type: ignore[arg-type]
            "drop_last=2 must be true or",
        ),
        (lambda: FromSampler([[1]], drop_last=True), "drop_last=True goes with batch_size="),
    ],
)
def test_a_wrong_argument_is_named(make: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError) as refused:
        make()
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([1, 2], "yields 1, which is no list of sample indices (for single indices give batch_"),
        ([[1.5]], "which is no list of sample indices"),
        ([[0, 10]], "yields index 10, the source has samples 0..9"),
        ([[-1]], "yields index -1"),
        ([], "yields no batch in epoch 0"),
    ],
)
def test_what_is_no_batch_of_indices_is_refused(batches: list[Any], told: str) -> None:
    with pytest.raises(PlanError) as refused:
        drawn(FromSampler(batches), 10, 1)
    assert told in str(refused.value)


def test_a_state_belongs_to_its_rank_sampler_and_data() -> None:
    plan = FromSampler(Epochs(10), batch_size=3)
    cursor = drawn(plan, 10, 1)[0].after
    with pytest.raises(CursorError, match="belongs to rank 0 of 1, this is rank 1 of 2"):
        plan.run(10, MANIFEST, Topology(1, 2), cursor)
    with pytest.raises(CursorError, match="belongs to plan"):
        FromSampler(Epochs(10), batch_size=2).run(10, MANIFEST, ALONE, cursor)
    with pytest.raises(ManifestMismatchError):
        plan.run(10, "cd" * 32, ALONE, cursor)
    with pytest.raises(CursorError, match="the sampler ends before step 1"):
        FromSampler(Epochs(3), batch_size=3).run(10, MANIFEST, ALONE, cursor)


# --- In compositions ------------------------------------------------------------------------------


def test_a_sampler_is_the_main_plan_or_an_extra_of_this_process() -> None:
    plan = Interleaved(
        train=Drawn(sampler=Epochs(6), batch_size=4),
        extras={"val": Every(Drawn(sampler=Epochs(2), batch_size=9, tail="short"), epochs=1)},
        limits=Limits(epochs=2),
    )
    assert plan.is_local
    assert not Sequential(batch_size=1).is_local
    found = list(plan.batch_sampler({"train": 6, "val": 2}, 0, 1))
    expected = []
    for epoch in range(2):
        main, extra = Epochs(6), Epochs(2)
        main.set_epoch(epoch)
        extra.set_epoch(epoch)
        order = list(main)
        expected += [order[:4], order[4:], [6 + index for index in extra]]
    assert found == expected


def test_a_sampler_is_asked_for_no_more_than_its_length() -> None:
    class Endless(Epochs):
        def __iter__(self) -> Iterator[int]:
            yield from range(self.length)
            raise AssertionError("it was run dry")

    assert list(Drawn(sampler=Endless(4), batch_size=2).batch_sampler(4, 0, 1)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("sampler", "told"),
    [(iter([1]), "is no sampler with a length"), (5, "is no sampler with a length")],
)
def test_a_drawn_plan_needs_a_sampler_with_a_length(sampler: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError, match=told):
        Drawn(sampler=sampler, batch_size=2)


def test_a_drawn_index_outside_of_the_data_is_named() -> None:
    with pytest.raises(PlanError, match=r"yields index \d, the source has samples 0\.\.2"):
        list(Drawn(sampler=Epochs(6), batch_size=2).batch_sampler(3, 0, 1))
