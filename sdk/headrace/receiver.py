"""The receiver: a thread that keeps a few batches of one feed ready in the trainer.

Invariant: what comes out of `next` is the order of the plan without gap or repeat, whatever
happens to the connection or to the daemon.  The receiver knows the cursor after the last batch
that it *received* and reconnects there; what it cannot continue exactly, it ends with an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from . import errors
from .client import Channel, ConnectionLostError, Retry, UnusableSocketError, raise_error
from .protocol import Payload, State
from .protocol import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dictation import Dictator

logger = logging.getLogger(__name__)

_WAKE_S: Final = 1.0
"""Who waits for a batch looks up this often, seconds: a Ctrl-C that comes at the moment in which
CPython begins to wait for a lock is not seen before it ends."""

FIRST_CONNECT_S: Final = 5.0
"""How long a first connection waits for a daemon that is just being started, seconds; a wrong path
should not cost a user minutes."""

CLOSE_S: Final = 5.0
"""How long `stop` waits for the daemon to take the feed's memory back, seconds."""

HURRY_S: Final = 0.5
"""The same after Ctrl-C, where nobody wants to wait for a daemon that hangs."""

Item = Payload | m.EpochEnd | m.End


class _StoppedError(Exception):
    """`stop` was called."""


class Receiver:
    """Receives one feed in a thread of its own.

    Args:
        connect: Connects, but does not greet; given the allocator of payload buffers.
        request: What to open; position, credit and token are filled in.
        window: Batches that may be ready or under way, >= 1.
        deadline_s: How long a daemon that went away may stay away, seconds.
        buffers: Where payloads are received into; by default memory of its own.
        dictator: Draws the batches of a plan that runs here; None for one that the daemon executes.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[int], memoryview] | None], Channel],
        request: m.Open,
        *,
        window: int,
        deadline_s: float,
        buffers: Buffers | None = None,
        dictator: Dictator | None = None,
    ) -> None:
        self._connect = connect
        self._dictator = dictator
        self._request = request
        self._window = window
        self._deadline_s = deadline_s
        self._pid = os.getpid()
        self._items: queue.SimpleQueue[Item | BaseException] = queue.SimpleQueue()
        self._buffers: Buffers = buffers or _Buffers(window + 2)
        self._is_stopping = threading.Event()
        # Guards the fields below, which both threads use.
        self._lock = threading.Lock()
        self._channel: Channel | None = None  # None while there is no connection
        self._num_received = 0
        self._num_consumed = 0
        self._num_granted = 0  # as counted by the present connection
        self._num_received_before = 0  # by earlier connections
        # What the first opening said; later ones must agree with it.
        self.opened: m.Opened | None = None
        # The cursor after the last batch received, None before the first opening.
        self._received: dict[str, Any] | None = None
        self._first = request.first
        # Epochs that are still to come, None for no end.
        self._epochs = request.epochs
        # Tries since the daemon last did what it owed; None while batches come.
        self._retry: Retry | None = None
        # Whether a daemon has ever answered.
        self._was_reached = False
        # The epoch whose batches or end come next, None before the first opening.
        self._epoch: int | None = None
        # An error that ended the feed, to be raised again; or its regular end.
        self._failure: BaseException | None = None
        self._end: m.End | None = None
        self._thread = threading.Thread(target=self._run, name="headrace receiver", daemon=True)
        _all_receivers.add(self)
        self._thread.start()

    @property
    def is_ours(self) -> bool:
        """False in a child process that was forked after the receiver was made."""
        return self._pid == os.getpid()

    # ---- the trainer's side ------------------------------------------------------------------

    def next(self) -> Item:
        """Return the next item; waits for it.  `consumed` must follow each batch.

        Raises:
            HeadraceError: What ended the feed, now and at every later call.
        """
        if not self.is_ours:
            raise errors.FeedError(
                "this iterator belongs to the parent process: call iter() anew after a fork",
                code="fork",
                fault="client",
            )
        if self._failure is not None:
            raise errors.without_frames(self._failure)
        if self._end is not None:
            return self._end
        dictator = self._dictator
        if dictator is not None and dictator.has_failed(self._num_consumed):
            assert dictator.failure is not None
            self._failure = errors.without_frames(dictator.failure)
            raise dictator.failure
        while True:
            try:
                item = self._items.get(timeout=_WAKE_S)
                break
            except queue.Empty:
                continue
        if isinstance(item, m.End):
            self._end = item
        if isinstance(item, BaseException):
            self._failure = errors.without_frames(item)
            try:
                raise item
            finally:
                del item  # or this frame would hold it, and it this frame
        return item

    def consumed(self, batch: Payload) -> None:
        """Take note that the bytes of a batch are copied out: its buffer and credit are free."""
        self._buffers.give_back(batch.payload)
        with self._lock:
            self._num_consumed += 1
            channel = self._channel
        if self._dictator is not None:
            self._dictator.draw()
        if channel is not None:
            self._tell(channel)
            self._grant(channel)

    def begin_pass(self) -> None:
        """Take note that a pass begins: plans that run here are drawn from again."""
        if self._dictator is None:
            return
        self._dictator.begin_pass()
        with self._lock:
            channel = self._channel
        if channel is not None:
            self._tell(channel)

    def _tell(self, channel: Channel) -> None:
        """Tell the daemon what was drawn, if a feed is open."""
        if self._dictator is None:
            return
        dictator, is_more = self._dictator, True

        def make() -> m.Indices | None:
            nonlocal is_more
            # What is told to a connection that was lost meanwhile would count as told to the next.
            with self._lock:
                message = dictator.untold() if self._channel is channel else None
            is_more = message is not None
            return message

        with contextlib.suppress(ConnectionLostError):  # then it is all told anew
            while is_more and channel.send_if(State.STREAMING, make):
                pass

    def _grant(self, channel: Channel) -> None:
        """Grant what was consumed, if it is worth a message and a feed is open.

        While one is being opened nothing can be granted: the thread does it as soon as it is open.
        """

        def make() -> m.Credit | None:
            with self._lock:
                total = self._window + self._num_consumed - self._num_received_before
                # Several batches share a message where the window allows it.
                few = total - self._num_granted < max(1, self._window // 2)
                if few or self._channel is not channel:
                    return None
                self._num_granted = total
                return m.Credit(total=total)

        # If the connection is lost, the thread notices too, and grants anew.
        with contextlib.suppress(ConnectionLostError):
            channel.send_if(State.STREAMING, make)

    def stop(self, wait_s: float = CLOSE_S) -> bool:
        """End the feed and wait until the daemon has taken its memory back.

        Args:
            wait_s: How long the daemon may take before it is hung up on, seconds.

        Returns:
            Whether the thread has ended: if not, it may still write into a buffer.
        """
        if not self.is_ours:
            return True
        self._is_stopping.set()
        with self._lock:
            channel = self._channel
        if channel is not None:
            with contextlib.suppress(ConnectionLostError):
                if not (
                    channel.send_if(State.STREAMING, m.Close)
                    or channel.send_if(State.OPENING, m.Close)
                ):
                    channel.shutdown()
        self._thread.join(wait_s)
        if self._thread.is_alive() and channel is not None:
            channel.shutdown()
            self._thread.join(wait_s)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Hang up at once: for finalizers, and for the child after a fork."""
        if not self.is_ours:
            # No lock may be touched: the thread, which is not here, may have held it.
            if self._channel is not None:
                self._channel.close()  # the child's copy; the parent goes on
            return
        self._is_stopping.set()
        channel = self._channel
        if channel is not None:
            channel.leave()

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                channel = self._open()
                try:
                    if self._stream(channel):
                        return
                finally:
                    with self._lock:
                        self._channel = None
                    channel.close()
        except _StoppedError:
            self._items.put(m.End(reason="closed"))  # somebody may wait in `next`
        except BaseException as error:  # noqa: BLE001 - the trainer waits for whatever it is
            self._items.put(error)

    def _open(self) -> Channel:
        """Connect and open the feed at the received cursor, again and again up to the deadline."""
        if self._retry is not None and not self._retry.pause():
            # Connections come and go without a batch: that is an absent daemon, too.
            cause: errors.HeadraceError = ConnectionLostError("the daemon breaks each connection")
            raise self._give_up(self._retry, cause)
        if self._retry is None:
            deadline_s = self._deadline_s
            if not self._was_reached:
                deadline_s = min(deadline_s, FIRST_CONNECT_S)
            self._retry = Retry(deadline_s, self._is_stopping.wait)
        while True:
            try:
                return self._try_open()
            except ConnectionLostError as error:
                cause = error
            except UnusableSocketError as error:
                # Where there was a daemon before, it may be one that is just coming back.
                if not self._was_reached:
                    raise
                cause = error
            except errors.FeedError as error:
                # A full budget is worth waiting for only where the feed had its place before.
                is_first = self.opened is None
                if not error.retryable or (is_first and isinstance(error, errors.BudgetError)):
                    raise
                cause = error
            if not self._retry.pause():
                raise self._give_up(self._retry, cause)

    def _give_up(self, retry: Retry, cause: errors.HeadraceError) -> Exception:
        if self._is_stopping.is_set():
            return _StoppedError()
        whose = ", the deadline_s of this dataset" if self._was_reached else ""
        error = errors.DaemonUnavailableError(f"{cause} (tried for {retry.deadline_s:g} s{whose})")
        error.__cause__ = cause
        return error

    def _try_open(self) -> Channel:
        channel = self._connect(self._buffers.allocate)
        try:
            with self._lock:
                self._channel = channel  # `stop` can reach it from here on
            if self._is_stopping.is_set():
                raise _StoppedError
            channel.greeted()
            if not self._was_reached:
                self._was_reached = True
                self._retry = Retry(self._deadline_s, self._is_stopping.wait)
            with self._lock:
                self._num_received_before = self._num_received
                credit = self._window + self._num_consumed - self._num_received
                self._num_granted = credit
            request = msgspec.structs.replace(
                self._request,
                start=self._request.start if self._received is None else self._received,
                first=self._first,
                epochs=self._epochs,
                credit=credit,
                token="" if self.opened is None else self.opened.token,
            )
            channel.send(request)
            if self._dictator is not None:
                self._dictator.begin_anew()
                while (message := self._dictator.untold()) is not None:
                    channel.send(message)
            while True:
                event = channel.receive()
                match event:
                    case m.Opened():
                        self._check_opened(event)
                        self._tell(channel)
                        self._grant(channel)
                        return channel
                    case m.Notice():
                        _log(event)
                    case m.End():
                        raise _StoppedError
                    case m.Error():
                        raise_error(event)
                    case _:
                        raise errors.RemoteProtocolError(f"{event!r} where opened is due")
        except BaseException:
            with self._lock:
                self._channel = None
            channel.close()
            raise

    def _check_opened(self, opened: m.Opened) -> None:
        before = self.opened
        if before is not None and (before.plan, before.manifest) != (opened.plan, opened.manifest):
            raise errors.ManifestMismatchError(
                f"the daemon came back with plan {opened.plan[:12]}… and manifest "
                f"{opened.manifest[:12]}…, this pass runs plan {before.plan[:12]}… and manifest "
                f"{before.manifest[:12]}…: the configuration or the data changed meanwhile"
            )
        start = self._request.start if self._received is None else self._received
        if not _is_start(_place(opened.cursor), start, ends=opened.ends):
            raise errors.RemoteProtocolError(
                f"the daemon opened the feed at {_words(opened.cursor)}, where "
                f"{_words(start or _FIRST)} was asked for"
            )
        self.opened = opened
        if before is not None:
            logger.info("daemon is back at %s", _words(opened.cursor))
        if self._received is None:
            self._received = opened.cursor
            self._epoch = opened.cursor["epoch"]

    def _stream(self, channel: Channel) -> bool:
        """Receive until the feed ends (True) or the connection is lost (False)."""
        try:
            while True:
                event = channel.receive(is_awaited=self._is_awaited)
                match event:
                    case Payload(header=m.Batch() as header):
                        self._check_order(header)
                        if self._dictator is not None:
                            self._dictator.received(header)
                        with self._lock:
                            self._num_received += 1
                        self._received = header.cursor
                        self._first = self._request.stride - 1
                        self._retry = None
                        self._items.put(event)
                    case m.EpochEnd():
                        self._check_epoch_end(event)
                        self._end_epoch(event)
                    case m.End():
                        if not self._is_stopping.is_set() and not self._has_end:
                            raise errors.RemoteProtocolError(
                                f"the daemon ended the feed ({event.reason}), which has no end"
                            )
                        self._items.put(event)
                        return True
                    case m.Notice():
                        _log(event)
                    case m.Error():
                        raise_error(event)
                    case _:
                        raise errors.RemoteProtocolError(f"{event!r} within a stream")
        except ConnectionLostError:
            pass
        except errors.FeedError as error:
            if not error.retryable:
                raise
        if self._is_stopping.is_set():
            raise _StoppedError
        assert self._received is not None
        assert self._epoch is not None
        if self._received["epoch"] > self._epoch:  # the word that the epoch is over was lost
            self._end_epoch(m.EpochEnd(epoch=self._epoch, cursor=self._received))
        if self._epochs == 0 or (self._ends and self._epoch > 0):
            # Only the word that it is over was lost.
            self._items.put(m.End(reason="finished"))
            return True
        if self._retry is not None and not self._is_awaited():
            self._retry.renew()  # it owed nothing: what comes now is another absence
        logger.warning("daemon lost, connecting again deadline_s=%g", self._deadline_s)
        return False

    @property
    def _ends(self) -> bool:
        """Whether the stream is one pass that ends at its limits."""
        return self.opened is not None and self.opened.ends

    @property
    def _has_end(self) -> bool:
        """Whether the daemon may end the feed."""
        return self._ends or self._epochs is not None

    def _end_epoch(self, event: m.EpochEnd) -> None:
        self._received = event.cursor
        self._epoch = event.cursor["epoch"]
        self._first = self._request.first
        if self._epochs is not None:
            self._epochs -= 1
        self._items.put(event)

    def _is_awaited(self) -> bool:
        if self._dictator is not None and not self._dictator.num_waiting:
            return False
        with self._lock:
            return self._num_granted > self._num_received - self._num_received_before

    def _check_order(self, header: m.Batch) -> None:
        """A wrong order of samples is worse than a stop."""
        assert self._received is not None
        assert self.opened is not None
        epoch, step = self._received["epoch"], self._received["step"] + self._first
        if (header.epoch, header.step) != (epoch, step) or epoch != self._epoch:
            due = f"step {step} of epoch {epoch}"
            raise errors.RemoteProtocolError(
                f"the daemon sent step {header.step} of epoch {header.epoch} where "
                f"{due if epoch == self._epoch else f'the end of epoch {self._epoch}'} is due"
            )
        # The next batch is compared with this cursor: a daemon must not be its own witness.
        cursor = header.cursor
        is_next = _place(cursor) == (epoch, step + 1)
        is_edge = _is_edge(_place(cursor), epoch, step + 1 if self._ends else 0)
        # Only of the first epoch the number of steps is known, and only if the daemon has the plan,
        # and the data is not just a stream.
        is_known = self._dictator is None and self.opened.steps >= 0
        if self.opened.cursor["epoch"] == epoch and is_known:
            follows = is_edge if step + 1 == self.opened.steps else is_next
        else:
            follows = is_edge or is_next
        is_same = (cursor.get("plan"), cursor.get("manifest")) == (
            self.opened.plan,
            self.opened.manifest,
        )
        if not follows or not is_same:
            raise errors.RemoteProtocolError(
                f"the daemon sent step {step} of epoch {epoch} with a cursor that does not follow "
                f"it: {cursor}"
            )

    def _check_epoch_end(self, event: m.EpochEnd) -> None:
        assert self._received is not None
        after = _place(event.cursor)
        is_edge = _is_edge(after, event.epoch, event.cursor.get("step") if self._ends else 0)
        # The last steps may belong to other parts of the stream.
        is_over = _place(self._received) == after or self._request.stride > 1
        if event.epoch != self._epoch or not is_edge or not is_over:
            raise errors.RemoteProtocolError(
                f"the daemon ended epoch {event.epoch} and went to {_words(event.cursor)} after "
                f"{_words(self._received)} of epoch {self._epoch}"
            )


_FIRST: Final = {"epoch": 0, "step": 0}


def _place(cursor: dict[str, Any]) -> tuple[Any, Any]:
    return cursor.get("epoch"), cursor.get("step")


def _words(cursor: dict[str, Any]) -> str:
    return str(cursor) if "seek" in cursor else "epoch={} step={}".format(*_place(cursor))


def _is_edge(place: tuple[Any, Any], epoch: int, step: object) -> bool:
    """Return whether a place is one after an epoch; epochs without a step are passed over."""
    return isinstance(place[0], int) and place[0] > epoch and place[1] == step


def _is_start(place: tuple[Any, Any], start: dict[str, Any] | None, *, ends: bool) -> bool:
    """Return whether a feed may begin at a place, where some start was asked for."""
    if start is None:
        wanted = _place(_FIRST)
    elif "seek" not in start:
        wanted = _place(start)
    elif ends or "epoch" not in start["seek"]:
        return True  # only the daemon knows
    else:
        wanted = start["seek"]["epoch"], 0
    if place == wanted:
        return True
    # Under another world size the rest of an epoch may make no step.  What ends after its limits
    # (epoch 1) goes on under others.
    epoch, step = wanted
    return place == (1 - epoch, step) if ends else _is_edge(place, epoch, 0)


def _log(notice: m.Notice) -> None:
    if notice.kind == "skipped":
        logger.warning("%s (%s so far)", notice.text, notice.done)
        return
    total = "" if notice.total is None else f" of {notice.total}"
    done = "" if notice.done is None else f" done={notice.done}{total}"
    logger.info("daemon is busy kind=%s%s: %s", notice.kind, done, notice.text)


class Buffers(Protocol):
    """Memory for payloads."""

    def allocate(self, num_bytes: int) -> memoryview:
        """Return a writable buffer of a size."""

    def give_back(self, view: memoryview) -> None:
        """Take back a buffer that the trainer is done with."""


class _Buffers:
    """Buffers that payloads are received into, used again and again.

    Args:
        limit: How many are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: list[bytearray] = []
        self._size = 0

    def allocate(self, num_bytes: int) -> memoryview:
        """Return a writable buffer of a size."""
        self._size = max(self._size, num_bytes)
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = bytearray(self._size)
        if len(buffer) < num_bytes:
            buffer = bytearray(self._size)
        return memoryview(buffer)[:num_bytes]

    def give_back(self, view: memoryview) -> None:
        """Take a buffer back; the caller has no other view of it."""
        buffer = view.obj
        if isinstance(buffer, bytearray) and len(self._free) < self._limit:
            self._free.append(buffer)


_all_receivers: weakref.WeakSet[Receiver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for receiver in list(_all_receivers):
        receiver.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
