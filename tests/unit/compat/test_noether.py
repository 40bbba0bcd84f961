from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from headrace import plans
from headrace.compat.helios import ResumableDistributedSampler, ResumableSequentialSampler
from headrace.compat.noether import (
    InterleavedSampler,
    InterleavedSamplerConfig,
    SamplerIntervalConfig,
    ValidationError,
)
from headrace.errors import CursorError, PlanError
from tests.golden import noether_loop
from tests.golden.cases import Case
from tests.golden.noether import make_sampler

RANKED = st.sampled_from(["sequential", "distributed", "random", "resumable_random"])


@st.composite
def samplers(draw: st.DrawFn, ranks: int, rank: int, *, is_main: bool) -> dict[str, Any]:
    kind = draw(RANKED)
    facts: dict[str, Any] = {"type": kind, "n": draw(st.integers(0, 20 if is_main else 6))}
    if kind in ("random", "distributed", "resumable_random"):
        facts["seed"] = draw(st.integers(0, 9))
    if kind == "distributed":
        # torch cannot pad nothing.
        facts["n"] = max(facts["n"], 1)
        facts |= {"num_replicas": ranks, "rank": rank}
        facts |= {"shuffle": draw(st.booleans()), "drop_last": draw(st.booleans())}
    if kind == "resumable_random":
        facts["batch_size"] = 1
    if kind == "random":
        facts["n"] = max(facts["n"], 1)  # torch refuses an empty one
    return facts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = draw(st.integers(1, 3))
    rank = draw(st.integers(0, ranks - 1))
    config: dict[str, Any] = {
        "batch_size": draw(st.integers(1, 7)),
        "drop_last": draw(st.booleans()),
        draw(st.sampled_from(["max_epochs", "max_updates", "max_samples"])): draw(
            st.integers(0, 4)
        ),
    }
    if draw(st.booleans()):
        config["max_updates"] = draw(st.integers(1, 12))
    extras = []
    for _ in range(draw(st.integers(0, 3))):
        unit = draw(st.sampled_from(["epochs", "updates", "samples"]))
        extra: dict[str, Any] = {
            "sampler": draw(samplers(ranks, rank, is_main=False)),
            f"every_n_{unit}": draw(st.integers(1, 9)),
        }
        if unit == "samples" or draw(st.booleans()):
            extra["batch_size"] = draw(st.integers(1, 4))
        extras.append(extra)
    main = draw(samplers(ranks, rank, is_main=True))
    inputs = {"main": main, "extras": extras}
    record = {"config": config, "inputs": inputs}
    return Case("x", "x", "InterleavedSampler", "exact", config, inputs, record)


def make(case: Case, **start: Any) -> InterleavedSampler:  # noqa: ANN401
    extras = [
        SamplerIntervalConfig(
            sampler=make_sampler(extra["sampler"]),
            pipeline=None,
            **{name: value for name, value in extra.items() if name != "sampler"},
        )
        for extra in case.inputs["extras"]
    ]
    config = InterleavedSamplerConfig(**case.config, **start)
    return InterleavedSampler(make_sampler(case.inputs["main"]), config, None, extras)


def batches_of(sampler: InterleavedSampler) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    for is_last, index in sampler:
        batches[-1].append(index)
        if is_last:
            batches.append([])
    assert batches.pop() == []
    return batches


@given(case=cases())
def test_a_run_is_that_of_the_plain_loop(case: Case) -> None:
    owed, _ = noether_loop.uninterrupted(case)
    sampler = make(case)
    assert batches_of(sampler) == [batch["ids"] for batch in owed]
    assert len(sampler.batch_sampler) == len(owed)


@given(case=cases(), data=st.data())
def test_a_run_that_starts_at_an_update_is_the_rest_of_a_whole_one(
    case: Case, data: st.DataObject
) -> None:
    facts = [case.inputs["main"], *(extra["sampler"] for extra in case.inputs["extras"])]
    if any(one["type"] == "random" for one in facts):
        return  # the order of a live generator depends on how often it was drawn from
    owed, edges = noether_loop.uninterrupted(case)
    if not edges:
        return
    edge = data.draw(st.sampled_from(edges))
    rest = [batch["ids"] for batch in owed[edge["batches"] :]]
    started = make(case, start_update=edge["update"])
    assert batches_of(started) == rest
    if edge["sample"] % case.config["batch_size"] == 0:
        assert batches_of(make(case, start_sample=edge["sample"])) == rest
    if edge["is_epoch"]:
        assert batches_of(make(case, start_epoch=edge["epoch"])) == rest
    counters = (started.start_epoch, started.start_update, started.start_sample)
    assert counters == (edge["epoch"], edge["update"], edge["sample"])


# --- Starts and states ----------------------------------------------------------------------------


def sampler_of(n: int = 10, **config: Any) -> InterleavedSampler:  # noqa: ANN401
    extra = SamplerIntervalConfig(SequentialSampler(range(3)), None, every_n_updates=2)
    config = {"batch_size": 4, "max_epochs": 2, "drop_last": False, **config}
    return InterleavedSampler(
        SequentialSampler(range(n)), InterleavedSamplerConfig(**config), None, [extra]
    )


WHOLE = [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
    [10, 11, 12],
    [8, 9],
    [0, 1, 2, 3],
    [10, 11, 12],
    [4, 5, 6, 7],
    [8, 9],
    [10, 11, 12],
]


def test_extras_run_between_updates_and_before_the_end() -> None:
    assert batches_of(sampler_of()) == WHOLE


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ({"start_update": 0}, 0),
        ({"start_update": 1}, 1),
        ({"start_update": 2}, 3),
        ({"start_epoch": 1}, 4),
        ({"start_sample": 8}, 3),
        ({"start_sample": 20}, 9),
        ({"start_epoch": 2}, 9),
        ({"start_epoch": 7}, 9),
        ({"start_update": 70}, 9),
    ],
)
def test_a_start_in_the_middle_of_an_epoch_goes_on_there(start: dict[str, int], first: int) -> None:
    sampler = sampler_of(**start)
    assert batches_of(sampler) == WHOLE[first:]
    assert len(sampler.batch_sampler) == len(WHOLE) - first
    assert batches_of(sampler) == WHOLE[first:]  # each pass is the whole run from its start


def test_a_start_that_is_no_edge_of_a_batch_names_the_nearest() -> None:
    with pytest.raises(CursorError, match=r"sample=12 is not the edge.*nearest are 10 and 14"):
        sampler_of(start_sample=12)


def test_a_state_after_any_batch_continues_there() -> None:
    sampler = sampler_of()
    states = [sampler.state_dict() for _ in sampler.batches()]
    for done, state in enumerate(states, 1):
        fresh = sampler_of()
        fresh.load_state_dict(state)
        assert batches_of(fresh) == WHOLE[done:]


def test_the_start_iter_of_the_main_sampler_starts_the_run() -> None:
    main = ResumableSequentialSampler(range(10), batch_size=4)
    main.start_iter = 2
    config = InterleavedSamplerConfig(batch_size=4, max_epochs=2, drop_last=False)
    assert batches_of(InterleavedSampler(main, config)) == [
        [8, 9],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    main.start_iter = 1
    with pytest.raises(PlanError, match=r"start_iter=1 of the main sampler is 4 samples: it must"):
        InterleavedSampler(main, InterleavedSamplerConfig(batch_size=3, max_epochs=1))


def test_a_main_sampler_without_samples_ends_at_once() -> None:
    sampler = sampler_of(0)
    assert batches_of(sampler) == []
    assert len(sampler.batch_sampler) == 0


# --- Plans and samplers ---------------------------------------------------------------------------


def test_known_samplers_become_plans_that_can_be_served() -> None:
    data: Any = range(11)
    native: DistributedSampler[int] = DistributedSampler(data, 2, 1, shuffle=True, seed=4)
    extra = SamplerIntervalConfig(
        ResumableDistributedSampler(range(5), 2, 1, shuffle=False), None, every_n_epochs=1
    )
    config = InterleavedSamplerConfig(batch_size=2, max_epochs=2)
    sampler = InterleavedSampler(native, config, None, [extra])
    assert isinstance(sampler.plan, plans.Interleaved)
    assert not sampler.plan.is_local
    alone = sampler.plan.batch_sampler({"train": 11, "callback_0": 5}, 1, 2)
    assert list(alone) == batches_of(sampler)


def test_a_shuffled_callback_sampler_has_the_same_order_each_time() -> None:
    data: Any = range(9)
    native: DistributedSampler[int] = DistributedSampler(data, 1, 0, shuffle=True, seed=4)
    native.set_epoch(3)
    extra = SamplerIntervalConfig(native, None, every_n_epochs=1)
    config = InterleavedSamplerConfig(batch_size=9, max_epochs=3)
    sampler = InterleavedSampler(SequentialSampler(range(9)), config, None, [extra])
    runs = batches_of(sampler)[1::2]
    assert runs == [[9 + index for index in native]] * 3


class Evens:
    """A sampler of somebody: yields every other index, and counts how often it was begun."""

    def __init__(self, n: int) -> None:
        self.data_source = range(n)
        self.begun = 0
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return len(self.data_source) // 2

    def __iter__(self) -> Any:  # noqa: ANN401
        self.begun += 1
        yield from range(0, 2 * len(self), 2)
        raise AssertionError("it was asked for more than an epoch")

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_any_other_sampler_is_drawn_from() -> None:
    main, other = Evens(12), Evens(4)
    config = InterleavedSamplerConfig(batch_size=3, max_epochs=2)
    extra = SamplerIntervalConfig(other, None, every_n_updates=2)
    sampler = InterleavedSampler(main, config, None, [extra])
    assert batches_of(sampler) == [[0, 2, 4], [6, 8, 10], [12, 14]] * 2
    assert main.epochs == [0, 1]
    assert other.epochs == []  # nobody sets the epoch of a callback sampler
    assert (main.begun, other.begun) == (2, 2)
    assert sampler.plan.is_local


def test_a_live_generator_is_drawn_from_once_for_each_epoch() -> None:
    generator = torch.Generator()
    generator.manual_seed(5)
    owed = [torch.randperm(8, generator=generator).tolist() for _ in range(3)]
    generator.manual_seed(5)
    main = RandomSampler(range(8), generator=generator)
    sampler = InterleavedSampler(main, InterleavedSamplerConfig(batch_size=8, max_epochs=3))
    assert batches_of(sampler) == owed


def test_a_place_within_the_order_of_a_live_generator_is_refused() -> None:
    def fresh(**start: Any) -> InterleavedSampler:  # noqa: ANN401
        config = InterleavedSamplerConfig(batch_size=4, max_epochs=3, **start)
        return InterleavedSampler(RandomSampler(range(8)), config)

    sampler = fresh()
    states = [sampler.state_dict() for _ in sampler.batches()]
    with pytest.raises(PlanError, match=r"update 3 is within an order of RandomSampler"):
        fresh().load_state_dict(states[2])
    with pytest.raises(PlanError, match=r"update 3 is within an order of RandomSampler"):
        fresh(start_update=3)
    at_an_epoch = fresh(start_epoch=1)
    assert len(batches_of(at_an_epoch)) == 4
    at_an_epoch.load_state_dict(states[3])
    assert len(batches_of(at_an_epoch)) == 2


def test_a_sampler_without_its_dataset_is_refused() -> None:
    config = InterleavedSamplerConfig(batch_size=1, max_epochs=1)
    with pytest.raises(NotImplementedError, match=r"range does not say what its dataset is"):
        InterleavedSampler(range(3), config)


# --- The loader -----------------------------------------------------------------------------------


class Letters:
    def __init__(self, letters: str) -> None:
        self.letters = letters

    def __len__(self) -> int:
        return len(self.letters)

    def __getitem__(self, index: int) -> str:
        return self.letters[index]


def joined(letters: list[str]) -> str:
    return "".join(letters)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_collates_each_dataset_in_its_way(num_workers: int) -> None:
    train: Any = Letters("abcdef")
    test: Any = Letters("XYZ")
    extra = SamplerIntervalConfig(SequentialSampler(test), joined, every_n_epochs=1, batch_size=2)
    config = InterleavedSamplerConfig(batch_size=3, max_epochs=1)
    sampler = InterleavedSampler(SequentialSampler(train), config, list, [extra])
    loader = sampler.get_data_loader(num_workers=num_workers)
    assert list(loader) == [["a", "b", "c"], ["d", "e", "f"], "XY", "Z"]
    assert len(loader) == 4
    assert sampler.index_offsets == [6]
    with pytest.raises(IndexError, match=r"index=9 is outside of 0\.\.8"):
        sampler.dataset[9]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"batch_size": 0, "max_epochs": 1}, "batch_size=0 is out of range"),
        ({"batch_size": 4}, "at least one of max_epochs, max_updates, max_samples is needed"),
        ({"batch_size": 4, "max_epochs": -1}, "max_epochs=-1 is out of range"),
        ({"batch_size": 4, "max_epochs": 1, "start_epoch": -1}, "start_epoch=-1 is out of"),
        (
            {"batch_size": 4, "max_epochs": 1, "start_epoch": 1, "start_update": 2},
            "at most one of start_epoch, start_update, start_sample is possible; got start_epoch, ",
        ),
        ({"batch_size": 4, "max_epochs": 1, "start_sample": 6}, "must be a multiple of batch_size"),
        ({"batch_size": 4, "max_epochs": 1, "evaluation": 1}, "evaluation=1 must be true or false"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        InterleavedSamplerConfig(**config)


@pytest.mark.parametrize(
    ("interval", "sentence"),
    [
        ({}, "exactly one of every_n_epochs, .* is needed; got none"),
        ({"every_n_epochs": 1, "every_n_updates": 1}, "got every_n_epochs, every_n_updates"),
        ({"every_n_samples": 4}, "batch_size is needed with every_n_samples"),
        ({"every_n_updates": 0}, "every_n_updates=0 is out of range"),
        ({"every_n_updates": 1, "batch_size": 0}, "batch_size=0 is out of range"),
    ],
)
def test_a_wrong_interval_is_refused_by_name(interval: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SamplerIntervalConfig(SequentialSampler(range(3)), None, **interval)


def test_a_callback_sampler_that_would_skip_each_time_is_refused() -> None:
    skipping = ResumableSequentialSampler(range(4))
    skipping.start_iter = 1
    extra = SamplerIntervalConfig(skipping, None, every_n_epochs=1)
    config = InterleavedSamplerConfig(batch_size=1, max_epochs=1)
    with pytest.raises(PlanError, match=r"start_iter of a callback sampler"):
        InterleavedSampler(SequentialSampler(range(3)), config, None, [extra])
