"""The processes that the demo starts, kills and follows.

Each holds the read end of a pipe as standard input and ends when the demo does, however it ends.
Each has a session of its own, so that Ctrl-C is for the demo alone, which then ends them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final, Self, TypeVar

from headrace.client import Channel, ConnectionLostError, Retry
from headrace.private import START_S

from . import files, reports, signals
from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from .reports import Report

SILENCE_S: Final = 120.0
"""How long a process may report nothing, seconds: loading torch from a slow disk, or waiting for
the daemon until its own deadline."""

_STOP_S: Final = 1.0
_LOG_TAIL_BYTES: Final = 2000

_R = TypeVar("_R", bound=reports.Report)


class Child:
    """A process, which can be started again after it was killed.

    A context manager: at the end the process is stopped.

    Args:
        name: What it is, for errors and for the name of its log.
        folder: That of the demo; its log and its temporary files are there.
        arguments: What follows ``python -m`` on its command line.
        environ: Variables for it beside those of this process.
    """

    # As for `subprocess.Popen`; None for the log.
    _stdout: int | None = None

    def __init__(
        self, name: str, folder: Path, *arguments: str, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", *arguments]
        self._environ = {**os.environ, **environ, "TMPDIR": str(folder / files.SCRATCH)}
        self._log_path = folder / f"{name}.log"
        # None before the first start.
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        return self._started.pid

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the process; the one before has ended."""
        self._close_pipes()
        # Held, because a process that nobody knows of yet could not be stopped.
        with self._log_path.open("ab") as log, signals.held():
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log if self._stdout is None else self._stdout,
                stderr=log,
                env=self._environ,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Send SIGKILL to the process and to what it has started, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._started.pid, signal.SIGKILL)
        self._started.wait()

    def close(self) -> None:
        """Tell the process to stop by closing its standard input; kill it if it does not."""
        if self._process is None:
            return
        self._close_pipes()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def explain_end(self) -> str:
        """Return in words how the process ended, if it should not have."""
        status = self._started.wait()
        try:
            log = self._log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except FileNotFoundError:
            log = ""  # the daemon has ended, and has removed its folder
        end = f"; the end of its log:\n{log}" if log else ", and its log is empty"
        return f"the {self.name} ended early with status {status}{end}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class DaemonProcess(Child):
    """A daemon that serves from a folder, which it removes when it is told to stop.

    Its manifests are in that folder too, so they survive a SIGKILL.

    Args:
        folder: That of the demo.
        private: Where its socket and its state are; everything in it is removed at the end.
        environ: See `Child`.
    """

    def __init__(self, folder: Path, private: Path, environ: Mapping[str, str]) -> None:
        arguments = ("headrace_daemon", "serve", "--private", str(private), "--memory", "64MiB")
        super().__init__("daemon", folder, *arguments, environ=environ)
        self.socket = str(private / "headrace.sock")
        """Path of its socket."""

    def wait_until_it_listens(self) -> None:
        """Return when clients can connect.

        Raises:
            DemoError: If that does not happen.
        """
        retry = Retry(START_S, threading.Event().wait)
        while True:
            try:
                Channel.connect(self.socket).close()
                return
            except ConnectionLostError as error:
                if self._started.poll() is not None:
                    raise DemoError(self.explain_end()) from error
                if not retry.pause():
                    raise DemoError(f"{error} (tried for {retry.deadline_s:g} s)") from error


class ReportingChild(Child):
    """A process of this package that takes permits and reports (see `lifeline`).

    Args:
        name: Of its module.
        folder: That of the demo.
        arguments: For its command line.
        environ: See `Child`.
    """

    _stdout = subprocess.PIPE

    def __init__(
        self, name: str, folder: Path, *arguments: str, environ: Mapping[str, str]
    ) -> None:
        super().__init__(name, folder, f"{__package__}.{name}", *arguments, environ=environ)

    def permit(self, count: int = 1) -> None:
        """Grant it so many permits more."""
        assert self._started.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; its reports say how
            os.write(self._started.stdin.fileno(), bytes(count))

    def reports(self, silence_s: float = SILENCE_S) -> Iterator[reports.AnyReport]:
        """Yield what it reports, until it has ended or was killed.

        Args:
            silence_s: How long it may report nothing, seconds.

        Raises:
            DemoError: If it says nothing for too long.
        """
        assert self._started.stdout is not None
        pipe = self._started.stdout.fileno()
        rest = b""
        while True:
            if not select.select([pipe], [], [], silence_s)[0]:
                raise DemoError(f"the {self.name} has said nothing for {silence_s:g} s")
            data = os.read(pipe, 1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from map(reports.decode, lines)

    def expect(self, kind: type[_R], said: Iterator[Report]) -> _R:
        """Return the next of its reports, which is of a kind.

        Args:
            kind: The class of the report.
            said: What `reports` has returned.

        Raises:
            DemoError: If it has failed instead.
        """
        report = next(said, None)
        if isinstance(report, reports.Failed):
            raise DemoError(report.text)
        if not isinstance(report, kind):
            raise DemoError(self.explain_end())
        return report

    def close(self) -> None:
        """Kill the process, which has nothing to tidy up, unless it has ended."""
        if self._process is not None:
            self.kill()
            self._close_pipes()
