"""Memory that grows with what is found: promises, refusals, and what is waited for."""

from __future__ import annotations

import asyncio

import pytest

from headrace.errors import BudgetError
from headrace_daemon.fetch.budget import Budget
from headrace_daemon.fetch.growing import GrowingMemory
from tests.support.loops import LOOPS, Loop, run, turns


async def opened(total: int, guarantee: int) -> tuple[Budget, GrowingMemory]:
    budget = Budget(total)
    account = await budget.open("it", guarantee, shed=lambda: None, need="it")
    return budget, GrowingMemory(budget, account, "the reading")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_promise_grows_with_what_is_held(loop: Loop) -> None:
    async def main() -> None:
        budget, memory = await opened(1000, 100)
        await memory.hold(90, may_grow=lambda: False)
        assert (budget.held_bytes, budget.guaranteed_bytes) == (90, 100)
        await memory.hold(110, may_grow=lambda: True)
        assert (budget.held_bytes, budget.guaranteed_bytes) == (200, 250)
        await memory.hold(700, may_grow=lambda: True)
        assert (budget.held_bytes, budget.guaranteed_bytes) == (900, 900), (
            "a quarter more is not there"
        )
        words = "the reading needs 1001 bytes; the budget is 1000 bytes .* raise memory to at least"
        with pytest.raises(BudgetError, match=words) as refused:
            await memory.hold(101, may_grow=lambda: True)
        assert not refused.value.retryable
        memory.close()
        assert (budget.held_bytes, budget.guaranteed_bytes) == (0, 0)

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_who_may_not_grow_waits_until_it_may(loop: Loop) -> None:
    async def main() -> None:
        budget, memory = await opened(1000, 100)
        await memory.hold(80, may_grow=lambda: False)
        may: list[bool] = []
        async with asyncio.TaskGroup() as tasks:
            waiting = [
                tasks.create_task(memory.hold(30, may_grow=lambda: bool(may)), name=f"hold {n}")
                for n in range(3)
            ]
            await turns(3)
            memory.release(10)  # room for one
            await turns(3)
            assert [task.done() for task in waiting] == [True, False, False]
            waiting[1].cancel()
            await turns(3)
            assert not waiting[2].done(), "those who wait are not cancelled with one of them"
            may.append(True)
            memory.wake()
        assert budget.held_bytes == 130
        memory.close()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_leaves_soon_is_waited_for(loop: Loop) -> None:
    async def main() -> None:
        _, memory = await opened(1000, 100)
        await memory.hold(900, may_grow=lambda: True)
        memory.leaving_bytes = 500
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(memory.hold(400, may_grow=lambda: True), name="hold")
            await turns(3)
            assert not waiting.done()
            memory.leaving_bytes = 0
            memory.release(500)
        assert memory.held_bytes == 800

        # Who has something that can be had again is asked for it, and has it at once, or soon.
        memory.make_room = lambda: memory.release(300)
        await memory.hold(450, may_grow=lambda: True)
        assert memory.held_bytes == 950
        memory.make_room = lambda: None
        with pytest.raises(BudgetError):
            await memory.hold(100, may_grow=lambda: True)
        memory.close()

    run(main(), loop)


def test_what_is_promised_and_not_held_makes_way_for_others() -> None:
    async def main() -> None:
        budget, memory = await opened(1000, 100)
        await memory.hold(600, may_grow=lambda: True)

        def let_go() -> None:  # in the next turns
            memory.leaving_bytes += 250

        memory.make_room = let_go
        memory.make_way(100)
        assert (budget.held_bytes, budget.guaranteed_bytes) == (600, 350)
        memory.make_room = lambda: memory.release(300)
        memory.make_way(200)
        assert (budget.held_bytes, budget.guaranteed_bytes) == (300, 300)
        memory.close()

    run(main(), "asyncio")
