"""A client by hand: `headrace.protocol.Connection` on a socket, step by step."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headrace.protocol import VERSION, Connection, Event, Payload, Role, State
from headrace.protocol import messages as m
from headrace_daemon.transport.listener import Listener, bind
from headrace_daemon.transport.session import Session

from .reading import value_of
from .serving import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .reading import GatedReader

M = TypeVar("M", bound=m.Message)


class Client:
    """One end of a connection to a daemon.

    Args:
        sock: Connected; the client makes it non-blocking and closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.connection = Connection(Role.CLIENT)
        self._events: deque[Event] = deque()
        self.notices: list[m.Notice] = []
        """All that were skipped so far."""

    # ---- saying --------------------------------------------------------------------------

    async def send(self, *messages: m.ClientMessage) -> None:
        """Send messages in one go."""
        for message in messages:
            self.connection.send(message)
        await self.send_bytes(b"".join(self.connection.data_to_send()))

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes that may be anything."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def greet(self) -> Client:
        """Exchange greetings."""
        await self.send(m.Hello(versions=(VERSION,), agent="test/1"))
        await self.expect(m.Welcome)
        return self

    async def open(self, **fields: Any) -> m.Opened:  # noqa: ANN401 - of Open
        """Open a feed and return what the daemon says of it."""
        await self.send(m.Open(**fields))
        return await self.expect(m.Opened)

    # ---- hearing -------------------------------------------------------------------------

    async def receive(self, *, at_most: int = 1 << 20) -> Event | None:
        """Return what comes next, or None at the end of the connection."""
        loop = asyncio.get_running_loop()
        while not self._events:
            buffer = self.connection.next_buffer()[:at_most]
            try:
                num_bytes = await loop.sock_recv_into(self.sock, buffer)
            except ConnectionResetError:  # it hung up without reading what we sent
                num_bytes = 0
            if not num_bytes:
                self.connection.receive_eof()
                assert self.connection.failure is None, self.connection.failure
                return None
            self._events += self.connection.received(num_bytes)
            assert self.connection.failure is None, self.connection.failure
        return self._events.popleft()

    async def next(self) -> Event | None:
        """Return what comes next, but for notices."""
        while isinstance(event := await self.receive(), m.Notice):
            self.notices.append(event)
        return event

    async def expect(self, kind: type[M]) -> M:
        """Return the next message, which must be of a kind."""
        event = await self.next()
        assert isinstance(event, kind), event
        return event

    async def notice(self) -> m.Notice:
        """Return the next message, which must be a notice."""
        event = await self.receive()
        assert isinstance(event, m.Notice), event
        return event

    async def batch(self) -> m.Batch:
        """Return the header of the next message, which must be a batch with the right bytes."""
        event = await self.next()
        assert isinstance(event, Payload), event
        assert isinstance(event.header, m.Batch)
        check_payload(event)
        return event.header

    async def steps(self, number: int) -> list[tuple[int, int]]:
        """Return (epoch, step) of the next batches."""
        batches = [await self.batch() for _ in range(number)]
        return [(batch.epoch, batch.step) for batch in batches]

    async def samples(self) -> Payload:
        """Return the next message, which must be the answer to a read."""
        event = await self.next()
        assert isinstance(event, Payload), event
        assert isinstance(event.header, m.Samples)
        check_payload(event)
        return event

    async def nothing(self) -> None:
        """Fail if the daemon has anything to say but the answer to a question asked now."""
        await self.send(m.Status(request=4711))
        report = await self.expect(m.Report)
        assert report.request == 4711

    async def end(self) -> None:
        """Wait for the end of the connection; nothing else may come."""
        event = await self.next()
        assert event is None, event

    def hang_up(self) -> None:
        """Close the connection."""
        self.sock.close()

    @property
    def state(self) -> State:
        return self.connection.state


def values(event: Payload) -> list[bytes]:
    """Return the values of a payload frame as its header places them."""
    offsets = np.frombuffer(event.header.off, dtype="<u8").tolist()
    lengths = np.frombuffer(event.header.lengths, dtype="<u8").tolist()
    return [
        bytes(event.payload[offset : offset + length])
        for offset, length in zip(offsets, lengths, strict=True)
    ]


def check_payload(event: Payload) -> None:
    """Fail unless a payload has the samples of `tests.support.reading` that its header names."""
    keys = event.header.keys
    assert keys is not None
    assert event.header.fields == ("data",)
    assert event.header.n == len(keys)
    found = values(event)
    assert found == [value_of(key, len(value)) for key, value in zip(keys, found, strict=True)]


class Sessions:
    """Sessions of a `Daemon` over socket pairs."""

    def __init__(self, daemon: Daemon, tasks: asyncio.TaskGroup) -> None:
        self.daemon = daemon
        self._tasks = tasks
        self.clients: list[Client] = []
        self.sessions: list[Session] = []
        self.running: list[asyncio.Task[None]] = []
        self.report: dict[str, Any] = {"version": "0"}
        self.num_reports = 0

    def connect(self) -> Client:
        """Return a client that has not said anything yet."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        number = len(self.sessions)
        session = Session(
            ours,
            name=f"{number}",
            streams=self.daemon.streams,
            registry=self.daemon.registry,
            budget=self.daemon.budget,
            fetcher=self.daemon.fetcher,
            report=self._report,
        )
        self.sessions.append(session)
        self.running.append(self._tasks.create_task(session.run(), name=f"session {number}"))
        self.clients.append(Client(theirs))
        return self.clients[-1]

    async def greeted(self) -> Client:
        """Return a client that has exchanged greetings."""
        return await self.connect().greet()

    def _report(self) -> dict[str, Any]:
        self.num_reports += 1
        return self.report


@asynccontextmanager
async def sessions(**options: Any) -> AsyncIterator[Sessions]:  # noqa: ANN401 - of Daemon
    """Run sessions; at the end all clients hang up, and all memory is back."""
    daemon = Daemon(**options)
    async with daemon.registry, asyncio.TaskGroup() as tasks:
        open_ones = Sessions(daemon, tasks)
        try:
            yield open_ones
        except BaseException:
            daemon.give_up()
            for task in open_ones.running:
                task.cancel()
            raise
        finally:
            for client in open_ones.clients:
                client.hang_up()
    daemon.assert_whole()


class Listening:
    """A listener with sessions of a `Daemon`, and clients of it."""

    def __init__(self, path: Path, daemon: Daemon, listener: Listener) -> None:
        self.path = path
        self.daemon = daemon
        self.listener = listener
        self.running: asyncio.Task[None] | None = None
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        sock = socket.socket(socket.AF_UNIX)
        client = Client(sock)
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, os.fspath(self.path))
        return client

    async def greeted(self) -> Client:
        return await (await self.connect()).greet()


@asynccontextmanager
async def listening(
    path: Path,
    *,
    allow_uids: tuple[int, ...] | None = None,
    max_connections: int = 100,
    reader: GatedReader | None = None,
    session_class: type[Session] = Session,
) -> AsyncIterator[Listening]:
    """Run a listener; at the end it is stopped, and all memory is back."""
    daemon = Daemon(reader=reader)

    def make_session(sock: socket.socket, name: str) -> Session:
        return session_class(
            sock,
            name=name,
            streams=daemon.streams,
            registry=daemon.registry,
            budget=daemon.budget,
            fetcher=daemon.fetcher,
            report=dict,
        )

    listener = Listener(
        bind(path, ""), make_session, allow_uids=allow_uids, max_connections=max_connections
    )
    front = Listening(path, daemon, listener)
    async with daemon.registry, asyncio.TaskGroup() as tasks:
        front.running = tasks.create_task(listener.run(), name="listener")
        try:
            yield front
        except BaseException:
            daemon.give_up()
            raise
        finally:
            listener.stop()
            for client in front.clients:
                client.hang_up()
    daemon.assert_whole()
