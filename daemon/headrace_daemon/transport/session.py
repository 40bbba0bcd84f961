"""A session: one connection, from its greeting to the return of what it held.

Three tasks: one receives, one answers requests and opens feeds, one transmits.  Only the last
takes batches from the feed and gives their slots back, so that closing never races with sending.
The session owns its raw non-blocking socket: batches are written from their slot with `sendmsg`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from headrace.errors import FeedError, HeadraceError, LocalProtocolError, PlanError
from headrace.protocol import VERSION, Connection, Role, State
from headrace.protocol import messages as m
from headrace.protocol.framing import MAX_PAYLOAD_BYTES
from headrace.topology import Topology

from .. import __version__
from ..assemble.layout import lay_out
from ..assemble.requests import requests_of
from ..assemble.slots import Slot
from ..errors import to_message
from ..feed.dictated import Dictation
from ..feed.feed import ReadyBatch
from ..feed.planner import EpochEdge, Finish
from ..feed.registry import check_group
from ..source.reader import release
from .peer import DeathWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from headrace.sources import Stream

    from ..feed.registry import FeedRegistry, OpenFeed
    from ..feed.streams import Streams
    from ..fetch.budget import Budget
    from ..fetch.fetcher import Fetcher
    from ..source.progress import Progress, Tell

logger = logging.getLogger(__name__)

AGENT: Final = f"headrace-daemon/{__version__}"

MAX_REQUESTS: Final = 16
"""Requests of one client that wait for their answer; then nothing more is received from it."""

MAX_INDICES: Final = 4096
"""Samples that one `lookup` or `read` may name."""

HEARTBEAT_S: Final = 2.0
"""A client that waits for something hears from the daemon at least this often, in seconds.  It may
take a daemon that is silent for several times as long for dead."""

GREETING_S: Final = 10.0
"""How long a new connection may take to say hello, in seconds."""

FAREWELL_S: Final = 1.0
"""How long a client that broke the protocol has to read why, in seconds."""

_MAX_QUOTED: Final = 100
"""Versions, and characters of a name, that a refusal repeats."""

_RECEIVE_BYTES: Final = 64 << 10
_SEND_BUFFER_BYTES: Final = 4 << 20
"""What the session asks the kernel to buffer; the kernel grants up to its own wmem_max."""

MAX_IOVECS: Final = 1024
"""Buffers of one `sendmsg`; more are refused by the kernel (EMSGSIZE)."""

_U64: Final = np.dtype("<u8")


class _Over(Exception):  # noqa: N818 - not an error
    """The session has come to its end."""


class Session:
    """Serves one connection.

    Args:
        sock: Connected, non-blocking; the session closes it.
        name: For logs.
        streams: Resolves streams for lookups.
        registry: Opens feeds.
        budget: Memory for single reads.
        fetcher: Reads for single reads.
        report: Makes the answer to `status`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        streams: Streams,
        registry: FeedRegistry,
        budget: Budget,
        fetcher: Fetcher,
        report: Callable[[], dict[str, Any]],
    ) -> None:
        self._sock = sock
        self.name = name
        self._streams = streams
        self._registry = registry
        self._budget = budget
        self._fetcher = fetcher
        self._report = report
        self._connection = Connection(Role.DAEMON)
        # The feed that is being transmitted; only `_transmit` sets it back to None.
        self.entry: OpenFeed | None = None
        # What the client says of a stream whose plan it executes; of the current feed.
        self._dictation = Dictation()
        # Opens a feed; None while none is being opened.
        self._opening: asyncio.Task[None] | None = None
        # Requests that wait for their answer.
        self._requests: asyncio.Queue[m.Status | m.Lookup | m.Read] = asyncio.Queue(MAX_REQUESTS)
        # Payloads to send between batches: header, memory, and what to do once it is written.
        self._replies: deque[tuple[m.Samples, memoryview, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()
        # Set whenever all that was to be sent is in the socket.
        self._is_written = asyncio.Event()
        # Whether a request is being answered.
        self._is_answering = False
        self._is_draining = False
        # Whether the client has closed its feed, as opposed to having lost its connection.
        self._is_leaving = False
        # Tells when the client's process is gone; None before and after `run`.
        self._watch: DeathWatch | None = None

    async def run(self) -> None:
        """Serve until the client leaves, breaks the protocol, or the daemon stops."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._watch = DeathWatch(self._sock, self._on_death)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(tasks), name=f"receive {self.name}")
                tasks.create_task(self._answer(), name=f"answer {self.name}")
                tasks.create_task(self._transmit(), name=f"transmit {self.name}")
        except* (_Over, OSError):
            pass
        finally:
            self._leave()

    def drain(self) -> None:
        """Send what is ready and allowed, tell the client to come back later, and end."""
        self._is_draining = True
        if self.entry is not None:
            self.entry.feed.halt()
        self._wake.set()

    def _on_death(self) -> None:
        self._is_draining = True
        # Ends `_receive`, also where a forked child of the client still holds the connection.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _leave(self) -> None:
        assert self._watch is not None
        entry, self.entry = self.entry, None
        if entry is not None:
            is_gone = self._watch.is_dead or not self._watch.is_possible
            if is_gone or self._is_draining or self._is_leaving:
                self._registry.close_soon(entry)
            else:
                self._watch.on_death = lambda: self._registry.close_soon(entry)
                self._registry.park(entry, unwatch=self._watch.close)
                self._watch = None
        if self._watch is not None:
            self._watch.close()
        self._sock.close()

    # ---- receiving ---------------------------------------------------------------------------

    async def _receive(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        connection = self._connection
        while connection.state is not State.CLOSED:
            async with asyncio.timeout(GREETING_S if connection.state is State.NEW else None):
                data = await loop.sock_recv(self._sock, _RECEIVE_BYTES)
            if not data:
                connection.receive_eof()
                raise _Over
            for event in connection.receive_data(data):
                assert not isinstance(event, tuple), "a daemon receives no payloads"
                logger.debug("< %s session=%s", m.word(event), self.name)
                await self._handle(event, tasks)
            self._wake.set()
        if connection.failure is not None:
            logger.warning(
                "client broke the protocol session=%s: %s", self.name, connection.failure
            )
        # `_transmit` says goodbye and ends the session, unless the client does not listen.
        await asyncio.sleep(FAREWELL_S)
        raise _Over

    async def _handle(self, event: m.Message, tasks: asyncio.TaskGroup) -> None:
        match event:
            case m.Hello():
                self._greet(event)
            case m.Close():
                self._is_leaving = True
            case m.Open():
                self._is_leaving = False
                self._dictation = Dictation()
                self._opening = tasks.create_task(
                    self._open(event, self._dictation), name=f"open {self.name}"
                )
            case m.Indices():
                if self._opening is not None or self.entry is not None:
                    self._dictation.take_in(event)
            case m.Status() | m.Lookup() | m.Read():
                await self._requests.put(event)
            case _:
                pass  # credit, release and close have changed the connection: `_transmit` looks

    def _greet(self, hello: m.Hello) -> None:
        if VERSION in hello.versions:
            self._connection.send(m.Welcome(version=VERSION, agent=AGENT))
            return
        spoken = ", ".join(map(str, hello.versions[:_MAX_QUOTED])) or "none"
        agent = hello.agent[:_MAX_QUOTED] or "unknown"
        self._connection.send(
            m.Error(
                code="version",
                message=f"the client ({agent}) speaks protocol version(s) "
                f"{spoken}, this daemon ({AGENT}) speaks {VERSION}: upgrade the older of the two",
                fault="client",
                scope="connection",
            )
        )

    # ---- opening and answering ---------------------------------------------------------------

    async def _open(self, request: m.Open, dictation: Dictation) -> None:
        connection = self._connection
        # Not the error, which would keep this frame, and that a manifest.
        refusal: m.Error | None = None
        try:
            entry = await self._registry.open(request, dictation=dictation, tell=self._teller())
            entry.feed.on_change = self._wake.set
            self.entry = entry
            if self._is_draining:
                entry.feed.halt()
            if connection.state is State.OPENING:
                connection.send(_opened(entry))
        except LocalProtocolError as error:
            reason = f"the stream is described at too great a length: {error}"
            refusal = to_message(PlanError(reason), scope="feed")
        except HeadraceError as error:
            refusal = to_message(error, scope="feed")
        except Exception as error:
            logger.exception("open failed session=%s", self.name)
            refusal = to_message(_unforeseen(error), scope="feed")
        finally:
            self._opening = None
            self._wake.set()
        if refusal is not None:
            logger.info("open refused session=%s: %s", self.name, refusal.message)
            await self._end_feed(refusal)
            self._wake.set()

    def _teller(self) -> Tell:
        """Return a callback, for any thread, that tells the client of long work."""
        loop = asyncio.get_running_loop()

        def tell(far: Progress) -> None:
            notice = m.Notice(kind=far.kind, text=far.text, done=far.done, total=far.total)
            self._say(notice)
            self._wake.set()

        def tell_from_thread(far: Progress) -> None:
            loop.call_soon_threadsafe(tell, far)

        return tell_from_thread

    async def _answer(self) -> None:
        while True:
            self._is_answering = False
            request = await self._requests.get()
            self._is_answering = True
            refusal: m.Error
            number = request.request
            try:
                match request:
                    case m.Status():
                        self._say(m.Report(request=request.request, report=self._report()))
                    case m.Lookup():
                        self._say(await self._look_up(request))
                    case m.Read():
                        await self._read(request)
                        continue
            except LocalProtocolError as error:
                reason = f"{error}: ask for fewer samples at a time"
                refusal = to_message(PlanError(reason), scope="request", request=number)
            except HeadraceError as error:
                refusal = to_message(error, scope="request", request=number)
            except Exception as error:
                logger.exception("request failed session=%s", self.name)
                refusal = to_message(_unforeseen(error), scope="request", request=number)
            else:
                await self._written()
                continue
            self._say(refusal)
            await self._written()

    def _say(self, message: m.DaemonMessage) -> None:
        """Queue a message, unless the conversation has ended meanwhile."""
        if self._connection.state is not State.CLOSED:
            self._connection.send(message)

    async def _written(self) -> None:
        """Wait until the client's socket has taken an answer: one that does not read gets no more.

        It may be the next to last answer that was taken.
        """
        self._is_written.clear()
        self._wake.set()
        await self._is_written.wait()

    async def _look_up(self, request: m.Lookup) -> m.Entries:
        topology = Topology(request.rank, request.world_size)
        stream = await self._streams.bind(
            request.stream, topology, request.start, tell=self._teller()
        )
        if request.group and stream.is_sized:
            check_group(request)
            await self._registry.admit(request, stream)
        manifest = stream.source.manifest
        indices = _indices(request.indices, len(manifest))
        return m.Entries(
            request=request.request,
            stream=_plain(stream.stream),
            manifest=stream.bound.manifest,
            blocks=stream.blocks,
            length=len(manifest),
            total_bytes=manifest.total_bytes,
            plan=stream.bound.digest,
            cursor=stream.cursor.to_state(),
            steps=stream.steps,
            remaining=stream.remaining,
            ends=stream.bound.program.ends,
            names=tuple(manifest.names_of(indices)),
            sizes=tuple(manifest.sizes[indices].tolist()),
        )

    async def _read(self, request: m.Read) -> None:
        stream = await self._streams.bind(request.stream, Topology(), None, tell=self._teller())
        if stream.stream.is_streamed:
            raise PlanError(
                f"single samples of {stream.stream.source.title} cannot be read, as its shards are "
                "streamed: iterate over them, or index them (plain .tar, without index=False)"
            )
        manifest = stream.source.manifest
        indices = _indices(request.indices, len(manifest))
        layout = lay_out(manifest.lengths_of(indices))
        if layout.num_bytes > MAX_PAYLOAD_BYTES:
            raise PlanError(
                f"{len(indices)} samples of {layout.num_bytes} bytes together are above the limit "
                f"of {MAX_PAYLOAD_BYTES}: ask for fewer samples at a time"
            )
        names = manifest.names_of(indices)
        account = await self._budget.open(
            f"read {self.name}",
            layout.num_bytes,
            shed=lambda: None,
            need=f"reading {len(names)} samples at once needs {layout.num_bytes} bytes",
        )
        try:
            slot = Slot(layout.num_bytes)
            try:
                wanted = requests_of(manifest, indices, names, layout, slot.view)
                try:
                    await self._fetcher.fetch(stream.source.reader, wanted)
                finally:
                    release(wanted)
                header = m.Samples(
                    request=request.request,
                    n=len(names),
                    fields=manifest.fields,
                    keys=tuple(names),
                    off=layout.offsets.astype(_U64).tobytes(),
                    lengths=layout.lengths.astype(_U64).tobytes(),
                )
                sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._replies.append((header, slot.view, sent))
                self._wake.set()
                await sent
            finally:
                slot.close()
        finally:
            self._budget.close(account)

    # ---- transmitting ------------------------------------------------------------------------

    async def _transmit(self) -> None:
        connection = self._connection
        while True:
            self._wake.clear()
            if buffers := connection.data_to_send():
                await self._write(buffers)
            elif connection.state is State.CLOSED:
                raise _Over
            elif connection.state is State.CLOSING:
                await self._close_feed()
            elif self._replies:
                await self._reply()
            elif not await self._advance():
                if self._is_draining and self._opening is None:
                    await self._send_off()
                await self._wait()

    async def _advance(self) -> bool:
        """Send the head of the feed if it is ready and allowed; say whether there was one."""
        entry, connection = self.entry, self._connection
        head = entry.feed.head() if entry is not None else None
        if entry is None or head is None:
            return False
        match head:
            case ReadyBatch():
                if not connection.credit.available:
                    return False
                entry.feed.take()
                await self._send_batch(entry, head)
            case EpochEdge(epoch, cursor):
                entry.feed.take()
                journal = entry.feed.journal
                journal.begin_epoch(cursor.epoch)
                connection.send(m.EpochEnd(epoch=epoch, cursor=journal.told(cursor.to_state())))
            case Finish():
                await self._end_feed(m.End(reason="finished"))
            case HeadraceError():
                logger.warning("feed failed feed=%s: %s", entry.feed.name, head)
                await self._end_feed(to_message(head, scope="feed"))
        return True

    async def _send_batch(self, entry: OpenFeed, batch: ReadyBatch) -> None:
        feed, connection = entry.feed, self._connection
        refusal: LocalProtocolError | None = None
        started = time.monotonic()
        try:
            for text in batch.notes:
                self._say(m.Notice(kind="skipped", text=text, done=len(feed.journal)))
            header = _header(entry, batch, seq=connection.credit.spent)
            connection.send_payload(header, batch.payload)
            await self._write(connection.data_to_send())
        except LocalProtocolError as error:
            refusal = error
        finally:
            feed.pool.give_back(batch.slot)
        if refusal is not None:
            failure = FeedError(f"step {batch.planned.step}: {refusal}", code="protocol")
            await self._end_feed(to_message(failure, scope="feed"))
            return
        self._dictation.sent()
        statistics = feed.statistics
        statistics.sending_s += time.monotonic() - started
        statistics.epoch, statistics.step = batch.planned.after.epoch, batch.planned.after.step
        statistics.num_batches += 1
        statistics.num_samples += len(batch.names)
        statistics.num_bytes += batch.layout.num_bytes

    async def _end_feed(self, message: m.End | m.Error) -> None:
        """Take the feed's memory back, then tell the client."""
        entry, self.entry = self.entry, None
        if entry is not None:
            await self._registry.close(entry)
        if self._connection.state in (State.OPENING, State.STREAMING, State.CLOSING):
            self._connection.send(message)

    async def _close_feed(self) -> None:
        """Answer `close`: also a feed that is still being opened is taken down."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        await self._end_feed(m.End(reason="closed"))

    async def _reply(self) -> None:
        header, payload, sent = self._replies.popleft()
        try:
            self._connection.send_payload(header, payload)
            await self._write(self._connection.data_to_send())
        finally:
            if not sent.done():
                sent.set_result(None)

    async def _send_off(self) -> None:
        """End a drained session, unless batches that the client may have are still being read."""
        entry = self.entry
        if entry is not None and self._connection.credit.available and entry.feed.num_filling:
            return
        error = FeedError(
            "the daemon is stopping: connect again when it is back", code="draining", retryable=True
        )
        self._connection.send(to_message(error, scope="connection"))
        await self._write(self._connection.data_to_send())
        raise _Over

    async def _write(self, buffers: list[bytes | memoryview]) -> None:
        """Write buffers in order, straight from where they are."""
        views = [memoryview(buffer) for buffer in buffers]
        while views:
            try:
                sent = self._sock.sendmsg(views[:MAX_IOVECS])
            except BlockingIOError:
                await self._writable()
                continue
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]
        self._is_written.set()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def on_writable() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_writer(self._sock, on_writable)
        try:
            await ready
        finally:
            loop.remove_writer(self._sock)

    async def _wait(self) -> None:
        """Wait for something to do, and note who is waited for."""
        feed = self.entry.feed if self.entry is not None else None
        has_credit = self._connection.credit.available > 0
        is_busy = self._opening is not None or self._is_answering
        is_owing = is_busy or (feed is not None and has_credit)
        started = time.monotonic()
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            if is_owing:
                text = "answering" if is_busy else "reading the next batch"
                self._say(m.Notice(kind="waiting", text=text))
        if feed is not None:
            elapsed = time.monotonic() - started
            if has_credit:
                feed.statistics.waited_for_bytes_s += elapsed
            elif feed.num_ready:
                feed.statistics.waited_for_credit_s += elapsed


def _unforeseen(error: Exception) -> FeedError:
    return FeedError(f"the daemon failed: {error!r}; its log says where", code="internal")


def _indices(wanted: tuple[int, ...], length: int) -> NDArray[np.uint64]:
    if len(wanted) > MAX_INDICES:
        raise PlanError(f"{len(wanted)} samples at once: ask for at most {MAX_INDICES}")
    for index in wanted:
        if not 0 <= index < length:
            raise PlanError(f"sample {index} is outside the manifest, 0..{length - 1}")
    return np.array(wanted, dtype=np.uint64)


def _plain(stream: Stream) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(stream)
    return plain


def _opened(entry: OpenFeed) -> m.Opened:
    stream, pool = entry.stream, entry.feed.pool
    return m.Opened(
        token=entry.token,
        stream=_plain(stream.stream),
        manifest=stream.bound.manifest,
        blocks=stream.blocks,
        length=stream.bound.length,
        plan=stream.bound.digest,
        cursor=stream.cursor.to_state(),
        steps=stream.steps,
        slot_bytes=pool.slot_bytes,
        num_slots=pool.max_slots,
        ends=stream.bound.program.ends,
    )


def _has_extras(entry: OpenFeed) -> bool:
    return entry.stream.bound.program.ends


def _header(entry: OpenFeed, batch: ReadyBatch, *, seq: int) -> m.Batch:
    planned = batch.planned
    return m.Batch(
        seq=seq,
        epoch=planned.epoch,
        step=planned.step,
        global_step=planned.global_step,
        stream=planned.stream or entry.stream.name,
        role="extra" if planned.role and _has_extras(entry) else "main",
        n=len(batch.names),
        fields=batch.fields,
        ids=planned.indices.astype(_U64, copy=False).tobytes(),
        keys=tuple(batch.names),
        off=batch.layout.offsets.astype(_U64, copy=False).tobytes(),
        lengths=batch.lengths.astype(_U64, copy=False).tobytes(),
        flags=batch.flags.tobytes(),
        meta=planned.told,
        cursor={**planned.after.to_state(), "skips": list(batch.skips or ())},
    )
