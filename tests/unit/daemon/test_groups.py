"""Groups: the feeds of a run get their memory together, or all are refused alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headrace.errors import BudgetError, PlanError
from headrace.protocol import messages as m
from headrace.topology import Topology
from headrace_daemon.feed import groups as groups_module
from tests.support.loops import run, until
from tests.support.serving import SLOT_BYTES, Daemon, request, running_registry

if TYPE_CHECKING:
    from tests.support.loops import Loop

RUN: dict[str, Any] = {"group": "run", "ranks": 2, "workers": 2, "world_size": 2}


def member(rank: int = 0, worker: int = 0, **fields: Any) -> m.Open:  # noqa: ANN401 - of any type
    """Return what one worker of one rank asks for."""
    return request(rank=rank, first=worker, stride=2, **{**RUN, **fields})


async def reserve(daemon: Daemon, **fields: Any) -> None:  # noqa: ANN401 - of any type
    """Reserve without opening, as a lookup does."""
    asked = m.Lookup(**{**RUN, **fields})
    stream = await daemon.streams.bind("", Topology(0, asked.world_size), None)
    await daemon.registry.admit(asked, stream)


def promised(daemon: Daemon) -> int:
    """Return how many slots are promised."""
    return daemon.budget.guaranteed_bytes // SLOT_BYTES


def test_the_first_feed_reserves_for_all(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            await daemon.registry.open(member())
            assert promised(daemon) == 8
            with pytest.raises(BudgetError, match="1024 are promised to 4 open feed"):
                await daemon.registry.open(request())
            for rank, worker in ((0, 1), (1, 0), (1, 1)):
                await daemon.registry.open(member(rank, worker))
            assert promised(daemon) == 8

    run(main(), loop)


def test_a_run_that_does_not_fit_is_refused_with_the_product_and_the_numbers(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=7 * SLOT_BYTES) as daemon:
            for rank in range(2):
                with pytest.raises(BudgetError) as refusal:
                    await daemon.registry.open(member(rank))
                text = str(refusal.value)
                assert not refusal.value.retryable, "no end of other feeds would help"
                for fact in (
                    "2 rank(s) × 2 worker(s) on this node has 4 feed(s) of 2 slots of 128 bytes",
                    "2 samples, of epoch 0) and needs 1024 bytes; fewer workers need less",
                    "the budget is 896 bytes ([daemon] memory)",
                    "0 are promised to 0 open feed(s) and 896 are left",
                    "raise memory to at least 1024 bytes",
                ):
                    assert fact in text
            daemon.assert_whole()

    run(main(), loop)


def test_what_one_member_was_refused_no_other_gets(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            other = await daemon.registry.open(request())
            with pytest.raises(BudgetError, match="256 are promised to 1 open") as refusal:
                await reserve(daemon)
            assert refusal.value.retryable
            await daemon.registry.close(other)
            with pytest.raises(BudgetError, match="256 are promised to 1 open"):
                await daemon.registry.open(member(1))
            await reserve(daemon, group="another run")

    run(main(), loop)


def test_a_refusal_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "REFUSAL_S", 0.0)

    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            other = await daemon.registry.open(request())
            with pytest.raises(BudgetError):
                await reserve(daemon)
            await daemon.registry.close(other)
            await until(lambda: not daemon.registry._groups._refused)
            await reserve(daemon)
            assert promised(daemon) == 8

    run(main())


def test_a_reservation_without_a_feed_lapses(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES, grace_s=0.01) as daemon:
            await reserve(daemon)
            await reserve(daemon)
            assert promised(daemon) == 8
            await until(lambda: not promised(daemon))
            await reserve(daemon)
            entry = await daemon.registry.open(member())
            assert entry.group is not None
            assert entry.group.lapse is None, "it has a feed"
            await daemon.registry.close(entry)
            daemon.assert_whole()

    run(main(), loop)


def test_shares_come_back_to_the_group_and_go_with_its_last_feed(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            first = await daemon.registry.open(member(0, 0))
            second = await daemon.registry.open(member(0, 1))
            await daemon.registry.close(first)
            assert promised(daemon) == 8
            first = await daemon.registry.open(member(0, 0))
            assert promised(daemon) == 8
            await daemon.registry.close(second)
            await daemon.registry.close(first)
            daemon.assert_whole()

    run(main(), loop)


def test_a_feed_that_is_taken_up_keeps_its_share(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            entry = await daemon.registry.open(member())
            daemon.registry.park(entry, unwatch=lambda: None)
            entry = await daemon.registry.open(member(token=entry.token))
            assert promised(daemon) == 8
            await daemon.registry.close(entry)
            daemon.assert_whole()

    run(main(), loop)


def test_members_beyond_the_product_are_admitted_one_by_one(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=10 * SLOT_BYTES) as daemon:
            entries = [await daemon.registry.open(member()) for _ in range(5)]
            assert promised(daemon) == 10
            with pytest.raises(BudgetError):
                await daemon.registry.open(member())
            for entry in entries:
                await daemon.registry.close(entry)
            daemon.assert_whole()

    run(main(), loop)


def test_a_share_is_as_large_as_the_largest_batch_of_any_rank(loop: Loop) -> None:
    async def main() -> None:
        sizes = [1, 1, 1, 200] * 5  # the second rank has the large ones
        async with running_registry(sizes=sizes, budget_bytes=10**6) as daemon:
            small = await daemon.registry.open(member(0))
            large = await daemon.registry.open(member(1))
            assert small.feed.pool.slot_bytes < large.feed.pool.slot_bytes
            total = daemon.budget.guaranteed_bytes
            assert total <= 4 * 2 * large.feed.pool.slot_bytes
            await daemon.registry.close(small)
            assert daemon.budget.guaranteed_bytes == 4 * 2 * large.feed.pool.slot_bytes

    run(main(), loop)


def test_members_that_come_at_once_are_one_group(loop: Loop) -> None:
    async def main() -> None:
        async with running_registry(budget_bytes=8 * SLOT_BYTES) as daemon:
            async with asyncio.TaskGroup() as tasks:
                for rank, worker in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    tasks.create_task(daemon.registry.open(member(rank, worker)))
            assert promised(daemon) == 8

    run(main(), loop)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ranks": 0}, r"ranks=0 is out of range: it must be in 1\.\.65536"),
        ({"workers": 2**17}, "workers=131072 is out of range"),
        ({"group": "x" * 257}, "group has 257 characters, above the limit of 256"),
    ],
)
def test_groups_that_make_no_sense_are_refused(fields: dict[str, Any], reason: str) -> None:
    async def main() -> None:
        async with running_registry() as daemon:
            with pytest.raises(PlanError, match=reason):
                await daemon.registry.open(member(**fields))
            daemon.assert_whole()

    run(main())
