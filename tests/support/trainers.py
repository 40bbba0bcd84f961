"""Trainer processes, forked from one that has imported torch already: that takes seconds.

    with Trainers() as trainers:
        trainer = trainers.start("train", socket=…, stream=…)
        assert trainer.hear() == "begins"
        trainer.kill()
        assert trainer.wait() == -signal.SIGKILL

What runs is a function of `tests.support.training`, in the main thread of a process that ends as
any other does.  Its parent is a watcher, which kills it when the test has lost interest.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

_ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 50.0
"""Far more than any step of a trainer takes: it turns a hang into a failure."""


class Trainer:
    """One process; see `Trainers.start`."""

    def __init__(self, watcher: socket.socket, stdin: int, stdout: int, stderr: int) -> None:
        self._watcher = watcher
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr
        self._heard = b""
        self._status: int | None = None
        watcher.settimeout(DEADLINE_S)
        self.pid = int(watcher.recv(100))

    def hear_soon(self) -> str:
        """Return the next line; nothing if none comes soon, as the trainer waits for something."""
        if b"\n" not in self._heard and not select.select([self._stdout], [], [], 0.2)[0]:
            return ""
        return self.hear()

    def hear(self) -> str:
        """Return the next line that it says; empty at its end."""
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._stdout], [], [], DEADLINE_S)
            assert ready, f"nothing was heard; standard error: {self.stderr}"
            data = os.read(self._stdout, 1 << 16)
            if not data:
                return ""
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def hear_all(self) -> list[str]:
        """Return all further lines; waits for the end."""
        return list(iter(self.hear, ""))

    def hear_until(self, line: str) -> list[str]:
        """Return the further lines up to one."""
        lines = [self.hear()]
        while lines[-1] != line:
            assert lines[-1], f"{line!r} was not heard, but {lines}; {self.stderr}"
            lines.append(self.hear())
        return lines

    def say(self, lines: int = 1) -> None:
        """Let it go on so many times."""
        os.write(self._stdin, b"\n" * lines)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        if self._status is None:
            self._status = int(self._watcher.recv(100))
        return self._status

    @property
    def stderr(self) -> str:
        """What it has written to standard error."""
        size = os.fstat(self._stderr).st_size
        return os.pread(self._stderr, size, 0).decode(errors="replace")

    def close(self) -> None:
        """Kill it if it runs, and let go of it."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
            self.wait()
        self._watcher.close()
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.close(descriptor)


class Trainers:
    """Starts trainers.  A context manager."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=theirs.fileno(), cwd=_ROOT
            )
        self._running: list[Trainer] = []

    def start(self, function: str, **arguments: Any) -> Trainer:  # noqa: ANN401 - of any type
        """Start a trainer.

        Args:
            function: A name in `tests.support.training`.
            **arguments: What it is called with; plain data.
        """
        watcher, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child_stdin, stdin = os.pipe()
        stdout, child_stdout = os.pipe()
        stderr = os.memfd_create("stderr")
        given = [theirs.fileno(), child_stdin, child_stdout, stderr]
        socket.send_fds(self._socket, [json.dumps([function, arguments]).encode()], given)
        for descriptor in (child_stdin, child_stdout):
            os.close(descriptor)
        theirs.close()
        trainer = Trainer(watcher, stdin, stdout, stderr)
        self._running.append(trainer)
        return trainer

    def close_all(self) -> None:
        """Kill all trainers that run."""
        while self._running:
            self._running.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close_all()
        self._socket.close()
        self._process.wait(DEADLINE_S)


def main() -> None:
    """Fork a trainer for each request, until there are no more to come."""
    training = importlib.import_module("tests.support.training")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    requests = socket.socket(fileno=0)
    while True:
        message, given, _, _ = socket.recv_fds(requests, 1 << 16, 4)
        if not message:
            return
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            trainer = os.fork()
            if trainer:
                _watch(trainer, *given)
            break
        for descriptor in given:
            os.close(descriptor)
    watcher, *streams = given
    os.close(watcher)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    requests.detach()  # standard input has taken its place
    tempfile.tempdir = None
    function, arguments = json.loads(message)
    getattr(training, function)(**arguments)


def _watch(trainer: int, descriptor: int, *others: int) -> None:
    """Tell of the end of a trainer, or bring it about when nobody is there to be told."""
    for other in (0, *others):
        os.close(other)
    with socket.socket(fileno=descriptor) as watcher:
        watcher.send(str(trainer).encode())
        ended = os.pidfd_open(trainer)
        ready, _, _ = select.select([ended, descriptor], [], [])
        if ended not in ready:
            os.kill(trainer, signal.SIGKILL)
        _, status = os.waitpid(trainer, 0)
        with contextlib.suppress(OSError):
            watcher.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
