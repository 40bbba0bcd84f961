"""The stage: what batches want of the same shards is read once, and nothing else changes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unittest import mock

import numpy as np
import pytest

from headrace.plans import Sequential, ShardShuffled, Shuffled
from headrace.sources import Skip
from headrace_daemon.errors import StoreUnavailableError
from headrace_daemon.feed.feed import ReadyBatch
from headrace_daemon.feed.planner import Finish
from headrace_daemon.fetch import seats, windows
from tests.support.loops import LOOPS, run, turns, until
from tests.support.serving import Daemon, request, running_registry
from tests.support.sharded import shard_source, value_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from headrace.plans import Plan
    from headrace_daemon.feed.registry import OpenFeed
    from headrace_daemon.source.catalog import OpenSource
    from tests.support.loops import Loop
    from tests.support.sharded import ShardReader

BLOCK: Final = 2000
PLENTY: Final = 100 * BLOCK

SHARDS: Final = [
    [[number * 7 % 90 + 40, number % 5] for number in range(first, first + count)]
    for first, count in ((0, 1), (1, 3), (4, 50), (54, 7), (61, 100), (161, 20))
]
"""181 samples of two fields, one of them empty now and then, in uneven shards."""


FAR: Final[dict[str, Any]] = {
    "shards": [[[5000, 3]] * 60] * 2,
    "block_bytes": 50_000,
    "stage_bytes": 2_000_000,
    "budget_bytes": 4_000_000,
}
"""Samples that do not come in the range of others unless one means it."""


class Row(NamedTuple):
    """What came of a step of a rank."""

    rank: int
    epoch: int
    step: int
    samples: list[int]
    values: list[bytes | None]


class Kit:
    """A daemon whose one stream is over shards in memory."""

    def __init__(self, daemon: Daemon, source: OpenSource, reader: ShardReader) -> None:
        self.daemon = daemon
        self.manifest = source.manifest
        self.reader = reader

    async def open(self, world_size: int = 1, **fields: Any) -> list[OpenFeed]:  # noqa: ANN401
        """Open the feeds of all ranks, as those of one run on this node."""
        group = {"group": "run", "ranks": world_size} if world_size > 1 else {}
        return [
            await self.daemon.registry.open(
                request(rank=rank, world_size=world_size, **{**group, "epochs": 1, **fields})
            )
            for rank in range(world_size)
        ]

    async def take(self, entry: OpenFeed) -> Row | None:
        """Return what comes next of a feed; None at its end."""
        while True:
            await until(lambda: entry.feed.head() is not None)
            item = entry.feed.take()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Finish):
                return None
            if isinstance(item, ReadyBatch):
                row = self.row(item)
                entry.feed.pool.give_back(item.slot)
                return row

    def row(self, batch: ReadyBatch) -> Row:
        planned = batch.planned
        samples = planned.indices.tolist()
        offsets, lengths = batch.layout.offsets.tolist(), batch.lengths.tolist()
        values: list[bytes | None] = []
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
            if length > 1 << 60:
                values.append(None)
                continue
            value = bytes(batch.payload[offset : offset + length])
            column, row = divmod(number, len(samples))
            assert value == value_in(self.manifest, samples[row], column)
            values.append(value)
        return Row(planned.rank, planned.epoch, planned.step, samples, values)

    async def whole(self, entries: Sequence[OpenFeed]) -> list[Row]:
        """Return the rest of all feeds, a step of each in turn."""
        rows = []
        while entries:
            taken = [(entry, await self.take(entry)) for entry in entries]
            rows += [row for _, row in taken if row is not None]
            entries = [entry for entry, row in taken if row is not None]
        return rows

    async def close(self, entries: Sequence[OpenFeed]) -> None:
        for entry in entries:
            await self.daemon.registry.close(entry)


@asynccontextmanager
async def kit(
    plan: Plan,
    *,
    stage_bytes: int = PLENTY,
    shards: Sequence[Sequence[Sequence[int]]] = SHARDS,
    **options: Any,  # noqa: ANN401
) -> AsyncIterator[Kit]:
    """Run a daemon; in the end all memory must be back.

    Args:
        plan: Of the stream.
        stage_bytes: What the stage holds at most.
        shards: Of its source, see `placed`.
        options: Of `Daemon`.
    """
    source, reader = shard_source(shards)
    # Windows of some 20 samples, as far as the plan does not say more.
    small = mock.patch.multiple(windows, WINDOW_BYTES=3000, _LONG_BYTES=700, _HEADER_BYTES=64)
    with small:
        async with running_registry(
            plan=plan,
            source=source,
            stage_bytes=stage_bytes,
            **{"budget_bytes": 1 << 20, "block_bytes": BLOCK, **options},
        ) as daemon:
            try:
                yield Kit(daemon, source, reader)
            except BaseException:
                if reader.gate is not None:
                    reader.gate.set()  # a test that has failed shall end
                raise


def shuffled(window: int, batch_size: int = 8) -> ShardShuffled:
    return ShardShuffled(batch_size=batch_size, window=window, seed=3, tail="short")


def times(reader: ShardReader) -> tuple[int, int]:
    """Return how many times a byte was asked for, at least and at most, headers left out."""
    asked = [
        count
        for name, counts in reader.times_asked().items()
        for count, byte in zip(counts.tolist(), reader.shards[name], strict=True)
        if byte != ord("-")
    ]
    return min(asked), max(asked)


async def whole_run(world_size: int, plan: Plan, stage_bytes: int, **options: Any) -> list[Row]:  # noqa: ANN401
    async with kit(plan, stage_bytes=stage_bytes, **options) as it:
        entries = await it.open(world_size, epochs=2)
        rows = await it.whole(entries)
        await it.close(entries)
        return rows


@pytest.mark.parametrize(
    ("window", "world_size"),
    [(1, 2), (1, 3), (7, 1), (7, 2), (100, 1), (100, 3), (1000, 1), (1000, 3)],
)
def test_what_is_delivered_does_not_depend_on_the_stage(window: int, world_size: int) -> None:
    plan = shuffled(window)
    without = run(whole_run(world_size, plan, 0))
    assert run(whole_run(world_size, plan, PLENTY)) == without
    # Too little for a window of 100; and so little that windows of 7 make room for each other.
    assert run(whole_run(world_size, plan, 2 * BLOCK)) == without
    seen = [sample for row in without for sample in row.samples if row.epoch == 1]
    assert set(seen) == set(range(181))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(
    "plan",
    [shuffled(50), shuffled(1000), Sequential(batch_size=8), Sequential(batch_size=3)],
)
def test_each_byte_is_asked_for_once_in_a_pass(plan: Plan, world_size: int) -> None:
    async def go() -> None:
        assert isinstance(plan, Sequential | ShardShuffled)
        # What fills up the last step comes from the beginning: not here.
        even = [[[60, 3]] * 30] * 8
        async with kit(plan, shards=even) as it:
            entries = await it.open(world_size)
            await it.whole(entries)
            assert times(it.reader) == (1, 1)
            stage = it.daemon.stage
            is_staged = world_size > 1 or plan.batch_size == 3 or isinstance(plan, ShardShuffled)
            assert stage.num_hits == (480 if is_staged else 0)
            assert stage.num_again_bytes == 0
            if is_staged:
                # Long ranges: far fewer than samples.
                assert len(it.reader.asked) == stage.num_pieces < 240 / 4
                assert sum(stop - start for _, start, stop in it.reader.asked) == stage.num_bytes
            await it.close(entries)

    run(go())


def test_feeds_that_read_too_little_of_it_read_only_that() -> None:
    async def go() -> None:
        async with kit(shuffled(50), **FAR) as it:
            entry = await it.daemon.registry.open(request(rank=1, world_size=3, epochs=1))
            rows = await it.whole([entry])
            assert it.daemon.stage.num_pieces == 0
            placement = it.manifest.placement
            assert placement is not None
            samples = np.concatenate([row.samples for row in rows])
            wanted = int(placement.lengths[samples].sum())
            # Theirs, and the headers between neighbours.
            assert sum(stop - start for _, start, stop in it.reader.asked) < wanted + 32 * 2 * 40
            await it.close([entry])

    run(go())


def test_runs_of_other_world_sizes_share_no_stage() -> None:
    async def go() -> None:
        async with kit(shuffled(50), **FAR) as it:
            alone = await it.open()
            one_of_eight = await it.daemon.registry.open(request(world_size=8, epochs=1))
            await it.whole(alone)
            assert it.daemon.stage.num_hits == 2 * 120
            await it.close([*alone, one_of_eight])

    run(go())


@pytest.mark.parametrize("plan", [Shuffled(batch_size=8), Sequential(batch_size=8), shuffled(1)])
def test_one_feed_that_has_no_use_for_the_stage_does_without(plan: Plan) -> None:
    async def go() -> None:
        async with kit(plan) as it:
            entries = await it.open()
            assert entries[0].feed.seat is None or isinstance(plan, Shuffled)
            await it.whole(entries)
            assert it.daemon.stage.num_pieces == 0
            await it.close(entries)

    run(go())


def test_a_feed_that_begins_within_a_window_reads_just_what_it_needs_of_it() -> None:
    async def go() -> None:
        plan = shuffled(50)
        async with kit(plan, **FAR | {"stage_bytes": 0}) as it:
            entries = await it.open()
            rows = await it.whole(entries)
            await it.close(entries)
        async with kit(plan, **FAR) as it:
            # Position 80 of 120, in the window 50..99.
            entries = await it.open(start={"seek": {"sample": 80}}, prefetch=1)
            first = await it.take(entries[0])
            assert first == rows[10]
            # The next window is not begun yet.
            assert it.daemon.stage.num_pieces == 0
            assert await it.whole(entries) == rows[11:]
            assert it.daemon.stage.num_hits == 2 * 20
            asked = it.reader.times_asked()
            placement = it.manifest.placement
            assert placement is not None
            left = {sample for row in rows[10:] for sample in row.samples}
            for sample in range(120):
                shard, start = int(placement.shards[sample, 0]), int(placement.starts[sample, 0])
                assert asked[f"shard{shard:02}"][start] == (sample in left), sample
            await it.close(entries)

    run(go())


def test_the_next_window_is_begun_when_half_of_the_present_one_is_taken() -> None:
    async def go() -> None:
        async with kit(shuffled(80, batch_size=10)) as it:
            entries = await it.open(prefetch=1)
            begun: list[int] = []
            for _ in range(4):
                await until(lambda: entries[0].feed.num_ready == 2)
                begun.append(len(_windows(it)))
                await it.take(entries[0])
            # Two batches are filled ahead, so the fourth is filled before the third is taken.
            assert begun == [1, 1, 2, 2]
            await it.whole(entries)
            assert times(it.reader) == (1, 1)
            await it.close(entries)

    run(go())


def _windows(it: Kit) -> list[windows.Window]:
    return [
        window
        for audience in it.daemon.stage._audiences.values()
        for window in audience.windows.values()
    ]


def test_the_first_window_of_the_next_epoch_is_begun_in_the_last_of_this_one() -> None:
    async def go() -> None:
        async with kit(shuffled(1000, batch_size=50)) as it:
            entries = await it.open(epochs=2, prefetch=1)
            await it.take(entries[0])
            await until(lambda: {window.key for window in _windows(it)} == {(0, 0), (1, 0)})
            await it.whole(entries)
            assert it.daemon.stage.num_pieces == 2 * len(set(it.reader.asked))
            await it.close(entries)

    run(go())


def test_a_rank_that_comes_late_finds_what_others_have_read() -> None:
    async def go() -> None:
        async with kit(shuffled(50), shards=[[[60, 3]] * 100] * 2) as it:
            first, second = await it.open(2)
            await it.whole([first])
            num_asked = len(it.reader.asked)
            await it.whole([second])
            assert len(it.reader.asked) == num_asked
            await it.close([first, second])

    run(go())


def test_a_rank_that_is_far_ahead_does_not_push_out_what_others_need() -> None:
    async def go() -> None:
        async with kit(shuffled(10), **FAR | {"stage_bytes": 400_000}) as it:
            first, second = await it.open(2, prefetch=1)
            await it.whole([first])
            assert it.daemon.stage.held_bytes == 400_000
            await it.whole([second])
            # Beyond what fits, each has read what it needed.
            assert times(it.reader) == (1, 1)
            await it.close([first, second])

    run(go())


def test_windows_are_evicted_for_new_ones_when_all_have_passed_them() -> None:
    async def go() -> None:
        async with kit(shuffled(10, batch_size=2), **FAR | {"stage_bytes": 400_000}) as it:
            # Two of three ranks: what they have passed waits for the third, as long as it may.
            fields = {"world_size": 3, "group": "run", "ranks": 3, "epochs": 1, "prefetch": 1}
            two = [await it.daemon.registry.open(request(rank=rank, **fields)) for rank in range(2)]
            await it.whole(two)
            stage = it.daemon.stage
            assert stage.held_bytes == 400_000
            assert times(it.reader) == (1, 1)
            assert stage.num_again_bytes == 0
            num_bytes, num_hits = stage.num_bytes, stage.num_hits
            late = await it.daemon.registry.open(request(rank=2, **fields))
            await it.whole([late])
            # What is left it finds there; the rest it reads, without pushing out what it will need.
            # It has every third entry, two of fields, of the last four windows of twelve.
            assert stage.num_bytes == num_bytes
            assert stage.num_hits - num_hits == 2 * len(range(2, 120, 3)[26:])
            assert stage.num_again_bytes == 26 * 5003
            await it.close([*two, late])

    run(go())


def test_a_feed_that_needs_memory_gets_it_from_the_stage() -> None:
    async def go() -> None:
        async with kit(shuffled(1000), stage_bytes=200 * BLOCK, budget_bytes=70_000) as it:
            entries = await it.open(prefetch=1)
            first = await it.take(entries[0])
            await until(lambda: it.daemon.stage.held_bytes > 12 * BLOCK)
            account = await it.daemon.budget.open("other", 60_000, shed=lambda: None, need="much")
            assert it.daemon.stage.held_bytes == 0
            it.daemon.budget.close(account)
            rest = await it.whole(entries)
            assert [row.step for row in (first, *rest) if row] == list(range(23))
            await it.close(entries)

    run(go())


def test_what_is_read_again_because_memory_was_short_is_counted() -> None:
    async def go() -> None:
        async with kit(shuffled(1000), stage_bytes=200 * BLOCK, budget_bytes=70_000) as it:
            entries = await it.open(prefetch=1)
            first = await it.take(entries[0])
            await until(lambda: entries[0].feed.num_ready == 2)
            account = await it.daemon.budget.open("other", 60_000, shed=lambda: None, need="much")
            it.daemon.budget.close(account)
            rows = [first, *await it.whole(entries)]
            lengths = [len(value) for row in rows if row for value in row.values if value]
            stage = it.daemon.stage
            assert 0 < stage.num_hits < len(lengths)
            assert stage.num_again_bytes == sum(lengths[stage.num_hits :])
            await it.close(entries)

    run(go())


@pytest.mark.parametrize("loop", LOOPS)
def test_memory_that_is_being_read_into_is_given_back_when_the_reads_have_ended(
    loop: Loop,
) -> None:
    async def go() -> None:
        async with kit(shuffled(1000), stage_bytes=200 * BLOCK, budget_bytes=70_000) as it:
            gate = it.reader.gate = asyncio.Event()
            it.reader.lingers = True
            entries = await it.open(prefetch=1)
            await until(lambda: it.reader.asked)
            held = it.daemon.stage.held_bytes
            assert held > 12 * BLOCK
            num_asked = len(it.reader.asked)
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(
                    it.daemon.budget.open("other", 60_000, shed=lambda: None, need="much"),
                    name="other",
                )
                await turns(50)
                assert (it.daemon.stage.held_bytes, opening.done()) == (held, False)
                gate.set()
            assert it.daemon.stage.held_bytes == 0
            # The batches read by themselves now.
            assert len(await it.whole(entries)) == 23
            assert len(it.reader.asked) > num_asked
            assert it.daemon.stage.num_hits == 0
            it.daemon.budget.close(opening.result())
            await it.close(entries)

    run(go(), loop)


def test_a_window_that_a_batch_copies_from_keeps_its_memory_until_it_has_copied() -> None:
    async def go() -> None:
        async with kit(shuffled(1000), stage_bytes=200 * BLOCK, budget_bytes=70_000) as it:
            entries = await it.open(prefetch=1)
            # Between each two values others run, and one of them wants all memory.
            await until(lambda: any(window.is_over for window in _windows(it)))
            (window,) = _windows(it)
            await until(lambda: window.num_users > 0)
            it.daemon.stage._shed()
            assert window.is_gone
            assert window.blocks
            await until(lambda: window.num_users == 0)
            assert not window.blocks
            assert len(await it.whole(entries)) == 23
            await it.close(entries)

    with mock.patch.object(seats, "COPY_BYTES", 10):
        run(go())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_feed_that_is_closed_within_a_window_leaves_nothing(loop: Loop) -> None:
    async def go() -> None:
        async with kit(shuffled(1000)) as it:
            it.reader.gate = asyncio.Event()
            first, second = await it.open(2)
            await until(lambda: it.reader.asked)
            await it.close([first])
            assert it.daemon.stage.held_bytes > 0  # the other one waits for it
            await it.close([second])
            await until(lambda: it.daemon.stage.held_bytes == 0)
            assert it.daemon.budget.held_bytes == 0

    run(go(), loop)


def test_the_daemon_may_end_while_a_window_is_read() -> None:
    async def go() -> None:
        async with kit(shuffled(1000)) as it:
            it.reader.gate = asyncio.Event()
            await it.open(3)
            await until(lambda: it.reader.asked)

    run(go())


def test_a_shard_that_cannot_be_read_makes_the_same_holes() -> None:
    async def go(stage_bytes: int) -> list[Row]:
        async with kit(shuffled(100), stage_bytes=stage_bytes) as it:
            stream = it.daemon.stream
            it.daemon.settings.streams["train"] = type(stream)(
                stream.source, stream.plan, on_bad=Skip(limit=100)
            )
            it.reader.bad.add("shard02")
            entries = await it.open(2)
            rows = await it.whole(entries)
            skipped = [entry.feed.statistics.num_skipped for entry in entries]
            assert sum(skipped) >= 50
            await it.close(entries)
            return rows

    rows = run(go(PLENTY))
    assert rows == run(go(0))
    assert any(None in row.values for row in rows)


def test_an_error_is_that_of_the_batch() -> None:
    async def go(stage_bytes: int) -> str:
        async with kit(shuffled(100), stage_bytes=stage_bytes) as it:
            it.reader.bad.add("shard02")
            entries = await it.open()
            steps = 0
            with pytest.raises(Exception, match="shard02") as caught:
                while True:
                    await it.take(entries[0])
                    steps += 1
            await it.close(entries)
            return f"{steps} {type(caught.value)} {caught.value}"

    assert run(go(PLENTY)) == run(go(0))


def test_a_source_that_does_not_answer_the_stage_is_asked_by_the_batches() -> None:
    async def go() -> None:
        async with kit(shuffled(1000)) as it:
            it.reader.gate = asyncio.Event()
            it.reader.failure = StoreUnavailableError("store", "does not answer")
            entries = await it.open()
            await until(lambda: it.reader.asked)
            gate, it.reader.gate = it.reader.gate, asyncio.Event()
            gate.set()
            staged = len(it.reader.asked)
            await until(lambda: len(it.reader.asked) > staged)
            it.reader.failure = None
            it.reader.gate.set()
            assert len(await it.whole(entries)) == 23
            assert it.daemon.stage.num_hits == 0
            await it.close(entries)

    run(go())


def test_a_batch_does_not_wait_for_ever() -> None:
    async def go() -> None:
        async with kit(shuffled(1000)) as it:
            it.reader.gate = asyncio.Event()
            entries = await it.open(prefetch=1)
            await until(lambda: it.reader.asked)
            stuck = it.reader.gate
            it.reader.gate = None
            first = await it.take(entries[0])
            assert first is not None
            assert it.daemon.stage.num_hits == 0
            stuck.set()
            await it.close(entries)

    with mock.patch.object(seats, "PATIENCE_S", 0.2):
        run(go())


def test_a_bug_in_the_stage_costs_a_window_and_no_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        async with kit(shuffled(100)) as it:
            with mock.patch.object(windows, "cut", side_effect=ZeroDivisionError("oops")):
                entries = await it.open()
                assert len(await it.whole(entries)) == 23
            await it.close(entries)

    run(go())
    assert "oops" in caplog.text
