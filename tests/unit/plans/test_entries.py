from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Sequential, Shuffled, Slice
from headrace.plans.entries import Entries
from headrace.plans.order import KeyedOrder


def entries(plan: Sequential | Shuffled, length: int) -> Entries:
    order = plan.order if isinstance(plan, Shuffled) else "sequential"
    return Entries(plan, length, order, seed=getattr(plan, "seed", 0))


def listed(found: Entries, epoch: int = 0, lane: int = 0) -> tuple[list[int], list[bool]]:
    positions = np.arange(found.length, dtype=np.uint64)
    samples, padding = found.at(epoch, lane, positions)
    marks = [False] * found.length if padding is None else padding.tolist()
    assert positions.tolist() == list(range(found.length))  # left alone
    return samples.tolist(), marks


@given(
    length=st.integers(1, 40),
    subset=st.one_of(
        st.none(),
        st.builds(Slice, st.integers(0, 5), st.none(), st.integers(1, 3)),
        st.lists(st.integers(0, 39), min_size=1, max_size=30).map(tuple),
    ),
    pad_to=st.integers(1, 6),
    blocks=st.integers(1, 3),
    order=st.sampled_from(["sequential", "python"]),
    reverse=st.booleans(),
    repeats=st.integers(1, 3),
    truncate=st.booleans(),
    part=st.one_of(st.none(), st.sampled_from([(0, 2), (1, 3), (2, 3)])),
)
def test_modifiers_act_as_lists_say(
    length: int,
    subset: Slice | tuple[int, ...] | None,
    pad_to: int,
    blocks: int,
    order: str,
    reverse: bool,
    repeats: int,
    truncate: bool,
    part: tuple[int, int] | None,
) -> None:
    indices = list(range(length))
    if isinstance(subset, Slice):
        indices = indices[subset.start :: subset.step]
    elif subset is not None:
        assume(max(subset) < length)
        indices = list(subset)
    assume(indices)
    missing = -len(indices) % pad_to
    assume(missing <= len(indices))
    slots = [(index, False) for index in indices] + [(index, True) for index in indices[:missing]]
    size = -(-len(slots) // blocks)
    assume((blocks - 1) * size < len(slots))
    options: dict[str, Any] = {
        "batch_size": 1,
        "subset": subset,
        "pad_to": pad_to,
        "node_blocks": blocks,
        "reverse": reverse,
        "repeats": repeats,
        "truncate": truncate,
        "part": part,
    }
    plan = (
        Sequential(**options)
        if order == "sequential"
        else Shuffled(**options, order="python", seed=3)
    )
    found = entries(plan, length)
    assert (found.lanes, found.num_samples) == (blocks, len(indices))
    for lane in range(blocks):
        block = slots[lane * size : (lane + 1) * size]
        block += [(block[at % len(block)][0], True) for at in range(size - len(block))]
        if order == "python":
            random.Random(3 + 2).shuffle(block)
        if reverse:
            block.reverse()
        expected = [slot for slot in block for _ in range(repeats)]
        if truncate:
            expected = expected[:size]
        if part is not None:
            expected = expected[part[0] :: part[1]]
        samples, padding = listed(found, epoch=2, lane=lane)
        assert samples == [index for index, _ in expected]
        assert padding == [mark for _, mark in expected]


def test_node_blocks_are_contiguous_and_each_has_a_keyed_order_of_its_own() -> None:
    found = entries(Shuffled(batch_size=1, node_blocks=2, seed=7), 40)
    first, second = (listed(found, epoch=1, lane=lane)[0] for lane in range(2))
    assert sorted(first) == list(range(20))
    assert sorted(second) == list(range(20, 40))
    assert first != [index - 20 for index in second]
    positions = np.arange(20, dtype=np.uint64)
    assert first == KeyedOrder(20, 7).at(1, positions).tolist()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pad_to": 9}, "pad_to=9 is out of range: it would repeat the 4 samples more than once"),
        ({"node_blocks": 3}, "node_blocks=3 leaves a node without a sample"),
        ({"subset": Slice(0, 5)}, "subset stop=5 is out of range: the data has 4 samples"),
        ({"subset": (1, 4)}, "subset index=4 is out of range: the data has samples 0..3"),
    ],
)
def test_what_does_not_fit_the_number_of_samples_is_refused(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(PlanError) as refused:
        entries(Sequential(batch_size=1, **options), 4)
    assert told in str(refused.value)
    assert str(refused.value).count(". ") == 0
