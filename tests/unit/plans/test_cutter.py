"""Cutting samples as they come: the steps are those of the same plan over indexed shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CursorError, NoStepError, PlanError
from headrace.plans import Cursor, Data, Seek, Sequential, ShardShuffled
from headrace.plans.cutter import Cutter
from headrace.plans.engine import BoundPlan, Flag, check, next_batches, seek
from headrace.plans.program import Place
from headrace.plans.streamed import Spot, StreamedPlan, StreamedProgram
from headrace.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Row = tuple[int, int, list[int], list[int]]
"""Epoch, step, samples and flags."""

UNEVEN = (1, 3, 7, 50, 0, 100, 33)


def streamed(plan: Sequential | ShardShuffled, num_shards: int, **options: Any) -> StreamedProgram:  # noqa: ANN401
    own = StreamedPlan(plan=plan, fields=("x",), **options)
    return StreamedProgram(own, num_shards)


def cut(
    program: StreamedProgram,
    sizes: Sequence[int],
    place: Place = Place(),  # noqa: B008 - immutable
    *,
    rank: int = 0,
    world_size: int = 1,
    first: int = 0,
    stride: int = 1,
    dropped: list[int] | None = None,
) -> Iterator[tuple[Row, Place]]:
    """Yield the steps of one epoch, or of the rest of it; samples are numbered over all shards."""
    starts = np.cumsum([0, *sizes]).tolist()
    drop = (lambda item: None) if dropped is None else dropped.append
    cutter: Cutter[int] = Cutter(
        program, place, rank, world_size, first=first, stride=stride, drop=drop
    )
    spot, rows = Spot.of(place), program.shards(place.epoch).tolist()
    at, number = spot.shard, spot.sample
    for _ in range(100_000):
        while cutter.steps:
            step = cutter.steps.popleft()
            yield (step.before.epoch, step.before.step, step.items, step.flags), step.after
        if cutter.is_over:
            return
        if not cutter.is_hungry:
            cutter.pump()
        elif at == len(rows):
            assert not cutter.is_blank, "no sample"
            cutter.end_lap()
            at = number = 0
        elif number < sizes[rows[at]]:
            cutter.add(at, number, starts[rows[at]] + number)
            number += 1
        else:
            at, number = at + 1, 0
    raise AssertionError("an epoch has no end")


def indexed(plan: Sequential | ShardShuffled, sizes: Sequence[int], epoch: int = 0) -> list[Row]:
    """Return the steps of an epoch of the plan over indexed shards, of one rank."""
    bounds = np.cumsum([0, *sizes]).astype(np.uint64)
    bound = BoundPlan.to(plan, Data(int(bounds[-1]), "d", shards=bounds))
    cursor, rows = seek(bound, Seek(epoch=epoch), 1), []
    while cursor.epoch == epoch:
        for one in next_batches(bound, cursor, Topology(), max_batches=1000):
            rows.append((epoch, one.step, one.indices.tolist(), one.flags.tolist()))
            cursor = one.after
    return rows


PLANS = st.one_of(
    st.builds(
        Sequential,
        batch_size=st.integers(1, 9),
        tail=st.sampled_from(["short", "drop", "wrap", "wrap-once"]),
    ),
    st.builds(
        ShardShuffled,
        batch_size=st.integers(1, 9),
        seed=st.integers(0, 5),
        window=st.sampled_from([1, 2, 5, 16, 1000]),
        tail=st.sampled_from(["short", "drop", "wrap", "wrap-once"]),
    ),
)
SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


@given(plan=PLANS, sizes=SIZES, epoch=st.integers(0, 2))
def test_steps_are_those_over_indexed_shards(
    plan: Sequential | ShardShuffled, sizes: list[int], epoch: int
) -> None:
    program = streamed(plan, len(sizes))
    if plan.tail == "drop" and sum(sizes) < (plan.batch_size or 0):
        with pytest.raises(NoStepError, match=rf"shards have {sum(sizes)} samples, one step takes"):
            list(cut(program, sizes, Place(epoch)))
        return
    dropped: list[int] = []
    cut_rows = list(cut(program, sizes, Place(epoch), dropped=dropped))
    assert [row for row, _ in cut_rows] == indexed(plan, sizes, epoch)
    *others, last = [after for _, after in cut_rows]
    assert all(after.epoch == epoch and after.child is not None for after in others)
    assert (last.epoch, last.step, last.position, last.child) == (epoch + 1, 0, 0, None)
    kept = [sample for row, _ in cut_rows for sample in row[2]]
    assert plan.tail != "drop" or sorted(kept + dropped) == list(range(sum(sizes)))


@given(plan=PLANS, sizes=SIZES)
def test_any_step_is_a_place_to_go_on_at(
    plan: Sequential | ShardShuffled, sizes: list[int]
) -> None:
    program = streamed(plan, len(sizes))
    if plan.tail == "drop" and sum(sizes) < (plan.batch_size or 0):
        return
    rows = list(cut(program, sizes))
    for done, (_, after) in enumerate(rows[:-1], start=1):
        program.check(after)
        assert list(cut(program, sizes, after)) == rows[done:]


@given(
    plan=PLANS,
    sizes=SIZES,
    steps=st.integers(1, 12),
    worlds=st.lists(st.integers(1, 4), max_size=3),
)
def test_ranks_share_a_sequence_that_begins_again(
    plan: Sequential | ShardShuffled, sizes: list[int], steps: int, worlds: list[int]
) -> None:
    """Under changing numbers of ranks, entry p of the sequence comes once, where p says it does."""
    batch = plan.batch_size
    assert batch is not None
    program = streamed(plan, len(sizes), steps_per_epoch=steps)
    whole = streamed(plan.__class__(**{**_fields(plan), "tail": "short"}), len(sizes))
    lap = [sample for row, _ in cut(whole, sizes) for sample in row[2]]
    place, position = Place(), 0
    worlds = [*worlds, 2]
    for number in range(steps):
        world = worlds[number * len(worlds) // steps]
        got = []
        for rank in range(world):
            row, after = next(cut(program, sizes, place, rank=rank, world_size=world))
            assert len(row[2]) == batch
            assert (row[0], row[1]) == (0, number)
            got.append((row, after))
        assert len({str(after) for _, after in got}) == 1
        for offset in range(batch * world):
            row = got[offset % world][0]
            at = position + offset
            assert row[2][offset // world] == lap[at % len(lap)]
            assert row[3][offset // world] == (Flag.WRAPPED if at >= len(lap) else 0)
        place = got[0][1]
        position += batch * world
    assert place == Place(1, 0, 0, steps, position)
    assert program.settle(place, 1) == place


@given(plan=PLANS, sizes=SIZES, stride=st.integers(2, 4), steps=st.sampled_from([None, 5]))
def test_parts_are_every_so_manieth_step(
    plan: Sequential | ShardShuffled, sizes: list[int], stride: int, steps: int | None
) -> None:
    if plan.tail == "drop" and sum(sizes) < (plan.batch_size or 0) and steps is None:
        return
    program = streamed(plan, len(sizes), steps_per_epoch=steps)
    whole = list(cut(program, sizes))
    for first in range(stride):
        assert list(cut(program, sizes, first=first, stride=stride)) == whole[first::stride]


def test_a_failure_leaves_what_is_complete() -> None:
    program = streamed(Sequential(batch_size=2), 1)
    cutter: Cutter[int] = Cutter(program, Place(), 0, 1, drop=lambda item: None)
    for number in range(2):
        cutter.add(0, number, number)
        cutter.pump()
    assert not cutter.steps, "it may be the last one"
    cutter.give_up()
    (step,) = cutter.steps
    assert (step.items, step.after.epoch, step.after.step) == ([0, 1], 0, 1)
    assert step.after.child == {"lap": 0, "shard": 0, "sample": 2, "place": 2, "inside": 0}


def test_all_ranks_get_everything_where_samples_are_replicated() -> None:
    program = streamed(Sequential(batch_size=4, replicated=True), 3)
    rows = [list(cut(program, (3, 4, 2), rank=rank, world_size=2)) for rank in range(2)]
    assert rows[0] == rows[1]
    assert [len(row[2]) for row, _ in rows[0]] == [4, 4, 1]


# ---- what the program says, and refuses ------------------------------------------------------


def test_seeks_know_epochs_and_nothing_within() -> None:
    known = streamed(Sequential(batch_size=3), 2, steps_per_epoch=5)
    assert known.seek(Seek(epoch=2), 2) == Place(2, 0, 0, 10, 60)
    assert (
        known.seek(Seek(update=10), 2) == known.seek(Seek(sample=60), 2) == Place(2, 0, 0, 10, 60)
    )
    with pytest.raises(
        CursorError, match=r"seek update=11 is not the start.*nearest are 10 and 15"
    ):
        known.seek(Seek(update=11), 2)
    open_ended = streamed(Sequential(batch_size=3), 2)
    assert open_ended.seek(Seek(epoch=2), 1) == Place(2)
    assert open_ended.seek(Seek(update=0), 1) == Place(0)
    with pytest.raises(CursorError, match=r"seek sample=3 is not the start of an epoch \(only 0"):
        open_ended.seek(Seek(sample=3), 1)
    assert (known.steps(0, 2), known.remaining(Place(0, 2), 2)) == (5, 3)
    assert (open_ended.steps(0, 1), open_ended.remaining(Place(0, 2), 1)) == (-1, -1)


def test_several_ranks_need_a_number_of_steps() -> None:
    with pytest.raises(PlanError, match=r"world_size=2 needs to know.*steps_per_epoch"):
        streamed(Sequential(batch_size=3), 2).settle(Place(), 2)


@pytest.mark.parametrize(
    "options",
    [{"subset": (1,)}, {"pad_to": 2}, {"reverse": True}, {"repeats": 2}, {"truncate": True},
     {"part": (0, 2)}, {"node_blocks": 2}],
    ids=str,
)  # fmt: skip
def test_what_needs_all_samples_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=f"{next(iter(options))}=.*has to know all samples"):
        streamed(Sequential(batch_size=1, **options), 1)


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (None, "does not say in which shard"),
        ({"lap": 0, "shard": 1}, "is no place in streamed shards"),
        ({"lap": 0, "shard": 2, "sample": 0, "place": 4, "inside": 0}, "child shard=2"),
        ({"lap": 0, "shard": 1, "sample": 0, "place": 4, "inside": 4}, "child inside=4"),
        ({"lap": 0, "shard": 1, "sample": 0, "place": 3, "inside": 0}, "no multiple of window=4"),
        ({"lap": 0, "shard": 1, "sample": -1, "place": 4, "inside": 0}, "is no place"),
    ],
)
def test_a_cursor_that_is_none_of_these_shards_is_refused(
    child: dict[str, int] | None, words: str
) -> None:
    bound = BoundPlan(
        StreamedPlan(plan=ShardShuffled(batch_size=1, window=4), fields=("x",)), 2, "d"
    )
    cursor = Cursor(plan=bound.digest, manifest="d", step=4, position=4, child=child)
    with pytest.raises(CursorError, match=words):
        check(bound, cursor)


def test_a_cursor_of_other_fields_names_them() -> None:
    plan = Sequential(batch_size=1)
    other = StreamedPlan(plan=plan, fields=("jpg",)).digest
    bound = BoundPlan(StreamedPlan(plan=plan, fields=("jpg", "cls")), 2, "d")
    about = StreamedPlan(plan=plan, fields=("jpg",)).description
    with pytest.raises(CursorError, match=r'fields was \["jpg"\] and is \["jpg", "cls"\]'):
        check(bound, Cursor(plan=other, manifest="d", about=about))


def _fields(plan: Sequential | ShardShuffled) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}
