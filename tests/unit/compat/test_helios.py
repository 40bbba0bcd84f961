from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler

from headrace import Objects, Stream
from headrace.compat import helios
from headrace.errors import PlanError, TopologyError

SEEDS = st.one_of(st.integers(-5, 5), st.integers(-(2**40), 2**63))


def distributed(n: int, **options: Any) -> helios.ResumableDistributedSampler:  # noqa: ANN401
    return helios.ResumableDistributedSampler(range(n), **options)


@given(
    n=st.integers(0, 40),
    ranks=st.integers(1, 8),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    seed=SEEDS,
    epoch=st.integers(0, 5),
    batch_size=st.integers(1, 9),
    start_iter=st.integers(0, 5),
    data=st.data(),
)
def test_a_rank_gets_what_torch_deals_it_from_start_iter_on(
    n: int,
    ranks: int,
    shuffle: bool,
    drop_last: bool,
    seed: int,
    epoch: int,
    batch_size: int,
    start_iter: int,
    data: st.DataObject,
) -> None:
    rank = data.draw(st.integers(0, ranks - 1))
    everything: Any = range(n)
    native: DistributedSampler[int] = DistributedSampler(
        everything, ranks, rank, shuffle, seed, drop_last
    )
    native.set_epoch(epoch)
    sampler = distributed(
        n,
        num_replicas=ranks,
        rank=rank,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        batch_size=batch_size,
    )
    sampler.set_epoch(epoch)
    sampler.start_iter = start_iter
    # torch divides by zero where it has to pad nothing at all.
    owed = list(native) if n else []
    assert list(sampler) == owed[start_iter * batch_size :]
    assert len(sampler) == len(owed)


@given(n=st.integers(0, 60), seed=SEEDS, epoch=st.integers(0, 3))
def test_the_random_one_is_a_permutation_of_torch(n: int, seed: int, epoch: int) -> None:
    sampler = helios.ResumableRandomSampler(range(n), seed=seed, batch_size=4)
    sampler.set_epoch(epoch)
    generator = torch.Generator()
    generator.manual_seed(seed + epoch)
    assert list(sampler) == torch.randperm(n, generator=generator).tolist()
    assert len(sampler) == n


def test_start_iter_belongs_to_one_pass() -> None:
    sampler = helios.ResumableSequentialSampler(range(10), batch_size=3)
    sampler.start_iter = 2
    assert sampler.start_iter == 2
    passes = []
    for epoch in (5, 6):
        sampler.set_epoch(epoch)
        passes.append(list(sampler))
    assert passes == [[6, 7, 8, 9], list(range(10))]
    assert sampler.start_iter == 0
    assert sampler.state_dict()["epoch"] == 7


def test_a_pass_begins_with_its_first_index_and_not_with_iter() -> None:
    sampler = helios.ResumableSequentialSampler(range(4))
    sampler.start_iter = 3
    iter(sampler)  # torchdata's loader does this when it is restored
    assert list(sampler) == [3]


def test_a_state_after_any_batch_continues_there() -> None:
    def fresh() -> helios.ResumableDistributedSampler:
        return distributed(23, num_replicas=2, rank=1, seed=9, batch_size=3)

    sampler = fresh()
    sampler.set_epoch(4)
    whole = list(sampler)
    for done in range(1, 4):
        other = fresh()
        other.load_state_dict(sampler.state_dict(after=done))
        assert other.epoch == 4
        assert list(other) == whole[3 * done :]


def test_another_epoch_than_that_of_the_state_begins_at_its_start() -> None:
    sampler = helios.ResumableSequentialSampler(range(6), batch_size=2)
    next(batches := iter(sampler))
    next(batches)
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(0)
    assert list(sampler) == [2, 3, 4, 5]
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]


def test_the_plan_alone_gives_the_same_indices() -> None:
    sampler = distributed(31, num_replicas=4, rank=3, seed=-3, batch_size=2)
    alone = sampler.plan.batch_sampler(31, 3, 4)
    assert [index for batch in alone for index in batch] == list(sampler)


def test_a_stream_takes_the_plan() -> None:
    sampler = distributed(31, num_replicas=4, rank=3, drop_last=True, batch_size=2)
    stream = Stream(Objects("folder"), sampler.plan)
    assert msgspec.json.decode(msgspec.json.encode(stream), type=Stream) == stream


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_cuts_the_batches(num_workers: int) -> None:
    data: Any = range(100, 110)
    sampler: Any = helios.ResumableRandomSampler(data, seed=1, batch_size=4)
    loader: DataLoader[Any] = DataLoader(data, 4, sampler=sampler, num_workers=num_workers)
    batches = [batch.tolist() for batch in loader]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert list(chain.from_iterable(batches)) == [100 + index for index in sampler]
    assert len(loader) == 3


def test_the_registry_makes_what_it_names() -> None:
    sampler = helios.create_sampler("ResumableSequentialSampler", range(3), batch_size=2)
    assert list(sampler) == [0, 1, 2]
    assert isinstance(sampler, helios.ResumableSampler)
    with pytest.raises(PlanError, match=r"sampler 'Mine' is unknown: known are ResumableDist"):
        helios.create_sampler("Mine")


@pytest.mark.parametrize(
    ("act", "kind", "sentence"),
    [
        (lambda s: setattr(s, "start_iter", -1), PlanError, "start_iter=-1 is out of range"),
        (lambda s: s.set_epoch(-1), PlanError, "epoch=-1 is out of range"),
        (lambda _: distributed(5, num_replicas=2, rank=2), TopologyError, "rank=2 is out of"),
        (lambda _: distributed(5, num_replicas=0), TopologyError, "num_replicas=0 is out of"),
        (lambda _: distributed(5, batch_size=0), AssertionError, "batch_size=0 is out of range"),
        (lambda _: distributed(5, shuffle="no"), PlanError, "shuffle='no' must be true or false"),
        (lambda _: distributed(5, seed=0.5), PlanError, "seed=0.5 is out of range"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    act: Any,  # noqa: ANN401
    kind: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        act(helios.ResumableSequentialSampler(range(5)))
    assert isinstance(caught.value, ValueError)


def test_ranks_come_from_torchrun_where_they_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sampler = distributed(9, shuffle=False)
    assert (sampler.rank, sampler.num_replicas) == (1, 3)
    assert list(sampler) == [1, 4, 7]
