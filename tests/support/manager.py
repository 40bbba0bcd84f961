"""A service manager for tests: it listens to what a daemon tells, and passes it a socket.

with Manager(folder) as manager:
    process = Popen(…, env={**env, **manager.environment})
    manager.wait_for("READY")
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from .commands import HEADRACE, Serving, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

DEADLINE_S: Final = 30.0
"""Far more than anything here takes: it turns a hang into a failure."""

_PASS: Final = """
import os, sys
if sys.argv[1] != "-":
    os.dup2(int(sys.argv[1]), 3)
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDNAMES"] = "headrace.socket"
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Does what a service manager does between fork and exec: only there the pid is known."""

Message = dict[str, str]


class Manager:
    """A notify socket.  A context manager.

    Args:
        place: Its address as ``$NOTIFY_SOCKET`` has it; ``@name`` for an abstract one.
        watchdog_s: Seconds of ``WatchdogSec=``; None for no watchdog.
    """

    def __init__(self, place: str | Path, *, watchdog_s: float | None = None) -> None:
        self.address = os.fspath(place)
        self._watchdog_s = watchdog_s
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        is_abstract = self.address.startswith("@")
        self._sock.bind("\0" + self.address[1:] if is_abstract else self.address)
        self.messages: list[Message] = []
        """All that was received so far."""

    @property
    def environment(self) -> dict[str, str]:
        """What it puts into the environment of a service."""
        told = {"NOTIFY_SOCKET": self.address}
        if self._watchdog_s is not None:
            told["WATCHDOG_USEC"] = str(round(self._watchdog_s * 1e6))
        return told

    @property
    def state(self) -> list[str]:
        """The words of the states that it was told, in order."""
        words = ("READY", "RELOADING", "STOPPING")
        return [word for message in self.messages for word in words if message.get(word) == "1"]

    def receive(self, timeout_s: float = DEADLINE_S) -> Message:
        """Return the next message.

        Raises:
            TimeoutError: If none comes in time.
        """
        self._sock.settimeout(timeout_s)
        text = self._sock.recv(65_536).decode()
        message = dict(line.split("=", 1) for line in text.splitlines())
        self.messages.append(message)
        return message

    def drain(self) -> None:
        """Take what is there, and wait for nothing."""
        while True:
            try:
                self.receive(timeout_s=0)
            except BlockingIOError:
                return

    def wait_for(self, key: str, words: str = "") -> Message:
        """Return the next message with a key whose value has some words in it."""
        end = time.monotonic() + DEADLINE_S
        while (left_s := end - time.monotonic()) > 0:
            try:
                message = self.receive(left_s)
            except TimeoutError:
                break
            if words in message.get(key, "") and key in message:
                return message
        raise AssertionError(f"no {key} with {words!r} in {self.messages}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sock.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink()


def start(
    *arguments: str | Path,
    manager: Manager | None = None,
    passed: socket.socket | None = None,
    program: Sequence[str] = HEADRACE[1:],
    preexec_fn: Callable[[], None] | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Serving:
    """Start ``headrace serve`` as a service, and wait for nothing; `Serving.close` ends it.

    Args:
        arguments: Of its command line.
        manager: Is told how it is.
        passed: The socket that it inherits.
        program: What Python runs instead of ``headrace``.
        preexec_fn: Called in the child.
        pass_fds: Descriptors that it inherits as they are.
        env: More of its environment.
    """
    options: dict[str, Any] = {}
    descriptors = [*pass_fds]
    if passed is not None:
        descriptors.append(passed.fileno())
    if descriptors:
        options["pass_fds"] = descriptors
    told = manager.environment if manager is not None else {}
    number = "-" if passed is None else str(passed.fileno())
    process = subprocess.Popen(
        [HEADRACE[0], "-c", _PASS, number, *program, "serve", *map(str, arguments)],
        env=environment(**told, **(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
        **options,
    )
    return Serving(process)


def listening_socket(path: Path, *, mode: int = 0o660) -> socket.socket:
    """Return a socket as a .socket unit makes it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(os.fspath(path))
    path.chmod(mode)
    sock.listen(128)
    return sock
