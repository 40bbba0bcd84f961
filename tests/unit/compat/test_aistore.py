from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from aistore.pytorch import DynamicBatchSampler as Original
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from headrace import plans
from headrace.compat.aistore import DynamicBatchSampler
from headrace.errors import PlanError


def listed(sizes: list[int]) -> Any:  # noqa: ANN401 - as the original wants it
    objects = [
        SimpleNamespace(name=str(number), props_cached=SimpleNamespace(size=size))
        for number, size in enumerate(sizes)
    ]
    return type(
        "Dataset", (), {"get_obj_list": lambda _: objects, "__len__": lambda _: len(sizes)}
    )()


@given(
    sizes=st.lists(st.sampled_from([0, 1, 3, 5, 10, 11, 40]), max_size=30),
    budget=st.sampled_from([1, 9.5, 10, 20, 33]),
    drop_last=st.booleans(),
    oversized=st.booleans(),
    saturation=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_passes_are_those_of_the_original_after_manual_seed(
    sizes: list[int],
    budget: float,
    drop_last: bool,
    oversized: bool,
    saturation: float,
    shuffle: bool,
    seed: int,
) -> None:
    options = (budget, drop_last, oversized, saturation, shuffle)
    original = Original(listed(sizes), *options)
    torch.manual_seed(seed)
    owed = [list(original) for _ in range(3)]
    ours = DynamicBatchSampler(listed(sizes), *options)
    torch.manual_seed(seed)
    assert [list(ours) for _ in range(3)] == owed


def test_draws_of_others_change_nothing() -> None:
    torch.manual_seed(3)
    alone = [list(DynamicBatchSampler([5] * 20, 20, shuffle=True)) for _ in range(2)]
    sampler = DynamicBatchSampler([5] * 20, 20, shuffle=True)
    disturbed = []
    for batch in sampler:
        disturbed.append(batch)
        torch.rand(7)
    assert disturbed == alone[0] == alone[1]


def test_with_a_seed_the_epoch_counts() -> None:
    def order(epoch: int) -> list[int]:
        generator = torch.Generator()
        generator.manual_seed(40 + epoch)
        return torch.randperm(12, generator=generator).flip(0).tolist()

    sampler = DynamicBatchSampler(np.full(12, 3), 6, shuffle=True, seed=40)
    passes = [[index for batch in sampler for index in batch] for _ in range(2)]
    assert passes == [order(0), order(1)]
    sampler.set_epoch(7)
    assert [index for batch in sampler for index in batch] == order(7)


def test_len_counts_batches_and_moves_nothing() -> None:
    sampler = DynamicBatchSampler([4, 4, 4, 4, 0, 90], 8)
    batches = iter(sampler)
    first = next(batches)
    assert len(sampler) == 2
    assert [first, *batches] == [[0, 1], [2, 3]]


def test_a_state_continues_after_its_batch() -> None:
    sampler = DynamicBatchSampler([3] * 10, 6, shuffle=True, seed=1)
    list(sampler)
    batches = list(sampler)
    fresh = DynamicBatchSampler([3] * 10, 6, shuffle=True, seed=1)
    fresh.load_state_dict(sampler.state_dict(after=2))
    assert list(fresh) == batches[2:]
    third = list(sampler)
    assert list(fresh) == third


def test_the_plan_is_a_byte_budget() -> None:
    sampler = DynamicBatchSampler([30, 500, 30, 30], 100, allow_oversized_samples=True)
    assert list(sampler) == [[1], [0, 2, 3]]
    assert isinstance(sampler.plan, plans.ByteBudget)
    assert list(sampler.plan.batch_sampler([30, 500, 30, 30], 0, 1)) == [[1], [0, 2, 3]]


def test_a_plain_loader_takes_it() -> None:
    data: Any = [10, 20, 30, 40]
    loader: DataLoader[Any] = DataLoader(data, batch_sampler=DynamicBatchSampler(data, 55.5))
    assert [batch.tolist() for batch in loader] == [[10, 20], [30], [40]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_batch_size": -1}, "max_batch_size=-1 is out of range"),
        ({"max_batch_size": 0, "drop_last": True}, "max_batch_size=0 does not go with drop_last"),
        ({"max_batch_size": 9, "saturation_factor": 1.5}, "saturation_factor=1.5 is out of range"),
        ({"max_batch_size": 9, "shuffle": 1}, "shuffle=1 must be true or false"),
    ],
)
def test_wrong_arguments_are_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        DynamicBatchSampler([1, 2, 3], **options)
