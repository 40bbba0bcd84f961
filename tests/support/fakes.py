"""Streams from memory, for tests that need a daemon and no process: see `headrace.testing`."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Any, Final

from headrace.plans import Sequential
from headrace.protocol import Connection, Role
from headrace.protocol import messages as m
from headrace.testing import FakeDaemon, _FakeSession

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    from headrace.batch import Batch
    from headrace.plans import Plan


def samples(number: int) -> dict[str, bytes]:
    """Return samples that differ in name, content and length."""
    return {f"s{index:03}": b"%03d" % index * (index % 5) for index in range(number)}


def fake(number: int = 10, plan: Plan | None = None) -> FakeDaemon:
    """Return a fake daemon: by default 10 samples in 5 steps of 2, in order."""
    return FakeDaemon(samples(number), plan or Sequential(batch_size=2))


def places(batches: Iterable[Batch]) -> list[tuple[int, int]]:
    """Return (epoch, step) of each batch."""
    return [(batch.meta["epoch"], batch.meta["step"]) for batch in batches]


def take(batches: Iterator[Batch], number: int) -> list[tuple[int, int]]:
    """Return (epoch, step) of the next batches."""
    return places(next(batches) for _ in range(number))


JOIN_S: Final = 20.0


def receivers() -> list[threading.Thread]:
    """Return the threads that receive for a dataset."""
    return [thread for thread in threading.enumerate() if thread.name == "headrace receiver"]


def assert_no_receiver_is_left() -> None:
    """Fail if datasets that are gone have left a thread; those that are ending are waited for."""
    if receivers():
        gc.collect()
    for thread in receivers():
        thread.join(JOIN_S)
    assert receivers() == []


class LyingDaemon(FakeDaemon):
    """A daemon that changes the headers of what it sends.

    Args:
        lie: Returns the header to send instead.
        number: Samples, see `samples`.
    """

    def __init__(self, lie: Callable[[m.Batch], m.Batch], number: int = 10) -> None:
        super().__init__(samples(number), Sequential(batch_size=2))
        self._lie = lie

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            session = _FakeSession(self, sock)
            session._connection = _LyingConnection(self._lie)
            session.run()


class _LyingConnection(Connection):
    def __init__(self, lie: Callable[[m.Batch], m.Batch]) -> None:
        super().__init__(Role.DAEMON)
        self._lie = lie

    def send_payload(self, header: m.Header, payload: Any) -> None:  # noqa: ANN401 - any buffer
        super().send_payload(self._lie(header) if isinstance(header, m.Batch) else header, payload)
