from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PlanError
from headrace.plans import Plan, Sequential, Shuffled
from headrace.plans.order import KeyedOrder, SequentialOrder
from headrace.topology import Topology
from tests.support.planning import bind, rank_epoch

# A change here is a compatibility decision: cursors of the plans that changed are refused.
GOLDEN_DIGESTS = {
    Sequential(batch_size=32): (
        '{"batch_size":32,"global_batch_size":null,"tail":"short","type":"Sequential"}'
    ),
    Shuffled(batch_size=32): (
        '{"batch_size":32,"global_batch_size":null,"order":"keyed","seed":0,'
        '"tail":"short","type":"Shuffled"}'
    ),
    Shuffled(global_batch_size=2048, seed=2**64 - 1, tail="wrap"): (
        '{"batch_size":null,"global_batch_size":2048,"order":"keyed",'
        '"seed":18446744073709551615,"tail":"wrap","type":"Shuffled"}'
    ),
}


@st.composite
def plans(draw: st.DrawFn) -> Sequential | Shuffled:
    size = draw(st.integers(1, 2**31 - 1))
    sizes: dict[str, Any] = draw(
        st.sampled_from([{"batch_size": size}, {"global_batch_size": size}])
    )
    tail: Any = draw(st.sampled_from(["short", "drop", "wrap"]))
    if draw(st.booleans()):
        return Sequential(**sizes, tail=tail)
    return Shuffled(**sizes, tail=tail, seed=draw(st.integers(0, 2**64 - 1)))


# --- Digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", GOLDEN_DIGESTS, ids=str)
def test_the_digest_is_that_of_the_pinned_json(plan: Sequential | Shuffled) -> None:
    assert plan.digest == hashlib.sha256(GOLDEN_DIGESTS[plan].encode()).hexdigest()


def test_the_digest_of_a_plan_is_pinned() -> None:
    assert Shuffled(global_batch_size=2048, seed=17).digest == (
        "da6b9dfe77a8490a11aaa6ad09ab29fa3b6e170d52a5cc5ac5852a4451aa7dfd"
    )
    assert Sequential(batch_size=1).digest == (
        "8494794f52ddbcd295a0bea6778c21e9410e04c00bc0b2d6ae8c4cad605b4dab"
    )


@given(left=plans(), right=plans())
def test_plans_have_the_same_digest_only_if_they_are_the_same(left: Plan, right: Plan) -> None:
    assert (left.digest == right.digest) == (left == right)


def test_every_field_enters_the_digest() -> None:
    base = Shuffled(batch_size=8)
    others = [
        Sequential(batch_size=8),
        Shuffled(batch_size=9),
        Shuffled(global_batch_size=8),
        Shuffled(batch_size=8, seed=1),
        Shuffled(batch_size=8, tail="wrap"),
        Shuffled(batch_size=8, tail="drop"),
    ]
    assert len({plan.digest for plan in [base, *others]}) == 7


def test_neither_the_world_nor_the_data_enters_the_digest() -> None:
    plan = Shuffled(global_batch_size=24, seed=3)
    digests = set()
    for world_size in (1, 2, 3, 24):
        for length in (100, 101):
            *_, last = rank_epoch(
                bind(plan, length), bind(plan, length).start(), Topology(0, world_size)
            )
            digests.add(last.after.plan)
    assert digests == {plan.digest}


# --- Values ---------------------------------------------------------------------------------------


@given(plan=plans())
def test_a_plan_comes_back_from_json(plan: Plan) -> None:
    again = msgspec.json.decode(msgspec.json.encode(plan), type=Plan)
    assert again == plan
    assert again.digest == plan.digest


@given(plan=plans())
def test_a_plan_comes_back_from_msgpack(plan: Plan) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan


def test_a_plan_is_a_frozen_value() -> None:
    plan = Shuffled(batch_size=8, seed=2)
    assert plan == Shuffled(batch_size=8, seed=2)
    assert hash(plan) == hash(Shuffled(batch_size=8, seed=2))
    with pytest.raises(AttributeError):
        plan.seed = 3  # type: ignore[misc]


def test_each_plan_makes_its_order() -> None:
    positions = np.arange(100, dtype=np.uint64)
    sequential = bind(Sequential(batch_size=8), 100).order
    assert isinstance(sequential, SequentialOrder)
    shuffled = bind(Shuffled(batch_size=8, seed=17), 100).order
    assert sequential.length == shuffled.length == 100
    assert np.array_equal(shuffled.at(2, positions), KeyedOrder(100, 17).at(2, positions))


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Sequential, Shuffled])
@pytest.mark.parametrize("name", ["batch_size", "global_batch_size"])
@pytest.mark.parametrize("value", [0, -8, 2**31, 8.0, True, "8"])
def test_a_batch_size_out_of_range_is_named_with_value_and_range(
    kind: type[Sequential | Shuffled], name: str, value: object
) -> None:
    fields: dict[str, Any] = {name: value}
    with pytest.raises(PlanError) as refused:
        kind(**fields)
    assert str(refused.value) == (
        f"{name}={value!r} is out of range: it must be an integer in 1..{2**31 - 1}"
    )


@pytest.mark.parametrize("value", [-1, 2**64, 1.5, False, "7"])
def test_a_seed_out_of_range_is_named_with_value_and_range(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(PlanError) as refused:
        Shuffled(batch_size=8, seed=value)
    assert str(refused.value) == (
        f"seed={value!r} is out of range: it must be an integer in 0..{2**64 - 1}"
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tail": "pad"}, "tail='pad' is unknown: choose 'short', 'drop', 'wrap' or 'wrap-once'"),
        ({"order": "numpy"}, "order='numpy' is unknown: choose 'keyed', 'torch'"),
        ({"global_batch_size": 16}, "exactly one of batch_size="),
        ({"batch_size": None}, "got neither"),
    ],
)
def test_a_wrong_choice_is_told_the_right_ones(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Shuffled(**{"batch_size": 8, **fields})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"type":"Shuffled","batch_size":0}', "batch_size=0 is out of range"),
        ('{"type":"Shuffled","batch_size":8,"sed":1}', "unknown field `sed`"),
        ('{"type":"Shufled","batch_size":8}', "Invalid value 'Shufled' - at `$.type`"),
        ('{"batch_size":8}', "required field `type`"),
        ('{"type":"Shuffled","batch_size":8,"tail":"pad"}', "'pad' - at `$.tail`"),
        ('{"type":"Shuffled","batch_size":8,"seed":-1}', "seed=-1 is out of range"),
        ('{"type":"Sequential","batch_size":8,"seed":1}', "unknown field `seed`"),
    ],
)
def test_a_wrong_plan_in_a_file_names_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(text, type=Plan)
    assert told in str(refused.value)
