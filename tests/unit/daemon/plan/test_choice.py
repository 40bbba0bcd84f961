"""What a user types becomes a plan, or one sentence that says why not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace.errors import PlanError
from headrace.plans import (
    ByteBudget,
    Drawn,
    FromSampler,
    Growth,
    Plan,
    Scales,
    Sequential,
    Shuffled,
    Slice,
    VariableBatch,
    registry,
)
from headrace_daemon.commands.plan.choice import chosen_plan, table
from headrace_daemon.errors import SettingsError
from tests.support.rows import rows

if TYPE_CHECKING:
    from headrace.plans.composite import Plan as AnyPlan


def chosen(plan: str | None = None, *option: str, **shortcuts: Any) -> AnyPlan:  # noqa: ANN401
    given = {"batch_size": None, "global_batch_size": None, "seed": None, "tail": None, **shortcuts}
    return chosen_plan(argparse.Namespace(plan=plan, option=list(option), **given))


def test_simple_plans_are_simple_to_name() -> None:
    assert chosen() == Shuffled(batch_size=32)
    assert chosen("Sequential", batch_size=4, tail="drop") == Sequential(batch_size=4, tail="drop")
    assert chosen("Shuffled", global_batch_size=8, seed=3) == Shuffled(global_batch_size=8, seed=3)


def test_options_are_written_as_in_a_configuration() -> None:
    assert chosen("Shuffled", "order=torch", "repeats = 2", "reverse=true", "seed=7") == Shuffled(
        batch_size=32, order="torch", repeats=2, reverse=True, seed=7
    )
    assert chosen("ByteBudget", "max_bytes=8MiB") == ByteBudget(max_bytes=8 << 20)
    assert chosen("ByteBudget", "max_total=2.5", "column=tokens") == ByteBudget(
        max_total=2.5, column="tokens"
    )
    subset = chosen("Shuffled", "subset=[5, 0, 2]")
    assert subset == Shuffled(batch_size=32, subset=(5, 0, 2))
    even = Slice(0, None, 2)
    assert chosen("Shuffled", "subset.step=2") == Shuffled(batch_size=32, subset=even)
    assert chosen("Shuffled", "subset={step = 2}") == Shuffled(batch_size=32, subset=even)
    assert chosen(
        "VariableBatch", "scales.height=128", "scales.width=128", "scale_growth.epochs=[3]"
    ) == VariableBatch(
        batch_size=32, scales=Scales(height=128, width=128), scale_growth=Growth(epochs=(3,))
    )


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: row.name)
def test_each_plan_comes_back_from_its_json(row: Any) -> None:  # noqa: ANN401 - a row
    assert chosen(msgspec.json.encode(row.plan).decode()) == row.plan


def test_a_map_is_json_or_an_inline_table() -> None:
    wanted = Shuffled(batch_size=3, seed=1)
    assert chosen('{ type = "Shuffled", batch_size = 3, seed = 1 }') == wanted
    assert chosen('{"type": "Shuffled", "batch_size": 3}', seed=1) == wanted
    assert chosen('{"type": "Shuffled"}', "batch_size=3", "seed=1") == wanted
    assert table('plan = { type = "Shuffled" }', "x") == {"plan": {"type": "Shuffled"}}


@pytest.mark.parametrize(
    ("plan", "options", "reason"),
    [
        ("Nope", [], "--plan 'Nope' is no plan: known are Sequential, Shuffled, "),
        ("FromSampler", [], "plan FromSampler holds a sampler of the training process"),
        ('{"type": "FromSampler"}', [], "plan FromSampler holds a sampler of the training process"),
        ("{", [], "--plan is neither JSON nor TOML: "),
        ("{}", [], "say which one it is"),
        ('{"type": 3}', [], "--plan: type = 3: "),
        ("Shuffled", ["order"], "--option 'order': write name=value, such as max_bytes=8MiB"),
        ("Shuffled", ["=3"], "--option '=3': write name=value"),
        ("Shuffled", ["a.=3"], "--option 'a.=3': write name=value"),
        ("Shuffled", ["seed=1", "seed.x=3"], "--option 'seed.x=3': seed is 1 already"),
        ("Shuffled", ["order=foo"], "--plan: order = 'foo': unknown; allowed: keyed, python, "),
        ("Shuffled", ["sede=1"], "--plan: sede = 1: unknown key (did you mean 'seed'?)"),
        ("Shuffled", ["batch_size=0"], "batch_size=0 is out of range"),
        ("ByteBudget", ["max_bytes=8XB"], "max_bytes: '8XB' is no size: write bytes as"),
        ("ByteBudget", [], "a budget takes exactly one of max_bytes= and max_total="),
        ("VariableBatch", ["scales.count=x"], "--plan: scales.count = 'x': Expected `int`"),
        ('{"type": "Shuffled"}', [], "exactly one of batch_size= (per rank) and"),
        ("Interleaved", [], "--plan: train: is missing"),
    ],
)
def test_what_is_no_plan_is_refused_with_its_name(
    plan: str, options: list[str], reason: str
) -> None:
    with pytest.raises((PlanError, SettingsError)) as caught:
        chosen(plan, *options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shortcut_that_a_plan_does_not_have_is_refused() -> None:
    with pytest.raises(SettingsError, match="--batch-size does not belong to --plan ByteBudget"):
        chosen("ByteBudget", "max_bytes=1", batch_size=3)
    with pytest.raises(SettingsError, match="--seed does not belong to --plan Chain: its options"):
        chosen("Chain", seed=3)


def test_a_plan_of_a_package_is_made_by_its_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    registry.register("halves", lambda size: Shuffled(batch_size=size // 2))
    registry.register("own", lambda: [[1, 2], [3]])
    registry.register("drawn", lambda: Drawn(sampler=[1, 2, 3], batch_size=1))
    assert chosen("halves", "size=8") == Shuffled(batch_size=4)
    for name in ("own", "drawn"):
        with pytest.raises(PlanError, match=f"^plan '{name}' runs a sampler in the training proc"):
            chosen(name)
    with pytest.raises(PlanError, match="does not take these options"):
        chosen("halves", "halves=8")
    with pytest.raises(PlanError, match=r"Interleaved, drawn, halves, own$"):
        chosen("Nope")


def test_each_public_plan_is_known_by_its_name() -> None:
    for kind in Plan.__args__:
        if kind is not Drawn:
            with pytest.raises((PlanError, SettingsError)) as caught:
                chosen(kind.__name__, "nonsense=1")
            assert "nonsense" in str(caught.value)
    assert FromSampler.__name__ not in str(Plan)
