"""The ``headrace`` command as a user runs it: in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from headrace_daemon.cli import main

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S: Final = 30.0
"""Far more than any command takes: it turns a hang into a failure."""

HEADRACE: Final = [sys.executable, "-m", "headrace_daemon"]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a user with plain settings."""
    dropped = ("PYTHONUNBUFFERED", "HEADRACE_SOCKET", "COLUMNS", "FORCE_COLOR", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "TERM": "dumb", "COLUMNS": "80", **changes}


def headrace(
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    **options: Any,  # noqa: ANN401 - of subprocess
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; nothing that it may print is a traceback."""
    done = subprocess.run(
        [*HEADRACE, *map(str, arguments)],
        env=env or environment(),
        timeout=DEADLINE_S,
        text=True,
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **options,
        },
    )
    assert "Traceback" not in (done.stderr or ""), done.stderr
    return done


def headrace_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, as if it had its own: quicker by all imports."""
    out, err = io.StringIO(), io.StringIO()
    words = [os.fspath(argument) for argument in arguments]
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main(words)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return subprocess.CompletedProcess(words, end.code, out.getvalue(), err.getvalue())


class Serving:
    """A daemon in a process of its own, and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._is_over = False
        self._thread = threading.Thread(target=self._read, name="log of a daemon")
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def log(self) -> str:
        """All lines so far."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, words: str) -> None:
        """Wait until a line of the log has some words."""

        def has_come() -> bool:
            return self._is_over or any(words in line for line in self._lines)

        with self._changed:
            assert self._changed.wait_for(has_come, DEADLINE_S), f"{words!r} not in {self._lines}"
            assert any(words in line for line in self._lines), f"{words!r} not in {self._lines}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end and return the exit status; the log is whole then."""
        status = self.process.wait(DEADLINE_S)
        self._thread.join(DEADLINE_S)
        return status

    def close(self) -> None:
        """End it if it has not ended yet."""
        self.process.kill()
        self.end()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def serving(
    *arguments: str | Path,
    stdin: int = subprocess.DEVNULL,
    preexec_fn: Callable[[], None] | None = None,
) -> Iterator[Serving]:
    """Run ``headrace serve``; the block begins when it listens, and ends with its death."""
    process = subprocess.Popen(
        [*HEADRACE, "serve", *map(str, arguments)],
        env=environment(),
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    daemon = Serving(process)
    try:
        daemon.wait_for(" INFO settings ")
        yield daemon
    finally:
        daemon.close()


_AS_NOBODY: Final = """
import importlib, os, sys
import headrace_daemon.cli, rich.console, rich.table, rich.progress, encodings.idna
for name in ("status", "check", "plan", "index", "serve"):
    importlib.import_module(f"headrace_daemon.commands.{name}")
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
headrace_daemon.cli.main(sys.argv[1:])
"""


def headrace_without_rights(
    *arguments: str | Path,
) -> subprocess.CompletedProcess[str]:
    """Run a command as a user whom permissions concern: root becomes nobody first."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, *map(str, arguments)],
        env=environment(),
        timeout=DEADLINE_S,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
