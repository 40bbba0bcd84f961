"""A real daemon in a process of its own, which a test may kill, stop and start again.

    with DaemonProcess() as daemon:
        dataset = DaemonDataset(daemon.socket, stream)
        ...
        daemon.kill()
        daemon.start()

A test that fails shows the daemon's log.  One that does not fails all the same if the daemon did
not end in good order, or if its log has a traceback.  Nothing is left behind either way.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from headrace.client import Channel, ConnectionLostError, Retry
from headrace.protocol import messages as m

if TYPE_CHECKING:
    from types import TracebackType

DEADLINE_S: Final = 30.0
"""Far more than a daemon takes to start or to stop: it turns a hang into a failure."""


class DaemonProcess:
    """``headrace serve`` on a socket with a short path; it may read any folder.  A context manager.

    Args:
        arguments: More of its command line.
    """

    def __init__(self, *arguments: str) -> None:
        # The path of a socket has to be short, and that of a test's own folder is not.
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
        self.socket = str(self.folder / "headrace.sock")
        self._log_path = self.folder / "daemon.log"
        self._command = [sys.executable, "-m", "headrace_daemon", "serve"]
        self._command += ["--socket", self.socket, "--state-dir", str(self.folder / "state")]
        self._command += ["--allow-source", "*", *arguments]
        # None before the first start.
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of the latest start."""
        assert self._process is not None, "the daemon was not started"
        return self._process

    @property
    def log(self) -> str:
        """What it has logged, over all starts."""
        return self._log_path.read_text(errors="replace")

    @property
    def usage(self) -> psutil.Process:
        """What it uses."""
        return psutil.Process(self.process.pid)

    def spawn(self) -> None:
        """Start it and return at once; the one before has ended."""
        assert self._process is None or self._process.poll() is not None, "it runs already"
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start it and wait until it listens."""
        self.spawn()
        retry = Retry(DEADLINE_S, self._has_ended)
        while True:
            try:
                Channel.connect(self.socket).close()
                return
            except ConnectionLostError as error:
                assert retry.pause(), f"the daemon did not start ({error}):\n{self.log}"

    def _has_ended(self, wait_s: float) -> bool:
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def freeze(self) -> None:
        """Stop it, so that it is there and does nothing."""
        self.process.send_signal(signal.SIGSTOP)
        assert Path(f"/proc/{self.process.pid}").exists()

    def thaw(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """Tell it to stop, and return its exit status."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def status(self) -> dict[str, Any]:
        """Return what ``headrace status --json`` prints."""
        with Channel.connect(self.socket) as channel:
            answer = channel.request(m.Status())
        assert isinstance(answer, m.Report)
        return answer.report

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                print(f"--- log of the daemon ---\n{self.log}")  # noqa: T201 - pytest shows it
                return
            if self.process.poll() is None:
                assert self.terminate() == 0, self.log
                assert not Path(self.socket).exists(), "the socket is left behind"
            assert "Traceback" not in self.log, self.log
        finally:
            self._clean_up()

    def _clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()
        shutil.rmtree(self.folder)
