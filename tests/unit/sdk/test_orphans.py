"""A worker ends with its main process, also where that dies first or nobody reads what was sent."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from headrace import orphans

if TYPE_CHECKING:
    from collections.abc import Callable

FORK = multiprocessing.get_context("fork")


def wait_blocked(told: Any) -> None:  # noqa: ANN401 - one end of a pipe
    """Be a worker that is stuck for good."""
    orphans.end_with_parent()
    orphans.end_with_parent()
    told.send(os.getpid())
    threading.Event().wait()


def leave_something_unread(told: Any) -> None:  # noqa: ANN401 - one end of a pipe
    """Be a worker whose exit waits until somebody has read what it put."""
    orphans.end_with_parent()
    queue = FORK.Queue()
    queue.put(bytes(1 << 20))
    told.send(os.getpid())


def come_late(told: Any) -> None:  # noqa: ANN401 - one end of a pipe
    """Be a worker that begins when its main process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    watched = os.pidfd_open(parent.pid)
    told.send(os.getpid())
    select.select([watched], [], [])
    orphans.end_with_parent()
    threading.Event().wait()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("work", [wait_blocked, leave_something_unread, come_late])
def test_a_worker_ends_with_its_parent(work: Callable[[Any], None]) -> None:
    here, there = FORK.Pipe()

    def trainer() -> None:
        FORK.Process(target=work, args=(there,)).start()
        threading.Event().wait()

    parent = FORK.Process(target=trainer)
    parent.start()
    assert here.poll(20)
    worker = os.pidfd_open(here.recv())
    assert not select.select([worker], [], [], 0.05)[0]
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    ready, _, _ = select.select([worker], [], [], 20)
    os.close(worker)
    assert ready, "it lives on"


def test_a_process_that_is_no_worker_watches_nobody() -> None:
    before = threading.active_count()
    orphans.end_with_parent()
    assert threading.active_count() == before
