"""The registry: feeds open with their memory or not at all, and give all of it back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headrace.errors import BudgetError, CursorError, FeedError, PlanError, TopologyError
from headrace.plans import Sequential
from headrace.shards import Shards
from headrace.sources import Stream
from headrace_daemon.errors import SourceMissingError
from headrace_daemon.feed import registry as registry_module
from headrace_daemon.feed.feed import ReadyBatch
from tests.support.loops import run, turns, until
from tests.support.reading import GatedReader
from tests.support.serving import DATA, SLOT_BYTES, Daemon, request, running_registry

if TYPE_CHECKING:
    from headrace_daemon.feed.registry import OpenFeed
    from tests.support.loops import Loop


class Unwatch:
    """Counts how often it was told to stop watching."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def next_step(entry: OpenFeed) -> tuple[int, int]:
    await until(lambda: entry.feed.head() is not None)
    item = entry.feed.take()
    assert isinstance(item, ReadyBatch), item
    entry.feed.pool.give_back(item.slot)
    return item.planned.epoch, item.planned.step


# ---- opening -------------------------------------------------------------------------------------


def test_an_open_feed_reads_ahead_of_its_position(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request(start={"seek": {"update": 13}}))
            assert daemon.registry.feeds == [entry]
            assert daemon.budget.guaranteed_bytes == 2 * SLOT_BYTES
            assert [await next_step(entry) for _ in range(2)] == [(1, 3), (1, 4)]

    run(main(), loop)


def test_tokens_are_secrets(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            tokens = {(await daemon.registry.open(request())).token for _ in range(3)}
            assert len(tokens) == 3
            assert all(len(token) == 32 for token in tokens)

    run(main(), loop)


def test_a_feed_holds_as_many_batches_as_it_was_asked_to(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entries = [await daemon.registry.open(request(prefetch=number)) for number in (1, 5)]
            await until(lambda: sum(entry.feed.num_ready for entry in entries) == 8)
            await turns(10)
            assert [entry.feed.num_ready for entry in entries] == [2, 6]

    run(main(), loop)


def test_a_feed_that_does_not_fit_is_refused_with_the_numbers(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=5 * SLOT_BYTES) as daemon:
            await daemon.registry.open(request())
            await daemon.registry.open(request())
            with pytest.raises(BudgetError) as refusal:
                await daemon.registry.open(request(rank=1, world_size=4))
            text = str(refusal.value)
            facts = (
                "feed train rank=1/4 needs 2 slots of 128 bytes",
                "2 samples, of epoch 0",
                "256 bytes, 1024 for 4 rank(s)",
                "the budget is 640 bytes ([daemon] memory)",
                "512 are promised to 2 open feed(s) and 128 are left",
                "raise memory to at least 768 bytes, or use a smaller batch",
            )
            for fact in facts:
                assert fact in text
            assert len(daemon.registry.feeds) == 2

    run(main(), loop)


def test_a_newcomer_gets_its_two_slots_from_the_surplus_of_others(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=6 * SLOT_BYTES) as daemon:
            first = await daemon.registry.open(request(prefetch=100))
            await until(lambda: first.feed.num_ready == 6)
            second = await daemon.registry.open(request(prefetch=100))
            assert daemon.budget.held_bytes <= 6 * SLOT_BYTES
            assert [await next_step(second) for _ in range(5)] == [(0, n) for n in range(5)]
            assert [await next_step(first) for _ in range(5)] == [(0, n) for n in range(5)]

    run(main(), loop)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"first": -1}, r"first=-1 is out of range: it must be in 0\.\.2147483648"),
        ({"stride": 0}, "stride=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"prefetch": 5000}, r"prefetch=5000 is out of range: it must be in 1\.\.4096"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2, "stride": 2}, "epochs=2 with stride=2: a part is one epoch"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(fields: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            with pytest.raises(PlanError, match=reason):
                await daemon.registry.open(request(**fields))
            daemon.assert_whole()

    run(main())


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            with pytest.raises(TopologyError, match=f"rank={rank}"):
                await daemon.registry.open(request(rank=rank, world_size=2))
            daemon.assert_whole()

    run(main())


def test_batches_that_no_header_can_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_BATCH_SAMPLES", 1)

    async def main() -> None:
        async with running_registry() as daemon:
            with pytest.raises(PlanError, match="a batch of 2 samples per rank is above the limit"):
                await daemon.registry.open(request())
            daemon.assert_whole()

    run(main())


def test_batches_that_no_frame_can_carry_are_refused() -> None:
    async def main() -> None:
        async with running_registry(sizes=[2**32, 1], budget_bytes=2**40) as daemon:
            with pytest.raises(PlanError, match="the largest batch of epoch 0 has 4294967360 byte"):
                await daemon.registry.open(request())
            daemon.assert_whole()

    run(main())


def test_a_part_behind_the_end_of_all_numbers_costs_no_memory(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(plan=Sequential(batch_size=1)) as daemon:
            late = {"seek": {"update": 2**63 - 5}}
            for _ in range(50):
                with pytest.raises(CursorError, match="out of range"):
                    await daemon.registry.open(request(start=late, first=10, stride=2))
            daemon.assert_whole()

    run(main(), loop)


def test_a_source_that_is_missing_costs_no_memory(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            daemon.catalog.failure = SourceMissingError("/data", "folder /data does not exist")
            with pytest.raises(SourceMissingError):
                await daemon.registry.open(request())
            daemon.assert_whole()

    run(main(), loop)


def test_an_opening_can_be_cancelled_while_it_lists(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            daemon.catalog.gate = asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(daemon.registry.open(request()))
                await until(lambda: daemon.catalog.num_waiting)
                opening.cancel()
            assert opening.cancelled()
            daemon.assert_whole()

    run(main(), loop)


def test_an_opening_can_be_cancelled_while_it_waits_for_memory(loop: Loop) -> None:
    async def main() -> None:
        reader = GatedReader(lingers=True)
        async with running_registry(budget_bytes=5 * SLOT_BYTES, reader=reader) as daemon:
            first = await daemon.registry.open(request(prefetch=4))
            await until(lambda: len(reader.reads) == 5)
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(daemon.registry.open(request()))
                await until(lambda: daemon.budget.is_under_pressure)
                await turns(3)
                opening.cancel()
            assert opening.cancelled()
            assert daemon.registry.feeds == [first]
            assert daemon.budget.guaranteed_bytes == 2 * SLOT_BYTES
            reader.finish_all()
            await until(lambda: len(reader.under_way) == 3)  # shed, and planned again
            reader.finish_all()
            assert [await next_step(first) for _ in range(5)] == [(0, n) for n in range(5)]
            await finish_reads_until_closed(daemon)

    run(main(), loop)


async def finish_reads_until_closed(daemon: Daemon) -> None:
    async with asyncio.TaskGroup() as tasks:
        for entry in daemon.registry.feeds:
            closing = tasks.create_task(daemon.registry.close(entry))
            while not closing.done():
                daemon.gated.finish_all()
                await turns()


# ---- closing -------------------------------------------------------------------------------------


def test_closing_gives_everything_back_and_a_second_time_does_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request())
            await next_step(entry)
            await daemon.registry.close(entry)
            daemon.assert_whole()
            await daemon.registry.close(entry)
            daemon.registry.close_soon(entry)
            await turns(3)

    run(main(), loop)


def test_closing_waits_for_reads_that_cannot_be_interrupted(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(reader=GatedReader(lingers=True)) as daemon:
            entry = await daemon.registry.open(request())
            await until(lambda: len(daemon.gated.reads) == 5)
            async with asyncio.TaskGroup() as tasks:
                closing = tasks.create_task(daemon.registry.close(entry))
                await turns(5)
                assert not closing.done()
                assert daemon.budget.held_bytes == 5 * SLOT_BYTES
                daemon.gated.finish_all()
            daemon.assert_whole()

    run(main(), loop)


def test_a_close_that_is_cancelled_goes_on_all_the_same(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(reader=GatedReader(lingers=True)) as daemon:
            entry = await daemon.registry.open(request())
            await until(lambda: len(daemon.gated.reads) == 5)
            async with asyncio.TaskGroup() as tasks:
                closing = tasks.create_task(daemon.registry.close(entry))
                await turns(5)
                closing.cancel()
            assert closing.cancelled()
            daemon.gated.finish_all()
            await daemon.whole()

    run(main(), loop)


def test_a_newcomer_waits_for_the_memory_of_a_feed_that_is_being_closed(loop: Loop) -> None:
    async def main() -> None:
        reader = GatedReader(lingers=True)
        async with running_registry(budget_bytes=2 * SLOT_BYTES, reader=reader) as daemon:
            dead = await daemon.registry.open(request())
            await until(lambda: len(reader.reads) == 2)
            daemon.registry.close_soon(dead)
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(daemon.registry.open(request()))
                await turns(5)
                assert not opening.done()
                reader.finish_all()
            assert daemon.registry.feeds == [opening.result()]
            await finish_reads_until_closed(daemon)

    run(main(), loop)


def test_leaving_the_registry_closes_all_feeds_parked_ones_too(loop: Loop) -> None:
    async def main() -> None:
        unwatch = Unwatch()
        async with running_registry() as daemon:
            entries = [await daemon.registry.open(request()) for _ in range(3)]
            daemon.registry.park(entries[1], unwatch=unwatch)
            daemon.registry.close_soon(entries[2])
        assert unwatch.count == 1

    run(main(), loop)


def test_a_cancelled_registry_closes_all_feeds(loop: Loop) -> None:
    async def serve(daemon: Daemon) -> None:
        async with daemon.registry:
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        daemon = Daemon(reader=GatedReader(lingers=True))
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(serve(daemon))
            await turns()
            entries = [await daemon.registry.open(request()) for _ in range(2)]
            await until(lambda: len(daemon.gated.reads) == 10)
            daemon.registry.close_soon(entries[0])
            serving.cancel()
            for reads in (daemon.gated.reads[5:], daemon.gated.reads[:5]):
                await turns(10)
                assert not serving.done()
                for read in reads:
                    read.finish()
        assert serving.cancelled()
        daemon.assert_whole()

    run(main(), loop)


def test_a_bug_at_a_close_costs_one_feed_and_not_the_daemon(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        daemon = Daemon()
        async with daemon.registry:
            entry = await daemon.registry.open(request())
            await until(lambda: entry.feed.num_ready == 5)
            entry.feed.take()  # and never gives it back
            await daemon.registry.close(entry)
            other = await daemon.registry.open(request())
            assert await next_step(other) == (0, 0)

    run(main(), loop)
    assert "feed not closed feed=train rank=0/1" in caplog.text


# ---- parking -------------------------------------------------------------------------------------


def test_a_parked_feed_is_taken_up_with_the_same_memory(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=2 * SLOT_BYTES) as daemon:
            first = await daemon.registry.open(request())
            assert await next_step(first) == (0, 0)
            unwatch = Unwatch()
            daemon.registry.park(first, unwatch=unwatch)
            assert first.grace is not None
            start = {"seek": {"update": 1}}
            again = await daemon.registry.open(request(token=first.token, start=start))
            assert again.token == first.token
            assert again.feed.pool is first.feed.pool
            assert unwatch.count == 1
            assert daemon.registry.feeds == [again]
            assert [await next_step(again) for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]

    run(main(), loop)


def test_a_streamed_feed_that_cannot_be_taken_up_with_another_stream_is_closed_whole(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running_registry(sizes=[3 << 20] * 4, budget_bytes=4 << 20) as daemon:
            source = Shards(DATA, fields=["jpg"], index=False)
            daemon.settings.streams["shards"] = Stream(source, Sequential(batch_size=1))
            entry = await daemon.registry.open(request(stream="shards"))
            daemon.registry.park(entry, unwatch=Unwatch())
            with pytest.raises(BudgetError):
                await daemon.registry.open(request(token=entry.token))
            await daemon.whole()

    run(main(), loop)
    assert "feed not closed" not in caplog.text


def test_the_old_entry_of_a_feed_that_was_taken_up_closes_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            first = await daemon.registry.open(request())
            daemon.registry.park(first, unwatch=Unwatch())
            again = await daemon.registry.open(request(token=first.token))
            await daemon.registry.close(first)
            daemon.registry.close_soon(first)
            await turns(3)
            assert daemon.registry.feeds == [again]
            assert await next_step(again) == (0, 0)

    run(main(), loop)


def test_a_feed_that_is_still_attached_cannot_be_taken_up(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request())
            with pytest.raises(FeedError, match="still attached") as refusal:
                await daemon.registry.open(request(token=entry.token))
            assert (refusal.value.code, refusal.value.retryable) == ("busy", True)
            assert daemon.registry.feeds == [entry]

    run(main(), loop)


def test_a_feed_is_taken_up_by_one_only(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request())
            daemon.registry.park(entry, unwatch=Unwatch())
            daemon.catalog.gate = asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(daemon.registry.open(request(token=entry.token)))
                await until(lambda: daemon.catalog.num_waiting)
                with pytest.raises(FeedError, match="still attached"):
                    await daemon.registry.open(request(token=entry.token))
                daemon.catalog.gate.set_result(None)
            assert daemon.registry.feeds == [opening.result()]

    run(main(), loop)


def test_an_unknown_token_opens_a_new_feed(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request(token="of the daemon before this one"))
            assert entry.token != "of the daemon before this one"

    run(main(), loop)


def test_the_grace_time_ends(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(grace_s=0.0) as daemon:
            entry, unwatch = await daemon.registry.open(request()), Unwatch()
            daemon.registry.park(entry, unwatch=unwatch)
            await until(lambda: not daemon.registry.feeds)
            await daemon.whole()
            assert unwatch.count == 1

    run(main(), loop)


def test_a_feed_that_was_taken_up_does_not_expire(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(grace_s=0.0) as daemon:
            entry = await daemon.registry.open(request())
            daemon.registry.park(entry, unwatch=Unwatch())
            again = await daemon.registry.open(request(token=entry.token))  # before the timer
            await turns(20)
            assert daemon.registry.feeds == [again]
            assert await next_step(again) == (0, 0)

    run(main(), loop)


def test_a_take_up_that_fails_closes_the_parked_feed(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request())
            daemon.registry.park(entry, unwatch=Unwatch())
            with pytest.raises(CursorError):
                await daemon.registry.open(request(token=entry.token, start={"seek": {}}))
            await daemon.whole()

    run(main(), loop)


@pytest.mark.parametrize("where", ["listing", "stopping"])
def test_a_take_up_that_is_cancelled_closes_the_parked_feed(loop: Loop, where: str) -> None:
    async def main() -> None:
        async with running_registry(reader=GatedReader(lingers=True)) as daemon:
            entry = await daemon.registry.open(request())
            await until(lambda: len(daemon.gated.reads) == 5)
            daemon.registry.park(entry, unwatch=Unwatch())
            if where == "listing":
                daemon.catalog.gate = asyncio.get_running_loop().create_future()
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(daemon.registry.open(request(token=entry.token)))
                await turns(10)
                assert not opening.done()
                opening.cancel()
            daemon.gated.finish_all()
            await daemon.whole()

    run(main(), loop)


def test_a_take_up_may_need_another_size_of_slots(loop: Loop) -> None:
    async def main() -> None:
        sizes = [200, 200, 40, 40, 40, 40]
        async with running_registry(sizes=sizes, budget_bytes=10_000) as daemon:
            first = await daemon.registry.open(request())
            assert first.feed.pool.slot_bytes == 512
            daemon.registry.park(first, unwatch=Unwatch())
            start = {"seek": {"update": 1}}
            again = await daemon.registry.open(request(token=first.token, start=start))
            assert again.feed.pool.slot_bytes == 128
            assert [await next_step(again) for _ in range(2)] == [(0, 1), (0, 2)]
            assert daemon.budget.guaranteed_bytes in (256, 1024)  # the next epoch needs 1024

    run(main(), loop)


def test_a_parked_feed_tells_nobody_of_its_changes(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(reader=GatedReader()) as daemon:
            entry = await daemon.registry.open(request())
            told = Unwatch()
            entry.feed.on_change = told
            daemon.registry.park(entry, unwatch=Unwatch())
            await until(lambda: len(daemon.gated.reads) == 5)
            daemon.gated.finish_all()
            await until(lambda: entry.feed.num_ready == 5)
            assert told.count == 0

    run(main(), loop)


def test_a_part_of_a_stream_is_one_epoch_of_every_so_many_steps(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            entry = await daemon.registry.open(request(first=1, stride=4))
            steps = [await next_step(entry) for _ in range(3)]
            assert steps == [(0, 1), (0, 5), (0, 9)]

    run(main(), loop)
