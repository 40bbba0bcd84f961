from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Shuffled, exact
from tests.support.planning import bind

torch = pytest.importorskip("torch")

seeds = st.integers(-(2**33), 2**64 - 1)


def torch_says(length: int, seed: int, times: int = 1) -> list[int]:
    generator = torch.Generator()
    generator.manual_seed(seed & 0xFFFFFFFF)
    for _ in range(times):
        found = torch.randperm(length, generator=generator)
    result: list[int] = found.tolist()
    return result


@given(length=st.integers(0, 300), seed=seeds)
def test_the_permutation_is_that_of_torch(length: int, seed: int) -> None:
    assert exact.torch_permutation(length, seed).tolist() == torch_says(length, seed)


@given(length=st.integers(1, 100), seed=seeds, skip=st.integers(0, 5))
def test_a_generator_that_goes_on_makes_the_next_permutation(
    length: int, seed: int, skip: int
) -> None:
    found = exact.torch_permutation(length, seed, skip=skip)
    assert found.tolist() == torch_says(length, seed, times=skip + 1)


def test_many_random_numbers_are_drawn_in_pieces() -> None:
    length = 2 * 65536 + 3
    assert exact.torch_permutation(length, 5).tolist() == torch_says(length, 5)
    assert exact.torch_permutation(length, 5, skip=1).tolist() == torch_says(length, 5, times=2)


@given(length=st.integers(0, 300), seed=st.integers(0, 2**64))
def test_the_shuffle_is_that_of_python_and_leaves_the_generator_where_it_does(
    length: int, seed: int
) -> None:
    theirs, ours = random.Random(seed), exact.python_generator(seed)
    expected = list(range(length))
    theirs.shuffle(expected)
    assert exact.python_permutation(length, ours).tolist() == expected
    choices = list(range(7))
    drawn = [exact.below(ours, 7) for _ in range(20)]
    assert drawn == [theirs.choice(choices) for _ in range(20)]


@pytest.mark.parametrize(
    ("order", "epochs"),
    [
        ("torch", [torch_says(50, 9), torch_says(50, 10)]),
        ("torch-continued", [torch_says(50, 9), torch_says(50, 9, times=2)]),
    ],
)
def test_an_epoch_has_its_own_permutation(order: str, epochs: list[list[int]]) -> None:
    bound = bind(Shuffled(batch_size=5, order=order, seed=9), 50)  # type: ignore[arg-type]
    positions = np.arange(50, dtype=np.uint64)
    for _ in range(2):  # any sequence of epochs, also one that is not kept any more
        for epoch in (1, 0, 5, 7, 1):
            found = bound.order.at(epoch, positions).tolist()
            if epoch < 2:
                assert found == epochs[epoch]
            assert sorted(found) == list(range(50))


@pytest.mark.parametrize("order", ["torch", "torch-continued", "python"])
def test_too_many_samples_for_an_exact_order_are_refused_with_advice(order: str) -> None:
    plan = Shuffled(batch_size=5, order=order)  # type: ignore[arg-type]
    bind(plan, exact.MAX_EXACT)
    with pytest.raises(PlanError) as refused:
        bind(plan, exact.MAX_EXACT + 1)
    assert f"order={order!r}" in str(refused.value)
    assert str(exact.MAX_EXACT) in str(refused.value)
    assert "use order='keyed'" in str(refused.value)


@pytest.mark.parametrize(("kept_bytes", "num_kept"), [(0, 3), (4 * 7 * 5, 5), (1 << 30, 8)])
def test_those_who_read_different_epochs_do_not_make_them_again_and_again(
    monkeypatch: pytest.MonkeyPatch, kept_bytes: int, num_kept: int
) -> None:
    monkeypatch.setattr(exact, "_KEPT_BYTES", kept_bytes)
    recipe, made = exact.Recipe("python", 7, 0), []

    def make(epoch: int) -> exact.Made:
        made.append(epoch)
        return recipe.make(epoch)

    order = exact.ExactOrder(7, "python", make)
    for _ in range(3):
        for epoch in range(num_kept):
            order.permutation(epoch)
    assert made == list(range(num_kept))
    order.permutation(num_kept)
    order.permutation(0)
    assert made == [*range(num_kept + 1), 0], "no more than these are kept"
