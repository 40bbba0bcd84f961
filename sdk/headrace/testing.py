"""Tools for tests, ours and those of users: the ledger, a fake daemon, checkpoint assertions.

A *ledger* is what a run delivered, batch by batch: two runs are the same if their ledgers are
equal, which no comparison of sets can say.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import zlib
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from . import errors
from .client import ConnectionLostError
from .conversion import prepare
from .dictation import dictated
from .manifest import Manifest
from .plans import Cursor, Data, Plan, Seek, Sequential
from .plans.engine import (
    BoundPlan,
    advance,
    check,
    epoch_steps,
    is_finished,
    next_batch,
    remaining_steps,
    seek,
    settle,
)
from .protocol import VERSION, Connection, Role, State
from .protocol import messages as m
from .sources import Objects, Stream
from .topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from .batch import Batch
    from .dataset import DaemonDataset

_SAMPLE = struct.Struct("<QQ")


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What one step delivered to one rank."""

    epoch: int
    step: int
    rank: int
    world_size: int
    stream: str
    ids: tuple[int, ...]
    """Indices of the samples, in the order of delivery."""

    crc: int
    """CRC-32 over (id, length, bytes) of every value, sample by sample; the length is 2^64 - 1 for
    one that is missing."""


class Ledger:
    """The record of a run, in memory and, where a path is given, as JSON lines in a file.

    A file that exists is continued; each entry is written out at once.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.entries: list[LedgerEntry] = []
        if path is not None and path.exists():
            # The last line of a process that was killed may be incomplete: it goes.
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                os.truncate(path, len(whole))
            lines = whole.splitlines()
            self.entries = [msgspec.json.decode(line, type=LedgerEntry) for line in lines]

    def record(self, batch: Batch, topology: Topology = Topology()) -> LedgerEntry:  # noqa: B008 - frozen
        """Add a batch with raw values."""
        entry = LedgerEntry(
            epoch=batch.meta["epoch"],
            step=batch.meta["step"],
            rank=topology.rank,
            world_size=topology.world_size,
            stream=batch.meta["stream"],
            ids=tuple(batch.indices.tolist()),
            crc=checksum(batch),
        )
        self.entries.append(entry)
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")
        return entry

    def cut(self, cursor: Cursor | dict[str, Any]) -> None:
        """Forget what comes at or after a cursor: a run that resumes there delivers it again."""
        if not isinstance(cursor, Cursor):
            cursor = Cursor.from_state(cursor)
        edge = (cursor.epoch, cursor.step)
        self.entries = [entry for entry in self.entries if (entry.epoch, entry.step) < edge]
        if self.path is not None:
            aside = self.path.with_suffix(".writing")
            aside.write_bytes(b"".join(msgspec.json.encode(e) + b"\n" for e in self.entries))
            aside.replace(self.path)

    def difference(self, other: Ledger) -> str | None:
        """Return the first difference to another ledger in words, or None if they are equal."""
        for number, (mine, theirs) in enumerate(zip(self.entries, other.entries, strict=False)):
            if mine != theirs:
                return f"entry {number}: {mine} != {theirs}"
        if len(self.entries) != len(other.entries):
            return f"{len(self.entries)} entries != {len(other.entries)} entries"
        return None


def checksum(batch: Batch) -> int:
    """Return the CRC-32 of a batch with raw values (see `LedgerEntry.crc`)."""
    crc = 0
    rows = zip(*(batch[field] for field in batch.fields), strict=True)
    for index, row in zip(batch.indices.tolist(), rows, strict=True):
        for value in row:
            length = m.MISSING if value is None else len(value)
            crc = zlib.crc32(_SAMPLE.pack(index, length), crc)
            crc = zlib.crc32(value or b"", crc)
    return crc


def ledger_of(batches: Iterable[Batch], topology: Topology = Topology()) -> Ledger:  # noqa: B008 - frozen
    """Return the ledger of some batches."""
    ledger = Ledger()
    for batch in batches:
        ledger.record(batch, topology)
    return ledger


def assert_resumes_exactly(make: Callable[[], DaemonDataset], *, epochs: int = 2) -> None:
    """Take a state before and after every batch, restore each, compare the rest of the run.

    States pass through JSON.  Costs a quadratic number of batches: use a small stream.

    Args:
        make: Makes a new dataset with raw batches, always the same one.
        epochs: Passes over the whole stream.

    Raises:
        AssertionError: At the first state from which the rest of the run differs.
    """
    dataset = make()
    states = [json.dumps(dataset.state_dict())]
    whole = Ledger()
    for _ in range(epochs):
        for batch in dataset:
            whole.record(batch)
            states.append(json.dumps(dataset.state_dict()))
    dataset.close()
    for taken, text in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(text))
        rest = Ledger()
        expected = whole.entries[taken:]
        while len(rest.entries) < len(expected):
            before = len(rest.entries)
            for batch in resumed:
                rest.record(batch)
            if len(rest.entries) == before:
                break  # there is no more, which the comparison tells
        resumed.close()
        assert rest.entries == expected, f"resumed after {taken} batches: {text}"


class FakeDaemon:
    """A daemon in a thread, over a socket pair: samples from memory, no files, no process.

    For tests of training code.  It speaks the same protocol and executes the same plans as the
    real one.  A context manager.

    Args:
        samples: Values by name.
        plan: How they are read; in batches of two, in order, by default.
    """

    def __init__(self, samples: Mapping[str, bytes], plan: Plan | None = None) -> None:
        names = sorted(samples)
        self._values = [samples[name] for name in names]
        self.manifest = Manifest.build([(name.encode(), len(samples[name])) for name in names])
        self.stream = Stream(Objects("/fake"), plan or Sequential(batch_size=2))
        if dictated(self.stream) is not None:
            raise errors.PlanError(
                f"plan={plan!r} runs in the trainer: a FakeDaemon executes plans of headrace.plans"
            )
        self.hang_up_after: int | None = None
        """Batches after which each connection is dropped, once the number is reached."""
        self.opened: list[m.Open] = []
        """What clients have asked for, in order."""
        self.num_sent = 0
        """Batches sent to all clients."""
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def dataset(self, **options: Any) -> DaemonDataset:  # noqa: ANN401 - as for DaemonDataset
        """Return a dataset that is connected to this daemon."""
        from .dataset import DaemonDataset

        dataset = DaemonDataset("/fake/headrace.sock", self.stream, **options)
        dataset._link.dial = self._dial
        return dataset

    def hang_up(self) -> None:
        """Drop all connections; clients may connect again."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop all connections, take no more, and wait for the threads to end."""
        with self._lock:
            self._is_closed = True
        self.hang_up()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _dial(self) -> socket.socket:
        with self._lock:
            if self._is_closed:
                raise ConnectionLostError("the fake daemon is closed")
            ours, theirs = socket.socketpair()
            self._sockets.append(ours)
            thread = threading.Thread(target=self._serve, args=(ours,), name="fake daemon")
            thread.daemon = True
            thread.start()
            self._threads.append(thread)
        return theirs

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            _FakeSession(self, sock).run()


class _FakeSession:
    """One connection to a `FakeDaemon`."""

    def __init__(self, daemon: FakeDaemon, sock: socket.socket) -> None:
        self._daemon = daemon
        self._sock = sock
        self._connection = Connection(Role.DAEMON)
        # What is streamed, None while no feed is open: plan, rank, cursor, end of the epochs.
        self._bound: BoundPlan | None = None
        self._topology = Topology()
        self._cursor: Cursor | None = None
        self._epoch = 0
        self._stride = 1
        self._epochs_left: int | None = None
        self._num_sent = 0

    def run(self) -> None:
        connection = self._connection
        while connection.state is not State.CLOSED:
            data = self._sock.recv(1 << 16)
            if not data:
                return
            for event in connection.receive_data(data):
                assert not isinstance(event, tuple)
                try:
                    self._handle(event)
                except errors.HeadraceError as error:
                    scope: m.Scope = "feed" if isinstance(event, m.Open) else "request"
                    number = getattr(event, "request", 0)
                    connection.send(
                        m.Error(code=error.code, message=str(error), scope=scope, request=number)
                    )
            self._stream()
            self._flush()

    def _flush(self) -> None:
        for buffer in self._connection.data_to_send():
            self._sock.sendall(buffer)

    def _handle(self, event: m.Message) -> None:
        connection, manifest = self._connection, self._daemon.manifest
        match event:
            case m.Hello():
                connection.send(m.Welcome(version=VERSION, agent="headrace-fake"))
            case m.Open():
                self._daemon.opened.append(event)
                bound, cursor = self._bind(event)
                steps = cursor.step + remaining_steps(bound, cursor, event.world_size)
                self._bound, self._cursor = bound, cursor
                self._topology = Topology(event.rank, event.world_size)
                connection.send(
                    m.Opened(
                        token="fake",
                        stream=msgspec.to_builtins(self._daemon.stream),
                        manifest=manifest.digest,
                        blocks=tuple(manifest.blocks),
                        length=len(manifest),
                        plan=bound.digest,
                        cursor=cursor.to_state(),
                        steps=steps,
                        ends=bound.program.ends,
                        slot_bytes=manifest.total_bytes,
                        num_slots=2,
                    )
                )
                self._epoch = cursor.epoch
                self._stride = event.stride
                self._epochs_left = 1 if event.stride > 1 else event.epochs
                self._skip(event.first)
            case m.Close():
                self._bound = None
                if connection.state is State.CLOSING:
                    connection.send(m.End(reason="closed"))
            case m.Lookup():
                bound, cursor = self._bind(event)
                left = remaining_steps(bound, cursor, event.world_size)
                indices = np.array(event.indices, dtype=np.uint64)
                connection.send(
                    m.Entries(
                        request=event.request,
                        stream=msgspec.to_builtins(self._daemon.stream),
                        manifest=manifest.digest,
                        blocks=tuple(manifest.blocks),
                        length=len(manifest),
                        total_bytes=manifest.total_bytes,
                        plan=bound.digest,
                        cursor=cursor.to_state(),
                        steps=cursor.step + left,
                        remaining=left,
                        ends=bound.program.ends,
                        names=tuple(manifest.names_of(indices)),
                        sizes=tuple(manifest.sizes[indices].tolist()),
                    )
                )
            case m.Read():
                header, payload = self._pack(np.array(event.indices, dtype=np.uint64))
                connection.send_payload(
                    m.Samples(request=event.request, n=len(event.indices), **header), payload
                )
            case m.Status():
                connection.send(m.Report(request=event.request, report={"fake": True}))
            case _:
                pass

    def _bind(self, event: m.Open | m.Lookup) -> tuple[BoundPlan, Cursor]:
        plan, manifest = self._daemon.stream.served_plan, self._daemon.manifest
        data = Data(len(manifest), manifest.digest, {"sizes": manifest.sizes})
        bound = BoundPlan.to(plan, data)
        if not bound.program.ends:
            epoch_steps(bound, event.world_size)
        if event.start is None:
            cursor = bound.start()
        elif "seek" in event.start:
            where = msgspec.convert(event.start["seek"], Seek)
            cursor = seek(bound, where, event.world_size)
        else:
            cursor = Cursor.from_state(event.start)
            check(bound, cursor)
        return bound, settle(bound, cursor, event.world_size)

    def _stream(self) -> None:
        """Send as many batches as there is credit for."""
        connection, daemon = self._connection, self._daemon
        while self._bound is not None and connection.credit.available:
            assert self._cursor is not None
            if is_finished(self._bound, self._cursor):
                self._finish()
                return
            planned, after = next_batch(self._bound, self._cursor, self._topology)
            header, payload = self._pack(planned.indices)
            connection.send_payload(
                m.Batch(
                    seq=connection.credit.spent,
                    epoch=planned.epoch,
                    step=planned.step,
                    global_step=planned.global_step,
                    stream=planned.stream,
                    role="extra" if planned.role and self._bound.program.ends else "main",
                    meta=planned.told,
                    n=len(planned.indices),
                    ids=planned.indices.astype("<u8").tobytes(),
                    flags=planned.flags.tobytes(),
                    cursor=after.to_state(),
                    **header,
                ),
                payload,
            )
            self._cursor = after
            self._skip(self._stride - 1)
            self._num_sent += 1
            with daemon._lock:
                daemon.num_sent += 1
            self._flush()
            if daemon.hang_up_after is not None and self._num_sent >= daemon.hang_up_after:
                raise ConnectionResetError

    def _skip(self, steps: int) -> None:
        """Leave out steps, at most to the end of the epoch; say so where one ends."""
        assert self._bound is not None
        assert self._cursor is not None
        world_size = self._topology.world_size
        if self._cursor.epoch == self._epoch:
            left = remaining_steps(self._bound, self._cursor, world_size)
            self._cursor = advance(self._bound, self._cursor, world_size, min(steps, left))
        if self._cursor.epoch == self._epoch:
            return
        self._connection.send(m.EpochEnd(epoch=self._epoch, cursor=self._cursor.to_state()))
        self._epoch = self._cursor.epoch
        if self._epochs_left is not None:
            self._epochs_left -= 1
            if not self._epochs_left:
                self._finish()

    def _finish(self) -> None:
        self._connection.send(m.End(reason="finished"))
        self._bound = None

    def _pack(self, indices: np.ndarray[Any, np.dtype[np.uint64]]) -> tuple[dict[str, Any], bytes]:
        values = [self._daemon._values[index] for index in indices.tolist()]
        lengths = np.array([len(value) for value in values], dtype="<u8")
        offsets = np.zeros(len(values), dtype="<u8")
        offsets[1:] = np.cumsum(lengths)[:-1]
        header = {
            "fields": ("data",),
            "keys": tuple(self._daemon.manifest.names_of(indices)),
            "off": offsets.tobytes(),
            "lengths": lengths.tobytes(),
        }
        return header, b"".join(values)


prepare(LedgerEntry)
