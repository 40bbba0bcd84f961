"""Slots: memory that is taken, given back, shed, and of another size in the next epoch."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from headrace.errors import BudgetError
from headrace_daemon.assemble import slots as slots_module
from headrace_daemon.assemble.slots import MIN_SLOTS, Slot, SlotPool
from headrace_daemon.fetch.budget import Budget
from tests.support.loops import run, turns

if TYPE_CHECKING:
    from tests.support.loops import Loop


async def pool_of(
    budget: Budget, *, slot_bytes: int = 10, max_slots: int = 4, name: str = "feed"
) -> SlotPool:
    pools: list[SlotPool] = []
    account = await budget.open(
        name, MIN_SLOTS * slot_bytes, shed=lambda: pools[0].on_shed(), need=f"need {name}"
    )
    pools.append(SlotPool(budget, account, slot_bytes=slot_bytes, max_slots=max_slots))
    return pools[0]


def test_a_slot_is_writable_memory_of_its_size() -> None:
    slot = Slot(100)
    assert (slot.size, len(slot.view), slot.view.readonly) == (100, 100, False)
    slot.view[:] = bytes(range(100))
    assert slot.view[99] == 99
    slot.close()


def test_a_slot_of_no_bytes_is_possible() -> None:
    slot = Slot(0)
    assert len(slot.view) == 0
    slot.close()


def test_a_slot_can_be_closed_while_a_traceback_holds_a_piece_of_it() -> None:
    slot = Slot(10)
    piece = slot.view[2:4]
    slot.close()
    piece.release()


def test_slots_are_made_when_needed_and_used_again(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget)
        first, second = await pool.take(0), await pool.take(1)
        assert (pool.num_slots, budget.held_bytes) == (2, 20)
        assert first is not second
        pool.give_back(first)
        assert await pool.take(2) is first
        assert (pool.num_slots, budget.held_bytes) == (2, 20)

    run(main(), loop)


def test_there_are_never_more_slots_than_the_feed_aims_for(loop: Loop) -> None:
    async def main() -> None:
        pool = await pool_of(Budget(1000), max_slots=3)
        taken = [await pool.take(step) for step in range(3)]
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(pool.take(3))
            await turns(3)
            assert not waiting.done()
            pool.give_back(taken[1])
        assert waiting.result() is taken[1]
        assert pool.num_slots == 3

    run(main(), loop)


def test_a_cancelled_taker_has_taken_nothing(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget, max_slots=2)
        taken = [await pool.take(0), await pool.take(1)]
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(pool.take(2))
            await turns(3)
            pool.give_back(taken.pop())
            waiting.cancel()  # when the slot is there, but not yet taken
        assert waiting.cancelled()
        taken.append(await pool.take(2))
        for slot in taken:
            pool.give_back(slot)
        pool.close()
        assert (budget.held_bytes, budget.guaranteed_bytes) == (0, 0)

    run(main(), loop)


def test_two_slots_are_there_however_greedy_the_others_are(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        greedy = await pool_of(budget, max_slots=100, name="greedy")
        modest = await pool_of(budget, name="modest")
        for step in range(8):
            await greedy.take(step)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(greedy.take(8))
            await turns(3)
            assert not waiting.done()
            await modest.take(0)
            await modest.take(1)
            assert budget.held_bytes == 100
            waiting.cancel()

    run(main(), loop)


def test_surplus_goes_to_whoever_is_furthest_behind(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(70)
        pools = {name: await pool_of(budget, name=name) for name in ("one", "two", "three")}
        slots = {name: [await pool.take(0), await pool.take(1)] for name, pool in pools.items()}
        last = await pools["three"].take(2)  # the only surplus there is
        order: list[str] = []

        async def want(name: str, step: int) -> None:
            slot = await pools[name].take(step)
            order.append(name)
            slots[name].append(slot)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(want("one", 9))
            behind = tasks.create_task(want("two", 4))
            await turns(3)
            pools["three"].give_back(last)
            pools["three"].shed()
            await behind
            assert order == ["two"]
            pools["two"].give_back(slots["two"].pop())
            pools["two"].shed()

    run(main(), loop)


def test_idle_surplus_is_shed_and_what_is_in_use_follows_when_it_comes_back(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first = await pool_of(budget, max_slots=9)
        slots = [await first.take(step) for step in range(9)]
        for slot in slots[:3]:
            first.give_back(slot)
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(pool_of(budget, slot_bytes=35, name="second"))
            await turns(3)
            assert first.num_slots == 6  # the idle ones went at once
            assert not opening.done()
            for slot in slots[3:6]:
                first.give_back(slot)
        assert first.num_slots == 3
        second = opening.result()
        await second.take(0)
        await second.take(1)
        assert budget.held_bytes == 100

    run(main(), loop)


def test_shedding_leaves_the_guaranteed_slots(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget)
        slots = [await pool.take(step) for step in range(4)]
        for slot in slots:
            pool.give_back(slot)
        pool.shed()
        assert (pool.num_slots, budget.held_bytes) == (2, 20)
        assert pool.num_guaranteed == 2

    run(main(), loop)


def test_after_a_resize_old_slots_go_as_they_come_back(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget)
        sent, idle = await pool.take(0), await pool.take(1)
        pool.give_back(idle)
        pool.resize(30, need="epoch 1")
        assert (pool.slot_bytes, pool.num_slots) == (30, 1)
        new = await pool.take(2)
        assert new.size == 30
        pool.give_back(sent)
        assert budget.held_bytes == 30
        pool.give_back(new)
        assert await pool.take(3) is new

    run(main(), loop)


def test_a_taker_gets_the_new_size_when_an_old_slot_comes_back(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(40)
        pool = await pool_of(budget, slot_bytes=20, max_slots=2)
        old = [await pool.take(0), await pool.take(1)]
        pool.resize(15, need="epoch 1")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(pool.take(2))
            await turns(3)
            assert not waiting.done()
            pool.give_back(old.pop())
        assert waiting.result().size == 15

    run(main(), loop)


def test_a_resize_makes_others_shed_for_its_guarantee(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        greedy, growing = await pool_of(budget, max_slots=9, name="greedy"), await pool_of(budget)
        taken = [await greedy.take(step) for step in range(8)]
        growing.resize(35, need="epoch 1")
        async with asyncio.TaskGroup() as tasks:
            again = tasks.create_task(greedy.take(8))
            taking = tasks.create_task(growing.take(0))
            await turns(3)
            greedy.give_back(taken.pop())
            await turns(3)
            assert not again.done()  # it is owed to the other
            assert not taking.done()
            greedy.give_back(taken.pop())
            await taking
            taking = tasks.create_task(growing.take(1))
            for _ in range(3):
                await turns(3)
                assert not taking.done()
                greedy.give_back(taken.pop())
                assert budget.held_bytes <= 100
            await taking
            await turns(3)
            assert not again.done()
            assert greedy.num_slots == 3
            again.cancel()

    run(main(), loop)


def test_one_slot_will_do_where_two_of_the_new_size_do_not_fit(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        other, pool = await pool_of(budget, name="other"), await pool_of(budget)
        pool.resize(70, need="epoch 1")
        assert pool.num_guaranteed == 1
        assert (await pool.take(0)).size == 70
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(pool.take(1))
            await turns(3)
            assert not waiting.done()
            waiting.cancel()
        other.close()
        with pytest.raises(BudgetError, match=r"^epoch 2;"):
            pool.resize(101, need="epoch 2")
        assert pool.slot_bytes == 70

    run(main(), loop)


def test_the_second_slot_is_promised_again_as_soon_as_it_fits(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        other, pool = await pool_of(budget, slot_bytes=20, name="other"), await pool_of(budget)
        pool.resize(40, need="epoch 1")
        assert pool.num_guaranteed == 1
        pool.resize(40, need="epoch 2")
        assert pool.num_guaranteed == 1
        other.close()
        pool.resize(40, need="epoch 3")
        assert pool.num_guaranteed == 2

    run(main(), loop)


def test_closing_returns_everything(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget)
        for slot in [await pool.take(step) for step in range(3)]:
            pool.give_back(slot)
        pool.close()
        assert (budget.held_bytes, budget.guaranteed_bytes) == (0, 0)

    run(main(), loop)


def test_closing_with_a_slot_out_is_a_bug(loop: Loop) -> None:
    async def main() -> None:
        pool = await pool_of(Budget(100), name="feed 7")
        await pool.take(0)
        with pytest.raises(AssertionError, match="feed 7 closed with 1 slots out"):
            pool.close()

    run(main(), loop)


def test_memory_that_the_system_refuses_is_not_accounted_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int) -> Slot:
        raise OSError(12, f"no {size} bytes")

    async def main() -> None:
        budget = Budget(100)
        pool = await pool_of(budget)
        with monkeypatch.context() as patch:
            patch.setattr(slots_module, "Slot", refuse)
            with pytest.raises(OSError, match="no 10 bytes"):
                await pool.take(0)
        assert (pool.num_slots, budget.held_bytes) == (0, 0)
        pool.give_back(await pool.take(0))
        pool.close()

    run(main(), loop)
