"""The registry: all feeds of the daemon, from their opening to the return of their memory.

It owns the tasks of the feeds.  A feed whose client lost its connection but lives on waits here for
a grace time; its token takes it up again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from headrace.errors import BudgetError, FeedError, PlanError
from headrace.plans.engine import Largest
from headrace.protocol.framing import MAX_PAYLOAD_BYTES
from headrace.topology import Topology

from ..assemble.slots import MIN_SLOTS, SlotPool
from ..fetch.growing import GrowingMemory
from ..source.progress import nobody
from .dictated import DictatedPlanner, Dictation
from .feed import Feed
from .groups import Group, Groups
from .journal import Journal
from .lanes import LANE_BYTES, WIDTH
from .planner import Planner
from .staging import take_seat
from .streamed import StreamedPlanner, check_alone
from .tally import Tallies, Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from headrace.protocol import messages as m

    from ..fetch.budget import Account, Budget
    from ..fetch.fetcher import Fetcher
    from ..fetch.seats import Seat
    from ..fetch.stage import Stage
    from ..source.progress import Tell
    from .sizes import SlotSizes
    from .streams import BoundStream, Streams

logger = logging.getLogger(__name__)

MAX_BATCH_SAMPLES = 1 << 18
"""Samples of one batch of one rank: what a batch header can name (see `MAX_HEADER_BYTES`)."""

MAX_PREFETCH = 4096
"""Batches that a feed may aim to hold ready."""


MAX_MEMBERS = 1 << 16
"""Ranks on one node, and workers of one of them."""

MAX_GROUP_NAME = 256
"""Characters of the name of a group."""


@dataclass(slots=True, eq=False)
class OpenFeed:
    """A feed and what its client needs to know of it."""

    token: str
    stream: BoundStream
    feed: Feed
    # The run that the feed is a part of; None for one that stands alone.
    group: Group | None = None
    # Ends the grace time; None while a client is attached.
    grace: asyncio.TimerHandle | None = None
    # Closes what watches the process of a parked feed's client.
    unwatch: Callable[[], None] = lambda: None

    def unpark(self) -> None:
        """End the grace time; does nothing for a feed that is not parked."""
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None
            self.unwatch()


class FeedRegistry:
    """Opens, parks, takes up and closes feeds; a context manager around the time it may do so.

    Args:
        streams: Resolves what clients ask for.
        sizes: Finds how large their batches are.
        budget: The memory of the node.
        fetcher: Reads for all feeds.
        stage: Likewise, what several batches want of the same shards; it outlives the registry.
        executor: Threads for planning.
        grace_s: How long a parked feed waits for its client, in seconds.
    """

    def __init__(
        self,
        *,
        streams: Streams,
        sizes: SlotSizes,
        budget: Budget,
        fetcher: Fetcher,
        stage: Stage,
        executor: Executor,
        grace_s: float,
    ) -> None:
        self._streams = streams
        self._sizes = sizes
        self._budget = budget
        self._fetcher = fetcher
        self._stage = stage
        self._executor = executor
        self.grace_s = grace_s
        """How long a feed waits that is parked from now on, seconds."""
        self._groups = Groups(budget, grace_s)
        self._tallies = Tallies()
        self._feeds: dict[str, OpenFeed] = {}
        # Owns the tasks of all feeds; None outside of the context.
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def feeds(self) -> list[OpenFeed]:
        """All feeds, parked ones too."""
        return list(self._feeds.values())

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all feeds; reads that a thread is in the middle of are waited for."""
        assert self._tasks is not None
        try:
            for entry in self.feeds:
                await self.close(entry)
        finally:
            self._groups.close()
            # Whatever ended the context: the group waits for what is being closed, and does not
            # cancel it.
            await self._tasks.__aexit__(None, None, None)
            self._tasks = None

    async def open(
        self,
        request: m.Open,
        *,
        dictation: Dictation | None = None,
        tell: Tell = nobody,
    ) -> OpenFeed:
        """Open a feed, or take up the parked one that the request has the token of.

        Cancelled or failed, it leaves nothing open.

        Args:
            request: What is asked for.
            dictation: Where the batches of a stream come from whose plan the client executes.
            tell: As for `Streams.bind`.

        Raises:
            HeadraceError: If stream, position, topology or memory do not allow it.
        """
        _check(request)
        check_group(request)
        parked = self._feeds.get(request.token) if request.token else None
        if parked is not None:
            if parked.grace is None:
                raise FeedError(
                    "the feed of this token is still attached to another connection: try again",
                    code="busy",
                    fault="client",
                    retryable=True,
                )
            parked.unpark()
        try:
            stream = await self._streams.bind(
                request.stream,
                Topology(request.rank, request.world_size),
                request.start,
                tell=tell,
            )
            planner: Planner | DictatedPlanner | StreamedPlanner | None = None
            if not stream.is_sized:
                largest = Largest(0, 0, stream.cursor)
                if stream.stream.is_streamed:
                    self._check_streamed(stream, request)
                else:
                    planner = DictatedPlanner(dictation or Dictation(), stream)
            else:
                planner = await asyncio.get_running_loop().run_in_executor(
                    self._executor, self._make_planner, stream, request
                )
                largest = await self._largest(stream)
            slot_bytes = largest.weight
            if parked is None:
                pool, group = await self._reserve(stream, slot_bytes, request)
            else:
                group = parked.group
                self._leave(parked.feed)
                # The same memory goes on serving the same client.
                await parked.feed.stop()
                before = parked.feed.planner
                if isinstance(before, StreamedPlanner) and not stream.stream.is_streamed:
                    before.memory.close()
                pool = parked.feed.pool
                pool.resize(slot_bytes, need=_need(stream, slot_bytes))
            if planner is None:
                planner = await self._make_streamed(stream, request, parked, pool)
        except BaseException:
            if parked is not None:
                self.close_soon(parked)
            raise
        token = parked.token if parked else secrets.token_hex(16)
        feed = self._make(
            stream,
            planner,
            pool,
            largest,
            request,
            num_slots=max(MIN_SLOTS, request.prefetch + 1),
        )
        skip = stream.stream.skip
        if skip is not None:
            key = (self._key(request, stream), skip) if request.group else token
            self._join(feed, self._tallies.of(key, skip), stream)
        return self._start(OpenFeed(token, stream, feed, group))

    @staticmethod
    def _key(request: m.Open | m.Lookup, stream: BoundStream) -> tuple[object, ...]:
        """Return what the feeds of a run on this node have in common."""
        bound = stream.bound
        label = stream.name or stream.stream.source.title
        ranks, workers = request.ranks, request.workers
        world_size = stream.topology.world_size
        return request.group, ranks, workers, label, bound.digest, bound.manifest, world_size

    @staticmethod
    def _join(feed: Feed, tally: Tally, stream: BoundStream) -> None:
        feed.tally = tally
        tally.join(feed.wake, stream.cursor.epoch, stream.cursor.skips)

    def _make_planner(self, stream: BoundStream, request: m.Open) -> Planner:
        """Return the planner of a feed; may have to look at each sample of an epoch."""
        return Planner(
            stream.bound,
            stream.cursor,
            stream.topology,
            first=request.first,
            stride=request.stride,
            epochs=request.epochs,
            executor=self._executor,
        )

    def _check_streamed(self, stream: BoundStream, request: m.Open) -> None:
        check_alone(stream, request.stride)
        self._check_samples(stream)

    async def _make_streamed(
        self, stream: BoundStream, request: m.Open, parked: OpenFeed | None, pool: SlotPool
    ) -> StreamedPlanner:
        """Return the planner of streamed shards, with its memory; without it the pool is closed."""
        before = None if parked is None else parked.feed.planner
        if isinstance(before, StreamedPlanner):
            memory = before.memory  # it goes on serving the same client
        else:
            try:
                memory = await self._open_memory(stream)
            except BaseException:
                if parked is None:
                    pool.close()
                raise
        return StreamedPlanner(
            stream,
            fetcher=self._fetcher,
            executor=self._executor,
            memory=memory,
            first=request.first,
            stride=request.stride,
            epochs=request.epochs,
        )

    async def _open_memory(self, stream: BoundStream) -> GrowingMemory:
        """Reserve what a few shards take up that are read side by side, or one of them."""
        what = (
            f"feed {_name(stream)} streams shards: with those that are being read, and the samples "
            "that are put together, it"
        )
        for width in (WIDTH, 1):
            guarantee = width * LANE_BYTES
            try:
                account = await self._budget.open(
                    f"shards of {_name(stream)}",
                    guarantee,
                    shed=lambda: None,
                    need=f"{what} needs {guarantee} bytes",
                )
            except BudgetError:
                if width == 1:
                    raise
            else:
                return GrowingMemory(self._budget, account, what)
        raise AssertionError

    async def admit(self, request: m.Open | m.Lookup, stream: BoundStream) -> Group:
        """Reserve the memory of the group that a request names.

        Raises:
            HeadraceError: If it does not fit, or a batch is too large.
        """
        await self._largest(stream)
        share_bytes = MIN_SLOTS * await self._sizes.of_any(stream, stream.cursor)
        ranks, workers = request.ranks, request.workers
        num_members = ranks * workers
        label = stream.name or stream.stream.source.title
        return await self._groups.admit(
            self._key(request, stream),
            num_members=num_members,
            share_bytes=share_bytes,
            name=f"group {label}",
            need=(
                f"a run over {label} with {ranks} rank(s) × {workers} worker(s) on this node has "
                f"{num_members} feed(s) of {MIN_SLOTS} slots of {share_bytes // MIN_SLOTS} bytes "
                f"(the largest batch{_samples(stream)} of epoch "
                f"{stream.cursor.epoch}) and needs {num_members * share_bytes} bytes; fewer "
                "workers need less"
            ),
        )

    def _check_samples(self, stream: BoundStream) -> None:
        num_samples = stream.samples_per_batch
        if num_samples > MAX_BATCH_SAMPLES:
            raise PlanError(
                f"a batch of {num_samples} samples per rank is above the limit of "
                f"{MAX_BATCH_SAMPLES}: use a smaller batch"
            )

    async def _largest(self, stream: BoundStream) -> Largest:
        self._check_samples(stream)
        largest = await self._sizes.of_rank(stream, stream.cursor)
        if largest.weight > MAX_PAYLOAD_BYTES:
            raise PlanError(
                f"the largest batch of epoch {largest.segment} has {largest.weight} bytes, above "
                f"the limit of {MAX_PAYLOAD_BYTES}: use a smaller batch"
            )
        return largest

    async def _reserve(
        self, stream: BoundStream, slot_bytes: int, request: m.Open
    ) -> tuple[SlotPool, Group | None]:
        """Return a pool with its memory reserved, and the group that it is from."""
        # The budget may ask to shed as soon as the account is there; the pool comes after it.
        pools: list[SlotPool] = []
        name, need, guarantee = _name(stream), _need(stream, slot_bytes), MIN_SLOTS * slot_bytes

        def shed() -> None:
            if pools:
                pools[0].on_shed()

        has_group = bool(request.group) and stream.is_sized
        group = await self.admit(request, stream) if has_group else None
        account: Account | None = None
        if group is not None:
            account = self._groups.take(group, guarantee, name=name, shed=shed, need=need)
            group = None if account is None else group
        if account is None:
            account = await self._budget.open(name, guarantee, shed=shed, need=need)
        pool = SlotPool(
            self._budget,
            account,
            slot_bytes=slot_bytes,
            max_slots=max(MIN_SLOTS, request.prefetch + 1),
            has_surplus=not stream.stream.is_streamed,
        )
        pools.append(pool)
        return pool, group

    def _make(
        self,
        stream: BoundStream,
        planner: Planner | DictatedPlanner | StreamedPlanner,
        pool: SlotPool,
        largest: Largest,
        request: m.Open,
        *,
        num_slots: int,
    ) -> Feed:
        async def size(after: Largest) -> Largest:
            if not isinstance(planner, Planner):
                return await planner.largest(after.segment)
            return await self._sizes.of_rank(stream, after.after)

        seat: Seat | None = None
        if isinstance(planner, Planner):
            seat = take_seat(self._stage, stream, request, planner.last_epoch)
        feed = Feed(
            name=_name(stream),
            seat=seat,
            source_of=stream.source_of,
            number_of=stream.number_of,
            journal=Journal(
                stream.stream.skip, epoch=stream.cursor.epoch, skips=stream.cursor.skips
            ),
            planner=planner,
            pool=pool,
            fetcher=self._fetcher,
            largest=largest,
            size_slots=size,
            num_slots=num_slots,
        )
        pool.on_shed = feed.shed
        return feed

    def _start(self, entry: OpenFeed) -> OpenFeed:
        feed, cursor = entry.feed, entry.stream.cursor
        self._feeds[entry.token] = entry
        assert self._tasks is not None, "the registry is not running"
        self._tasks.create_task(feed.run(), name=f"feed {feed.name}")
        logger.info(
            "feed opened feed=%s epoch=%d step=%d slot_bytes=%d slots=%d",
            feed.name,
            cursor.epoch,
            cursor.step,
            feed.pool.slot_bytes,
            feed.pool.max_slots,
        )
        return entry

    async def close(self, entry: OpenFeed) -> None:
        """End a feed and take its memory back; a second call does nothing.

        Cancelled, it goes on in the background.
        """
        closing = self._begin_close(entry)
        if closing is not None:
            await asyncio.shield(closing)

    def close_soon(self, entry: OpenFeed) -> None:
        """End a feed in the background; does nothing for one that is closed or taken up again."""
        self._begin_close(entry)

    def _begin_close(self, entry: OpenFeed) -> asyncio.Task[None] | None:
        if self._feeds.get(entry.token) is not entry:
            return None
        del self._feeds[entry.token]
        entry.unpark()
        self._leave(entry.feed)
        entry.feed.pool.retire()
        if entry.group is not None:
            self._groups.give_back(entry.group)
        assert self._tasks is not None, "the registry is not running"
        return self._tasks.create_task(self._take_back(entry), name=f"close {entry.feed.name}")

    def _leave(self, feed: Feed) -> None:
        """Have a feed count no more with those of its run."""
        tally, feed.tally = feed.tally, None
        if tally is not None and tally.leave(feed.wake):
            self._tallies.forget(tally)

    async def _take_back(self, entry: OpenFeed) -> None:
        feed = entry.feed
        try:
            await feed.stop()
            feed.pool.close()
            if isinstance(feed.planner, StreamedPlanner):
                feed.planner.memory.close()
        except Exception:
            # A bug here costs the memory of one feed; the others go on.
            logger.exception("feed not closed feed=%s", feed.name)
        else:
            logger.info("feed closed feed=%s batches=%d", feed.name, feed.statistics.num_batches)

    def park(self, entry: OpenFeed, *, unwatch: Callable[[], None]) -> None:
        """Keep a feed for its client to come back, for the grace time.

        Args:
            entry: The feed; nobody transmits it any more.
            unwatch: Called when the feed is no longer parked.
        """
        entry.feed.on_change = lambda: None
        entry.unwatch = unwatch
        entry.grace = asyncio.get_running_loop().call_later(self.grace_s, self.close_soon, entry)
        logger.info("feed parked feed=%s grace_s=%g", entry.feed.name, self.grace_s)


def _name(stream: BoundStream) -> str:
    label = stream.name or stream.stream.source.title
    return f"{label} rank={stream.topology.rank}/{stream.topology.world_size}"


def _need(stream: BoundStream, slot_bytes: int) -> str:
    guarantee, world_size = MIN_SLOTS * slot_bytes, stream.topology.world_size
    return (
        f"feed {_name(stream)} needs {MIN_SLOTS} slots of {slot_bytes} bytes (the largest batch"
        f"{_samples(stream)} of epoch {stream.cursor.epoch}): {guarantee} bytes, "
        f"{guarantee * world_size} for {world_size} rank(s)"
    )


def _samples(stream: BoundStream) -> str:
    count = stream.samples_per_batch
    return f", {count} samples," if count else ""


def _check(request: m.Open) -> None:
    limits = {
        "first": (request.first, 0, 2**31),
        "stride": (request.stride, 1, 2**31),
        "prefetch": (request.prefetch, 1, MAX_PREFETCH),
    }
    if request.epochs is not None:
        limits["epochs"] = (request.epochs, 1, 2**31)
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise PlanError(f"{name}={value} is out of range: it must be in {low}..{high}")
    if request.stride > 1 and request.epochs not in (None, 1):
        raise PlanError(
            f"epochs={request.epochs} with stride={request.stride}: a part is one epoch"
        )


def check_group(request: m.Open | m.Lookup) -> None:
    """Refuse numbers of a group that are out of range.

    Raises:
        PlanError: If they are.
    """
    for name, value in (("ranks", request.ranks), ("workers", request.workers)):
        if not 1 <= value <= MAX_MEMBERS:
            raise PlanError(f"{name}={value} is out of range: it must be in 1..{MAX_MEMBERS}")
    if len(request.group) > MAX_GROUP_NAME:
        raise PlanError(
            f"group has {len(request.group)} characters, above the limit of {MAX_GROUP_NAME}"
        )
