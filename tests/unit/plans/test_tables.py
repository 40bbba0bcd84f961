from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.plans import (
    Cursor,
    Growth,
    MultiScale,
    Scales,
    Seek,
    VariableBatch,
    VideoVariable,
    base_only,
    engine,
    tables,
)
from headrace.plans.order import SequentialOrder
from headrace.topology import Topology
from tests.support.planning import bind

if TYPE_CHECKING:
    from headrace.plans.engine import BoundPlan, PlannedBatch

SQUARE = Scales()


def batches(bound: BoundPlan, epoch: int = 0, world_size: int = 1) -> list[PlannedBatch]:
    cursor: Cursor = engine.seek(bound, Seek(epoch=epoch), world_size)
    found: list[PlannedBatch] = []
    while cursor.epoch == epoch:
        found += engine.next_batches(bound, cursor, Topology(0, world_size), max_batches=1000)
        cursor = found[-1].after
    return found


# --- Tables ---------------------------------------------------------------------------------------


@given(value=st.one_of(st.integers(1, 5000), st.floats(1, 5000)), divisor=st.integers(1, 64))
def test_rounding_gives_the_nearest_multiple_and_never_takes_a_tenth(
    value: float, divisor: int
) -> None:
    found = tables.round_to(value, divisor)
    assert found % divisor == 0
    assert found >= divisor
    assert found >= 0.9 * value
    assert abs(found - value) <= divisor


def test_the_default_table_is_that_of_the_paper() -> None:
    assert tables.image_rows(SQUARE, 32) == [
        (160, 160, 81),
        (192, 192, 56),
        (256, 256, 32),
        (288, 288, 25),
        (320, 320, 20),
    ]


def test_the_largest_size_may_have_the_batch() -> None:
    rows = tables.image_rows(SQUARE, 32, reference="largest")
    assert rows[-1] == (320, 320, 32)
    assert all(h * w * b <= 320 * 320 * 32 * 1.01 for h, w, b in rows)


def test_pairing_by_position_keeps_the_base_size_whole() -> None:
    found = {
        name: tables.sides(Scales(height=250, width=160, pairing=name))
        for name in ("position", "head", "v0.3")
    }
    assert (256, 160) in found["position"]
    # The base width is on the grid, the base height is not: the originals lose a size or the base.
    assert (256, 160) not in found["head"]
    assert (256, 160) not in found["v0.3"]
    assert (320, 320) not in found["head"]


def test_a_size_above_the_budget_still_gets_one_sample() -> None:
    rows = tables.image_rows(Scales(height=32, width=32, divisor=32), 1)
    assert {batch for _, _, batch in rows} == {1}


def test_growth_is_a_function_of_the_epoch() -> None:
    growth = Growth(epochs=(40, 10), min_factor=0.5, max_factor=1.0)
    assert growth.epochs == (10, 40)
    plan = VariableBatch(batch_size=32, scales=SQUARE, scale_growth=growth)
    sizes = [
        max(h for h, *_ in tables.table(plan, 32, tables.stage_of(growth, epoch)))
        for epoch in (0, 9, 10, 39, 40, 99)
    ]
    assert sizes == [320, 320, 640, 640, 1280, 1280]


def test_multiscale_keeps_the_batch_and_the_rows() -> None:
    rows = tables.table(MultiScale(batch_size=8, scales=SQUARE), 8)
    assert [row.batch for row in rows] == [8] * 5


@pytest.mark.parametrize("vary", ["frames", "batch", "nothing"])
def test_a_video_trades_size_against_what_it_is_told(vary: Any) -> None:  # noqa: ANN401
    rows = tables.table(VideoVariable(batch_size=4, frames=8, scales=SQUARE, vary=vary), 4)
    pixels = [row.height * row.width * row.frames * row.batch for row in rows]
    if vary == "nothing":
        assert {(row.frames, row.batch) for row in rows} == {(8, 4)}
    else:
        assert len({row.frames if vary == "frames" else row.batch for row in rows}) > 1
        assert all(abs(p / (256 * 256 * 8 * 4) - 1) < 0.3 for p in pixels)


def test_drawn_clips_keep_the_budget_unless_the_original_is_asked_for() -> None:
    options: dict[str, Any] = {
        "batch_size": 4,
        "random_clips": True,
        "clips": 4,
        "min_clips": 1,
        "max_clips": 8,
        "vary": "nothing",
        "scales": Scales.one(64, 64),
    }
    fixed = batches(bind(VideoVariable(**options), 400))
    literal = batches(bind(VideoVariable(**options, clip_law="cvnets"), 400))
    by_clips = {b.meta["clips"]: len(b.indices) for b in fixed[:-1]}
    assert by_clips == {c: max(1, int(16 / c + 0.005)) for c in by_clips}
    assert len(by_clips) > 4
    by_clips = {b.meta["clips"]: len(b.indices) for b in literal[:-1]}
    assert by_clips == {c: max(4, 4 * (4 // c)) for c in by_clips}


# --- Choices --------------------------------------------------------------------------------------


def test_the_choice_of_cvnets_goes_on_where_the_shuffle_left_the_generator() -> None:
    plan = VariableBatch(
        batch_size=8, scales=SQUARE, order="python", chooser="cvnets", tail="short", seed=3
    )
    table = [(row.height, row.batch) for row in tables.table(plan, 8)]
    for epoch in (0, 2):
        generator = random.Random(3 + epoch)
        order = list(range(100))
        generator.shuffle(order)
        expected = []
        while order:
            height, size = generator.choice(table)
            expected.append((height, order[:size]))
            del order[:size]
        found = batches(bind(plan, 100), epoch)
        assert [(b.meta["height"], b.indices.tolist()) for b in found] == expected


def test_the_counter_chooses_evenly_and_differently_in_each_epoch_seed_and_role() -> None:
    def rows(seed: int, role: int, epoch: int) -> list[int]:
        chooser = tables.CounterChooser(seed, role, None)
        found: list[int] = chooser.block(epoch, 3, 5)[0].tolist()
        return found

    counts = np.bincount(rows(0, 0, 0), minlength=5)
    assert len(counts) == 5
    expected = tables._BLOCK / 5
    assert float(((counts - expected) ** 2 / expected).sum()) < 20  # chi-square, 4 degrees
    sequences = {tuple(rows(*which)) for which in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(sequences) == 4
    pairs = np.bincount(np.array(rows(0, 0, 0)[:-1]) * 5 + rows(0, 0, 0)[1:], minlength=25)
    assert pairs.min() > 0.6 * tables._BLOCK / 25


def test_the_counter_is_pinned() -> None:
    rows, clips = tables.CounterChooser(17, 0, (1, 5)).block(2, 0, 5)
    assert clips is not None
    assert rows[:12].tolist() == PINNED_ROWS
    assert clips[:12].tolist() == PINNED_CLIPS


# A change here is a new plan version: runs in progress would continue with other sizes.
PINNED_ROWS = [3, 1, 0, 2, 2, 2, 2, 2, 3, 3, 0, 1]
PINNED_CLIPS = [1, 5, 5, 2, 2, 4, 2, 5, 3, 5, 5, 5]


# --- Sums over steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 4095, 4096, 4097, 9000])
def test_sums_over_blocks_are_those_of_the_steps(step: int) -> None:
    plan = VariableBatch(batch_size=3, scales=SQUARE)
    sizes = tables.scaled_sizes(plan, 3, SequentialOrder(0))
    each = [sizes.at(1, number) for number in range(step + 50)]
    assert sizes.total(1, 0, step) == sum(each[:step])
    assert sizes.total(1, step, 50) == sum(each[step:])
    for wanted in (1, 2, 30, sum(each[step:])):
        count = sizes.covering(1, step, wanted)
        assert sum(each[step : step + count]) >= wanted > sum(each[step : step + count - 1])
    fresh = tables.scaled_sizes(plan, 3, SequentialOrder(0))
    assert fresh.at(1, step) == each[step]


def test_all_ranks_have_the_size_and_number_of_each_step() -> None:
    plan = VariableBatch(batch_size=4, scales=SQUARE)
    bound = bind(plan, 1000)
    for world_size in (1, 3, 8):
        cursor = bound.start()
        while cursor.epoch == 0:
            step, cursor = engine.next_step(bound, cursor, world_size)
            assert len({(str(batch.meta), len(batch.indices)) for batch in step}) == 1


def test_a_global_batch_is_that_of_the_reference_size_on_all_ranks() -> None:
    plan = VariableBatch(global_batch_size=24, scales=Scales.one(64, 64))
    for world_size in (1, 2, 3):
        found = batches(bind(plan, 480), world_size=world_size)
        assert {len(batch.indices) * world_size for batch in found} == {24}


def test_evaluation_has_the_base_size_in_order_and_nothing_twice() -> None:
    plan = VariableBatch(batch_size=8, scales=Scales(height=250, width=200), seed=3, repeats=2)
    found = batches(bind(plan.evaluation(), 20))
    assert [batch.indices.tolist() for batch in found] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    assert {(b.meta["height"], b.meta["width"]) for b in found} == {(250, 200)}
    assert base_only(plan.scales).height == 250
    video = VideoVariable(batch_size=2, random_clips=True).evaluation()
    assert {b.meta["clips"] for b in batches(bind(video, 9))} == {1}
