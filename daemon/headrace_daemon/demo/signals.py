"""Being told to stop: Ctrl-C, a request to end, a terminal that is closed."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal told this process to stop.

    Attributes:
        status: The exit status that says so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Have these signals raise `Stopped` in the main thread while the context lasts.

    Those that are ignored (``nohup``) stay so.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _raise)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have `Stopped` wait for the end of the context, which must not be left half done."""
    received: list[int] = []
    mine = [number for number in _SIGNALS if signal.getsignal(number) is _raise]
    for number in mine:
        signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, _raise)
        if received:
            raise Stopped(received[0])


def ignore() -> None:
    """Ignore them from now on: what follows is short and must be done."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
