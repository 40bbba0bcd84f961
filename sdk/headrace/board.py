"""The board: what the copies of a dataset in DataLoader workers agree on by themselves.

A DataLoader tells its workers neither that a pass begins nor which one it is, and nothing at all
to the dataset in the main process.  So each worker looks at a small shared memory when it is asked
for its first batch, and there decides whether it begins a new pass or joins the one that another
worker has begun.  Invariant: all workers of a pass get the same start, and each pass gets the
start that follows from the one before.

The memory has no name in any file system, and its lock belongs to the kernel: a process that is
killed while it holds it lets go of it, and one that is killed while it writes leaves what was
there before.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from .conversion import prepare
from .errors import CursorError, FeedError
from .sharing import SharedFile

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_WORKERS: Final = 1024
"""Workers of one DataLoader: what a record has room for."""

_HALF_BYTES: Final = 64 << 10
"""Room for one record: 1,024 workers twice, and two cursors with all that they may leave out."""


class Ticket(NamedTuple):
    """Who asks: one worker of one DataLoader iterator."""

    seed: int
    """The seed that torch drew for the iterator: the same for all of its workers."""

    birth: int
    """When the workers of the iterator were made: grows from one iterator to the next by at least
    the number of workers, and differs by less within one."""

    worker: int
    num_workers: int


class Record(msgspec.Struct, kw_only=True):
    """What is written on the board."""

    next: dict[str, Any]
    """Where the next pass begins: a cursor, or ``{"seek": {"epoch": n}}``."""

    current: dict[str, Any] | None = None
    """Where the pass that workers have begun began; None if the main process went on since."""

    seed: int = 0
    birth: int = 0
    begun: list[int] = []
    """Workers that have begun the current pass."""

    over: list[int] = []
    """Those that have come to its end."""

    num_workers: int = 0

    @property
    def is_over(self) -> bool:
        """Whether all workers of the current pass have come to its end."""
        return len(self.over) == self.num_workers


def epoch_of(where: dict[str, Any]) -> int:
    """Return the epoch of a place on the board."""
    return int(where["seek"]["epoch"] if "seek" in where else where["epoch"])


def epoch_start(epoch: int) -> dict[str, Any]:
    """Return the place where an epoch begins."""
    return {"seek": {"epoch": epoch}}


END: Final = epoch_start(2**63 - 1)
"""The place after the limits of a stream that is one pass."""


def birth_of_worker(worker: int) -> int:
    """Return when the workers of this worker's iterator were made (see `Ticket.birth`)."""
    # The number of the process among the children of its parent; it has no public name.
    identity = getattr(multiprocessing.current_process(), "_identity", ())
    return int(identity[-1]) - worker if identity else 0


class Board(SharedFile):
    """Shared by a dataset and its copies in workers, however these are started.

    Args:
        start: Where the first pass begins.
    """

    def __init__(self, start: dict[str, Any]) -> None:
        super().__init__("headrace board", 1 + 2 * _HALF_BYTES)
        self.put(start)

    def _attach(self, descriptor: int) -> None:
        super()._attach(descriptor)
        # The lock of the kernel is between processes, this one between the threads of one.
        self._lock, self._pid = threading.Lock(), os.getpid()

    # ---- the main process --------------------------------------------------------------------

    def put(self, start: dict[str, Any]) -> None:
        """Say where the next pass begins; it will be a new one, whoever begins it."""
        with self._locked():
            self._write(Record(next=start))

    def read(self) -> Record:
        """Return what is written."""
        with self._locked():
            return self._read()

    # ---- workers -----------------------------------------------------------------------------

    def peek(self, ticket: Ticket, *, is_new: bool) -> dict[str, Any]:
        """Return what `join` would, and change nothing."""
        record = self.read()
        joins = self._joins(record, ticket, is_new=is_new)
        place = record.current if joins else record.next
        assert place is not None
        return place

    def join(self, ticket: Ticket, *, is_new: bool) -> dict[str, Any]:
        """Begin the next pass, or join the one that another worker has begun.

        Args:
            ticket: The worker.
            is_new: Whether this copy of the dataset has never begun a pass.

        Returns:
            Where the pass begins.

        Raises:
            FeedError: If the pass of this worker has been overtaken by a newer one.
        """
        with self._locked():
            record = self._read()
            if self._joins(record, ticket, is_new=is_new):
                assert record.current is not None
                record.begun.append(ticket.worker)
                self._write(record)
                return record.current
            self._begin(ticket, record.next)
            return record.next

    def restore(self, ticket: Ticket, start: dict[str, Any], *, ends: bool) -> None:
        """Make the pass of a worker the one that began at a cursor: its state was loaded.

        Args:
            ticket: The worker.
            start: The cursor.
            ends: Whether the stream is one pass that ends.

        Raises:
            CursorError: If another worker of the iterator was given another pass.
        """
        with self._locked():
            record = self._read()
            if not self._joins(record, ticket, is_new=True):
                self._begin(ticket, start, ends=ends)
                return
            if record.current != start:
                raise CursorError(
                    f"the states of the DataLoader workers do not belong together: worker "
                    f"{ticket.worker} began its pass at {start}, another one at {record.current}"
                )
            record.begun.append(ticket.worker)
            self._write(record)

    def settle(self, ticket: Ticket, start: dict[str, Any], *, ends: bool) -> None:
        """Correct where the current pass begins, and the next one.

        Args:
            ticket: The worker.
            start: Where the pass begins: the rest of an epoch may make no step.
            ends: Whether the stream is one pass that ends.
        """
        with self._locked():
            record = self._read()
            if record.seed != ticket.seed or record.current is None:
                return  # the loop has gone on to another pass
            following = END if ends else epoch_start(start["epoch"] + 1)
            if record.next != following or epoch_of(record.current) != start["epoch"]:
                record.next, record.current = following, start
                self._write(record)

    def finish(self, ticket: Ticket) -> None:
        """Take note that a worker has come to the end of its part of the pass."""
        with self._locked():
            record = self._read()
            if record.seed == ticket.seed and ticket.worker not in record.over:
                record.over.append(ticket.worker)
                self._write(record)

    def _begin(self, ticket: Ticket, start: dict[str, Any], *, ends: bool = False) -> None:
        self._write(
            Record(
                next=END if ends else epoch_start(epoch_of(start) + 1),
                current=start,
                seed=ticket.seed,
                birth=ticket.birth,
                begun=[ticket.worker],
                num_workers=ticket.num_workers,
            )
        )

    @staticmethod
    def _joins(record: Record, ticket: Ticket, *, is_new: bool) -> bool:
        """Tell whether a worker belongs to the current pass, as opposed to the next one."""
        if record.current is None:
            return False
        # A new iterator may have the seed of the one before, if the trainer seeds torch anew.
        distance = ticket.birth - record.birth
        if ticket.seed == record.seed and abs(distance) < max(1, ticket.num_workers):
            return ticket.worker not in record.begun
        if is_new and distance < 0:
            raise FeedError(
                "the pass of this DataLoader worker was overtaken by a newer one before it began: "
                "iterate over one DataLoader of a dataset at a time",
                code="pass",
                fault="client",
            )
        return False

    # ---- the memory --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._pid != os.getpid():  # a fork may have copied a lock that is held
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _read(self) -> Record:
        half = os.pread(self.descriptor, 1, 0)[0]
        data = os.pread(self.descriptor, _HALF_BYTES, 1 + half * _HALF_BYTES)
        length = int.from_bytes(data[:4], "big")
        return msgspec.json.decode(data[4 : 4 + length], type=Record)

    def _write(self, record: Record) -> None:
        data = msgspec.json.encode(record)
        assert len(data) + 4 <= _HALF_BYTES, f"a record of {len(data)} bytes"
        half = 1 - os.pread(self.descriptor, 1, 0)[0]
        os.pwrite(self.descriptor, len(data).to_bytes(4, "big") + data, 1 + half * _HALF_BYTES)
        os.pwrite(self.descriptor, bytes([half]), 0)


prepare(Record)
