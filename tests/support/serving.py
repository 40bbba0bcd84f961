"""The parts of a daemon around one made-up source, put together as `headrace_daemon.app` does."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import ManifestMismatchError
from headrace.plans import Sequential
from headrace.protocol import messages as m
from headrace.sources import Objects, Stream
from headrace_daemon.errors import SourceMissingError
from headrace_daemon.feed.bound import BoundPlans
from headrace_daemon.feed.orders import OrderMaker
from headrace_daemon.feed.registry import FeedRegistry
from headrace_daemon.feed.sizes import SlotSizes
from headrace_daemon.feed.streams import Streams
from headrace_daemon.fetch.blocks import BLOCK_BYTES
from headrace_daemon.fetch.budget import Budget
from headrace_daemon.fetch.fetcher import Fetcher
from headrace_daemon.fetch.stage import Stage
from headrace_daemon.settings import Settings
from headrace_daemon.source.catalog import Catalog, OpenSource
from headrace_daemon.source.progress import nobody

from .loops import until
from .reading import GatedReader, InlineExecutor, ReadyReader, source_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from headrace.plans import Plan
    from headrace.sources import Source
    from headrace_daemon.source.progress import Tell

DATA: Final = "/data"
SLOT_BYTES: Final = 128
"""A batch of the default stream."""


class FakeCatalog(Catalog):
    """Knows one source; its opening waits where the test wants it to."""

    def __init__(self, source: OpenSource) -> None:
        self.source = source
        self.gate: asyncio.Future[None] | None = None
        """Openings wait for it, if there is one."""
        self.num_waiting = 0
        self.failure: Exception | None = None
        self.tell: Tell | None = None
        """That of the latest opening."""

    async def open(
        self,
        source: Source,
        *,
        digest: str | None = None,
        tell: Tell = nobody,
    ) -> OpenSource:
        self.tell = tell
        if self.gate is not None:
            self.num_waiting += 1
            try:
                await asyncio.shield(self.gate)
            finally:
                self.num_waiting -= 1
        if self.failure is not None:
            raise self.failure
        if source.location != DATA:
            told = f"folder {source.location} does not exist"
            raise SourceMissingError(source.location, told)
        if digest not in (None, self.source.manifest.digest):
            raise ManifestMismatchError(f"the cursor belongs to manifest {digest}")
        return self.source


class Daemon:
    """The parts, without a listener.

    Args:
        sizes: Of the samples of the one source.
        plan: Of the one stream, ``train``.
        budget_bytes: For all feeds and reads.
        reader: Of the source; by default it fills everything at once.
        source: In place of that.
        stage_bytes: What the stage holds at most.
        block_bytes: Its blocks.
        grace_s: Of parked feeds; by default they stay.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int] = (40,) * 20,
        plan: Plan | None = None,
        budget_bytes: int = 20 * SLOT_BYTES,
        reader: GatedReader | ReadyReader | None = None,
        source: OpenSource | None = None,
        stage_bytes: int = 0,
        block_bytes: int = BLOCK_BYTES,
        grace_s: float = 3600.0,
        executor: Any = None,  # noqa: ANN401 - any executor
    ) -> None:
        self.reader = reader or ReadyReader()
        self.stream = Stream(Objects(DATA), plan or Sequential(batch_size=2))
        self.settings = Settings(streams={"train": self.stream}, default_stream="train")
        self.budget = Budget(budget_bytes)
        self.fetcher = Fetcher(16)
        self.catalog = FakeCatalog(source or source_of(sizes, self.reader))
        executor = executor or InlineExecutor()
        self.stage = Stage(
            self.budget, self.fetcher, executor, stage_bytes, block_bytes=block_bytes
        )
        plans = BoundPlans(OrderMaker())
        self.streams = Streams(self.settings, self.catalog, plans, executor)
        self.registry = FeedRegistry(
            streams=self.streams,
            sizes=SlotSizes(executor),
            budget=self.budget,
            fetcher=self.fetcher,
            stage=self.stage,
            executor=executor,
            grace_s=grace_s,
        )

    @property
    def gated(self) -> GatedReader:
        assert isinstance(self.reader, GatedReader)
        return self.reader

    def give_up(self) -> None:
        """Let go of all that waits: a test that has failed shall end."""
        if isinstance(self.reader, GatedReader):
            self.reader.open_gates()

    async def whole(self) -> None:
        """Wait until all feeds are closed and all memory is back."""
        await until(lambda: not self.registry.feeds)
        await until(lambda: not self.budget.guaranteed_bytes and not self.budget.held_bytes)
        self.assert_whole()

    def assert_whole(self) -> None:
        """Fail if a feed or memory is left."""
        assert self.registry.feeds == []
        assert (self.budget.guaranteed_bytes, self.budget.held_bytes) == (0, 0)
        assert not self.budget.is_under_pressure


@asynccontextmanager
async def running_registry(**options: Any) -> AsyncIterator[Daemon]:  # noqa: ANN401 - of Daemon
    """Run a registry; at the end all feeds are closed and all memory is back."""
    daemon = Daemon(**options)
    async with daemon.stage, daemon.registry:
        try:
            yield daemon
        except BaseException:
            daemon.give_up()
            raise
    daemon.assert_whole()


def request(**fields: Any) -> m.Open:  # noqa: ANN401 - of Open
    """Return a request for the default stream."""
    return m.Open(**fields)
