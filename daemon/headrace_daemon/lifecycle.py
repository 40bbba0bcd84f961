"""The life of the process: signals, the order of a stop, and the parent of a private daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

import uvloop

from .app import App
from .observe.notify import Notifier
from .service import Service

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .settings import Settings

logger = logging.getLogger(__name__)


async def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    lifeline: int | None,
    notifier: Notifier,
    load: Callable[[], Settings] | None,
) -> None:
    """Run a daemon until it is told to stop.

    The first SIGTERM or SIGINT, the end of the lifeline, or the end of the terminal drains: what is
    ready is delivered, up to the deadline of the settings.  A second signal skips the wait.  SIGHUP
    reloads the configuration.

    Args:
        settings: The configuration.
        listener: Listening and non-blocking.
        lifeline: A descriptor whose end of file means that the parent is gone; None for none.
        notifier: The way to the service manager; closed at the end.
        load: Reads the configuration anew; None if there is none, and SIGHUP means to stop.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    hurry = asyncio.Event()
    app = App(settings, listener)
    service = Service(app, notifier, load)
    had_terminal = _has_terminal()
    outlives_terminal = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup wants it

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    def on_hangup() -> None:
        # The system sends it too, when the terminal is closed: nobody could stop us later.
        if service.can_reload and _has_terminal() == had_terminal:
            service.reload_soon()
        elif not outlives_terminal:
            on_signal()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    if lifeline is not None:
        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, lambda: _on_lifeline(loop, lifeline, on_signal))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(app.run(), name="app")
        telling = tasks.create_task(service.run(), name="service")
        waiting = tasks.create_task(stop.wait(), name="wait for a signal")
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        service.stop()
        app.stop()
        hurrying = tasks.create_task(hurry.wait(), name="wait for a second signal")
        await asyncio.wait(
            [running, hurrying],
            timeout=app.settings.daemon.drain_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurrying.cancel()
        running.cancel()
        telling.cancel()
    if lifeline is not None:
        loop.remove_reader(lifeline)
    notifier.close()


def _has_terminal() -> bool:
    """Tell whether the process has a controlling terminal, which was not hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _on_lifeline(
    loop: asyncio.AbstractEventLoop, lifeline: int, on_end: Callable[[], None]
) -> None:
    if not os.read(lifeline, 4096):
        loop.remove_reader(lifeline)
        on_end()


def run(
    settings: Settings,
    listener: socket.socket,
    *,
    lifeline: int | None = None,
    notifier: Notifier | None = None,
    load: Callable[[], Settings] | None = None,
) -> None:
    """Run `serve` in an event loop of its own."""
    uvloop.run(
        serve(settings, listener, lifeline=lifeline, notifier=notifier or Notifier(), load=load)
    )
