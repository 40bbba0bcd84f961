from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import TYPE_CHECKING, Any

import pytest

from headrace import plans
from headrace.errors import PlanError
from headrace.plans import FromSampler, Sequential, Shuffled, registry
from headrace.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_built_in_plans_are_made_by_name() -> None:
    assert plans.create("Shuffled", batch_size=8, seed=3) == Shuffled(batch_size=8, seed=3)
    assert isinstance(plans.create("FromSampler", sampler=[[1]]), FromSampler)


def test_a_factory_returns_a_plan_or_a_sampler() -> None:
    @plans.register("mine")
    def mine(size: int) -> Sequential:
        return Sequential(batch_size=size)

    plans.register("blocks", lambda size: [[0, 1], [2, 3][:size]])
    assert plans.create("mine", size=3) == Sequential(batch_size=3)
    made = plans.create("blocks", size=1)
    assert isinstance(made, FromSampler)
    assert made.name == "blocks"
    start = made.start("ab", Topology())
    batches = made.run(4, "ab", Topology(), start).draw(9)
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2]]


def test_an_installed_package_announces_its_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", f"{__name__}:theirs", registry.GROUP)
    monkeypatch.setattr(registry, "_announced", lambda: EntryPoints([point]))
    monkeypatch.setattr(EntryPoint, "load", lambda self: theirs)
    assert plans.create("theirs", batch_size=2) == Sequential(batch_size=2)
    assert "theirs" in registry.names()


def theirs(**options: Any) -> Sequential:  # noqa: ANN401
    return Sequential(**options)


def test_the_same_factory_may_be_registered_again() -> None:
    plans.register("mine", theirs)
    plans.register("mine", theirs)
    with pytest.raises(PlanError, match="name='mine' is taken by another plan"):
        plans.register("mine", lambda: [[1]])


@pytest.mark.parametrize(
    ("name", "factory", "told"),
    [
        ("Shuffled", theirs, "name='Shuffled' is taken"),
        ("no spaces", theirs, "name='no spaces' is no name of a plan"),
        ("", theirs, "name='' is no name"),
        ("mine", 5, "factory=5 of plan 'mine' cannot be called"),
    ],
)
def test_what_cannot_be_registered_is_named(name: str, factory: Any, told: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError) as refused:
        plans.register(name, factory)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("Shufled", {}, "name='Shufled' is no plan: known are ByteBudget, Chain"),
        ("Shuffled", {"batch": 3}, "plan 'Shuffled' does not take these options"),
        ("Chain", {"plan": {}}, "'plan'; it takes mode, plans"),
        ("Shuffled", {"batch_size": 0}, "batch_size=0 is out of range"),
        ("once", {}, "can be iterated only once"),
    ],
)
def test_what_cannot_be_made_is_named(name: str, options: dict[str, Any], told: str) -> None:
    def once() -> Iterator[int]:
        return iter([1])

    plans.register("once", once)
    with pytest.raises(PlanError) as refused:
        plans.create(name, **options)
    assert told in str(refused.value)
