"""The composition root: builds the parts of a daemon, passes them to each other, runs them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.protocol import VERSION

from . import __version__
from .errors import SettingsError
from .feed.bound import BoundPlans
from .feed.orders import OrderMaker
from .feed.registry import FeedRegistry, OpenFeed
from .feed.sizes import SlotSizes
from .feed.streams import Streams
from .fetch.budget import Budget
from .fetch.fetcher import Fetcher
from .fetch.stage import Stage
from .settings import DaemonSettings, FetchSettings, StoreSettings
from .source.ais.access import Access
from .source.ais.store import AisStore
from .source.catalog import Catalog
from .source.store import ManifestStore
from .transport.listener import Listener
from .transport.session import Session

if TYPE_CHECKING:
    import socket

    from .settings import Settings

logger = logging.getLogger(__name__)

_LOOSE: Final = frozenset({"max_connections", "grace_s", "drain_s"})
_FIXED: Final = (
    *(
        f"daemon.{field.name}"
        for field in msgspec.structs.fields(DaemonSettings)
        if field.name not in _LOOSE
    ),
    *(f"fetch.{field.name}" for field in msgspec.structs.fields(FetchSettings)),
    *(f"store.{field.name}" for field in msgspec.structs.fields(StoreSettings)),
)
"""Keys that count at the start only: what was built by them stays as long as the daemon."""


class App:
    """A daemon, from its listening socket to the return of everything.

    Args:
        settings: The configuration in force.
        listener: Listening and non-blocking; the app closes it.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._started = time.monotonic()
        self.is_serving = asyncio.Event()
        """Set once clients are accepted."""
        # Threads for reading, listing and planning; what is queued for them is bounded by the
        # fetcher's places and the number of feeds.
        self._executor = ThreadPoolExecutor(
            settings.fetch.max_in_flight, thread_name_prefix="headrace"
        )
        self._budget = Budget(settings.daemon.memory_bytes)
        self._fetcher = Fetcher(settings.fetch.max_in_flight)
        self._stage = Stage(
            self._budget,
            self._fetcher,
            self._executor,
            int(settings.fetch.stage * settings.daemon.memory_bytes),
        )
        self._ais = AisStore(settings.store, Access(settings.store), self._executor)
        catalog = Catalog(ManifestStore(Path(settings.daemon.state_dir)), self._executor, self._ais)
        self._orders = OrderMaker()
        plans = BoundPlans(self._orders)
        self._streams = Streams(settings, catalog, plans, self._executor)
        self._registry = FeedRegistry(
            streams=self._streams,
            sizes=SlotSizes(self._executor),
            budget=self._budget,
            fetcher=self._fetcher,
            stage=self._stage,
            executor=self._executor,
            grace_s=settings.daemon.grace_s,
        )
        self._listener = Listener(
            listener,
            self._make_session,
            allow_uids=settings.trust.allow_uids,
            max_connections=settings.daemon.max_connections,
        )

    async def run(self) -> None:
        """Serve until `stop` has drained everything, or until cancelled."""
        logger.info("settings %s", msgspec.json.encode(self._settings).decode())
        try:
            async with self._ais, self._stage, self._registry:
                self.is_serving.set()
                await self._listener.run()
        finally:
            self._listener.stop()
            self._orders.close()
            self._executor.shutdown(wait=False, cancel_futures=True)
            logger.info("stopped")

    def stop(self) -> None:
        """Begin an orderly end: accept nothing, read nothing ahead, drain the sessions."""
        logger.info("stopping drain_s=%g", self._settings.daemon.drain_s)
        self._listener.stop()

    @property
    def settings(self) -> Settings:
        """The configuration in force."""
        return self._settings

    @property
    def store(self) -> AisStore:
        """The cluster that buckets are in."""
        return self._ais

    def reload(self, settings: Settings) -> None:
        """Put another configuration into force: all of it, or nothing.

        Feeds and connections go on as they were opened.

        Raises:
            SettingsError: If keys have changed that only count at the start.
        """
        changed = [key for key in _FIXED if _value(settings, key) != _value(self._settings, key)]
        if changed:
            news = ", ".join(
                f"{key} = {_value(settings, key)!r} (in force: {_value(self._settings, key)!r})"
                for key in changed
            )
            raise SettingsError(f"{news}: changes only with a restart of the daemon")
        self._settings = settings
        self._streams.settings = settings
        self._registry.grace_s = settings.daemon.grace_s
        self._listener.allow_uids = settings.trust.allow_uids
        self._listener.max_connections = settings.daemon.max_connections
        logger.info("settings %s", msgspec.json.encode(settings).decode())

    def _make_session(self, sock: socket.socket, name: str) -> Session:
        return Session(
            sock,
            name=name,
            streams=self._streams,
            registry=self._registry,
            budget=self._budget,
            fetcher=self._fetcher,
            report=self.report,
        )

    def report(self) -> dict[str, Any]:
        """Return what ``headrace status --json`` prints."""
        return {
            "version": __version__,
            "protocol": VERSION,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started, 1),
            "socket": self._settings.daemon.socket,
            "connections": self._listener.num_sessions,
            "memory": {
                "budget_bytes": self._budget.total_bytes,
                "guaranteed_bytes": self._budget.guaranteed_bytes,
                "held_bytes": self._budget.held_bytes,
            },
            "reads": {"shared": self._fetcher.inflight.num_shared},
            "stage": {
                "held_bytes": self._stage.held_bytes,
                "pieces": self._stage.num_pieces,
                "bytes": self._stage.num_bytes,
                "again_bytes": self._stage.num_again_bytes,
                "hits": self._stage.num_hits,
            },
            "store": self._ais.report(),
            "streams": sorted(self._settings.streams),
            "default_stream": self._settings.default_stream,
            "feeds": [_describe(entry) for entry in self._registry.feeds],
        }


def _value(settings: Settings, key: str) -> object:
    table, _, name = key.partition(".")
    return getattr(getattr(settings, table), name)


def _describe(entry: OpenFeed) -> dict[str, Any]:
    feed, stream = entry.feed, entry.stream
    statistics = feed.statistics
    return {
        "stream": stream.name,
        "source": stream.stream.source.title,
        "rank": stream.topology.rank,
        "world_size": stream.topology.world_size,
        "manifest": stream.bound.manifest,
        "is_parked": entry.grace is not None,
        "epoch": statistics.epoch,
        "step": statistics.step,
        "slot_bytes": feed.pool.slot_bytes,
        "slots": feed.pool.num_slots,
        "max_slots": feed.pool.max_slots,
        "ready": feed.num_ready,
        "filling": feed.num_filling,
        "batches": statistics.num_batches,
        "samples": statistics.num_samples,
        "bytes": statistics.num_bytes,
        "skipped": statistics.num_skipped,
        "waited_for_credit_s": round(statistics.waited_for_credit_s, 3),
        "waited_for_bytes_s": round(statistics.waited_for_bytes_s, 3),
        "sending_s": round(statistics.sending_s, 3),
    }
