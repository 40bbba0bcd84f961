"""The listener: owns the Unix socket and the sessions on it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import socket
from typing import TYPE_CHECKING, Final

from headrace.protocol import Connection, Role
from headrace.protocol import messages as m

from ..errors import SettingsError, SocketInUseError
from .peer import Credentials, credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .session import Session

logger = logging.getLogger(__name__)

BACKLOG: Final = 128
_PASSING: Final = (
    errno.ECONNABORTED,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
)
"""Failures of one `accept` that say nothing about the next."""

MAX_PATH_BYTES: Final = 107
"""Longest path of a Unix socket on Linux."""


def bind(path: Path, group: str) -> socket.socket:
    """Return a listening socket at a path, with mode 0660.

    A socket file that nobody listens on is replaced.

    Raises:
        SocketInUseError: If a daemon answers there.
        SettingsError: If the path or the group cannot be used.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise SettingsError(
            f"socket path {path} has {len(os.fsencode(path))} bytes, the system allows "
            f"{MAX_PATH_BYTES}: choose a shorter one"
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Nobody gets in between bind and chmod.
        umask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(umask)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SocketInUseError(f"socket {path} was taken by another daemon meanwhile") from None
        raise SettingsError(f"socket {path} cannot be made: {error.strerror}") from error
    try:
        if group:
            _give_to(path, group)
        path.chmod(0o660)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    listener.setblocking(False)
    return listener


def group_id(group: str) -> int:
    """Return the id of a group.

    Raises:
        SettingsError: If there is no such group.
    """
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise SettingsError(
            f"daemon.group = {group!r}: there is no such group: make it, or name another one"
        ) from None


def _give_to(path: Path, group: str) -> None:
    try:
        os.chown(path, -1, group_id(group))
    except OSError as error:
        raise SettingsError(
            f"daemon.group = {group!r}: the socket cannot be given to it ({error.strerror}): run "
            "the daemon as a member of the group"
        ) from error


def _clear(path: Path) -> None:
    """Remove a socket file that nobody listens on."""
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise SettingsError(f"socket {path} is in the way: it exists and is not a socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(os.fspath(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"socket {path} cannot be tried: {error.strerror or error}") from error
    else:
        raise SocketInUseError(
            f"a daemon is already listening on {path}: stop it, or choose another socket"
        )
    finally:
        probe.close()


class Listener:
    """Accepts connections and owns their sessions.

    Args:
        sock: Listening, non-blocking; the listener closes it.
        make_session: Makes the session of a connection.
        allow_uids: User ids that may connect; None for all.
        max_connections: Connections at a time.
    """

    def __init__(
        self,
        sock: socket.socket,
        make_session: Callable[[socket.socket, str], Session],
        *,
        allow_uids: tuple[int, ...] | None,
        max_connections: int,
    ) -> None:
        self._sock = sock
        self._make_session = make_session
        self.allow_uids = allow_uids
        """User ids that may connect from now on; None for all."""
        self.max_connections = max_connections
        """Connections at a time; those beyond a limit that was lowered stay."""
        self._sessions: set[Session] = set()
        self._num_accepted = 0
        self._is_stopping = asyncio.Event()

    @property
    def num_sessions(self) -> int:
        """Connections that are open."""
        return len(self._sessions)

    async def run(self) -> None:
        """Accept and serve until `stop`, then until all sessions have ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                accepting = tasks.create_task(self._accept(tasks), name="accept")
                await self._is_stopping.wait()
                accepting.cancel()
                await asyncio.wait([accepting])
                # Whoever connects from now on is refused at once; or waits for the next daemon, if
                # somebody else holds the socket too.
                self._sock.close()
        finally:
            self._sock.close()

    def stop(self) -> None:
        """Accept nothing more, and let the sessions drain."""
        if not self._is_stopping.is_set():
            self._is_stopping.set()
            for session in self._sessions:
                session.drain()

    async def _accept(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                logger.warning("accept failed: %s", error.strerror)
                await asyncio.sleep(0.1)  # descriptors come back when other sessions end
                continue
            self._num_accepted += 1
            peer = credentials(sock)
            refusal = self._refusal(peer)
            if refusal is not None:
                logger.warning("connection refused pid=%d uid=%d: %s", peer.pid, peer.uid, refusal)
                _refuse(sock, refusal)
                continue
            sock.setblocking(False)
            session = self._make_session(sock, f"{self._num_accepted}:pid={peer.pid}")
            self._sessions.add(session)
            if self._is_stopping.is_set():
                session.drain()
            tasks.create_task(self._serve(session), name=f"session {session.name}")

    async def _serve(self, session: Session) -> None:
        logger.debug("session opened session=%s", session.name)
        try:
            await session.run()
        except Exception:
            # A bug in one session ends that session; the others go on.
            logger.exception("session failed session=%s", session.name)
        finally:
            self._sessions.discard(session)
            logger.debug("session closed session=%s", session.name)

    def _refusal(self, peer: Credentials) -> m.Error | None:
        if self.allow_uids is not None and peer.uid not in self.allow_uids:
            return m.Error(
                code="trust",
                message=f"user id {peer.uid} is not in [trust] allow_uids",
                fault="client",
                scope="connection",
            )
        if len(self._sessions) >= self.max_connections:
            return m.Error(
                code="busy",
                message=f"the daemon has {len(self._sessions)} connections, the limit is "
                "[daemon] max_connections: raise it, or close some",
                retryable=True,
                scope="connection",
            )
        return None


def _refuse(sock: socket.socket, error: m.Error) -> None:
    """Tell a client why it is not served, as far as its socket takes it, and hang up."""
    connection = Connection(Role.DAEMON)
    connection.send(error)
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.sendmsg(connection.data_to_send())
