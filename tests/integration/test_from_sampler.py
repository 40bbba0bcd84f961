"""Samplers of the trainer: what they draw is what the daemon reads, in their order."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from headrace import DaemonDataset, Objects, Stream, Topology, plans
from headrace.errors import CursorError, FeedError, HeadraceError, PlanError
from headrace.plans import Drawn, Every, FromSampler, Interleaved, Limits, Sequential
from headrace.testing import Ledger
from tests.support.app import AppThread
from tests.support.daemon import DaemonProcess
from tests.support.files import check, write_samples
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUM_SAMPLES = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"), NUM_SAMPLES, max_bytes=20_000)


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB") as app:
        yield app


class Batches:
    """A batch sampler of uneven batches: a function of the epoch; counts what is drawn."""

    def __init__(self, sizes: tuple[int, ...] = (1, 30, 2, 7, 60)) -> None:
        self.sizes = sizes
        self.epoch = 0
        self.drawn: list[tuple[int, int]] = []
        """Epoch and number of each batch that was drawn."""
        self.fails_at: int | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(NUM_SAMPLES))
        random.Random(self.epoch).shuffle(order)
        for number, size in enumerate(self.sizes):
            if number == self.fails_at:
                raise ArithmeticError("the sampler is broken")
            self.drawn.append((self.epoch, number))
            yield order[:size]
            order = order[size:]


class Counter:
    """A batch sampler that goes on for ever, and has a state instead of epochs and a length."""

    def __init__(self, per_epoch: int = 50) -> None:
        self.per_epoch = per_epoch
        self.number = 0

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.per_epoch - self.number % self.per_epoch):
            first = self.number * 3
            self.number += 1
            yield [(first + at) % NUM_SAMPLES for at in range(3)]


def dataset_of(app: AppThread, folder: Path, plan: Any, **options: Any) -> DaemonDataset:  # noqa: ANN401
    return DaemonDataset(app.socket, Stream(Objects(str(folder)), plan), **options)


def indices(batches: Any) -> list[list[int]]:  # noqa: ANN401 - of a dataset
    found = []
    for batch in batches:
        check(batch)
        found.append(batch.indices.tolist())
    return found


def epoch_of(sampler: Any, epoch: int) -> list[list[int]]:  # noqa: ANN401 - any batch sampler
    sampler.set_epoch(epoch)
    return [list(batch) for batch in sampler]


def test_each_pass_is_an_epoch_of_the_sampler(app: AppThread, folder: Path) -> None:
    dataset = dataset_of(app, folder, FromSampler(Batches()), prefetch_batches=2)
    assert len(dataset) == dataset.remaining == 5
    for epoch in range(3):
        batches = list(dataset)
        assert indices(batches) == epoch_of(Batches(), epoch)
        places = [(batch.meta["epoch"], batch.meta["step"]) for batch in batches]
        assert places == [(epoch, step) for step in range(5)]
    dataset.close()


def test_every_state_continues_exactly(app: AppThread, folder: Path) -> None:
    makes: list[Callable[[], FromSampler]] = [
        lambda: FromSampler(Batches()),
        lambda: FromSampler(Counter(7)),
    ]
    for make in makes:
        whole: list[list[int]] = []
        states = []
        dataset = dataset_of(app, folder, make())
        for _ in range(2):
            for batch in dataset:
                whole += indices([batch])
                states.append(json.loads(json.dumps(dataset.state_dict())))
        dataset.close()
        for at, state in enumerate(states[:-1], 1):
            again = dataset_of(app, folder, make())
            again.load_state_dict(state)
            rest = indices(again)
            if len(rest) < len(whole) - at:
                rest += indices(again)
            assert rest[: len(whole) - at] == whole[at:]
            again.close()


def test_the_order_is_that_of_a_native_loader(app: AppThread, folder: Path) -> None:
    def batches() -> Any:  # noqa: ANN401 - torch has no types for it
        return BatchSampler(RandomSampler(range(NUM_SAMPLES)), 8, False)

    torch.manual_seed(5)
    native = [
        [int(index) for index in batch]
        for batch in DataLoader(range(NUM_SAMPLES), batch_sampler=batches())  # type: ignore[arg-type]
    ]
    torch.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_()  # which a loader draws for its workers
    dataset = dataset_of(app, folder, FromSampler(batches()))
    assert indices(dataset) == native
    state = dataset.state_dict()
    dataset.load_state_dict(state)  # the end of an epoch is a place that any sampler finds
    assert len(indices(dataset)) == len(native)
    for batch in dataset:
        state = dataset.state_dict(after=batch)
        break
    dataset.load_state_dict(state)
    with pytest.raises(CursorError, match="step 1 of RandomSampler cannot be found again"):
        next(iter(dataset))
    dataset.close()


def test_ranks_are_those_of_the_sampler(app: AppThread, folder: Path) -> None:
    seen: list[int] = []
    for rank in range(2):
        data: Any = range(NUM_SAMPLES)
        sampler: Any = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
        plan = FromSampler(sampler, batch_size=16)
        dataset = dataset_of(app, folder, plan, topology=Topology(rank, 2))
        assert len(dataset) == 4
        seen += [index for batch in indices(dataset) for index in batch]
        state = dataset.state_dict()
        other = dataset_of(app, folder, plan, topology=Topology(1 - rank, 2))
        other.load_state_dict(state)
        with pytest.raises(CursorError, match=f"belongs to rank {rank} of 2"):
            next(iter(other))
        dataset.close()
        other.close()
    assert sorted(seen) == list(range(NUM_SAMPLES))


def test_a_sampler_is_asked_once_for_each_batch_and_not_for_the_next_epoch(
    app: AppThread, folder: Path
) -> None:
    """It may change between two epochs: what it says then counts."""
    sampler = Batches((5,) * 12)
    dataset = dataset_of(app, folder, FromSampler(sampler), prefetch_batches=2)
    batches = iter(dataset)
    next(batches)
    # Six under way, two ready here, one that was given, one that tells whether the epoch goes on.
    assert len(sampler.drawn) <= 10
    assert len(list(batches)) == 11
    assert sampler.drawn == [(0, number) for number in range(12)]
    sampler.sizes = (2, 3)
    assert [len(batch) for batch in indices(dataset)] == [2, 3]
    dataset.close()


def test_a_pass_that_is_left_is_abandoned(app: AppThread, folder: Path) -> None:
    dataset = dataset_of(app, folder, FromSampler(Batches()))
    for _ in dataset:
        break
    assert indices(dataset) == epoch_of(Batches(), 1)
    dataset.seek(epoch=7)
    assert indices(dataset) == epoch_of(Batches(), 7)
    with pytest.raises(CursorError, match="can only be sought to the start of an epoch"):
        dataset.seek(update=3)
    dataset.close()


def test_a_daemon_that_dies_is_told_again_what_was_not_received(folder: Path) -> None:
    sampler = Batches((3,) * 30)
    truth = epoch_of(Batches((3,) * 30), 0)
    with DaemonProcess() as daemon:
        dataset = DaemonDataset(
            daemon.socket, Stream(Objects(str(folder)), FromSampler(sampler)), prefetch_batches=4
        )
        found = []
        for batch in dataset:
            found += indices([batch])
            if len(found) in (1, 10, 29):
                daemon.kill()
                daemon.start()
        assert found == truth
        assert sampler.drawn == [(0, number) for number in range(30)]
        dataset.close()


def test_a_daemon_that_comes_back_while_a_batch_is_drawn_is_told_of_it(folder: Path) -> None:
    class Slow(Batches):
        def __iter__(self) -> Iterator[list[int]]:
            for number, batch in enumerate(super().__iter__()):
                if number == 15:
                    daemon.kill()
                    daemon.start()
                    wait_until(lambda: bool(daemon.status()["feeds"]))
                yield batch

    with DaemonProcess() as daemon:
        plan = FromSampler(Slow((3,) * 30))
        dataset = DaemonDataset(daemon.socket, Stream(Objects(str(folder)), plan))
        assert indices(dataset) == epoch_of(Batches((3,) * 30), 0)
        dataset.close()


def test_what_a_sampler_raises_comes_after_what_it_drew(app: AppThread, folder: Path) -> None:
    sampler = Batches((3,) * 10)
    sampler.fails_at = 4
    dataset = dataset_of(app, folder, FromSampler(sampler))
    found = []
    with pytest.raises(ArithmeticError, match="the sampler is broken"):
        for batch in dataset:
            found += indices([batch])
    assert found == epoch_of(Batches((3,) * 10), 0)[:4]
    sampler.fails_at = None
    dataset.seek(epoch=0)
    assert len(indices(dataset)) == 10
    dataset.close()


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ([[0, NUM_SAMPLES]], "yields index 100, the source has samples 0..99"),
        ([[0], "x"], "which is no list of sample indices"),
        ([list(range(NUM_SAMPLES)) * 700], "a batch of 70000 samples is above the limit of 65536"),
    ],
)
def test_what_is_no_batch_is_refused(
    app: AppThread, folder: Path, sampler: list[Any], words: str
) -> None:
    dataset = dataset_of(app, folder, FromSampler(sampler))
    with pytest.raises(PlanError, match=words):
        list(dataset)
    dataset.close()


def test_a_batch_above_the_memory_is_refused_with_the_numbers(folder: Path) -> None:
    with AppThread(memory="10kB") as small:
        dataset = dataset_of(small, folder, FromSampler(Batches((1, 99))))
        batches = iter(dataset)
        with pytest.raises(HeadraceError, match=r"needs slots of .* bytes"):
            list(batches)
        dataset.close()


def test_a_sampler_without_a_length_is_a_stream_without_one(app: AppThread, folder: Path) -> None:
    dataset = dataset_of(app, folder, FromSampler(Counter()))
    with pytest.raises(TypeError, match="has no length"):
        len(dataset)
    assert len(indices(dataset)) == 50
    dataset.close()


def test_a_state_that_json_cannot_hold_is_refused(app: AppThread, folder: Path) -> None:
    class Tensor(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {"generator": torch.zeros(3)}

    dataset = dataset_of(app, folder, FromSampler(Tensor()))
    with pytest.raises(PlanError, match="returns what JSON cannot hold"):
        next(iter(dataset))
    dataset.close()


def test_workers_are_refused(app: AppThread, folder: Path) -> None:
    dataset = dataset_of(app, folder, FromSampler(Batches()))
    with pytest.raises(PlanError, match=r"use num_workers=0, or a plan of headrace\.plans"):
        next(iter(dataset.loader(2)))
    with pytest.raises(PlanError, match=r"use num_workers=0, or a plan of headrace\.plans"):
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    assert len(list(dataset.loader(0))) == 5
    dataset.close()


def test_a_composition_may_hold_a_sampler(app: AppThread, folder: Path) -> None:
    plan = Interleaved(
        train=Drawn(sampler=range(9), batch_size=4),
        extras={"val": Every(Sequential(batch_size=50), epochs=1)},
        limits=Limits(epochs=2),
    )
    dataset = dataset_of(app, folder, plan)
    assert len(dataset) == 10
    batches = list(dataset)
    told = [(batch.meta["stream"], batch.meta["role"], len(batch)) for batch in batches]
    once = [("train", "main", 4), ("train", "main", 4), ("train", "main", 1)]
    once += [("val", "extra", 50), ("val", "extra", 50)]
    assert told == once * 2
    assert [batch.meta["part_epoch"] for batch in batches] == [0] * 5 + [1] * 5
    assert list(dataset) == []
    again = dataset_of(app, folder, plan)
    again.load_state_dict(dataset.state_dict(after=batches[6]))
    assert indices(again) == indices(batches[7:])
    for one in (dataset, again):
        one.close()


def test_a_part_with_a_source_of_its_own_is_refused_beside_a_sampler(
    app: AppThread, folder: Path, tmp_path: Path
) -> None:
    """The daemon, which does not know the plan, would read it from that of the stream."""
    own = Every(Sequential(batch_size=50), epochs=1, source=Objects(str(tmp_path)))
    plan = Interleaved(
        train=Drawn(sampler=range(9), batch_size=4), extras={"val": own}, limits=Limits(epochs=2)
    )
    with pytest.raises(PlanError, match=r"^val of .* has a source of its own"):
        dataset_of(app, folder, plan)


def test_a_drawn_plan_may_stand_alone(app: AppThread, folder: Path) -> None:
    plan = Drawn(sampler=range(9), batch_size=2)
    dataset = dataset_of(app, folder, plan, topology=Topology(1, 2))
    assert len(dataset) == 3
    assert indices(dataset) == [[1, 3], [5, 7], [0]]
    dataset.close()


def test_a_plan_of_a_user_runs_in_the_trainer(app: AppThread, folder: Path) -> None:
    plan = plans.create("FromSampler", sampler=Batches())
    ledger = Ledger()
    dataset = dataset_of(app, folder, plan)
    for batch in dataset:
        ledger.record(batch)
    assert [list(entry.ids) for entry in ledger.entries] == epoch_of(Batches(), 0)
    dataset.close()


def test_a_client_that_says_too_much_is_refused(app: AppThread, folder: Path) -> None:
    from headrace_daemon.feed import dictated

    dataset = dataset_of(app, folder, FromSampler(Batches((1,) * 50)), prefetch_batches=8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dictated, "MAX_BATCHES", 3)
        with pytest.raises(FeedError, match="the client dictates too far ahead"):
            list(dataset)
    dataset.close()
