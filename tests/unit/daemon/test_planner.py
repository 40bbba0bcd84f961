"""The planner: parts of a stream, in chunks, with an edge after each epoch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans import Cursor, Plan, Sequential, Shuffled
from headrace.plans.engine import PlannedBatch
from headrace.topology import Topology
from headrace_daemon.feed import planner as planner_module
from headrace_daemon.feed.planner import CHUNK_BATCHES, EpochEdge, Finish, Planner
from tests.support.planning import Row, bind, rank_epoch, row

ALONE = Topology(0, 1)


class Edge(NamedTuple):
    epoch: int
    next_epoch: int
    next_step: int


def walk(planner: Planner, *, epochs: int) -> list[Row | Edge | str]:
    """Return what a planner says, up to the end of so many epochs or to the finish."""
    found: list[Row | Edge | str] = []
    while sum(isinstance(item, Edge) for item in found) < epochs:
        for item in planner.next_items():
            match item:
                case PlannedBatch():
                    found.append(row(item))
                case EpochEdge(epoch, cursor):
                    found.append(Edge(epoch, cursor.epoch, cursor.step))
                case Finish():
                    return [*found, "finish"]
    return found


def expected(plan: Plan, length: int, topology: Topology, *, epochs: int) -> list[list[Row]]:
    bound = bind(plan, length)
    found, cursor = [], bound.start()
    for _ in range(epochs):
        batches = rank_epoch(bound, cursor, topology)
        found.append([row(batch) for batch in batches])
        cursor = batches[-1].after
    return found


def test_epochs_follow_each_other_with_an_edge_after_each() -> None:
    plan = Shuffled(batch_size=3, seed=5)
    first, second = expected(plan, 10, ALONE, epochs=2)
    bound = bind(plan, 10)
    found = walk(Planner(bound, bound.start(), ALONE), epochs=2)
    assert found == [*first, Edge(0, 1, 0), *second, Edge(1, 2, 0)]


def test_epochs_are_counted_from_that_of_the_cursor_and_then_it_finishes() -> None:
    bound = bind(Sequential(batch_size=4), 10)
    middle = Planner(bound, bound.start(), ALONE).next_items()[0]
    assert isinstance(middle, PlannedBatch)
    found = walk(Planner(bound, middle.after, ALONE, epochs=2), epochs=9)
    edges = [item for item in found if isinstance(item, Edge)]
    assert edges == [Edge(0, 1, 0), Edge(1, 2, 0)]
    assert found[-1] == "finish"
    steps = [(item.epoch, item.step) for item in found if isinstance(item, Row)]
    assert steps == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_after_the_finish_comes_nothing_else() -> None:
    bound = bind(Sequential(batch_size=4), 4)
    planner = Planner(bound, bound.start(), ALONE, epochs=1)
    assert walk(planner, epochs=9)[-1] == "finish"
    assert planner.next_items() == [Finish()]
    assert planner.next_items() == [Finish()]


def test_a_long_epoch_comes_in_chunks() -> None:
    bound = bind(Sequential(batch_size=1), 2 * CHUNK_BATCHES + 1)
    planner = Planner(bound, bound.start(), ALONE)
    lengths = [len(planner.next_items()) for _ in range(3)]
    assert lengths == [CHUNK_BATCHES, CHUNK_BATCHES, 2]  # one batch, and the edge


def test_the_epoch_of_the_planner_is_the_one_it_plans_next() -> None:
    bound = bind(Sequential(batch_size=5), 5)
    planner = Planner(bound, bound.start(), ALONE)
    assert planner.epoch == 0
    planner.next_items()
    assert planner.epoch == 1


def test_a_cursor_in_a_dropped_tail_begins_in_the_next_epoch() -> None:
    bound = bind(Sequential(batch_size=4, tail="drop"), 10)
    late = Cursor(plan=bound.digest, manifest=bound.manifest, step=2, position=8, update=2)
    found = walk(Planner(bound, late, ALONE, epochs=1), epochs=9)
    assert found[-2:] == [Edge(1, 2, 0), "finish"]
    assert [item.epoch for item in found if isinstance(item, Row)] == [1, 1]


@pytest.mark.parametrize("first", [3, 4, 1000])
def test_a_part_that_begins_behind_the_epoch_has_its_edge_only(first: int) -> None:
    bound = bind(Sequential(batch_size=4), 10)
    planner = Planner(bound, bound.start(), ALONE, first=first, epochs=1)
    assert walk(planner, epochs=9) == [Edge(0, 1, 0), "finish"]
    planner = Planner(bound, bound.start(), ALONE, first=first)
    (edge,) = planner.next_items()
    assert isinstance(edge, EpochEdge)
    assert (edge.cursor.update, edge.cursor.sample) == (3, 10)


def test_the_cursor_of_a_part_follows_the_whole_stream() -> None:
    bound = bind(Sequential(batch_size=1), 7)
    planner = Planner(bound, bound.start(), ALONE, first=1, stride=3)
    batches = [item for item in planner.next_items() if isinstance(item, PlannedBatch)]
    assert [(batch.step, batch.after.step) for batch in batches] == [(1, 2), (4, 5)]


@given(data=st.data())
def test_the_parts_of_a_stride_are_the_epoch_dealt_out(data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, 3))
    topology = Topology(data.draw(st.integers(0, world_size - 1)), world_size)
    tails: list[Literal["short", "drop", "wrap"]] = ["short", "drop", "wrap"]
    tail = data.draw(st.sampled_from(tails))
    plan = Shuffled(batch_size=data.draw(st.integers(1, 5)), seed=3, tail=tail)
    length = data.draw(st.integers(5 * world_size, 70))
    stride = data.draw(st.integers(2, 6))
    (whole,) = expected(plan, length, topology, epochs=1)
    bound = bind(plan, length)
    for first in range(stride):
        part = Planner(bound, bound.start(), topology, first=first, stride=stride)
        found = walk(part, epochs=9)
        assert found == [*whole[first::stride], Edge(0, 1, 0), "finish"]


@given(data=st.data())
def test_chunks_change_nothing(data: st.DataObject) -> None:
    plan = Shuffled(batch_size=2, seed=data.draw(st.integers(0, 9)))
    length, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 30))
    epochs = data.draw(st.integers(1, 3))
    bound = bind(plan, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner_module, "CHUNK_BATCHES", chunk)
        found = walk(Planner(bound, bound.start(), ALONE, epochs=epochs), epochs=9)
    rows = [item for item in found if isinstance(item, Row)]
    epochs_of_rows = expected(plan, length, ALONE, epochs=epochs)
    assert rows == [row for rows_of_epoch in epochs_of_rows for row in rows_of_epoch]


def test_a_stream_may_start_in_any_epoch_however_late() -> None:
    bound = bind(Shuffled(batch_size=2), 4)
    late = Cursor(
        plan=bound.digest, manifest=bound.manifest, epoch=2**40, update=2**41, sample=2**42
    )
    found = walk(Planner(bound, late, ALONE), epochs=1)
    assert found[-1] == Edge(2**40, 2**40 + 1, 0)
