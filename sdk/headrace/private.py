"""A private daemon: one that a process starts for itself and that ends with it.

The daemon holds the read end of a pipe as its standard input and stops when the write end is
closed, which the kernel does however this process ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Final

from .client import MAX_SOCKET_PATH, Channel, ConnectionLostError, Retry
from .errors import DaemonUnavailableError

START_S: Final = 30.0
"""How long a daemon may take to start, seconds: a cold import from a slow disk included."""

_STOP_S: Final = 5.0
_LOG_TAIL_BYTES: Final = 2000


class PrivateDaemon:
    """Starts a daemon when it is needed, and again when it has died.

    Args:
        memory: Its memory for batches, as in the configuration.
    """

    def __init__(self, memory: str) -> None:
        self._memory = memory
        self._folder = Path(_make_folder())
        self.socket = str(self._folder / "headrace.sock")
        """Path of its socket."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        # Starts the daemon again; None where nobody asked for that.
        self._keeper: threading.Thread | None = None
        self._pid = os.getpid()
        _all.add(self)

    def ensure_running(self) -> None:
        """Start the daemon unless it runs, and wait until it listens.

        Raises:
            DaemonUnavailableError: If it cannot be started, with the end of its log.
        """
        if self._pid != os.getpid():
            return  # it is the parent's
        with self._lock:
            if self._is_closed:
                raise DaemonUnavailableError("the private daemon of this dataset was closed")
            if self._process is None or self._process.poll() is not None:
                self._start()

    def keep_running(self) -> None:
        """Start the daemon again whenever it dies, until `close`: for when only others ask for it.

        Does nothing a second time.
        """
        with self._lock:
            if self._keeper is not None or self._is_closed or self._pid != os.getpid():
                return
            self._keeper = threading.Thread(
                target=_keep, args=(weakref.ref(self),), name="headrace keeper", daemon=True
            )
            self._keeper.start()

    def _start(self) -> None:
        # A daemon that was told to stop has removed it.
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
        log_path = self._folder / "daemon.log"
        command = [sys.executable, "-m", "headrace_daemon", "serve"]
        command += ["--private", str(self._folder), "--memory", self._memory]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        self._close_lifeline()
        self._process = process
        retry = Retry(START_S, threading.Event().wait)
        while True:
            try:
                Channel.connect(self.socket).close()
                return
            except ConnectionLostError as error:
                if process.poll() is None and retry.pause():
                    continue
                process.kill()
                process.wait()
                raise DaemonUnavailableError(
                    f"the private daemon did not start{_tail(log_path)}"
                ) from error

    def _close_lifeline(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        """Stop the daemon and remove its files; a second call does nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_closed = True
            process = self._process
            if process is not None:
                self._close_lifeline()
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)

    def in_child(self) -> None:
        """Let go of the lifeline in a forked child, so that it is the parent's alone."""
        with contextlib.suppress(OSError):
            self._close_lifeline()


def _keep(reference: weakref.ref[PrivateDaemon]) -> None:
    while (daemon := reference()) is not None:
        try:
            daemon.ensure_running()
        except DaemonUnavailableError:
            return  # it was closed, or cannot be started: who asks for it is told
        process = daemon._process
        del daemon  # or it would live as long as this thread
        if process is None:
            return
        process.wait()


def _make_folder() -> str:
    """Return a new private folder in which a socket has a path that is short enough."""
    longest = MAX_SOCKET_PATH - len("/headrace-12345678/headrace.sock")
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):
        if base and len(os.fsencode(base)) <= longest and os.access(base, os.W_OK):
            return tempfile.mkdtemp(prefix="headrace-", dir=base)
    raise DaemonUnavailableError(
        f"no folder for the socket of a private daemon: {tempfile.gettempdir()} has a path above "
        f"{longest} bytes; set TMPDIR to a shorter one"
    )


def _tail(log_path: Path) -> str:
    try:
        text = log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        text = ""
    if "No module named headrace_daemon" in text or "No module named 'uvloop'" in text:
        return ": install it with: pip install 'headrace[daemon]'"
    return f":\n{text}" if text else ""


_all: weakref.WeakSet[PrivateDaemon] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for daemon in list(_all):
        daemon.in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
