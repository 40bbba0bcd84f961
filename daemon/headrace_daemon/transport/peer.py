"""Peers: who is at the other end of a Unix socket, and whether that process still lives."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SO_PEERPIDFD: Final = 77  # Linux 6.5; no constant in Python 3.11
_UCRED: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the kernel says of the process that connected."""

    pid: int
    """0 if it lives in a pid namespace that this one cannot see."""

    uid: int
    """65534 if its user id is not mapped here."""

    gid: int


def credentials(sock: socket.socket) -> Credentials:
    """Return the credentials of the process that connected a Unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(raw))


class DeathWatch:
    """Calls back when the process at the other end of a socket is gone.

    `is_possible` is False where the system offers no way; then the end of the connection has to
    be taken for the end of the process.
    """

    def __init__(self, sock: socket.socket, on_death: Callable[[], None]) -> None:
        self.on_death = on_death
        self._pidfd = _open_pidfd(sock)
        self.is_dead = False
        if self._pidfd is not None:
            asyncio.get_running_loop().add_reader(self._pidfd, self._died)

    @property
    def is_possible(self) -> bool:
        """Whether the process can be watched."""
        return self._pidfd is not None or self.is_dead

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _died(self) -> None:
        self.is_dead = True
        self.close()
        self.on_death()


def _open_pidfd(sock: socket.socket) -> int | None:
    try:
        descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        try:
            descriptor = os.pidfd_open(credentials(sock).pid)
        except (AttributeError, OSError):
            return None
    os.set_inheritable(descriptor, False)
    return descriptor
