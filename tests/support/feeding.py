"""A feed on a source from `tests.support.reading`, with all that it stands on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from headrace.plans import Sequential
from headrace.plans.engine import BoundPlan, Largest
from headrace.topology import Topology
from headrace_daemon.assemble.slots import MIN_SLOTS, SlotPool
from headrace_daemon.feed.feed import Feed, Item, ReadyBatch
from headrace_daemon.feed.planner import Planner
from headrace_daemon.fetch.budget import Budget
from headrace_daemon.fetch.fetcher import Fetcher

from .loops import until
from .reading import GatedReader, InlineExecutor, source_of, value_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from concurrent.futures import Executor

    from headrace.plans import Cursor, Plan

    from .reading import ReadyReader

SLOT_BYTES = 128
"""A batch of two samples that are not empty and not above 64 bytes."""


@dataclass(eq=False)
class FeedKit:
    """A running feed, and what a test needs beside it."""

    budget: Budget
    pool: SlotPool
    feed: Feed
    reader: GatedReader | ReadyReader
    running: asyncio.Task[None] | None = None
    out: list[ReadyBatch] = field(default_factory=list)
    """Batches that were taken and whose slot was not given back."""

    @property
    def gated(self) -> GatedReader:
        assert isinstance(self.reader, GatedReader)
        return self.reader

    async def next(self) -> Item:
        """Return the next item of the stream; a batch keeps its slot until `let_go`."""
        await until(lambda: self.feed.head() is not None)
        item = self.feed.take()
        if isinstance(item, ReadyBatch):
            check_content(item)
            self.out.append(item)
        return item

    def let_go(self) -> None:
        """Give the slots of all batches back that were taken."""
        while self.out:
            self.pool.give_back(self.out.pop().slot)

    async def take(self, number: int) -> list[tuple[int, int]]:
        """Return (epoch, step) of the next batches, which lets go of each at once."""
        found = []
        for _ in range(number):
            item = await self.next()
            assert isinstance(item, ReadyBatch), item
            found.append((item.planned.epoch, item.planned.step))
            self.let_go()
        return found


def check_content(batch: ReadyBatch) -> None:
    """Fail unless each value lies where the layout says."""
    values = zip(
        batch.names, batch.layout.offsets.tolist(), batch.layout.lengths.tolist(), strict=True
    )
    for name, offset, length in values:
        assert batch.payload[offset : offset + length] == value_of(name, length), name


async def open_pool(
    budget: Budget, *, slot_bytes: int = SLOT_BYTES, max_slots: int = 4, name: str = "feed"
) -> SlotPool:
    """Return a pool with its guarantee, connected as the registry does it."""
    pools: list[SlotPool] = []
    account = await budget.open(
        name,
        MIN_SLOTS * slot_bytes,
        shed=lambda: pools[0].on_shed() if pools else None,
        need=f"need {name}",
    )
    pools.append(SlotPool(budget, account, slot_bytes=slot_bytes, max_slots=max_slots))
    return pools[0]


async def make_feed(
    *,
    sizes: Sequence[int] = (40,) * 20,
    plan: Plan | None = None,
    budget: Budget | None = None,
    budget_bytes: int = 10 * SLOT_BYTES,
    slot_bytes: int = SLOT_BYTES,
    max_slots: int = 4,
    reader: GatedReader | ReadyReader | None = None,
    size_slots: Callable[[int], int] | None = None,
    epochs: int | None = None,
    places: int = 64,
    executor: Executor | None = None,
) -> FeedKit:
    """Return a feed that is not running yet."""
    reader = reader or GatedReader()
    budget = budget or Budget(budget_bytes)
    source = source_of(sizes, reader)
    bound = BoundPlan(
        plan or Sequential(batch_size=2), len(source.manifest), source.manifest.digest
    )
    pool = await open_pool(budget, slot_bytes=slot_bytes, max_slots=max_slots)
    executor = executor or InlineExecutor()

    def largest(cursor: Cursor) -> Largest:
        weight = slot_bytes if size_slots is None else size_slots(cursor.epoch)
        return Largest(weight, cursor.epoch, replace(bound.start(), epoch=cursor.epoch + 1))

    async def size(before: Largest) -> Largest:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, largest, before.after)

    feed = Feed(
        name="train rank=0/1",
        source_of=lambda part: source,
        number_of=lambda part: 0,
        planner=Planner(bound, bound.start(), Topology(), epochs=epochs, executor=executor),
        pool=pool,
        fetcher=Fetcher(places),
        largest=Largest(slot_bytes, 0, replace(bound.start(), epoch=1)),
        size_slots=size,
    )
    pool.on_shed = feed.shed
    return FeedKit(budget, pool, feed, reader)


@asynccontextmanager
async def running_feed(**options: Any) -> AsyncIterator[FeedKit]:  # noqa: ANN401 - of make_feed
    """Run a feed; at the end stop it and see that all memory has come back."""
    kit = await make_feed(**options)
    async with asyncio.TaskGroup() as tasks:
        kit.running = tasks.create_task(kit.feed.run(), name="feed")
        try:
            yield kit
        except BaseException:
            if isinstance(kit.reader, GatedReader):
                kit.reader.open_gates()
            raise
        finally:
            await stop(kit)


async def stop(kit: FeedKit) -> None:
    """Stop a feed, close its pool, and see that nothing is left."""
    kit.let_go()
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(kit.feed.stop(), name="stop")
        await until(lambda: stopping.done() or (lingering(kit) and kit.gated.under_way))
        while not stopping.done():
            kit.gated.finish_all()
            await until(lambda: stopping.done() or kit.gated.under_way)
    kit.pool.close()
    assert kit.budget.held_bytes == 0
    assert (kit.feed.num_ready, kit.feed.num_filling) == (0, 0)


def lingering(kit: FeedKit) -> bool:
    return isinstance(kit.reader, GatedReader) and kit.reader.lingers
