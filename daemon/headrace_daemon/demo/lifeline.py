"""The child's end of the pipes between the demo and the processes that it starts.

Permits come in on standard input, one byte each: a process takes one for each thing that it does,
so the demo decides how far it gets.  Reports go out on standard output.  When the demo is gone,
however that came about, standard input ends, and so does the process with all that it has started.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from . import reports

if TYPE_CHECKING:
    from .reports import Report

_STDIN: Final = 0
_STDOUT: Final = 1


class Lifeline:
    """Connects this process to the demo that has started it."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        threading.Thread(target=self._receive, name="lifeline", daemon=True).start()

    def _receive(self) -> None:
        while data := os.read(_STDIN, 4096):
            self._permits.release(len(data))
        _end()

    def take_permit(self) -> None:
        """Wait for a permit and use it up."""
        self._permits.acquire()

    def report(self, report: Report) -> None:
        """Tell the demo something; any thread may."""
        # One write below PIPE_BUF: lines of two threads do not mix.
        os.write(_STDOUT, reports.encode(report))


def _end() -> NoReturn:
    # At once, whatever the main thread waits for; DataLoader workers are in our process group.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
