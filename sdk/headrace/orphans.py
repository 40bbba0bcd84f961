"""Workers that end with their main process, however that ends.

Torch looks every few seconds whether the main process is there, and does not notice if it died
while the worker was being started; and a worker that notices still waits, at its exit, until
somebody has read what it sent.  So a worker of ours watches for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import threading

_watching_pid = 0


def end_with_parent() -> None:
    """Make this process end when the one that started it is gone; does nothing a second time.

    Where it was not started by `multiprocessing`, it does nothing at all.
    """
    global _watching_pid
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or _watching_pid == os.getpid():
        return
    _watching_pid = os.getpid()
    try:
        descriptor = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        os._exit(1)
    except OSError:  # not allowed in this sandbox: torch's own watch has to do
        return
    watch = threading.Thread(target=_watch, args=(descriptor,), name="headrace orphan watch")
    watch.daemon = True
    watch.start()


def _watch(descriptor: int) -> None:
    select.select([descriptor], [], [])
    # Nobody is left to clean up for, and what a regular exit waits for may never come.
    os._exit(1)
