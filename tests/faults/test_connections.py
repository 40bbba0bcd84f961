"""Connections that break at any byte, again and again, change nothing."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Final, Self

import pytest

from headrace import DaemonDataset, Stream, client
from headrace.plans import Shuffled
from headrace.testing import Ledger
from tests.support.app import AppThread, Reads
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples
from tests.support.loops import LOOPS

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.loops import Loop

EPOCHS: Final = 3

HEARD_BYTES: Final = 15_000
"""A connection breaks before the daemon has said so much.  Greeting, opening and the largest batch
are about 7,100 bytes: with less than that no connection would ever get beyond this batch."""

SAID_BYTES: Final = 1_000
"""Or before the client has said so much.  Its greeting and opening are about 530 bytes."""

DEADLINE_S: Final = 20.0
"""Far more than any batch takes: it turns a standstill into an error that says so."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), 120)
    return stream_of(folder, Shuffled(batch_size=5, seed=17))


@pytest.fixture(scope="module")
def truth(stream: Stream) -> Ledger:
    return expected(stream, epochs=EPOCHS)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients try again without pauses, so that many breaks fit into a test."""
    monkeypatch.setattr(client, "_RETRY_FIRST_S", 0.0)


class WeakLink:
    """Connects to a socket; each connection breaks at some byte.  A context manager.

    Args:
        path: Of the socket.
        rng: Says at which byte, of those that the daemon says or of those that the client says.
    """

    def __init__(self, path: str, rng: random.Random) -> None:
        self._path = path
        self._rng = rng
        self._threads: list[threading.Thread] = []
        self.num_broken = 0

    def dial(self) -> socket.socket:
        """Return the client's end of a new connection."""
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._path)
        near, theirs = socket.socketpair()
        left = {
            far: self._rng.randrange(1, HEARD_BYTES),
            near: self._rng.randrange(1, SAID_BYTES),
        }
        thread = threading.Thread(target=self._carry, args=(far, near, left))
        thread.start()
        self._threads.append(thread)
        return theirs

    def _carry(
        self, far: socket.socket, near: socket.socket, left: dict[socket.socket, int]
    ) -> None:
        """Carry bytes both ways until one side has said so many, or either hangs up."""
        other = {far: near, near: far}
        with far, near, contextlib.suppress(ConnectionError):
            while all(left.values()):
                for source in select.select([far, near], [], [])[0]:
                    data = source.recv(left[source])
                    if not data:
                        return
                    other[source].sendall(data)
                    left[source] -= len(data)
            self.num_broken += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for thread in self._threads:
            thread.join(DEADLINE_S)


@pytest.mark.parametrize("prefetch_batches", [1, 2, 4, 64])
@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_break_anywhere_change_nothing(
    stream: Stream,
    truth: Ledger,
    loop: Loop,
    prefetch_batches: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger()
    with (
        AppThread(loop=loop, reads=Reads(prefetch_batches, max_turns=50)) as app,
        WeakLink(app.socket, random.Random(f"{loop} {prefetch_batches}")) as link,
        contextlib.closing(
            DaemonDataset(
                app.socket, stream, prefetch_batches=prefetch_batches, deadline_s=DEADLINE_S
            )
        ) as dataset,
    ):
        dataset._link.dial = link.dial
        for _ in range(EPOCHS):
            for batch in dataset:
                check(batch)
                ledger.record(batch)
    assert link.num_broken >= 20
    assert ledger.difference(truth) is None
    # What fails in a session or at the end of a feed, the daemon survives and logs.
    failures = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert failures == []
