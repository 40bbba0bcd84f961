"""The budget: guarantees that nobody can take away, and a surplus that is given up for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import BudgetError
from headrace_daemon.fetch import budget as budget_module
from headrace_daemon.fetch.budget import Account, Budget
from tests.support.loops import run, turns

if TYPE_CHECKING:
    from tests.support.loops import Loop


@dataclass(eq=False)
class Holder:
    """Holds memory in pieces, and sheds those above its guarantee when it is asked to."""

    budget: Budget
    account: Account = field(init=False)
    sheds: bool = True
    num_asked: int = 0

    async def open(self, name: str, guarantee: int) -> Holder:
        self.account = await self.budget.open(name, guarantee, shed=self.shed, need=f"need {name}")
        return self

    def hold(self, num_bytes: int) -> bool:
        return self.budget.try_hold(self.account, num_bytes)

    def shed(self) -> None:
        self.num_asked += 1
        if self.sheds:
            self.give_up_surplus()

    def give_up_surplus(self) -> None:
        surplus = self.account.held - self.account.guarantee
        if surplus > 0:
            self.budget.release(self.account, surplus)

    def close(self) -> None:
        self.budget.release(self.account, self.account.held)
        self.budget.close(self.account)


async def holder(budget: Budget, name: str, guarantee: int, *, sheds: bool = True) -> Holder:
    return await Holder(budget, sheds=sheds).open(name, guarantee)


def test_a_guarantee_can_always_be_held(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        greedy, modest = await holder(budget, "greedy", 10), await holder(budget, "modest", 40)
        while greedy.hold(10):
            pass
        assert greedy.account.held == 60  # all but what the other is promised
        assert modest.hold(40)
        assert budget.held_bytes == 100
        assert not modest.hold(1)

    run(main(), loop)


def test_what_does_not_fit_is_refused_with_the_numbers(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        await holder(budget, "first", 70)
        with pytest.raises(BudgetError) as refusal:
            await holder(budget, "second", 31)
        text = str(refusal.value)
        for fact in ("need second", "100 bytes", "70 are promised", "1 open", "30 are left", "101"):
            assert fact in text
        assert refusal.value.retryable
        assert budget.guaranteed_bytes == 70
        await holder(budget, "third", 30)

    run(main(), loop)


def test_an_opening_that_fits_at_once_sheds_nothing(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first = await holder(budget, "first", 10)
        assert first.hold(50)
        await holder(budget, "second", 50)
        assert first.num_asked == 0
        assert first.account.held == 50

    run(main(), loop)


def test_surplus_is_shed_for_a_newcomer(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first = await holder(budget, "first", 10)
        assert first.hold(100)
        second = await holder(budget, "second", 60)
        assert first.account.held == 10
        assert second.hold(60)
        assert not budget.is_under_pressure

    run(main(), loop)


def test_whoever_is_furthest_ahead_sheds_first_and_no_more_than_is_needed(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        near, far = await holder(budget, "near", 10), await holder(budget, "far", 10)
        assert near.hold(50)
        assert far.hold(50)
        near.account.step, far.account.step = 3, 9
        await holder(budget, "newcomer", 40)
        assert (near.account.held, far.account.held) == (50, 10)
        assert near.num_asked == 0

    run(main(), loop)


def test_an_opening_waits_until_surplus_has_come_back(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        slow = await holder(budget, "slow", 10, sheds=False)
        assert slow.hold(100)
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(holder(budget, "newcomer", 50))
            await turns(3)
            assert budget.is_under_pressure
            assert not opening.done()
            slow.budget.release(slow.account, 30)
            await turns(3)
            assert not opening.done()  # 70 held and 50 wanted
            assert not slow.hold(10)  # no new surplus meanwhile
            slow.budget.release(slow.account, 20)
        assert not budget.is_under_pressure

    run(main(), loop)


def test_a_holder_that_sheds_nothing_makes_the_opening_fail_with_a_sentence(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "OPEN_DEADLINE_S", 0.0)

    async def main() -> None:
        budget = Budget(100)
        slow = await holder(budget, "slow", 10, sheds=False)
        assert slow.hold(90)
        with pytest.raises(BudgetError, match="others hold 90 of the 100 bytes"):
            await holder(budget, "newcomer", 50)
        assert not budget.is_under_pressure
        assert budget.guaranteed_bytes == 10

    run(main(), loop)


def test_a_cancelled_opening_leaves_nothing_behind(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        slow = await holder(budget, "slow", 10, sheds=False)
        assert slow.hold(100)
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(holder(budget, "newcomer", 50))
            await turns(3)
            opening.cancel()
        assert opening.cancelled()
        assert not budget.is_under_pressure
        assert budget.guaranteed_bytes == 10
        slow.close()
        await holder(budget, "later", 100)

    run(main(), loop)


def test_a_newcomer_is_refused_when_the_room_it_waits_for_is_promised_to_another(
    loop: Loop,
) -> None:
    async def main() -> None:
        budget = Budget(100)
        slow = await holder(budget, "slow", 10, sheds=False)
        assert slow.hold(100)
        async with asyncio.TaskGroup() as tasks:
            openings = [
                tasks.create_task(outcome(holder(budget, name, 60))) for name in ("one", "two")
            ]
            await turns(3)
            slow.give_up_surplus()
        results = [opening.result() for opening in openings]
        assert isinstance(results[0], Holder)
        assert isinstance(results[1], BudgetError)

    async def outcome(opening: object) -> object:
        try:
            return await opening  # type: ignore[misc]
        except BudgetError as error:
            return error

    run(main(), loop)


@pytest.mark.parametrize("ending", ["cancelled", "opened"])
def test_those_who_wait_for_surplus_go_on_when_an_opening_is_over(loop: Loop, ending: str) -> None:
    async def main() -> None:
        budget = Budget(100)
        slow = await holder(budget, "slow", 10, sheds=False)
        assert slow.hold(50)
        waiting = await holder(budget, "waiting", 10)
        async with asyncio.TaskGroup() as tasks:
            opening = tasks.create_task(holder(budget, "newcomer", 60))
            await turns(3)
            assert not waiting.hold(20)
            waiting.account.waiting = told = asyncio.get_running_loop().create_future()
            if ending == "cancelled":
                opening.cancel()
            else:
                slow.budget.release(slow.account, 30)
                waiting.account.waiting = told = asyncio.get_running_loop().create_future()
        await told
        assert waiting.hold(20)

    run(main(), loop)


def test_a_changed_guarantee_is_checked_against_all_others(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first, second = await holder(budget, "first", 40), await holder(budget, "second", 40)
        budget.change_guarantee(first.account, 60, need="more")
        with pytest.raises(BudgetError, match=r"^even more; .* 60 are promised .* 40 are left"):
            budget.change_guarantee(second.account, 41, need="even more")
        assert second.account.guarantee == 40
        budget.change_guarantee(first.account, 10, need="less")
        budget.change_guarantee(second.account, 90, need="the rest")
        assert second.hold(90)

    run(main(), loop)


def test_a_raised_guarantee_makes_others_shed(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first, second = await holder(budget, "first", 10), await holder(budget, "second", 10)
        assert first.hold(90)
        budget.change_guarantee(second.account, 70, need="more")
        assert first.account.held == 10
        assert second.hold(70)

    run(main(), loop)


def test_pressure_lasts_until_a_raised_guarantee_is_covered(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        slow, grown = (
            await holder(budget, "slow", 10, sheds=False),
            await holder(budget, "grown", 10),
        )
        assert slow.hold(90)
        budget.change_guarantee(grown.account, 70, need="more")
        was_under_pressure = budget.is_under_pressure
        assert was_under_pressure
        assert not grown.hold(70)
        assert not slow.hold(1)
        assert budget.held_bytes <= 100
        slow.give_up_surplus()
        is_still_under_pressure = budget.is_under_pressure
        assert not is_still_under_pressure
        assert grown.hold(70)

    run(main(), loop)


def test_released_memory_goes_to_the_lowest_step_first(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        full = await holder(budget, "full", 0)
        assert full.hold(100)
        order: list[str] = []

        async def want(name: str, step: int) -> None:
            account = (await holder(budget, name, 0)).account
            account.step = step
            while not budget.try_hold(account, 50):
                account.waiting = asyncio.get_running_loop().create_future()
                await account.waiting
            order.append(name)
            budget.release(account, 50)

        async with asyncio.TaskGroup() as tasks:
            for name, step in (("late", 9), ("early", 1), ("middle", 5)):
                tasks.create_task(want(name, step))
            await turns(3)
            assert order == []
            budget.release(full.account, 50)
        assert order == ["early", "middle", "late"]

    run(main(), loop)


def test_releasing_more_than_is_held_is_a_bug(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        account = (await holder(budget, "feed 7", 10)).account
        with pytest.raises(AssertionError, match="feed 7 released more than it held"):
            budget.release(account, 1)

    run(main(), loop)


def test_closing_with_memory_held_is_a_bug(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        first = await holder(budget, "feed 7", 10)
        assert first.hold(10)
        with pytest.raises(AssertionError, match="feed 7 still holds 10 bytes"):
            budget.close(first.account)

    run(main(), loop)


def test_closing_gives_the_guarantee_back(loop: Loop) -> None:
    async def main() -> None:
        budget = Budget(100)
        (await holder(budget, "first", 100)).close()
        assert budget.guaranteed_bytes == 0
        await holder(budget, "second", 100)

    run(main(), loop)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["open", "hold", "release", "close", "change"]),
        st.integers(0, 3),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(actions=ACTIONS)
def test_whatever_happens_the_budget_holds_and_every_guarantee_stands(
    actions: list[tuple[str, int, int]],
) -> None:
    async def main() -> None:
        budget = Budget(100)
        holders: dict[int, Holder] = {}
        for action, number, amount in actions:
            found = holders.get(number)
            match action:
                case "open" if found is None:
                    try:
                        holders[number] = await holder(budget, str(number), amount)
                    except BudgetError:
                        assert budget.guaranteed_bytes + amount > 100
                case "hold" if found is not None:
                    within = found.account.held + amount <= found.account.guarantee
                    assert found.hold(amount) or not within
                case "release" if found is not None:
                    budget.release(found.account, min(amount, found.account.held))
                case "close" if found is not None:
                    holders.pop(number).close()
                case "change" if found is not None:
                    try:
                        budget.change_guarantee(found.account, amount, need="change")
                    except BudgetError:
                        before = found.account.guarantee
                        assert budget.guaranteed_bytes - before + amount > 100
                case _:
                    pass
            assert budget.held_bytes <= 100
            assert budget.guaranteed_bytes <= 100
            assert not budget.is_under_pressure  # everybody sheds at once here
        for left in holders.values():
            left.close()
        assert (budget.held_bytes, budget.guaranteed_bytes) == (0, 0)

    run(main())
