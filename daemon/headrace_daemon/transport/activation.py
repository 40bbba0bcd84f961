"""Activation: the listening socket that a service manager made, and passes to the daemon.

The protocol is that of sd_listen_fds(3): descriptors from 3 on, counted by ``$LISTEN_FDS``, for the
process of ``$LISTEN_PID``.  Who passes the socket owns its path: the daemon closes its copy at the
end and removes nothing, so that clients find the path at any time, and wait in the queue of
the socket while there is no daemon.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import SettingsError
from .listener import group_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

logger = logging.getLogger(__name__)

FIRST_DESCRIPTOR: Final = 3
"""Of those that are passed, after the standard ones."""

_MAX_DIGITS: Final = 10
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class Inherited(NamedTuple):
    """A socket that was passed to this process."""

    sock: socket.socket
    """Listening, and made non-blocking."""

    path: Path


def take(
    environ: MutableMapping[str, str] = os.environ, *, first: int = FIRST_DESCRIPTOR
) -> Inherited | None:
    """Return the socket that the environment says was passed, and remove that from it.

    Args:
        environ: The environment; what it says of sockets is for no child.
        first: The first descriptor.

    Returns:
        None if none was passed, or if it was passed to another process.

    Raises:
        SettingsError: If what was passed is not exactly one listening Unix socket with a path.
    """
    told = {name: environ.pop(name, "") for name in _VARIABLES}
    if not told["LISTEN_PID"] or not told["LISTEN_FDS"]:
        return None
    if _number(told, "LISTEN_PID") != os.getpid():
        logger.info(
            "sockets ignored pid=%s: they were passed to another process", told["LISTEN_PID"]
        )
        return None
    count = _number(told, "LISTEN_FDS")
    names = told["LISTEN_FDNAMES"].split(":") if told["LISTEN_FDNAMES"] else []
    if count == 0:
        return None
    if count > 1:
        which = f" ({', '.join(names)})" if names else ""
        raise SettingsError(
            f"{count} sockets were passed{which}, and a daemon serves exactly one: leave one "
            "ListenStream= in one .socket unit"
        )
    sock = _checked(first, names[0] if names else "")
    path = Path(sock.getsockname())
    os.set_inheritable(first, False)
    sock.setblocking(False)
    return Inherited(sock, path)


def check_group(path: Path, group: str) -> None:
    """Refuse a socket that is not of the group that the configuration names.

    Args:
        path: Of the socket.
        group: ``[daemon] group``; empty allows all.

    Raises:
        SettingsError: If it is of another group, or its path is gone.
    """
    try:
        owner = path.stat().st_gid
    except OSError as error:
        raise SettingsError(
            f"the socket that was passed is at {path}, which cannot be found ({error.strerror}): "
            "no client could connect; restart its .socket unit"
        ) from error
    if group and owner != group_id(group):
        raise SettingsError(
            f"daemon.group = {group!r}, but the socket {path} that was passed belongs to group id "
            f"{owner}: set SocketGroup={group} in its .socket unit, or leave the key out"
        )


def check_path(path: Path, wanted: str, origin: str) -> None:
    """Refuse a socket that is not at the path that was asked for.

    Raises:
        SettingsError: If they differ, links counted as what they point to.
    """
    if os.path.realpath(path) != os.path.realpath(wanted):
        raise SettingsError(
            f"{origin} is {wanted}, but the socket that was passed is at {path}: leave {origin} "
            "out, or set ListenStream= in the .socket unit to the same path"
        )


def _number(told: dict[str, str], name: str) -> int:
    text = told[name]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise SettingsError(
            f"${name} = {text!r} is no number: it is set by service managers, unset it"
        )
    return int(text)


def _checked(descriptor: int, name: str) -> socket.socket:
    what = f"descriptor {descriptor}{f' ({name})' if name else ''}, which was passed,"
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError as error:
        raise SettingsError(
            f"{what} is not open, though $LISTEN_FDS says so: unset it, or pass a socket"
        ) from error
    if not stat.S_ISSOCK(kind):
        raise SettingsError(f"{what} is no socket: use ListenStream= in the .socket unit")
    sock = socket.socket(fileno=descriptor)
    try:
        reason = _unusable(sock)
    except BaseException:
        sock.detach()
        raise
    if reason:
        sock.detach()  # whoever passed it may want it
        raise SettingsError(f"{what} {reason}")
    return sock


def _unusable(sock: socket.socket) -> str:
    """Say why a socket cannot be served; empty if it can."""
    if sock.family != socket.AF_UNIX:
        return (
            f"is of family {getattr(sock.family, 'name', sock.family)} and not a Unix socket: the "
            "daemon serves one machine; give a path to ListenStream="
        )
    if sock.type != socket.SOCK_STREAM:
        return (
            f"is of type {getattr(sock.type, 'name', sock.type)} and not SOCK_STREAM: use "
            "ListenStream=, not ListenDatagram= or ListenSequentialPacket="
        )
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "is not listening: set Accept=no in the .socket unit"
    address = sock.getsockname()
    if not isinstance(address, str) or not address:
        return (
            "has no path, so that anybody could connect: give a path to ListenStream=, not an "
            "abstract @name"
        )
    return ""
