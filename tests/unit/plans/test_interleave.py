"""Interleaved runs against the loop that the reference describes, written down as such."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import CursorError, PlanError
from headrace.plans import (
    ByteBudget,
    Chain,
    Cursor,
    Data,
    Every,
    Interleaved,
    Limits,
    Seek,
    Sequential,
    Shuffled,
    engine,
)
from headrace.plans.engine import BoundPlan
from headrace.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.plans.order import Indices


class Case(NamedTuple):
    length: int
    batch_size: int
    drop: bool
    extras: list[tuple[int, int, str, int]]
    """Length, batch size, kind and size of the interval."""

    limits: dict[str, int]
    accumulate: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    extras = draw(
        st.lists(
            st.tuples(
                st.integers(0, 6),
                st.integers(1, 4),
                st.sampled_from(["epochs", "updates", "samples"]),
                st.integers(1, 12),
            ),
            max_size=3,
        )
    )
    limits = {
        name: draw(st.integers(0 if name == "epochs" else 1, most))
        for name, most in (("epochs", 3), ("updates", 12), ("samples", 40))
        if draw(st.booleans())
    }
    assume(limits)
    case = Case(
        draw(st.integers(1, 15)),
        draw(st.integers(1, 5)),
        draw(st.booleans()),
        extras,
        limits,
        draw(st.sampled_from([1, 1, 2, 3])),
    )
    assume(not case.drop or case.length >= case.batch_size)
    return case


def bound(case: Case, limits: Limits | None = None) -> BoundPlan:
    extras = {
        f"x{number}": Every(
            Sequential(batch_size=size),
            **{kind: every},  # type: ignore[arg-type]
        )
        for number, (_, size, kind, every) in enumerate(case.extras)
    }
    plan = Interleaved(
        train=Shuffled(
            batch_size=case.batch_size, tail="drop" if case.drop else "short", order="torch"
        ),
        extras=extras,
        limits=limits or Limits(**case.limits),
        accumulate=case.accumulate,
    )
    parts = {f"x{number}": Data(extra[0]) for number, extra in enumerate(case.extras)}
    return BoundPlan.to(plan, Data(case.length, parts=parts))


def plain_loop(case: Case) -> list[tuple[str, list[int]]]:
    """Return the stream of one rank, as the loop of the reference makes it."""
    found: list[tuple[str, list[int]]] = []

    def run_extra(number: int) -> None:
        length, size, _, _ = case.extras[number]
        for first in range(0, length, size):
            indices = list(range(first, min(first + size, length)))
            found.append((f"x{number}", indices))

    if 0 in case.limits.values():
        for number in range(len(case.extras)):
            run_extra(number)
        return found
    epoch = update = sample = last = 0
    while True:
        order = bound(case).program.main.entries.orders[0].at  # type: ignore[attr-defined]
        ids = order(epoch, _positions(case.length)).tolist()
        batches = [ids[at : at + case.batch_size] for at in range(0, len(ids), case.batch_size)]
        if case.drop and len(batches[-1]) < case.batch_size:
            del batches[-1]
        for step, batch in enumerate(batches, 1):
            found.append(("train", batch))
            sample += len(batch)
            is_end = step == len(batches)
            if step % case.accumulate and not is_end:
                continue
            update += 1
            epoch += is_end
            for number, (_, _, kind, every) in enumerate(case.extras):
                if (
                    (kind == "epochs" and is_end and epoch % every == 0)
                    or (kind == "updates" and update % every == 0)
                    or (kind == "samples" and last // every < sample // every)
                ):
                    run_extra(number)
            last = sample
            limits = case.limits
            if (
                epoch >= limits.get("epochs", 10**9)
                or update >= limits.get("updates", 10**9)
                or sample >= limits.get("samples", 10**9)
            ):
                return found


def _positions(length: int) -> Any:  # noqa: ANN401
    return np.arange(length, dtype=np.uint64)


def run(found: BoundPlan, cursor: Cursor | None = None) -> list[tuple[str, list[int]]]:
    cursor = engine.settle(found, cursor or found.start(), 1)
    batches = []
    while not engine.is_finished(found, cursor):
        planned = engine.next_batches(found, cursor, Topology(), max_batches=7)
        batches += [(batch.stream, batch.indices.tolist()) for batch in planned]
        cursor = planned[-1].after
    return batches


@given(case=cases())
def test_a_run_is_that_of_the_plain_loop(case: Case) -> None:
    expected = plain_loop(case)
    found = bound(case)
    assert run(found) == expected
    assert found.program.steps(0, 1) == len(expected)


@given(case=cases(), data=st.data())
def test_a_seek_gives_the_suffix_after_an_update_and_its_extras(
    case: Case, data: st.DataObject
) -> None:
    assume(0 not in case.limits.values())
    found, expected = bound(case), plain_loop(case)
    update = data.draw(st.integers(0, 14))
    cursor = engine.seek(found, Seek(update=update), 1)
    rest = run(found, cursor)
    assert rest == expected[len(expected) - len(rest) :]
    assert cursor.update == update or (not rest and cursor.update < update)
    if rest and update:
        assert rest[0][0] == "train"
    # The same place under its other names.
    assert engine.seek(found, Seek(sample=cursor.sample), 1) == cursor or not rest
    epoch = data.draw(st.integers(1, 3))
    edge = engine.seek(found, Seek(epoch=epoch), 1)
    rest = run(found, edge)
    assert rest == expected[len(expected) - len(rest) :]


@given(case=cases())
def test_a_run_is_prolonged_by_larger_limits(case: Case) -> None:
    assume(0 not in case.limits.values())
    short = bound(case)
    first = run(short)
    end = engine.advance(short, engine.settle(short, short.start(), 1), 1, len(first))
    assert engine.is_finished(short, end)
    longer = case._replace(limits={name: limit + 2 for name, limit in case.limits.items()})
    more = bound(longer)
    assert more.digest == short.digest
    engine.check(more, end)
    assert first + run(more, end) == run(more) == plain_loop(longer)


def test_starting_past_the_limit_emits_nothing() -> None:
    case = Case(8, 4, True, [(3, 4, "updates", 2)], {"epochs": 2}, 1)
    for where in (Seek(epoch=2), Seek(epoch=5), Seek(update=4), Seek(sample=40)):
        cursor = engine.seek(bound(case), where, 1)
        assert run(bound(case), cursor) == []
        with pytest.raises(CursorError, match="the run is finished"):
            engine.next_batch(bound(case), cursor, Topology())


def test_a_seek_into_a_batch_is_told_the_nearest_edges() -> None:
    case = Case(10, 4, False, [], {"epochs": 2}, 1)
    with pytest.raises(CursorError, match="the nearest are 8 and 10"):
        engine.seek(bound(case), Seek(sample=9), 1)


def test_an_empty_main_plan_is_refused_and_an_empty_extra_gives_nothing() -> None:
    plan = Interleaved(train=Sequential(batch_size=2), limits=Limits(epochs=1))
    empty = BoundPlan.to(plan, Data(0), allow_empty=True)
    with pytest.raises(PlanError, match="no step"):
        engine.settle(empty, empty.start(), 1)


def test_a_run_of_an_extra_has_an_order_of_its_own_unless_it_is_told_to_keep_one() -> None:
    for same in (False, True):
        every = Every(Shuffled(batch_size=20), updates=1, same_order=same)
        plan = Interleaved(
            train=Sequential(batch_size=5), extras={"val": every}, limits=Limits(epochs=1)
        )
        found = BoundPlan.to(plan, Data(20))
        orders = [tuple(ids) for stream, ids in run(found) if stream == "val"]
        assert len(orders) == 4
        assert len(set(orders)) == (1 if same else 4)
        train = BoundPlan.to(Shuffled(batch_size=20), Data(20))
        batch, _ = engine.next_batch(train, train.start(), Topology())
        assert tuple(batch.indices.tolist()) not in orders  # another role, another order


def test_extras_run_in_their_sequence_and_carry_names_roles_and_origin() -> None:
    plan = Interleaved(
        train=Chain(plans={"a": Sequential(batch_size=2), "b": Sequential(batch_size=2)}),
        extras={
            "z": Every(Sequential(batch_size=4), epochs=1),
            "y": Every(Sequential(batch_size=4), epochs=1),
        },
        limits=Limits(epochs=1),
    )
    found = BoundPlan.to(plan, Data(4))
    batches = engine.next_batches(found, found.start(), Topology(), max_batches=100)
    assert [(b.stream, b.role, b.origin) for b in batches] == [
        ("a", 0, (0, 0)),
        ("a", 0, (0, 1)),
        ("b", 0, (0, 0)),
        ("b", 0, (0, 1)),
        ("z", 1, (0, 0)),
        ("y", 2, (0, 0)),
    ]
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, step) for step in range(6)]


def test_another_world_that_makes_no_step_of_the_rest_ends_the_epoch_with_its_extras() -> None:
    plan = Interleaved(
        train=Sequential(batch_size=4, tail="drop"),
        extras={"val": Every(Sequential(batch_size=9), epochs=1)},
        limits=Limits(epochs=2),
    )
    found = BoundPlan.to(plan, Data(9))
    _, cursor = engine.next_step(found, found.start(), 1)  # 5 of 9 left: one more step of 1 rank
    cursor = engine.settle(found, cursor, 2)
    batches, cursor = engine.next_step(found, cursor, 2)  # but none of 2 ranks
    assert [batch.stream for batch in batches] == ["val", "val"]
    batches, _ = engine.next_step(found, cursor, 2)
    assert [batch.stream for batch in batches] == ["train", "train"]


@given(cases(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_another_world_goes_on_from_anywhere_and_each_step_fits_its_segment(
    case: Case, world_size: int, other: int, steps: int
) -> None:
    found = bound(case)
    try:
        cursor = engine.settle(found, found.start(), world_size)
        engine.settle(found, cursor, other)
    except PlanError:
        assume(False)
    cursor = engine.advance(found, cursor, world_size, steps)
    cursor = engine.settle(found, cursor, other)
    left, topology = engine.remaining_steps(found, cursor, other), Topology(other - 1, other)
    largest = engine.largest_batch(found, cursor, topology, _weigh)
    while not engine.is_finished(found, cursor):
        batch, cursor = engine.next_batch(found, cursor, topology)
        while batch.segment > largest.segment:
            largest = engine.largest_batch(found, largest.after, topology, _weigh)
        assert _weigh(batch.indices).sum() <= largest.weight
        left -= 1
    assert left == 0


def _weigh(indices: Indices) -> NDArray[np.int64]:
    return (indices * 7 % 5).astype(np.int64)


def test_another_world_may_come_within_an_extra_before_an_epoch_whose_rest_makes_no_step() -> None:
    plan = Interleaved(
        train=Sequential(batch_size=2, tail="drop"),
        extras={"val": Every(Sequential(batch_size=4), updates=2)},
        limits=Limits(epochs=2),
    )
    found = BoundPlan.to(plan, Data(7))
    cursor = engine.advance(found, found.start(), 1, 3)  # one more step of 1 rank, none of 2
    assert engine.remaining_steps(found, cursor, 2) == 2
    batches = engine.next_batches(found, cursor, Topology(0, 2), max_batches=50)
    told = [(batch.stream, batch.origin) for batch in batches]
    assert told == [("val", (0, 1)), ("train", (1, 0))]


def test_extras_behind_epochs_without_a_step_are_a_segment_of_their_own() -> None:
    """Such epochs are those of a budget that packs fewer batches than there are ranks."""
    sizes = np.array([60, 60, 30, 30, 30, 40, 10, 50, 20])
    plan = Interleaved(
        train=ByteBudget(max_bytes=100, drop_last=True, tail="drop"),
        extras={"val": Every(Sequential(batch_size=9), epochs=1)},
        limits=Limits(epochs=4),
    )
    found, topology = BoundPlan.to(plan, Data(9, columns={"sizes": sizes})), Topology(0, 4)
    assert [found.program.main.steps(epoch, 4) for epoch in range(4)] == [1, 0, 0, 1]  # type: ignore[attr-defined]
    cursor = engine.settle(found, found.start(), 4)
    met: dict[int, int] = {}
    while not engine.is_finished(found, cursor):
        batch, cursor = engine.next_batch(found, cursor, topology)
        met[batch.segment] = max(met.get(batch.segment, 0), int(sizes[batch.indices].sum()))
    cursor, largest = engine.settle(found, found.start(), 4), {}
    while not engine.is_finished(found, cursor):
        weight, segment, cursor = engine.largest_batch(found, cursor, topology, sizes.__getitem__)
        largest[segment] = weight
    assert largest.keys() == met.keys() == {0, 2, 3, 4}
    assert all(largest[segment] >= weight for segment, weight in met.items())


@pytest.mark.parametrize(
    "child",
    [
        {},
        {"main": [0, 0, 0, 0], "counted": 0, "last": 0, "runs": [0]},
        {"main": [0, 0, 0, 0, 0], "count": 0, "last": 0, "runs": []},
        {"main": [0, 0, 0, 0, 0], "count": 0, "last": 0, "runs": [0], "extra": [1, [0] * 5]},
        {"main": [0, -1, 0, 0, 0], "count": 0, "last": 0, "runs": [0]},
    ],
)
def test_a_cursor_of_something_else_is_refused(child: dict[str, Any]) -> None:
    case = Case(8, 4, True, [(3, 4, "updates", 2)], {"epochs": 2}, 1)
    found = bound(case)
    state = {**found.start().to_state(), "step": 1, "child": child}
    with pytest.raises(CursorError, match="does not say where the main plan"):
        engine.check(found, Cursor.from_state(state))
