"""The feed: the order of the plan at its head, and a pool that is whole after any end."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BudgetError, FeedError, HeadraceError
from headrace.plans import Cursor, Sequential, Shuffled
from headrace.plans.engine import BoundPlan, largest_batch
from headrace.topology import Topology
from headrace_daemon.assemble.layout import padded
from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.feed.feed import ReadyBatch
from headrace_daemon.feed.planner import EpochEdge, Finish
from headrace_daemon.fetch.budget import Budget
from tests.support.feeding import (
    SLOT_BYTES,
    FeedKit,
    make_feed,
    open_pool,
    running_feed,
    stop,
)
from tests.support.loops import run, turns, until
from tests.support.planning import bind
from tests.support.reading import GatedExecutor, GatedReader, ReadyReader, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from headrace.plans import Plan
    from headrace_daemon.assemble.slots import SlotPool
    from tests.support.loops import Loop


def missing(name: str) -> ObjectMissingError:
    return ObjectMissingError(name, f"{name} is gone")


# ---- the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_batches_come_in_the_order_of_the_plan_whatever_order_the_reads_finish_in(
    order: tuple[int, ...],
) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            taking = kit.take(4)
            for number in order:
                kit.gated.reads[number].finish()
                await turns(3)
            assert await taking == [(0, 0), (0, 1), (0, 2), (0, 3)]

    run(main())


def test_a_head_that_is_being_read_is_not_handed_out(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            assert kit.feed.head() is None
            await until(lambda: len(kit.gated.reads) == 4)
            for read in kit.gated.reads[1:]:
                read.finish()
            await until(lambda: kit.feed.num_ready == 3)
            assert kit.feed.num_filling == 1
            assert kit.feed.head() is None
            kit.gated.reads[0].finish()
            assert await kit.take(1) == [(0, 0)]

    run(main(), loop)


def test_whoever_waits_is_told_when_the_head_may_be_ready(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(sizes=[40] * 2, epochs=1) as kit:
            told = asyncio.Event()
            kit.feed.on_change = told.set
            seen = []
            for _ in range(2):
                await until(lambda: kit.gated.under_way or kit.feed.head())
                kit.gated.finish_all()
                while kit.feed.head() is None:
                    told.clear()
                    await told.wait()
                seen.append(type(await kit.next()))
            kit.let_go()
            while kit.feed.head() is None:
                told.clear()
                await told.wait()
            seen.append(type(await kit.next()))
            assert seen == [ReadyBatch, EpochEdge, Finish]

    run(main(), loop)


def test_values_lie_where_the_layout_says(loop: Loop) -> None:
    async def main() -> None:
        sizes = [0, 1, 63, 64, 65, 200, 7, 0, 0, 128]
        plan = Shuffled(batch_size=3, seed=1)
        async with running_feed(
            sizes=sizes, plan=plan, slot_bytes=512, budget_bytes=10_000, reader=ReadyReader()
        ) as kit:
            names = set()
            for _ in range(4):
                batch = await kit.next()
                assert isinstance(batch, ReadyBatch)
                names.update(batch.names)
                kit.let_go()
            assert len(names) == 10

    run(main(), loop)


# ---- how far ahead -------------------------------------------------------------------------------


def test_reading_ahead_stops_when_the_slots_are_used_up(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=3) as kit:
            await until(lambda: len(kit.gated.reads) == 3)
            kit.gated.finish_all()
            await turns(10)
            assert len(kit.gated.reads) == 3
            batch = await kit.next()
            await turns(10)
            assert len(kit.gated.reads) == 3  # its slot is still in use
            assert isinstance(batch, ReadyBatch)
            kit.let_go()
            await until(lambda: len(kit.gated.reads) == 4)

    run(main(), loop)


def test_the_budget_limits_the_reading_ahead(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=100, budget_bytes=7 * SLOT_BYTES) as kit:
            await until(lambda: len(kit.gated.reads) == 7)
            await turns(10)
            assert len(kit.gated.reads) == 7
            assert kit.budget.held_bytes == 7 * SLOT_BYTES

    run(main(), loop)


# ---- epochs --------------------------------------------------------------------------------------


def test_edges_and_the_finish_have_their_place_between_the_batches(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(sizes=[40] * 4, epochs=2, reader=ReadyReader()) as kit:
            seen: list[object] = []
            for _ in range(7):
                match await kit.next():
                    case ReadyBatch() as batch:
                        seen.append((batch.planned.epoch, batch.planned.step))
                        kit.let_go()
                    case EpochEdge(epoch, cursor):
                        seen.append(f"{epoch}->{cursor.epoch}")
                    case Finish():
                        seen.append("finish")
            assert seen == [(0, 0), (0, 1), "0->1", (1, 0), (1, 1), "1->2", "finish"]
            await turns(10)
            assert kit.feed.head() is None

    run(main(), loop)


@pytest.mark.parametrize("sizes", [[128, 256, 640], [640, 256, 128], [128, 128, 640]])
def test_each_epoch_has_slots_of_its_own_size(loop: Loop, sizes: list[int]) -> None:
    async def main() -> None:
        async with running_feed(
            sizes=[40] * 6,
            slot_bytes=sizes[0],
            budget_bytes=3 * 640,
            size_slots=lambda epoch: sizes[min(epoch, 2)],
            reader=ReadyReader(),
        ) as kit:
            for epoch in range(3):
                for _ in range(3):
                    batch = await kit.next()
                    assert isinstance(batch, ReadyBatch)
                    assert (batch.planned.epoch, batch.slot.size) == (epoch, sizes[epoch])
                    kit.let_go()
                assert isinstance(await kit.next(), EpochEdge)
                assert kit.budget.held_bytes <= kit.budget.total_bytes

    run(main(), loop)


def test_an_epoch_whose_slots_do_not_fit_fails_after_the_batches_before_it(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(
            sizes=[40] * 4, size_slots=lambda epoch: SLOT_BYTES if epoch == 0 else 10**6
        ) as kit:
            await until(lambda: len(kit.gated.reads) == 2)
            await turns(10)
            kit.gated.reads[1].finish()
            await turns(10)
            kit.gated.reads[0].finish()
            assert await kit.take(2) == [(0, 0), (0, 1)]
            assert isinstance(await kit.next(), EpochEdge)
            error = await kit.next()
            assert isinstance(error, BudgetError)
            assert "epoch 1 of feed train rank=0/1 needs slots of 1000000 bytes" in str(error)

    run(main(), loop)


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_an_error_keeps_its_place_behind_the_batches_before_it(order: tuple[int, ...]) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            for number in order:
                read = kit.gated.reads[number]
                if number == 2:
                    read.fail(missing("s004"))
                else:
                    read.finish()
                await turns(3)
            assert await kit.take(2) == [(0, 0), (0, 1)]
            assert str(await kit.next()) == "s004 is gone"

    run(main())


def test_of_two_errors_the_one_that_is_first_in_the_stream_comes_first(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            kit.gated.reads[3].fail(missing("s006"))
            await turns(3)
            kit.gated.reads[1].fail(missing("s002"))
            kit.gated.reads[0].finish()
            assert await kit.take(1) == [(0, 0)]
            assert str(await kit.next()) == "s002 is gone"

    run(main(), loop)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_bug_in_a_reader_ends_the_feed_with_an_error_and_not_with_silence(
    loop: Loop, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            for read in kit.gated.reads[:number]:
                read.finish()
            await until(lambda: kit.feed.num_ready == number)
            kit.gated.reads[number].fail(RuntimeError("a bug"))
            await kit.take(number)
            error = await kit.next()
            assert isinstance(error, FeedError)
            assert (error.code, error.fault) == ("internal", "daemon")
            assert "a bug" in str(error)

    run(main(), loop)
    assert "feed failed feed=train rank=0/1" in caplog.text


def test_batches_behind_one_that_a_bug_took_are_not_delivered(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed() as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            kit.gated.reads[0].finish()
            kit.gated.reads[2].finish()
            await until(lambda: kit.feed.num_ready == 2)
            kit.gated.reads[3].fail(RuntimeError("a bug"))
            assert await kit.take(1) == [(0, 0)]
            assert isinstance(await kit.next(), FeedError)
            assert kit.feed.head() is None

    run(main(), loop)


def test_a_failure_to_size_the_next_epoch_is_an_error_and_not_silence(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def size(epoch: int) -> int:
        raise RuntimeError(f"no size for {epoch}")

    async def main() -> None:
        async with running_feed(size_slots=size) as kit:
            await turns(5)
            kit.gated.finish_all()
            while isinstance(item := await kit.next(), ReadyBatch):
                kit.let_go()
            assert isinstance(item, HeadraceError)
            assert "no size for 1" in str(item)

    run(main(), loop)
    assert "feed failed" in caplog.text


# ---- shedding ------------------------------------------------------------------------------------


def test_shed_batches_are_planned_again_and_the_order_stays(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=6) as kit:
            await until(lambda: len(kit.gated.reads) == 6)
            for read in kit.gated.reads[:4]:
                read.finish()
            await until(lambda: kit.feed.num_ready == 4)
            other = await open_pool(kit.budget, slot_bytes=4 * SLOT_BYTES, name="other")
            assert kit.pool.num_slots == 2
            other.close()
            await until(lambda: len(kit.gated.under_way) == 4)
            kit.gated.finish_all()
            assert await kit.take(6) == [(0, step) for step in range(6)]

    run(main(), loop)


def test_what_is_being_read_is_shed_when_its_read_has_ended(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=6, reader=GatedReader(lingers=True)) as kit:
            await until(lambda: len(kit.gated.reads) == 6)
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(open_pool(kit.budget, slot_bytes=4 * SLOT_BYTES))
                await turns(10)
                assert not opening.done()
                assert [read.is_cancelled for read in kit.gated.reads] == 2 * [False] + 4 * [True]
                for read in kit.gated.reads[2:]:
                    read.finish()
            opening.result().close()
            kit.gated.finish_all()
            await until(lambda: len(kit.gated.reads) == 10)
            kit.gated.finish_all()
            assert await kit.take(6) == [(0, step) for step in range(6)]

    run(main(), loop)


def test_memory_that_is_on_its_way_back_is_not_shed_a_second_time(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=6, reader=GatedReader(lingers=True)) as kit:
            await until(lambda: len(kit.gated.reads) == 6)
            for read in kit.gated.reads[:2]:
                read.finish()
            await until(lambda: kit.feed.num_ready == 2)
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(open_pool(kit.budget, slot_bytes=4 * SLOT_BYTES))
                for read in kit.gated.reads[2:]:
                    await turns(10)
                    assert kit.feed.num_ready == 2
                    read.finish()
            opening.result().close()

    run(main(), loop)


def test_a_batch_may_be_shed_before_its_read_has_begun(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed(max_slots=6)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kit.feed.run())
            # Right after the lookahead has placed batches, and before their tasks have run.
            await until(lambda: kit.feed.num_filling == 6)
            assert kit.gated.reads == []
            kit.feed.shed()
            assert kit.pool.num_slots == 2
            await until(lambda: len(kit.gated.reads) == 6)
            kit.gated.finish_all()
            assert await kit.take(6) == [(0, step) for step in range(6)]
            await stop(kit)

    run(main(), loop)


def test_a_batch_that_fails_while_it_is_shed_fails_again_in_its_place(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=4, reader=GatedReader(lingers=True)) as kit:
            await until(lambda: len(kit.gated.reads) == 4)
            kit.feed.shed()
            await turns(3)
            kit.gated.reads[3].fail(missing("s006"))
            kit.gated.reads[2].finish()
            await until(lambda: len(kit.gated.reads) == 6)
            kit.gated.finish_all()
            assert await kit.take(4) == [(0, step) for step in range(4)]

    run(main(), loop)


def test_shedding_keeps_the_guaranteed_batches_at_the_head(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=6) as kit:
            await until(lambda: len(kit.gated.reads) == 6)
            kit.gated.finish_all()
            await until(lambda: kit.feed.num_ready == 6)
            await kit.next()  # is being sent
            kit.feed.shed()
            assert kit.feed.num_ready == 1
            assert kit.pool.num_slots >= 2

    run(main(), loop)


def slot_sizes(sizes: Sequence[int], plan: Plan) -> Callable[[int], int]:
    """Return what says how large the slots of an epoch are."""
    manifest = source_of(sizes, ReadyReader()).manifest
    bound = BoundPlan(plan, len(sizes), manifest.digest)

    def size_slots(epoch: int) -> int:
        cursor = Cursor(plan=bound.digest, manifest=bound.manifest, epoch=epoch)
        return largest_batch(
            bound, cursor, Topology(), lambda indices: padded(manifest.sizes[indices])
        ).weight

    return size_slots


@pytest.mark.parametrize("epochs", [1, None], ids=["finished", "endless"])
def test_surplus_is_shed_across_the_edges_of_epochs(loop: Loop, epochs: int | None) -> None:
    """A short stream that nobody reads from must not keep its neighbours out."""

    async def main() -> None:
        async with running_feed(
            sizes=[40] * 8, epochs=epochs, max_slots=6, reader=ReadyReader()
        ) as kit:
            await until(lambda: kit.feed.num_ready == (4 if epochs else 6))
            other = await open_pool(kit.budget, slot_bytes=4 * SLOT_BYTES, name="other")
            assert kit.pool.num_slots == 2
            other.close()
            assert await kit.take(4) == [(0, step) for step in range(4)]
            assert isinstance(await kit.next(), EpochEdge)
            if epochs:
                assert isinstance(await kit.next(), Finish)
            else:
                assert await kit.take(4) == [(1, step) for step in range(4)]

    run(main(), loop)


@pytest.mark.parametrize("is_shrinking", [True, False])
def test_what_is_shed_at_an_edge_is_planned_again_before_the_slots_change(
    loop: Loop, is_shrinking: bool
) -> None:
    async def main() -> None:
        sizes = [600, 600, 1, 1, 1, 1]  # the large ones in one batch, or in two
        plans = (Shuffled(batch_size=2, seed=seed) for seed in itertools.count())
        plan = next(
            plan
            for plan in plans
            if (size := slot_sizes(sizes, plan))(0) != size(1)
            and (size(0) > size(1)) == is_shrinking
        )
        size_slots, executor = slot_sizes(sizes, plan), GatedExecutor()
        async with running_feed(
            sizes=sizes,
            plan=plan,
            max_slots=3,
            budget_bytes=10_000,
            slot_bytes=size_slots(0),
            size_slots=size_slots,
            reader=ReadyReader(),
            executor=executor,
        ) as kit:
            await until(lambda: kit.feed.num_ready == 3)
            assert executor.gates  # the edge waits for the size of the next epoch
            kit.feed.shed()
            assert kit.feed.num_ready == 2
            executor.open_gates()
            for epoch in range(3):
                assert await kit.take(3) == [(epoch, step) for step in range(3)]
                assert isinstance(await kit.next(), EpochEdge)

    run(main(), loop)


def test_room_that_is_made_for_smaller_slots_keeps_what_would_not_fit_into_them(
    loop: Loop,
) -> None:
    """At the edge the feed itself may be asked to shed, when memory is owed to somebody."""

    async def main() -> None:
        sizes = [600, 600, 1, 1, 1, 1]
        plans = (Shuffled(batch_size=2, seed=seed) for seed in itertools.count())
        plan = next(
            plan
            for plan in plans
            if slot_sizes(sizes, plan)(1) < 1000
            and set(bind(plan, 6).order.at(0, np.arange(4, 6, dtype=np.uint64))) == {0, 1}
        )
        size_slots, executor = slot_sizes(sizes, plan), GatedExecutor()
        async with running_feed(
            sizes=sizes,
            plan=plan,
            max_slots=2,
            budget_bytes=10_000,
            slot_bytes=size_slots(0),
            size_slots=size_slots,
            reader=ReadyReader(),
            executor=executor,
        ) as kit:
            assert await kit.take(1) == [(0, 0)]
            await until(lambda: kit.feed.num_ready == 2 and executor.gates)
            budget = kit.budget
            slow = await budget.open("slow", 0, shed=lambda: None, need="x")
            owed = await budget.open("owed", 0, shed=lambda: None, need="x")
            assert budget.try_hold(slow, 7000)
            budget.change_guarantee(owed, 7000, need="x")
            assert budget.is_under_pressure
            executor.open_gates()
            assert await kit.take(2) == [(0, 1), (0, 2)]
            budget.release(slow, 7000)
            budget.close(slow)
            budget.close(owed)

    run(main(), loop)


def test_a_batch_that_would_not_fit_into_the_slots_of_the_next_epoch_stays(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(
            sizes=[60] * 4, max_slots=6, reader=ReadyReader(), size_slots=lambda epoch: 64
        ) as kit:
            await until(lambda: kit.pool.slot_bytes == 64)
            kit.feed.shed()
            await turns(5)
            assert await kit.take(2) == [(0, 0), (0, 1)]

    run(main(), loop)


SCRIPTS = st.lists(
    st.tuples(st.sampled_from(["turns", "read", "take", "open", "close"]), st.integers(0, 9)),
    max_size=80,
)


@given(script=SCRIPTS, lingers=st.booleans(), seed=st.integers(0, 9), slots=st.integers(2, 12))
def test_others_that_come_and_go_change_nothing_in_the_order(
    script: list[tuple[str, int]], lingers: bool, seed: int, slots: int
) -> None:
    """Neighbours open and close; epochs of three batches have slots of different sizes."""
    sizes = [40, 500, 64, 1, 0, 200]
    plan = Shuffled(batch_size=2, seed=seed)
    size_slots = slot_sizes(sizes, plan)

    async def main() -> None:
        budget = Budget(5000)
        reader = GatedReader(lingers=lingers)
        seen: list[tuple[int, int]] = []
        neighbours: list[asyncio.Task[SlotPool | None]] = []
        async with running_feed(
            sizes=sizes,
            plan=plan,
            budget=budget,
            reader=reader,
            epochs=4,
            max_slots=slots,
            slot_bytes=size_slots(0),
            size_slots=size_slots,
        ) as kit:

            async def take() -> None:
                match kit.feed.head():
                    case ReadyBatch():
                        seen.extend(await kit.take(1))
                    case None | Finish():
                        await turns()
                    case EpochEdge(epoch, _):
                        assert seen[-1] == (epoch, 2)
                        kit.feed.take()
                    case error:
                        raise AssertionError(error)

            async with asyncio.TaskGroup() as tasks:
                for action, number in script:
                    match action:
                        case "turns":
                            await turns(number)
                        case "read" if reader.under_way:
                            reader.under_way[number % len(reader.under_way)].finish()
                        case "take":
                            await take()
                        case "open":
                            opening = open_pool(budget, slot_bytes=180 * number)
                            neighbours.append(tasks.create_task(opened(opening)))
                        case "close" if neighbours and neighbours[0].done():
                            if (pool := neighbours.pop(0).result()) is not None:
                                pool.close()
                        case _:
                            pass
                    assert budget.held_bytes <= budget.total_bytes
                while len(seen) < 12 or not all(task.done() for task in neighbours):
                    reader.finish_all()
                    await take()
            assert seen == [(epoch, step) for epoch in range(4) for step in range(3)]
            for task in neighbours:
                if (pool := task.result()) is not None:
                    pool.close()

    async def opened(opening: Coroutine[None, None, SlotPool]) -> SlotPool | None:
        try:
            return await opening
        except BudgetError as error:
            assert "promised" in str(error)  # refused at once, and not for want of shedding
            return None

    run(main())


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lingers", [False, True])
@pytest.mark.parametrize("after", range(12))
def test_a_feed_can_be_stopped_at_any_point(loop: Loop, after: int, lingers: bool) -> None:
    async def main() -> None:
        reader = GatedReader(lingers=lingers)
        kit = await make_feed(sizes=[40] * 6, reader=reader)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kit.feed.run())
            for turn in range(after):
                await turns()
                if turn % 3 == 2:
                    for read in reader.under_way[:1]:
                        read.finish()
                if turn % 4 == 3 and isinstance(kit.feed.head(), ReadyBatch):
                    await kit.take(1)
            await stop(kit)

    run(main(), loop)


def test_stopping_waits_until_no_read_writes_into_its_memory(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed(reader=GatedReader(lingers=True))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kit.feed.run())
            await until(lambda: len(kit.gated.reads) == 4)
            stopping = tasks.create_task(kit.feed.stop())
            for read in kit.gated.reads:
                await turns(5)
                assert not stopping.done()
                assert kit.budget.held_bytes == 4 * SLOT_BYTES
                read.finish()
        kit.pool.close()

    run(main(), loop)


def test_a_feed_can_be_stopped_twice_and_at_the_same_time(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kit.feed.run())
            await until(lambda: len(kit.gated.reads) == 4)
            tasks.create_task(kit.feed.stop())
            tasks.create_task(kit.feed.stop())
        await kit.feed.stop()
        kit.pool.close()

    run(main(), loop)


def test_a_feed_that_was_stopped_before_it_ran_does_nothing(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed()
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(kit.feed.stop())
            await turns(3)
            assert not stopping.done()
            tasks.create_task(kit.feed.run())
        assert kit.gated.reads == []
        kit.pool.close()

    run(main(), loop)


def test_a_feed_whose_task_was_cancelled_can_be_stopped(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(kit.feed.run())
            await until(lambda: len(kit.gated.reads) == 4)
            running.cancel()
            await turns(5)
            await stop(kit)

    run(main(), loop)


def test_a_halted_feed_delivers_what_it_has_begun_and_begins_nothing(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(max_slots=3) as kit:
            await until(lambda: len(kit.gated.reads) == 3)
            kit.gated.reads[0].finish()
            await until(lambda: kit.feed.num_ready == 1)
            kit.feed.halt()
            await turns(5)
            kit.gated.finish_all()
            assert await kit.take(3) == [(0, 0), (0, 1), (0, 2)]
            await turns(5)
            assert len(kit.gated.reads) == 3
            assert kit.feed.head() is None

    run(main(), loop)


def test_a_feed_that_was_halted_before_it_ran_reads_nothing(loop: Loop) -> None:
    async def main() -> None:
        kit = await make_feed()
        kit.feed.halt()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kit.feed.run())
        assert kit.gated.reads == []
        await stop(kit)

    run(main(), loop)


def test_a_stream_of_empty_samples_works(loop: Loop) -> None:
    async def main() -> None:
        async with running_feed(
            sizes=[0] * 6, slot_bytes=0, plan=Sequential(batch_size=2), epochs=1
        ) as kit:
            await until(lambda: len(kit.gated.reads) == 3)
            kit.gated.finish_all()
            assert await kit.take(3) == [(0, 0), (0, 1), (0, 2)]

    run(main(), loop)


def test_kits_are_whole(loop: Loop) -> None:
    """A feed that runs through, so that the other tests can trust the kit."""

    async def main() -> None:
        async with running_feed(reader=ReadyReader()) as kit:
            assert isinstance(kit, FeedKit)
            assert await kit.take(10) == [(0, step) for step in range(10)]

    run(main(), loop)
