"""Sizes of slots: found once for all who ask, for each segment of a stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from headrace.plans import ByteBudget, Cursor, Every, Interleaved, Limits, Sequential, Shuffled
from headrace.plans.engine import advance, is_finished
from headrace.topology import Topology
from headrace_daemon.feed import sizes as sizes_module
from headrace_daemon.feed.sizes import SlotSizes
from tests.support.loops import run
from tests.support.reading import GatedExecutor, InlineExecutor
from tests.support.serving import Daemon

if TYPE_CHECKING:
    from headrace.plans import Plan
    from headrace.plans.engine import Largest
    from headrace_daemon.feed.streams import BoundStream

SIZES = (1, 64, 65, 200, 0, 1)


class Scans:
    """Counts how often an epoch is searched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[tuple[int, int]] = []
        self._real = vars(sizes_module)["largest_batch"]
        monkeypatch.setattr(sizes_module, "largest_batch", self._counted)

    def _counted(self, bound: Any, cursor: Cursor, *others: Any) -> Any:  # noqa: ANN401 - passed on
        self.places.append((cursor.epoch, cursor.step))
        return self._real(bound, cursor, *others)


async def bound(plan: Plan) -> BoundStream:
    return await Daemon(sizes=SIZES, plan=plan).streams.bind("train", Topology(), None)


async def walk(sizes: SlotSizes, stream: BoundStream) -> list[Largest]:
    """Return what is found from segment to segment, to the end of a run that ends."""
    found, cursor = [], stream.cursor
    while not is_finished(stream.bound, cursor):
        found.append(await sizes.of_rank(stream, cursor))
        cursor = found[-1].after
    return found


def test_a_slot_is_as_large_as_the_largest_batch_from_a_position_on() -> None:
    async def main() -> None:
        stream, sizes = await bound(Sequential(batch_size=2)), SlotSizes(InlineExecutor())
        places = [advance(stream.bound, stream.cursor, 1, steps) for steps in range(3)]
        found = [(await sizes.of_rank(stream, place)).weight for place in places]
        assert found == [384, 384, 64]

    run(main())


def test_a_budget_and_a_scaled_plan_are_searched_like_any_other() -> None:
    async def main() -> None:
        sizes = SlotSizes(InlineExecutor())
        plan = ByteBudget(max_bytes=130, oversized="own", order="sequential")
        assert (await sizes.of_rank(await bound(plan), (await bound(plan)).cursor)).weight == 256
        assert await sizes.of_any(await bound(plan), (await bound(plan)).cursor) == 256

    run(main())


def test_a_run_is_searched_one_epoch_of_its_main_plan_at_a_time() -> None:
    plan = Interleaved(
        train=Shuffled(batch_size=2, seed=1),
        extras={"val": Every(Sequential(batch_size=6), epochs=2)},
        limits=Limits(epochs=3),
    )

    async def main() -> None:
        stream = await bound(plan)
        found = await walk(SlotSizes(InlineExecutor()), stream)
        assert [largest.segment for largest in found] == [0, 1, 2]
        # All six samples at once are larger than any two.
        whole = 64 + 64 + 128 + 256 + 64
        assert [largest.weight == whole for largest in found] == [False, True, False]
        assert found[-1].after.epoch == 1, "the end of the run"

    run(main())


def test_an_epoch_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)

    async def main() -> None:
        daemon = Daemon(sizes=SIZES, plan=Shuffled(batch_size=3, seed=1))
        sizes = SlotSizes(InlineExecutor())
        for _ in range(3):
            # Each client and each reconnect binds anew.
            stream = await daemon.streams.bind("train", Topology(), None)
            await sizes.of_rank(stream, stream.cursor)
        assert scans.places == [(0, 0)]
        following = (await sizes.of_rank(stream, stream.cursor)).after
        await sizes.of_rank(stream, following)
        other = await daemon.streams.bind("train", Topology(0, 2), None)
        await sizes.of_rank(other, other.cursor)
        assert scans.places == [(0, 0), (1, 0), (0, 0)]

    run(main())


def test_those_who_ask_at_the_same_time_share_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)

    async def main() -> None:
        stream, executor = await bound(Sequential(batch_size=2)), GatedExecutor()
        sizes = SlotSizes(executor)
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(sizes.of_rank(stream, stream.cursor), name=f"ask {number}")
                for number in range(3)
            ]
            await asyncio.sleep(0)
            asked[0].cancel()  # the others are served all the same
            await asyncio.sleep(0)
            executor.open_gates()
        assert [task.result().weight for task in asked[1:]] == [384, 384]
        assert len(scans.places) == 1

    run(main())


def test_a_search_that_failed_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        stream, sizes = await bound(Sequential(batch_size=2)), SlotSizes(InlineExecutor())
        with monkeypatch.context() as patched:
            patched.setattr(sizes_module, "room_of", lambda sizes: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await sizes.of_rank(stream, stream.cursor)
        assert (await sizes.of_rank(stream, stream.cursor)).weight == 384

    run(main())


def test_only_so_many_segments_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)
    monkeypatch.setattr(sizes_module, "MAX_KEPT", 2)

    async def main() -> None:
        stream, sizes = await bound(Sequential(batch_size=2)), SlotSizes(InlineExecutor())
        cursor = stream.cursor
        for _ in range(3):
            cursor = (await sizes.of_rank(stream, cursor)).after
        await sizes.of_rank(stream, stream.cursor)
        assert scans.places == [(0, 0), (1, 0), (2, 0), (0, 0)]

    run(main())
