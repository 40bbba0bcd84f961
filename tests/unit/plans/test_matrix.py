"""Every plan × cut × tail × split × world size × resume: what must hold for all of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from bisect import bisect_right
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import pytest

from headrace.errors import NoStepError, PlanError
from headrace.plans import Cursor, FromSampler, Seek, engine, registry
from headrace.plans.composite import Chain, Interleaved, Plan, SinglePlan
from headrace.plans.engine import BoundPlan, Flag, PlannedBatch
from headrace.topology import Topology
from tests.support.rows import RowCase, data, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = list(rows())
LENGTHS = (2, 13, 20)
"""n < R, n prime, and one that R does not divide, with a tail."""

WORLDS = (2, 3)
EPOCHS = 2


class Got(NamedTuple):
    """What one rank gets in one step, as plain values."""

    epoch: int
    step: int
    stream: str
    ids: tuple[int, ...]
    flags: tuple[int, ...]
    meta: tuple[tuple[str, Any], ...]


def got(batch: PlannedBatch) -> Got:
    return Got(
        batch.epoch,
        batch.step,
        batch.stream,
        tuple(batch.indices.tolist()),
        tuple(batch.flags.tolist()),
        tuple(sorted(batch.meta.items())),
    )


def bound_of(row: RowCase, length: int) -> BoundPlan | None:
    """Return the plan over data of a length; None where the two do not go together."""
    try:
        return BoundPlan.to(row.plan, data(length))
    except PlanError:
        return None


def worlds(row: RowCase) -> list[int]:
    return [row.node_blocks * world for world in WORLDS]


class Run(NamedTuple):
    """The steps of all ranks up to an epoch, and the cursor before each."""

    steps: list[list[Got]]
    cursors: list[Cursor]
    """One more than the steps."""


def run_from(bound: BoundPlan, cursor: Cursor, world_size: int, epochs: int = EPOCHS) -> Run:
    cursor = engine.settle(bound, cursor, world_size)
    by_rank = [
        list(rank_run(bound, cursor, Topology(rank, world_size), epochs))
        for rank in range(world_size)
    ]
    cursors = [cursor, *(batch.after for batch in by_rank[0])]
    for batches in by_rank:
        assert [batch.after for batch in batches] == cursors[1:]
    steps = [[got(batch) for batch in step] for step in zip(*by_rank, strict=True)]
    return Run(steps, cursors)


def rank_run(
    bound: BoundPlan, cursor: Cursor, topology: Topology, epochs: int
) -> Iterator[PlannedBatch]:
    count = 0
    while cursor.epoch < epochs and not engine.is_finished(bound, cursor):
        for batch in engine.next_batches(bound, cursor, topology, max_batches=100):
            cursor = batch.after
            yield batch
            count += 1
        assert count < 1000, "the run does not end"


def facts(cursor: Cursor) -> dict[str, Any]:
    """Return what counts of a cursor: the world size is recorded, never checked."""
    return cursor.to_state() | {"world_size": 0}


@cache
def whole_run(number: int, length: int, world_size: int) -> tuple[BoundPlan, Run] | None:
    bound = bound_of(ROWS[number], length)
    if bound is None:
        return None
    try:
        return bound, run_from(bound, bound.start(), world_size)
    except NoStepError:
        return None


def runs(number: int) -> Iterator[tuple[BoundPlan, Run, int, int]]:
    """Yield all runs of a row that have steps, with their length and world size."""
    some = False
    for length in LENGTHS:
        for world_size in worlds(ROWS[number]):
            found = whole_run(number, length, world_size)
            if found is not None:
                some = True
                yield *found, length, world_size
    assert some, f"{ROWS[number].name} never makes a step"


every_row = pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.name for row in ROWS])


# --- Nothing is forgotten -------------------------------------------------------------------------


def test_every_plan_has_a_row() -> None:
    kinds = {type(row.plan).__name__ for row in ROWS}
    announced = {kind.__name__ for kind in (*get_args(SinglePlan), Chain, Interleaved)}
    assert kinds == announced
    assert {kind.__name__ for kind in get_args(Plan)} == announced
    # FromSampler runs in the trainer and has tests of its own.
    assert set(registry._BUILT_IN) == announced | {FromSampler.__name__}


def test_every_option_of_every_plan_is_in_a_row() -> None:
    used: dict[str, set[str]] = {}
    for row in ROWS:
        facts = used.setdefault(type(row.plan).__name__, set())
        facts |= {
            name
            for name, default in zip(
                reversed(row.plan.__struct_fields__),
                reversed(row.plan.__struct_defaults__),
                strict=False,
            )
            if getattr(row.plan, name) != default
        }
    everywhere = {name for facts in used.values() for name in facts}
    fields = {name for row in ROWS for name in row.plan.__struct_fields__}
    # These are in other tests: they name ranges of what is in a row.
    others = {"global_batch_size", "saturation_factor", "frames", "min_clips", "max_clips"}
    others.add("shards")  # of data that has some: test_shardslice.py
    assert fields - everywhere - others == {"plans", "train", "limits"}  # required ones


# --- Resume ---------------------------------------------------------------------------------------


@every_row
def test_from_every_cursor_the_rest_is_that_of_the_uninterrupted_run(number: int) -> None:
    for bound, run, length, world_size in runs(number):
        fresh = BoundPlan.to(bound.plan, data(length))
        for at, cursor in enumerate(run.cursors):
            loaded = Cursor.from_state(json.loads(json.dumps(cursor.to_state())))
            engine.check(fresh, loaded)
            assert run_from(fresh, loaded, world_size).steps == run.steps[at:]


@every_row
def test_another_world_size_continues_the_same_order_and_back(number: int) -> None:
    row = ROWS[number]
    for bound, run, _, world_size in runs(number):
        for other in worlds(row):
            if other == world_size:
                continue
            for at in sorted({0, 1, len(run.steps) // 2}):
                cursor = run.cursors[at]
                if engine.is_finished(bound, cursor):
                    continue
                try:
                    batches, after = engine.next_step(bound, cursor, other)
                except NoStepError:
                    continue
                assert len(batches) == other
                there = run_from(bound, after, world_size)
                for step in there.steps:
                    assert len(step) == world_size
                if row.is_partition and getattr(row.plan, "tail", "") != "drop":
                    epoch = cursor.epoch
                    before = [got for step in run.steps for got in step if got.epoch == epoch]
                    before = before[: at * world_size]
                    taken = [got(batch) for batch in batches]
                    rest = [one for step in there.steps for one in step]
                    ids = [
                        index
                        for one in (*before, *taken, *rest)
                        if one.epoch == epoch
                        for index, flag in zip(one.ids, one.flags, strict=True)
                        if not flag & Flag.PADDING
                    ]
                    if cursor.epoch == 0:
                        assert sorted(ids) == list(range(bound.length))


# --- Ranks ----------------------------------------------------------------------------------------


@every_row
def test_all_ranks_have_equal_steps_and_sizes(number: int) -> None:
    row = ROWS[number]
    for world_size in range(row.node_blocks, 9, row.node_blocks):
        found = whole_run(number, 20, world_size)
        if found is None:
            continue
        for step in found[1].steps:
            assert len({(one.epoch, one.step, one.stream) for one in step}) == 1
            sizes = {
                tuple(fact for fact in one.meta if fact[0] not in ("bytes", "total"))
                for one in step
            }
            assert len(sizes) == 1
            if row.has_equal_batches:
                assert len({len(one.ids) for one in step}) == 1
                assert step[0].ids


@pytest.mark.parametrize(
    "number",
    [
        number
        for number, row in enumerate(ROWS)
        if row.is_partition and getattr(row.plan, "tail", "") != "drop"
    ],
    ids=lambda number: ROWS[number].name,
)
def test_an_epoch_has_each_sample_once(number: int) -> None:
    for bound, run, _, _ in runs(number):
        for epoch in range(EPOCHS):
            ids = [
                index
                for step in run.steps
                for one in step
                if one.epoch == epoch
                for index, flag in zip(one.ids, one.flags, strict=True)
                if not flag & Flag.PADDING
            ]
            assert sorted(ids) == list(range(bound.length))


# --- Counting and jumping -------------------------------------------------------------------------


@every_row
def test_lengths_are_those_of_the_run(number: int) -> None:
    for bound, run, _, world_size in runs(number):
        by_epoch = [step[0].epoch for step in run.steps]
        for epoch in range(1 if bound.program.ends else EPOCHS):
            assert bound.program.steps(epoch, world_size) == by_epoch.count(epoch)
        for at, cursor in enumerate(run.cursors[:-1]):
            left = sum(epoch == cursor.epoch for epoch in by_epoch[at:])
            assert engine.remaining_steps(bound, cursor, world_size) == left


@every_row
def test_advancing_is_taking_the_steps(number: int) -> None:
    for bound, run, _, world_size in runs(number):
        for at in (0, len(run.steps) // 3):
            cursor = run.cursors[at]
            left = engine.remaining_steps(bound, cursor, world_size)
            for steps in range(left + 1):
                moved = engine.advance(bound, cursor, world_size, steps)
                assert facts(moved) == facts(run.cursors[at + steps])


@every_row
def test_chunks_of_any_size_and_stride_are_the_same_batches(number: int) -> None:
    for bound, run, _, world_size in runs(number):
        rank = world_size - 1
        topology = Topology(rank, world_size)
        for stride in (1, 3):
            for most in (1, 100):
                cursor = run.cursors[0]
                batches: list[PlannedBatch] = []
                while cursor.epoch == 0 and not engine.is_finished(bound, cursor):
                    left = engine.remaining_steps(bound, cursor, world_size)
                    batches += engine.next_batches(
                        bound, cursor, topology, max_batches=most, step_stride=stride
                    )
                    last = batches[-1]
                    if last.after.epoch:
                        break
                    cursor = last.after
                    left = engine.remaining_steps(bound, cursor, world_size)
                    cursor = engine.advance(bound, cursor, world_size, min(stride - 1, left))
                expected = [step[rank] for step in run.steps if step[rank].epoch == 0]
                assert [got(batch) for batch in batches] == expected[::stride]


@every_row
def test_seeking_a_count_gives_the_cursor_that_the_run_has_there(number: int) -> None:
    for bound, run, _, world_size in runs(number):
        known = [facts(cursor) for cursor in run.cursors]
        updates = {cursor.update for cursor in run.cursors}
        for update in updates:
            found = facts(engine.seek(bound, Seek(update=update), world_size))
            assert found in known
            # Where extras run after an update, the place is the one after them.
            same = [cursor for cursor in known if cursor["update"] == update]
            assert found == (known[0] if update == 0 else same[-1]) or bound.program.ends
            assert found["update"] == update
        assert facts(engine.seek(bound, Seek(epoch=0), world_size)) == known[0]
        assert facts(engine.seek(bound, Seek(epoch=1), world_size)) in known
        if not bound.program.ends:
            for cursor in run.cursors[:: 1 + len(run.cursors) // 5]:
                found = facts(engine.seek(bound, Seek(sample=cursor.sample), world_size))
                assert found["sample"] == cursor.sample
                assert found in known


# --- The largest step -----------------------------------------------------------------------------


@every_row
def test_no_step_is_above_the_largest_of_its_segment(number: int) -> None:
    """From cursors all over the run; and segment by segment to its end."""
    is_exact = not {"ByteBudget", "Chain", "Interleaved"} & {type(ROWS[number].plan).__name__}
    for bound, run, length, world_size in runs(number):
        weights = np.random.default_rng(length).integers(0, 1000, length + 3)
        segments = [bound.program.segment(engine._place(cursor)) for cursor in run.cursors]
        assert segments == sorted(segments)
        for rank in {0, world_size - 1}:
            topology = Topology(rank, world_size)
            met = [int(weights[list(step[rank].ids)].sum()) for step in run.steps]
            for at in range(0, len(met), 1 + len(met) // 8):
                cursor = run.cursors[at]
                end = bisect_right(segments, segments[at], at, len(met))
                found = engine.largest_batch(bound, cursor, topology, weights.__getitem__)
                assert found.segment == segments[at]
                assert found.weight >= max(met[at:end])
                if is_exact:
                    assert found.weight == max(met[at:end])
                assert facts(found.after) == facts(run.cursors[end])


# --- Purity ---------------------------------------------------------------------------------------


@every_row
def test_foreign_draws_between_batches_change_nothing(number: int) -> None:
    torch = pytest.importorskip("torch")
    found = whole_run(number, 20, 2)
    assert found is not None
    bound, run = found
    fresh = BoundPlan.to(bound.plan, data(20))
    cursor = engine.settle(fresh, fresh.start(), 2)
    for step in run.steps:
        random.seed(len(step))
        np.random.seed(3)
        torch.manual_seed(7)
        batches, cursor = engine.next_step(fresh, cursor, 2)
        random.random(), np.random.rand(), torch.rand(1)
        assert [got(batch) for batch in batches] == step


def test_a_fresh_process_gives_the_same_output() -> None:
    script = (
        "import json, sys\n"
        "from tests.unit.plans import test_matrix as m\n"
        "print(json.dumps(m.fingerprints()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(fingerprints()))


def fingerprints() -> dict[str, Any]:
    """Return one run of each row as plain data."""
    found = {}
    for number, row in enumerate(ROWS):
        run = whole_run(number, 20, 2)
        assert run is not None
        found[row.name] = [run[1].steps, [cursor.to_state() for cursor in run[1].cursors]]
    return found
