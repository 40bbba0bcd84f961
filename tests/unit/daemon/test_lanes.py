"""Lanes: shards side by side, what they hold, and how they make room."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from headrace.errors import BudgetError
from headrace.manifest import Manifest
from headrace.shards import Shards
from headrace_daemon.errors import ShardCorruptError
from headrace_daemon.feed.lanes import LANE_BYTES, QUEUE_SAMPLES, WIDTH, Lane, Lanes, LaneWork
from headrace_daemon.fetch.budget import Budget
from headrace_daemon.fetch.fetcher import Fetcher
from headrace_daemon.fetch.growing import GrowingMemory
from headrace_daemon.source.catalog import OpenSource
from tests.support.loops import LOOPS, Loop, run, turns, until
from tests.support.shards import MemoryReader, packed, tar_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class _Reader(MemoryReader):
    location = "memory"
    paces_itself = False


class World(NamedTuple):
    """What lanes stand on."""

    work: LaneWork
    budget: Budget
    reader: _Reader
    tasks: asyncio.TaskGroup

    def lanes(self, shard: int = 0, sample: int = 0, stops: dict[int, int] | None = None) -> Lanes:
        rows = np.arange(len(self.work.opened.manifest), dtype=np.uint64)
        return Lanes(self.work, self.tasks, rows, shard, sample, stops or {})

    def open_lane(self) -> Lane:
        lane = Lane(self.work, 0, 0)
        lane.task = self.tasks.create_task(lane.run(), name="lane")
        return lane


@asynccontextmanager
async def world(
    shards: list[bytes], *, total: int = 1 << 30, guarantee: int = WIDTH * LANE_BYTES
) -> AsyncIterator[World]:
    reader = _Reader({f"{number}.tar.gz": data for number, data in enumerate(shards)})
    manifest = Manifest.build([(name.encode(), len(data)) for name, data in reader.shards.items()])
    budget = Budget(total)
    account = await budget.open("it", guarantee, shed=lambda: None, need="it")
    memory = GrowingMemory(budget, account, "it")
    with ThreadPoolExecutor(2) as executor:
        async with asyncio.TaskGroup() as tasks:
            source = Shards("d", fields=["x"], index=False)
            opened = OpenSource(manifest, reader)  # type: ignore[arg-type]  # of ranges only
            work = LaneWork(source, opened, Fetcher(4), executor, memory, 64 << 20)
            yield World(work, budget, reader, tasks)
        assert memory.held_bytes == memory.leaving_bytes == 0, "nothing is left"
        memory.close()


def shard(number: int, count: int, size: int = 10) -> bytes:
    names = [f"{number}-{one}.x" for one in range(count)]
    return packed(tar_of([(name, name.encode().ljust(size)) for name in names]), "tar.gz")


async def drained(world: World, lanes: Lanes) -> list[str]:
    """Return the keys of all samples, and let go of them one by one."""
    keys: list[str] = []
    while (lane := lanes.first()) is not None:
        while await lane.more():
            sample = lane.pop()
            assert sample is not None
            keys.append(sample.key)
            world.work.memory.release(sample.held_bytes)
        if lane.error is not None:
            lanes.stop()
            raise lane.error
        lanes.leave_first()
    return keys


@pytest.mark.parametrize("loop", LOOPS)
def test_samples_come_in_the_order_of_the_shards(loop: Loop) -> None:
    async def main() -> None:
        counts = [3, 0, 700, 1, 5, 2]
        async with world([shard(n, count) for n, count in enumerate(counts)]) as here:
            everything = [f"{n}-{one}" for n, count in enumerate(counts) for one in range(count)]
            assert await drained(here, here.lanes()) == everything
            assert await drained(here, here.lanes(2, 699)) == everything[702:]
            assert await drained(here, here.lanes(2, 700)) == everything[703:]
            stopped = await drained(here, here.lanes(2, 600, {2: 650, 4: 0}))
            assert stopped == [*everything[603:653], "3-0", "5-0", "5-1"]

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_lane_reads_no_further_than_its_queue(loop: Loop) -> None:
    async def main() -> None:
        async with world([shard(0, 3000)]) as here:
            lane = here.open_lane()
            await until(lambda: lane.num_samples >= QUEUE_SAMPLES)
            await turns(50)
            assert lane.num_samples == QUEUE_SAMPLES
            lane.stop()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_only_the_first_lane_makes_promises_grow(loop: Loop) -> None:
    async def main() -> None:
        large = 8 << 20
        async with world([shard(0, 1, large)], guarantee=LANE_BYTES) as here:
            lane = here.open_lane()
            memory = here.work.memory
            await until(lambda: memory._account.waiting is not None)
            await turns(5)
            assert (lane.num_samples, here.budget.guaranteed_bytes) == (0, LANE_BYTES)
            lane.lead()
            assert await lane.more()
            assert here.budget.guaranteed_bytes > large
            lane.stop()

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_lanes_behind_the_first_make_room_for_it(loop: Loop) -> None:
    """Three shards are read side by side, until the first needs the memory of the others."""

    async def main() -> None:
        large = 9 << 19  # with what unpacks it, nearly everything
        shards = [shard(0, 1, large), shard(1, 3000), shard(2, 3000)]
        total = WIDTH * LANE_BYTES
        async with world(shards, total=total) as here:
            lanes = here.lanes()
            first = lanes.first()
            assert first is not None
            keys = await drained(here, lanes)
            assert keys == ["0-0", *(f"{n}-{one}" for n in (1, 2) for one in range(3000))]
        # What does not fit without them either is refused.
        async with world([shard(0, 1, total)], total=total) as here:
            with pytest.raises(BudgetError, match=r"it needs .* bytes; the budget is"):
                await drained(here, here.lanes())

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_error_stands_behind_the_samples_before_it(loop: Loop) -> None:
    async def main() -> None:
        async with world([shard(0, 5), shard(1, 600)[:-200], shard(2, 5)]) as here:
            lanes = here.lanes()
            keys: list[str] = []
            with pytest.raises(ShardCorruptError, match=r"shard 1.tar.gz"):
                while (lane := lanes.first()) is not None:
                    while await lane.more():
                        sample = lane.pop()
                        assert sample is not None
                        keys.append(sample.key)
                        here.work.memory.release(sample.held_bytes)
                    if lane.error is not None:
                        raise lane.error
                    lanes.leave_first()
            assert keys[:6] == [*(f"0-{one}" for one in range(5)), "1-0"]
            lanes.stop()

    run(main(), loop)
