"""Notify: what a service manager is told, as datagrams to the socket that it names.

The protocol is that of sd_notify(3): lines ``NAME=value`` to ``$NOTIFY_SOCKET``.  Telling never
waits: a manager that does not read costs nothing but what it would have read.  Without a manager
all of it does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from ..errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

_MAX_PATH_BYTES: Final = 107  # of a Unix socket on Linux; abstract ones may use one more
_MAX_STATUS_CHARS: Final = 400
_MAX_WAITING: Final = 8
"""States that wait for a manager that does not read; the last one counts, so older ones go."""


class Notifier:
    """The way to the service manager.

    Args:
        address: Of its socket as ``$NOTIFY_SOCKET`` has it, a path or ``@name``; empty for none.
        watchdog_s: Seconds within which it wants to hear that the daemon is alive; None if it does
            not watch.

    Raises:
        SettingsError: If the address is none that can be written to.
    """

    def __init__(self, address: str = "", *, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        """Seconds within which a `ping` is due; None if nobody watches."""
        # None without a manager.
        self._sock: socket.socket | None = None
        self._address = ""
        # States that the manager had no room for.
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)
        self._status = ""
        self._trouble = ""
        if address:
            self._address = _usable(address)
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Make one as the environment says, and remove that from it: it is for no child.

        Raises:
            SettingsError: If what it says cannot be used.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        interval = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        if not address:
            return cls()
        watchdog_s = None
        if interval and pid in ("", str(os.getpid())):
            if not (interval.isascii() and interval.isdigit() and int(interval)):
                raise SettingsError(
                    f"$WATCHDOG_USEC = {interval!r} is no number of microseconds: set WatchdogSec= "
                    "in the unit, and not the variable"
                )
            watchdog_s = int(interval) / 1e6
        return cls(address, watchdog_s=watchdog_s)

    @property
    def is_active(self) -> bool:
        """Whether there is a manager to tell something."""
        return self._sock is not None

    def ready(self, status: str) -> None:
        """Say that the daemon serves: after its start, and after each reload."""
        self._status = _one_line(status)
        self._tell_state(f"READY=1\nSTATUS={self._status}")

    def reloading(self) -> None:
        """Say that a reload of the configuration begins; `ready` must follow."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell_state(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def stopping(self, status: str, *, within_s: float) -> None:
        """Say that the daemon is about to end.

        Args:
            status: For people.
            within_s: How long it may take, so that it is not killed before, seconds.
        """
        self._status = _one_line(status)
        extend_us = round(within_s * 1e6)
        self._tell_state(f"STOPPING=1\nSTATUS={self._status}\nEXTEND_TIMEOUT_USEC={extend_us}")

    def status(self, text: str) -> None:
        """Say in words how the daemon is; what was said last is not repeated."""
        line = _one_line(text)
        # What finds no room is said again, as it is not what was said last.
        if line != self._status and self._tell(f"STATUS={line}".encode()):
            self._status = line

    def ping(self) -> None:
        """Say that the daemon is alive.  It has to come from what must not get stuck."""
        self._tell(b"WATCHDOG=1")

    def close(self) -> None:
        """Tell nothing more; a second call does nothing."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _tell_state(self, text: str) -> None:
        if self._sock is not None:
            self._waiting.append(text.encode())
            self._send_waiting()

    def _tell(self, message: bytes) -> bool:
        """Send what may get lost, after what may not; say whether it was sent."""
        return self._send_waiting() and self._send(message)

    def _send_waiting(self) -> bool:
        while self._waiting:
            if not self._send(self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    def _send(self, message: bytes) -> bool:
        if self._sock is None:
            return False
        try:
            self._sock.sendto(message, socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            self._note(error.strerror or str(error))
            return False
        self._note("")
        return True

    def _note(self, trouble: str) -> None:
        """Log trouble once, and that it is over."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            logger.warning("service manager not told: %s", trouble)
        else:
            logger.info("service manager reached again")


def _usable(address: str) -> str:
    """Return an address for `sendto`."""
    if address.startswith("@"):
        usable, limit = "\0" + address[1:], _MAX_PATH_BYTES + 1
    elif address.startswith("/"):
        usable, limit = address, _MAX_PATH_BYTES
    else:
        raise SettingsError(
            f"$NOTIFY_SOCKET = {address!r} is neither a path nor an abstract socket (@name): "
            "the daemon can tell no other kind; unset it"
        )
    if len(os.fsencode(usable)) > limit or len(usable) < 2:
        raise SettingsError(
            f"$NOTIFY_SOCKET = {address!r} has {len(os.fsencode(usable))} bytes, the system allows "
            f"2 to {limit}"
        )
    return usable


def _one_line(text: str) -> str:
    """Return a text that cannot be taken for more than one line of the protocol."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    with contextlib.suppress(UnicodeEncodeError):
        line.encode()
        return line[:_MAX_STATUS_CHARS]
    return line.encode(errors="replace").decode()[:_MAX_STATUS_CHARS]
