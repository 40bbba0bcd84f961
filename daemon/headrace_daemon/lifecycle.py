"""The life of the process: signals, the order of a stop, and the parent of a private daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

import uvloop

from .app import App

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .settings import Settings

logger = logging.getLogger(__name__)


async def serve(settings: Settings, listener: socket.socket, *, lifeline: int | None) -> None:
    """Run a daemon until it is told to stop.

    The first SIGTERM or SIGINT, or the end of the lifeline, drains: what is ready is delivered,
    up to the deadline of the settings.  A second signal skips the wait.

    Args:
        settings: The configuration.
        listener: Listening and non-blocking.
        lifeline: A descriptor whose end of file means that the parent is gone; None for none.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hurry = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if lifeline is not None:
        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, lambda: _on_lifeline(loop, lifeline, on_signal))
    app = App(settings, listener)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(app.run(), name="app")
        waiting = tasks.create_task(stop.wait(), name="wait for a signal")
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        app.stop()
        hurrying = tasks.create_task(hurry.wait(), name="wait for a second signal")
        await asyncio.wait(
            [running, hurrying],
            timeout=settings.daemon.drain_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurrying.cancel()
        running.cancel()
    if lifeline is not None:
        loop.remove_reader(lifeline)


def _on_lifeline(
    loop: asyncio.AbstractEventLoop, lifeline: int, on_end: Callable[[], None]
) -> None:
    if not os.read(lifeline, 4096):
        loop.remove_reader(lifeline)
        on_end()


def run(settings: Settings, listener: socket.socket, *, lifeline: int | None = None) -> None:
    """Run `serve` in an event loop of its own."""
    uvloop.run(serve(settings, listener, lifeline=lifeline))
