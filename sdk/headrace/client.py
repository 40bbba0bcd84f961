"""A blocking connection to a daemon: the thin shell around `headrace.protocol`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn, Self

from . import errors
from .protocol import VERSION, Connection, Event, Role, State
from .protocol import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

DEFAULT_SOCKET: Final = "/run/headrace/headrace.sock"
"""Where the service listens."""

MAX_SOCKET_PATH: Final = 107
"""Bytes of the path of a Unix socket at most, on Linux."""

AGENT: Final = "headrace-sdk"

SILENCE_S: Final = 10.0
"""A daemon that owes an answer and says nothing for this long (it has a heartbeat of 2 s), or for
the deadline of the caller if that is longer, is taken for dead."""

_LEAVE_S: Final = 0.2

_RETRY_FIRST_S: Final = 0.02
_RETRY_LIMIT_S: Final = 1.0


def default_socket() -> str:
    """Return the path in ``$HEADRACE_SOCKET``, or that of the service."""
    return os.environ.get("HEADRACE_SOCKET") or DEFAULT_SOCKET


class ConnectionLostError(errors.DaemonUnavailableError):
    """The connection is gone, or not there yet; trying again may help."""


class UnusableSocketError(errors.DaemonUnavailableError):
    """What is at the path cannot be connected to; a daemon that comes back may make it anew."""


class Channel:
    """One connection.  One thread receives; any thread may send.

    Args:
        sock: Connected, in blocking mode; the channel closes it.
        allocate: Makes the buffers that payloads are received into (see `Connection`).
        silence_s: How long the daemon may say nothing while an answer is awaited, seconds.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        allocate: Callable[[int], memoryview] | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._sock = sock
        self._silence_s = silence_s
        sock.settimeout(silence_s)
        self._connection = Connection(Role.CLIENT, allocate=allocate)
        # Guards the connection and the order of what is sent; never held while receiving.
        self._lock = threading.Lock()
        self._num_requests = 0

    @classmethod
    def connect(
        cls,
        path: str,
        *,
        allocate: Callable[[int], memoryview] | None = None,
        silence_s: float = SILENCE_S,
    ) -> Self:
        """Connect to the socket at a path and exchange greetings.

        Raises:
            ConnectionLostError: If nobody listens there now.
            UnusableSocketError: If it is no socket, or not for us.
            DaemonUnavailableError: If the daemon does not answer.
            VersionMismatchError: If the daemon speaks another version of the protocol.
        """
        return cls.dial(path, allocate=allocate, silence_s=silence_s).greeted()

    @classmethod
    def dial(
        cls,
        path: str,
        *,
        allocate: Callable[[int], memoryview] | None = None,
        silence_s: float = SILENCE_S,
    ) -> Self:
        """Connect to the socket at a path; `greeted` must follow.  Raises as `connect` does."""
        return cls(_connect(path, silence_s), allocate=allocate, silence_s=silence_s)

    def greeted(self) -> Self:
        """Exchange greetings and return this channel; hang up if that fails (see `connect`)."""
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def _greet(self) -> None:
        # Who is turned away at the door may have been told why, and hung up on, before that.
        with contextlib.suppress(ConnectionLostError):
            self.send(m.Hello(versions=(VERSION,), agent=AGENT))
        event = self.receive()
        if isinstance(event, m.Error):
            raise_error(event)
        if not isinstance(event, m.Welcome):
            raise errors.RemoteProtocolError(f"{event!r} where a welcome is due")
        if event.version != VERSION:
            raise errors.VersionMismatchError(
                f"the daemon ({event.agent}) chose protocol version {event.version}, this SDK "
                f"speaks {VERSION}: upgrade the older of the two"
            )

    def send(self, message: m.ClientMessage) -> None:
        """Send a message.

        Raises:
            ConnectionLostError: If the connection is gone.
        """
        with self._lock:
            self._connection.send(message)
            self._flush()

    def send_if(self, state: State, make: Callable[[], m.ClientMessage | None]) -> bool:
        """Send a message if the conversation is in a state at this moment; say whether.

        Args:
            state: The state.
            make: Returns the message, or None for nothing.
        """
        with self._lock:
            if self._connection.state is not state:
                return False
            message = make()
            if message is not None:
                self._connection.send(message)
                self._flush()
            return True

    def leave(self) -> None:
        """Ask for the feed to be closed, without waiting for anything: for finalizers.

        The thread that receives ends when the daemon has answered.  Where the word does not get
        out, hang up: the daemon then keeps the feed for its grace time.
        """
        # The thread that a finalizer interrupts may be the one that holds the lock.
        if self._lock.acquire(timeout=_LEAVE_S):
            try:
                if self._connection.state in (State.OPENING, State.STREAMING):
                    self._connection.send(m.Close())
                    goodbye = b"".join(self._connection.data_to_send())
                    with contextlib.suppress(OSError):
                        if self._sock.send(goodbye, socket.MSG_DONTWAIT) == len(goodbye):
                            return
            finally:
                self._lock.release()
        self.shutdown()

    def _flush(self) -> None:
        try:
            for buffer in self._connection.data_to_send():
                self._sock.sendall(buffer)
        except OSError as error:
            raise ConnectionLostError(f"the daemon went away: {error}") from error

    def receive(self, *, is_awaited: Callable[[], bool] = lambda: True) -> Event:
        """Return the next message.

        Args:
            is_awaited: Whether the daemon owes one now: asked when it was silent for long.

        Raises:
            ConnectionLostError: If the daemon hung up or died.
            DaemonUnavailableError: If it is silent for too long.
            RemoteProtocolError: If what it says is not the protocol.
        """
        while True:
            buffer = self._connection.next_buffer()
            try:
                num_bytes = self._sock.recv_into(buffer)
            except TimeoutError:
                if not is_awaited():
                    continue
                raise errors.DaemonUnavailableError(
                    f"the daemon is connected but said nothing for {self._silence_s:g} s: it hangs "
                    "or is stopped; look at its log, and restart it"
                ) from None
            except OSError as error:
                raise ConnectionLostError(f"the daemon went away: {error}") from error
            if not num_bytes:
                raise ConnectionLostError("the daemon closed the connection")
            with self._lock:
                events = self._connection.received(num_bytes)
            if self._connection.failure is not None:
                raise self._connection.failure
            if events:
                return events[0]

    def request(self, message: m.Status | m.Lookup | m.Read) -> Event:
        """Send a request on a channel without a feed, and return its answer.

        Raises:
            HeadraceError: What the daemon answers, if it refuses.
        """
        self.send(message)
        while True:
            event = self.receive()
            if isinstance(event, m.Error):
                raise_error(event)
            if not isinstance(event, m.Notice):
                return event

    @property
    def is_streaming(self) -> bool:
        """Whether a feed is open."""
        return self._connection.state is State.STREAMING

    def shutdown(self) -> None:
        """Make a `receive` that blocks in another thread end."""
        with contextlib.suppress(OSError):  # it may be gone already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _connect(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _explain(path, error) from error
        raise
    return sock


def _explain(path: str, error: OSError) -> errors.DaemonUnavailableError:
    hint = "start one with 'headrace serve', pass its socket, or set HEADRACE_SOCKET"
    if isinstance(error, FileNotFoundError):
        return ConnectionLostError(f"no daemon: socket {path} does not exist; {hint}")
    if isinstance(error, PermissionError):
        return UnusableSocketError(
            f"no permission to connect to socket {path}{_ownership(path)}: join its group, or ask "
            "for another one in [daemon] group"
        )
    if isinstance(error, ConnectionRefusedError) and _is_socket(path):
        return ConnectionLostError(f"no daemon listens on socket {path}; {hint}")
    if isinstance(error, TimeoutError | BlockingIOError):
        return ConnectionLostError(f"the daemon at socket {path} does not accept connections")
    if error.errno in (errno.ENOTSOCK, errno.ECONNREFUSED):
        return UnusableSocketError(f"{path} is not a socket; {hint}")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        return UnusableSocketError(
            f"socket {path} has a path of {len(os.fsencode(path))} bytes: the system allows "
            f"{MAX_SOCKET_PATH}; choose a shorter one"
        )
    return UnusableSocketError(f"cannot connect to socket {path}: {error}; {hint}")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True


def _ownership(path: str) -> str:
    try:
        facts = os.stat(path)
    except OSError:
        return ""
    return f" (mode {stat.S_IMODE(facts.st_mode):04o}, uid {facts.st_uid}, gid {facts.st_gid})"


_CLASSES: Final[dict[str, type[errors.HeadraceError]]] = {
    kind.code: kind
    for kind in (
        errors.PlanError,
        errors.NoStepError,
        errors.ManifestMismatchError,
        errors.CursorError,
        errors.TopologyError,
        errors.VersionMismatchError,
    )
}


def raise_error(error: m.Error) -> NoReturn:
    """Raise the exception that an error message stands for."""
    if error.code in _CLASSES:
        raise _CLASSES[error.code](error.message)
    kind = errors.BudgetError if error.code == "budget" else errors.FeedError
    raise kind(error.message, code=error.code, fault=error.fault, retryable=error.retryable)


class Retry:
    """A series of tries with growing pauses under one deadline.

    Args:
        deadline_s: Seconds from now until `pause` gives up.
        wait: Waits for some seconds; returns True when the caller has lost interest.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        deadline_s: float,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._wait = wait
        self._end = clock() + deadline_s
        self._pause_s = _RETRY_FIRST_S
        self.deadline_s = deadline_s

    def renew(self) -> None:
        """Count the deadline from now again; the pauses stay as long as they have become."""
        self._end = self._clock() + self.deadline_s

    def pause(self) -> bool:
        """Wait before the next try; return False when there is to be none."""
        left = self._end - self._clock()
        if left <= 0:
            return False
        if self._wait(min(self._pause_s, left)):
            return False
        self._pause_s = min(2 * self._pause_s, _RETRY_LIMIT_S)
        return True
