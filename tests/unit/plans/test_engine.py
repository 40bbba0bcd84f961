from __future__ import annotations

import json
import random
import tracemalloc
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.errors import CursorError, ManifestMismatchError, PlanError
from headrace.plans import Cursor, Seek, Sequential, Shuffled, engine, flat
from headrace.plans.engine import BoundPlan, Flag, PlannedBatch
from headrace.plans.flat import FlatProgram
from headrace.topology import Topology
from tests.support.planning import (
    bind,
    epoch_of,
    expected_epoch,
    global_samples,
    rank_epoch,
    row,
    samples,
    steps,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.plans.cut import Tail
    from headrace.plans.order import Indices, Order

TAILS: tuple[Tail, ...] = ("short", "drop", "wrap")
BILLION = 10**9


@st.composite
def plans(draw: st.DrawFn, world_size: int, max_batch_size: int = 12) -> Sequential | Shuffled:
    size = draw(st.integers(1, max_batch_size))
    sizes: dict[str, Any] = draw(
        st.sampled_from([{"batch_size": size}, {"global_batch_size": size * world_size}])
    )
    tail = draw(st.sampled_from(TAILS))
    if draw(st.booleans()):
        return Sequential(**sizes, tail=tail)
    return Shuffled(**sizes, tail=tail, seed=draw(st.integers(0, 2**64 - 1)))


@st.composite
def runs(draw: st.DrawFn, max_length: int = 80) -> tuple[BoundPlan, int]:
    """Return a bound plan and a world size that together make at least one step."""
    world_size = draw(st.integers(1, 6))
    bound = bind(draw(plans(world_size)), draw(st.integers(1, max_length)))
    assume(bound.program.steps(0, world_size))
    return bound, world_size


def tail_of(bound: BoundPlan) -> Tail:
    assert isinstance(bound.plan, Sequential | Shuffled)
    return bound.plan.tail


class CountingOrder:
    """An order that counts what is asked of it."""

    def __init__(self, inner: Order) -> None:
        self.inner = inner
        self.length = inner.length
        self.num_calls = 0
        self.num_entries = 0

    def at(self, epoch: int, positions: Indices) -> Indices:
        self.num_calls += 1
        self.num_entries += len(positions)
        return self.inner.at(epoch, positions)


@contextmanager
def peak_memory_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_bytes


def counted(bound: BoundPlan) -> CountingOrder:
    order = CountingOrder(bound.order)
    assert isinstance(bound.program, FlatProgram)
    bound.program.entries.orders[0] = order
    return order


# --- What an epoch is -----------------------------------------------------------------------------


@given(run=runs(), epoch=st.integers(0, 3))
def test_an_epoch_is_the_order_cut_and_dealt(run: tuple[BoundPlan, int], epoch: int) -> None:
    bound, world_size = run
    start = engine.seek(bound, Seek(epoch=epoch), world_size)
    found = [[row(batch) for batch in step] for step in epoch_of(bound, world_size, start=start)]
    assert found == expected_epoch(bound, world_size, epoch)


@given(run=runs())
def test_each_sample_comes_once_per_epoch(run: tuple[BoundPlan, int]) -> None:
    bound, world_size = run
    assume(tail_of(bound) != "drop")
    found = [i for step in epoch_of(bound, world_size) for batch in step for i in samples(batch)]
    assert sorted(found) == list(range(bound.length))


@given(run=runs())
def test_a_dropped_tail_leaves_out_less_than_a_step_and_repeats_nothing(
    run: tuple[BoundPlan, int],
) -> None:
    bound, world_size = run
    bound = bind(msgspec.structs.replace(bound.plan, tail="drop"), bound.length)
    assume(bound.length >= bound.cut.step_size(world_size))
    found = [i for step in epoch_of(bound, world_size) for batch in step for i in samples(batch)]
    assert len(set(found)) == len(found)
    assert 0 <= bound.length - len(found) < bound.cut.step_size(world_size)


@given(run=runs())
def test_all_ranks_have_equally_many_steps_of_equal_sizes(run: tuple[BoundPlan, int]) -> None:
    bound, world_size = run
    by_rank = [
        [len(batch.indices) for batch in rank_epoch(bound, bound.start(), Topology(r, world_size))]
        for r in range(world_size)
    ]
    assert len({tuple(sizes) for sizes in by_rank}) == 1
    assert min(by_rank[0]) > 0
    assert len(by_rank[0]) == engine.epoch_steps(bound, world_size)


@given(run=runs())
def test_fillers_stand_at_the_end_come_from_the_start_and_are_no_samples(
    run: tuple[BoundPlan, int],
) -> None:
    bound, world_size = run
    order = bound.order.at(0, np.arange(bound.length, dtype=np.uint64)).tolist()
    *whole, last = epoch_of(bound, world_size)
    assert all(not batch.flags.any() for step in whole for batch in step)
    flags = [int(mark) for marks in zip(*(b.flags for b in last), strict=True) for mark in marks]
    ids = [int(i) for column in zip(*(b.indices for b in last), strict=True) for i in column]
    num_samples = len(global_samples(last))
    fillers = ids[num_samples:]
    assert flags[:num_samples] == [0] * num_samples
    assert {Flag(flag) for flag in flags[num_samples:]} <= {
        Flag.PADDING | Flag.WRAPPED if tail_of(bound) == "wrap" else Flag.PADDING
    }
    assert fillers == [order[place % bound.length] for place in range(len(fillers))]
    before = engine.seek(bound, Seek(epoch=0), world_size)
    for batch in (batches[0] for batches in [*whole, last]):
        consumed = batch.after.sample - before.sample
        before = batch.after
        assert consumed == (
            num_samples if batch.is_last_of_epoch else len(batch.indices) * world_size
        )


def test_a_short_tail_is_one_smaller_step_filled_from_the_start_of_the_order() -> None:
    # 26 samples, 3 ranks of 4: two whole steps, then 2 samples dealt to 3 ranks.
    *_, last = epoch_of(bind(Sequential(batch_size=4), 26), 3)
    assert [batch.indices.tolist() for batch in last] == [[24], [25], [0]]
    assert [batch.flags.tolist() for batch in last] == [[0], [0], [Flag.PADDING]]


def test_a_wrapped_tail_is_one_whole_step_filled_from_the_start_of_the_order() -> None:
    *_, last = epoch_of(bind(Sequential(batch_size=4, tail="wrap"), 26), 3)
    assert [batch.indices.tolist() for batch in last] == [
        [24, 1, 4, 7],
        [25, 2, 5, 8],
        [0, 3, 6, 9],
    ]
    filler = Flag.PADDING | Flag.WRAPPED
    assert [batch.flags.tolist() for batch in last] == [
        [0, filler, filler, filler],
        [0, filler, filler, filler],
        [filler, filler, filler, filler],
    ]


def test_a_dropped_tail_is_not_there() -> None:
    found = epoch_of(bind(Sequential(batch_size=4, tail="drop"), 26), 3)
    assert [batch.indices.tolist() for batch in found[-1]] == [
        [12, 15, 18, 21],
        [13, 16, 19, 22],
        [14, 17, 20, 23],
    ]
    assert len(found) == 2
    assert found[-1][0].is_last_of_epoch


def test_three_samples_feed_eight_ranks() -> None:
    (step,) = epoch_of(bind(Sequential(batch_size=2), 3), 8)
    assert [batch.indices.tolist() for batch in step] == [[0], [1], [2], [0], [1], [2], [0], [1]]
    assert [int(batch.flags[0]) for batch in step] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert step[0].after.sample == 3
    (step,) = epoch_of(bind(Sequential(batch_size=2, tail="wrap"), 3), 8)
    assert global_samples(step) == [0, 1, 2]
    assert {len(batch.indices) for batch in step} == {2}


def test_dropping_the_only_step_is_refused_with_the_numbers() -> None:
    bound = bind(Sequential(batch_size=2, tail="drop"), 3)
    with pytest.raises(PlanError) as refused:
        engine.next_batch(bound, bound.start(), Topology(0, 8))
    text = str(refused.value)
    assert "3 samples" in text
    assert "8 rank(s)" in text
    assert "takes 16" in text
    assert "tail='short'" in text


def test_a_world_that_the_global_batch_cannot_be_dealt_to_is_refused_with_the_usable_ones() -> None:
    bound = bind(Shuffled(global_batch_size=24), 2000)
    for refused in (
        lambda: engine.next_batch(bound, bound.start(), Topology(0, 7)),
        lambda: engine.next_step(bound, bound.start(), 7),
        lambda: engine.epoch_steps(bound, 7),
        lambda: engine.seek(bound, Seek(epoch=0), 7),
        lambda: engine.largest_batch(bound, bound.start(), Topology(0, 7), as_weights),
    ):
        with pytest.raises(PlanError, match="usable world sizes: 1, 2, 3, 4, 6, 8, 12, 24"):
            refused()


@given(run=runs())
def test_a_run_is_its_epochs_one_after_the_other(run: tuple[BoundPlan, int]) -> None:
    bound, world_size = run
    per_epoch = engine.epoch_steps(bound, world_size)
    through = [
        row(b) for batches, _ in islice(steps(bound, world_size), 3 * per_epoch) for b in batches
    ]
    apart = [
        row(batch)
        for epoch in range(3)
        for step in epoch_of(
            bound, world_size, start=engine.seek(bound, Seek(epoch=epoch), world_size)
        )
        for batch in step
    ]
    assert through == apart


def test_three_epochs_of_a_shuffle_differ_and_have_the_same_samples() -> None:
    bound = bind(Shuffled(batch_size=8, seed=17), 100)
    epochs = [
        [
            i
            for step in epoch_of(bound, 2, start=engine.seek(bound, Seek(epoch=e), 2))
            for i in global_samples(step)
        ]
        for e in range(3)
    ]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(range(100))}


def test_a_planned_batch_is_a_value() -> None:
    bound = bind(Shuffled(batch_size=8), 100)
    batch, after = engine.next_batch(bound, bound.start(), Topology(1, 2))
    assert batch.after == after
    assert (batch.rank, batch.world_size, batch.epoch, batch.step) == (1, 2, 0, 0)
    assert (batch.indices.dtype, batch.flags.dtype) == (np.dtype(np.uint64), np.dtype(np.uint8))
    with pytest.raises(FrozenInstanceError):
        batch.step = 3  # type: ignore[misc]


@pytest.mark.parametrize("length", [0, -1, 2**63])
def test_a_plan_without_a_usable_number_of_samples_is_refused(length: int) -> None:
    with pytest.raises(PlanError, match=f"the manifest has {length}"):
        bind(Sequential(batch_size=1), length)


# --- Chunks, strides and parts --------------------------------------------------------------------


@given(run=runs(), data=st.data())
def test_batches_in_any_chunks_are_the_same_batches(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    topology = Topology(data.draw(st.integers(0, world_size - 1)), world_size)
    cursor = bound.start()
    found: list[PlannedBatch] = []
    while not found or not found[-1].is_last_of_epoch:
        limit = data.draw(st.integers(1, 9))
        chunk = engine.next_batches(bound, cursor, topology, max_batches=limit)
        assert 1 <= len(chunk) <= limit
        found += chunk
        cursor = found[-1].after
    singles = []
    cursor = bound.start()
    for _ in found:
        batch, cursor = engine.next_batch(bound, cursor, topology)
        singles.append(batch)
    assert [row(batch) for batch in found] == [row(batch) for batch in singles]
    assert [batch.after for batch in found] == [batch.after for batch in singles]


def part_of_epoch(
    bound: BoundPlan, topology: Topology, first: int, step_stride: int, max_batches: int
) -> list[PlannedBatch]:
    """Return what one of several workers delivers: steps first, first + stride, … of epoch 0."""
    world_size = topology.world_size
    cursor = engine.seek(bound, Seek(update=first), world_size)
    found: list[PlannedBatch] = []
    while True:
        chunk = engine.next_batches(
            bound, cursor, topology, max_batches=max_batches, step_stride=step_stride
        )
        assert 1 <= len(chunk) <= max_batches
        found += chunk
        cursor = found[-1].after
        if (
            found[-1].is_last_of_epoch
            or engine.remaining_steps(bound, cursor, world_size) <= step_stride - 1
        ):
            return found
        cursor = engine.advance(bound, cursor, world_size, step_stride - 1)


@given(run=runs(), data=st.data())
def test_the_parts_of_several_workers_are_the_whole_stream(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    topology = Topology(data.draw(st.integers(0, world_size - 1)), world_size)
    whole = rank_epoch(bound, bound.start(), topology)
    num_workers = data.draw(st.integers(1, len(whole)))
    max_batches = data.draw(st.sampled_from([1, 2, 1000]))
    parts = [
        part_of_epoch(bound, topology, first, num_workers, max_batches)
        for first in range(num_workers)
    ]
    for first, part in enumerate(parts):
        expected = whole[first::num_workers]
        assert [row(batch) for batch in part] == [row(batch) for batch in expected]
        assert [batch.after for batch in part] == [batch.after for batch in expected]


def test_a_chunk_ends_with_its_epoch() -> None:
    bound = bind(Shuffled(batch_size=10), 95)
    chunk = engine.next_batches(bound, bound.start(), Topology(), max_batches=1000)
    assert [batch.step for batch in chunk] == list(range(10))
    assert [batch.is_last_of_epoch for batch in chunk] == [False] * 9 + [True]
    again = engine.next_batches(bound, chunk[-1].after, Topology(), max_batches=1000)
    assert [batch.epoch for batch in again] == [1] * 10


def test_a_stride_beyond_the_epoch_gives_one_batch_and_the_cursor_right_after_it() -> None:
    bound = bind(Sequential(batch_size=10), 95)
    (batch,) = engine.next_batches(
        bound, bound.start(), Topology(), max_batches=5, step_stride=1000
    )
    assert batch.after == engine.seek(bound, Seek(update=1), 1)


def test_a_chunk_orders_a_bounded_number_of_entries_in_one_call() -> None:
    bound = bind(Shuffled(batch_size=100), BILLION)
    order = counted(bound)
    chunk = engine.next_batches(bound, bound.start(), Topology(3, 8), max_batches=10**6)
    assert order.num_calls == 1
    assert len(chunk) * 100 == order.num_entries <= 8192 + 100


# --- Cursors: a resume is a number ----------------------------------------------------------------


@given(run=runs(max_length=40), data=st.data())
def test_the_cursor_of_each_batch_restores_exactly_the_rest(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    topology = Topology(data.draw(st.integers(0, world_size - 1)), world_size)

    def rest(cursor: Cursor) -> list[PlannedBatch]:
        found = rank_epoch(bound, cursor, topology)
        return found if found[-1].epoch else found + rank_epoch(bound, found[-1].after, topology)

    whole = rest(bound.start())
    rows = [row(batch) for batch in whole]
    for done, cursor in enumerate([bound.start(), *(batch.after for batch in whole[:-1])]):
        restored = Cursor.from_state(json.loads(json.dumps(cursor.to_state())))
        assert restored == cursor
        engine.check(bound, restored)
        assert [row(batch) for batch in rest(restored)] == rows[done:]


def test_a_run_resumed_before_every_step_is_the_run() -> None:
    bound = bind(Shuffled(batch_size=3, seed=5), 50)
    whole = [[row(b) for b in batches] for batches, _ in islice(steps(bound, 4), 23)]
    found, state = [], json.dumps(bound.start().to_state())
    for _ in range(23):
        fresh = bind(Shuffled(batch_size=3, seed=5), 50)
        batches, cursor = engine.next_step(fresh, Cursor.from_state(json.loads(state)), 4)
        found.append([row(batch) for batch in batches])
        state = json.dumps(cursor.to_state())
    assert found == whole


@given(run=runs())
def test_all_ranks_agree_on_the_cursor_after_each_step(run: tuple[BoundPlan, int]) -> None:
    bound, world_size = run
    for batches in epoch_of(bound, world_size):
        assert len({json.dumps(batch.after.to_state()) for batch in batches}) == 1


def test_the_last_cursor_of_an_epoch_is_the_first_of_the_next() -> None:
    for tail in TAILS:
        bound = bind(Sequential(batch_size=4, tail=tail), 26)
        after = epoch_of(bound, 3)[-1][0].after
        assert (after.epoch, after.step, after.position) == (1, 0, 0)
        assert after == engine.seek(bound, Seek(epoch=1), 3)


@given(run=runs())
def test_the_counters_count_steps_and_samples(run: tuple[BoundPlan, int]) -> None:
    bound, world_size = run
    num_steps = 2 * engine.epoch_steps(bound, world_size) + 1
    sample = 0
    for update, (batches, cursor) in enumerate(islice(steps(bound, world_size), num_steps)):
        assert batches[0].global_step == update
        sample += len(global_samples(batches))
        assert (cursor.update, cursor.sample) == (update + 1, sample)
        assert cursor.world_size == world_size


@given(run=runs())
def test_seeking_to_a_count_gives_the_cursor_that_the_run_has_there(
    run: tuple[BoundPlan, int],
) -> None:
    bound, world_size = run
    per_epoch = engine.epoch_steps(bound, world_size)
    for _, cursor in islice(steps(bound, world_size), 2 * per_epoch + 1):
        assert engine.seek(bound, Seek(update=cursor.update), world_size) == cursor
        assert engine.seek(bound, Seek(sample=cursor.sample), world_size) == cursor
        if cursor.step == 0:
            assert engine.seek(bound, Seek(epoch=cursor.epoch), world_size) == cursor


@given(run=runs(), data=st.data())
def test_seeking_inside_a_batch_is_refused_with_the_nearest_edges(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    num_steps = 2 * engine.epoch_steps(bound, world_size)
    edges = [0, *(cursor.sample for _, cursor in islice(steps(bound, world_size), num_steps))]
    wanted = data.draw(st.integers(0, edges[-1]))
    assume(wanted not in edges)
    below = max(edge for edge in edges if edge < wanted)
    above = min(edge for edge in edges if edge > wanted)
    with pytest.raises(CursorError) as refused:
        engine.seek(bound, Seek(sample=wanted), world_size)
    assert f"sample={wanted} " in str(refused.value)
    assert f"the nearest are {below} and {above}" in str(refused.value)


@given(run=runs(), data=st.data())
def test_advancing_some_steps_is_taking_them(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    cursors = [bound.start()]
    cursors += [batches[0].after for batches in epoch_of(bound, world_size)]
    start = data.draw(st.integers(0, len(cursors) - 2))
    stop = data.draw(st.integers(start + 1, len(cursors) - 1))
    moved = engine.advance(bound, cursors[start], world_size, stop - start)
    assert moved == cursors[stop]
    assert engine.remaining_steps(bound, cursors[start], world_size) == len(cursors) - 1 - start


# --- Refusals -------------------------------------------------------------------------------------


def test_a_cursor_of_this_plan_and_manifest_is_accepted() -> None:
    bound = bind(Shuffled(batch_size=8), 100)
    for where in (Seek(epoch=0), Seek(update=7), Seek(sample=80)):
        engine.check(bound, engine.seek(bound, where, 1))


def test_the_cursor_of_another_plan_is_refused() -> None:
    bound = bind(Shuffled(batch_size=8, seed=1), 100)
    other = bind(Shuffled(batch_size=8, seed=2), 100)
    with pytest.raises(CursorError) as refused:
        engine.check(bound, other.start())
    text = str(refused.value)
    assert f"plan {other.digest[:12]}" in text
    assert f"plan {bound.digest[:12]}" in text
    assert "seed=1" in text
    assert "load it into a stream with the plan that made it, or start anew with seek()" in text


def test_the_cursor_of_another_manifest_is_refused() -> None:
    bound = bind(Shuffled(batch_size=8), 100)
    other = bind(Shuffled(batch_size=8), 100, manifest="cd" * 32)
    with pytest.raises(ManifestMismatchError) as refused:
        engine.check(bound, other.start())
    text = str(refused.value)
    assert "manifest cdcdcdcdcdcd…" in text
    assert "manifest abababababab… (100 samples)" in text
    assert "restore the data, or start anew with seek()" in text


@pytest.mark.parametrize("position", [100, 101, 2**62])
def test_a_position_outside_the_epoch_is_refused_with_the_range(position: int) -> None:
    bound = bind(Shuffled(batch_size=8), 100)
    outside = msgspec.structs.replace(bound.start(), position=position)
    with pytest.raises(CursorError, match=rf"position={position} is outside 0\.\.99"):
        engine.check(bound, outside)


def test_a_seek_beyond_all_counters_is_refused() -> None:
    bound = bind(Shuffled(batch_size=8), BILLION)
    with pytest.raises(CursorError, match="update"):
        engine.seek(bound, Seek(epoch=2**62), 1)


# --- Elasticity -----------------------------------------------------------------------------------


def test_the_global_batches_are_the_same_on_any_world() -> None:
    bound = bind(Shuffled(global_batch_size=24, seed=17), 2000)
    alone = [global_samples(batches) for batches, _ in islice(steps(bound, 1), 90)]
    assert {len(batch) for batch in alone} == {24, 2000 % 24}
    for world_size in (2, 3, 4, 6, 8, 12, 24):
        shared = [global_samples(b) for b, _ in islice(steps(bound, world_size), 90)]
        assert shared == alone


@pytest.mark.parametrize(
    "worlds",
    [(8, 4), (4, 8), (8, 6), (6, 1), (1, 8), (2, 3), (32, 16), (8, 64), (8, 2, 8), (2, 3, 64, 1)],
    ids=lambda worlds: "-".join(map(str, worlds)),
)
def test_a_change_of_the_world_keeps_the_global_batches(worlds: tuple[int, ...]) -> None:
    bound = bind(Shuffled(global_batch_size=192, seed=17), 2000)
    straight = [global_samples(batches) for batches in epoch_of(bound, worlds[0])]
    found, cursor = [], bound.start()
    for world_size in worlds[:-1]:
        for batches, after in islice(steps(bound, world_size, start=cursor), 3):
            found.append(global_samples(batches))
            cursor = Cursor.from_state(json.loads(json.dumps(after.to_state())))
    found += [global_samples(batches) for batches in epoch_of(bound, worlds[-1], start=cursor)]
    assert found == straight


@given(data=st.data(), length=st.integers(1, 120), tail=st.sampled_from(["short", "wrap"]))
def test_changes_of_the_world_lose_and_repeat_nothing_also_with_a_batch_per_rank(
    data: st.DataObject, length: int, tail: Tail
) -> None:
    bound = bind(Shuffled(batch_size=data.draw(st.integers(1, 6)), tail=tail, seed=3), length)
    order = bound.order.at(0, np.arange(length, dtype=np.uint64)).tolist()
    found: list[int] = []
    cursor = bound.start()
    for _ in range(4):
        if cursor.epoch:
            break
        world_size = data.draw(st.integers(1, 7))
        rest = epoch_of(bound, world_size, start=cursor)
        for batches in rest[: data.draw(st.integers(1, 3))]:
            found += global_samples(batches)
            cursor = batches[0].after
        assert cursor.sample == len(found)
    if not cursor.epoch:
        for batches in epoch_of(bound, data.draw(st.integers(1, 7)), start=cursor):
            found += global_samples(batches)
    assert found == order


def test_a_rest_too_small_for_the_new_world_is_dropped_and_the_next_epoch_begins() -> None:
    bound = bind(Sequential(batch_size=10, tail="drop"), 95)
    cursor = engine.seek(bound, Seek(update=8), 1)
    assert engine.settle(bound, cursor, 1) == cursor
    batch, _ = engine.next_batch(bound, cursor, Topology(0, 2))
    assert (batch.epoch, batch.step, batch.global_step) == (1, 0, 8)
    assert batch.indices.tolist() == list(range(0, 20, 2))
    assert engine.largest_batch(bound, cursor, Topology(0, 2), as_weights).weight == sum(
        range(60, 80, 2)
    )


def test_the_cursor_records_the_world_that_made_it_and_does_not_ask_for_it() -> None:
    bound = bind(Shuffled(batch_size=8), 100)
    _, cursor = engine.next_step(bound, bound.start(), 2)
    assert cursor.world_size == 2
    _, cursor = engine.next_step(bound, cursor, 3)
    assert cursor.world_size == 3


# --- Largest batch --------------------------------------------------------------------------------


def as_weights(indices: Indices) -> Any:  # noqa: ANN401 - as the engine's `weigh`
    return indices.astype(np.int64)


@given(run=runs(), data=st.data())
def test_the_largest_batch_is_that_of_trying_them_all(
    run: tuple[BoundPlan, int], data: st.DataObject
) -> None:
    bound, world_size = run
    topology = Topology(data.draw(st.integers(0, world_size - 1)), world_size)
    weights = np.array(
        data.draw(st.lists(st.integers(0, 10**12), min_size=bound.length, max_size=bound.length)),
        dtype=np.int64,
    )
    first = data.draw(st.integers(0, engine.epoch_steps(bound, world_size) - 1))
    cursor = engine.seek(bound, Seek(update=first), world_size)
    tried = [int(weights[batch.indices].sum()) for batch in rank_epoch(bound, cursor, topology)]
    found = engine.largest_batch(bound, cursor, topology, lambda indices: weights[indices]).weight
    assert found == max(tried)


def test_the_largest_batch_is_found_across_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_SCAN_ENTRIES", 64)
    bound = bind(Shuffled(batch_size=10, seed=3), 1234)
    weights = np.random.default_rng(0).lognormal(8, 2, 1234).astype(np.int64)
    for rank in range(2):
        topology = Topology(rank, 2)
        tried = [int(weights[b.indices].sum()) for b in rank_epoch(bound, bound.start(), topology)]
        found = engine.largest_batch(bound, bound.start(), topology, lambda i: weights[i]).weight
        assert found == max(tried)


def test_the_largest_batch_of_a_batch_beyond_the_data_needs_no_memory_for_the_batch() -> None:
    bound = bind(Sequential(batch_size=2**31 - 1), 10)
    with peak_memory_below(1_000_000):
        found = engine.largest_batch(bound, bound.start(), Topology(0, 2), as_weights).weight
    assert found == 0 + 2 + 4 + 6 + 8


# --- Purity, memory and cost ----------------------------------------------------------------------


def test_draws_from_global_generators_change_nothing_and_are_not_changed() -> None:
    bound = bind(Shuffled(batch_size=8, seed=17), 1000)
    quiet = [row(batch) for batch in rank_epoch(bound, bound.start(), Topology(1, 3))]
    random.seed(1)
    np.random.seed(1)
    drawn = [(random.random(), np.random.random()) for _ in range(50)]
    random.seed(1)
    np.random.seed(1)
    noisy = []
    between: list[tuple[float, float]] = []
    cursor = bound.start()
    while cursor.epoch == 0:
        batch, cursor = engine.next_batch(bound, cursor, Topology(1, 3))
        noisy.append(row(batch))
        between.append((random.random(), np.random.random()))
    assert noisy == quiet
    assert between == drawn[: len(between)]


@pytest.mark.parametrize("kind", [Sequential, Shuffled])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("share", [0, 99])
def test_a_billion_samples_are_planned_at_any_place_in_less_than_10_mb(
    kind: type[Sequential | Shuffled], tail: Tail, share: int
) -> None:
    with peak_memory_below(10_000_000):
        bound = bind(kind(global_batch_size=2048, tail=tail), BILLION)
        first = engine.epoch_steps(bound, 8) * share // 100
        cursor = engine.seek(bound, Seek(update=first), 8)
        for _ in range(5):
            *_, batch = engine.next_batches(bound, cursor, Topology(3, 8), max_batches=64)
            cursor = batch.after
    assert cursor.update > first
    assert int(batch.indices.max()) < BILLION


def test_a_seek_orders_nothing_and_a_batch_only_its_own_entries() -> None:
    bound = bind(Shuffled(global_batch_size=2048, seed=17), BILLION)
    order = counted(bound)
    last = engine.epoch_steps(bound, 8)
    for update in (0, 1, last // 2, last * 99 // 100, last - 1, 7 * last + 12):
        cursor = engine.seek(bound, Seek(update=update), 8)
        engine.check(bound, cursor)
        assert engine.remaining_steps(bound, cursor, 8) == last - update % last
        assert (order.num_calls, order.num_entries) == (0, 0)
        batch, _ = engine.next_batch(bound, cursor, Topology(7, 8))
        assert (order.num_calls, order.num_entries) == (1, len(batch.indices))
        order.num_calls = order.num_entries = 0


def test_the_last_step_of_a_billion_samples_is_exact() -> None:
    bound = bind(Sequential(global_batch_size=2048), BILLION)
    last = engine.epoch_steps(bound, 8) - 1
    batches, after = engine.next_step(bound, engine.seek(bound, Seek(update=last), 8), 8)
    assert global_samples(batches) == list(range(last * 2048, BILLION))
    assert (after.epoch, after.sample) == (1, BILLION)
