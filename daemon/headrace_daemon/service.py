"""The service: what the process does for those who run it, beside serving.

It tells the service manager how the daemon is, and reloads the configuration.  The pings of the
watchdog come from the event loop that serves: a loop that is stuck is silent, and gets killed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NoReturn

from headrace.errors import HeadraceError

from .observe.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from .app import App
    from .observe.notify import Notifier
    from .settings import Settings

logger = logging.getLogger(__name__)

TELL_S: Final = 2.0
"""How old the words may be that the service manager shows, seconds."""

LOOK_S: Final = 15.0
"""How old the map of a store may be before it is asked for, seconds; somebody may look at any time
and wants to know.  Readers renew it every 30 s anyway."""

LOOK_AGAIN_S: Final = 2.0
"""How soon a store is asked again that did not answer, seconds."""

PINGS: Final = 3
"""Within the time of the watchdog: one may be late."""

STOP_S: Final = 10.0
"""How long the end may take after the drain, seconds: reads that threads are in the middle of."""


class Service:
    """The daemon as a service manager sees it.

    Args:
        app: The daemon.
        notifier: The way to the service manager.
        load: Reads the configuration anew; None if there is none to read.
    """

    def __init__(
        self, app: App, notifier: Notifier, load: Callable[[], Settings] | None = None
    ) -> None:
        self._app = app
        self._notifier = notifier
        self._load = load
        self._is_asked_to_reload = asyncio.Event()
        self._is_stopping = False
        # Looks at the store; None while nobody wants to know.
        self._looking: asyncio.Task[NoReturn] | None = None
        # Why the store did not answer when it was asked last; empty if it did.
        self._store_trouble = ""
        # Why the latest reload was refused; empty if it was not.
        self._refusal = ""

    @property
    def can_reload(self) -> bool:
        """Whether there is a configuration to read anew."""
        return self._load is not None

    async def run(self) -> None:
        """Do all of it, from the time when the daemon serves until cancelled."""
        await self._app.is_serving.wait()
        if self._is_stopping:
            return
        self._notifier.ready(self._words)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._serve_reloads(), name="reload the configuration")
            if self._notifier.is_active:
                tasks.create_task(self._tell(), name="tell the service manager")
                if self._app.store.client.access.endpoints:
                    self._looking = tasks.create_task(
                        self._look_at_store(), name="look at the store"
                    )

    def reload_soon(self) -> None:
        """Read the configuration anew; once more if that has begun already."""
        self._is_asked_to_reload.set()

    def stop(self) -> None:
        """Say that the end begins; nothing is reloaded, and no store asked, any more."""
        if self._looking is not None:
            self._looking.cancel()
        drain_s = self._app.settings.daemon.drain_s
        self._is_stopping = True
        self._notifier.stopping(f"stopping: draining for {drain_s:g} s", within_s=drain_s + STOP_S)

    @property
    def _words(self) -> str:
        words = summarize(self._app.report(), store_trouble=self._store_trouble)
        return f"{words}; reload refused: {self._refusal}" if self._refusal else words

    async def _tell(self) -> NoReturn:
        watchdog_s = self._notifier.watchdog_s
        pause_s = TELL_S if watchdog_s is None else min(TELL_S, watchdog_s / PINGS)
        while True:
            if watchdog_s is not None:
                self._notifier.ping()
            if not self._is_stopping:
                self._notifier.status(self._words)
            await asyncio.sleep(pause_s)

    async def _look_at_store(self) -> NoReturn:
        while True:
            self._store_trouble = await self._app.store.look(LOOK_S)
            await asyncio.sleep(LOOK_AGAIN_S if self._store_trouble else LOOK_S)

    async def _serve_reloads(self) -> NoReturn:
        while True:
            await self._is_asked_to_reload.wait()
            self._is_asked_to_reload.clear()
            if not self._is_stopping:
                await self._reload()

    async def _reload(self) -> None:
        assert self._load is not None, "there is nothing to reload"
        self._notifier.reloading()
        self._refusal = ""
        try:
            self._app.reload(await asyncio.to_thread(self._load))
        except HeadraceError as error:
            self._refusal = str(error)
            logger.error("reload refused, the configuration stays as it was: %s", error)
        else:
            logger.info("reloaded")
        if not self._is_stopping:
            self._notifier.ready(self._words)
