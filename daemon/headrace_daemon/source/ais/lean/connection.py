"""A connection to a target: requests go out, and their answers come in, in the same order.

Answers are received into one scratch buffer that all connections share, and what they hold of a
body is copied into its place; the rest of a body that is not complete by then is received straight
into its place, or into the scratch again where it has none, as in the gaps of a range.  Nothing is
written into places once the connection has been ended by `end`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from ....errors import SourceError
from ..client import IDLE_S
from ..faults import Fault, Kind, of_answer
from .heads import END, MAX_HEAD_BYTES, NoHeadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .exchanges import Exchange, Outcome
    from .heads import Heads
    from .lane import Lane

SCRATCH_BYTES: Final = 128 << 10
"""Received at once at most: some ten answers with objects of 10 KiB."""

MAX_WORDS_BYTES: Final = 64 << 10
"""A body that is not wanted is received up to this size, for its words and to keep the connection;
behind a larger one the connection is given up."""

MAX_INFORMATIVE: Final = 8
"""Answers with status 1xx before the one that counts."""

_TICK_S: Final = 0.001


class _Part(Enum):
    """What of an answer comes next."""

    HEAD = auto()
    OBJECT = auto()
    WORDS = auto()


class Scratch:
    """The buffer that all connections of a wire receive into, one at a time."""

    def __init__(self) -> None:
        self.bytes = bytearray(SCRATCH_BYTES)
        self.view = memoryview(self.bytes)


class Connection(asyncio.BufferedProtocol):
    """One connection of a lane.

    Args:
        lane: Gives it requests, and takes back those that it did not get answers for.
        scratch: Shared; used within one call of the loop only.
        heads: Likewise.
    """

    def __init__(self, lane: Lane, scratch: Scratch, heads: Heads) -> None:
        self._lane = lane
        self._scratch = scratch
        self._heads = heads
        # Sent and not answered, in order.
        self._sent: deque[Exchange] = deque()
        self.due_bytes = 0
        """Of the bodies that are due."""
        # None before the connection is there and after it is lost.
        self._transport: asyncio.Transport | None = None
        self._num_answers = 0
        self._part = _Part.HEAD
        # The beginning of a head whose end has not arrived.
        self._begun = b""
        # Where the next bytes of an object go; None while what comes is received into the scratch.
        self._place: memoryview | None = None
        # Of an answer without an object: bytes to come, those that have, and what it comes to if
        # that is known already.
        self._words_left = 0
        self._words = bytearray()
        self._status = 0
        self._content_range = b""
        self._retry_after = ""
        self._outcome: Outcome | None = None
        self._num_informative = 0
        # Whether the connection stays open behind the answer under way.
        self._goes_on = True
        # When something came, or was awaited, for the last time, and when the answer under way had
        # its turn.
        self._heard_s = self._turn_s = time.perf_counter()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self.is_ended = False
        """Whether nothing is sent or received any more."""

    def __len__(self) -> int:
        """Return the number of requests that wait for their answers."""
        return len(self._sent)

    # ---- out -------------------------------------------------------------------------------------

    def send(self, exchanges: Sequence[Exchange], data: bytes) -> None:
        """Send requests.

        Args:
            exchanges: At least one.
            data: Their requests, in the same order.
        """
        assert self._transport is not None
        if not self._sent:
            self._heard_s = self._turn_s = now = time.perf_counter()
            if self._timer_s > now + self._lane.patience_s:
                self._arm(self._lane.patience_s)
        for exchange in exchanges:
            exchange.connection = self
            exchange.num_before = self._num_answers
            self.due_bytes += exchange.due_bytes
        self._sent.extend(exchanges)
        self._transport.write(data)

    # ---- what the loop calls ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take part in the lane."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self._heard_s = time.perf_counter()
        self._arm(IDLE_S)
        self._lane.take_in(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        if self._place is not None:
            return self._place
        begun = self._begun
        if begun:  # in front of the rest, in the same call in which that is received
            self._scratch.view[: len(begun)] = begun
            return self._scratch.view[len(begun) :]
        return self._scratch.view

    def buffer_updated(self, nbytes: int) -> None:
        """Take what has arrived."""
        if self.is_ended:
            return
        self._heard_s = time.perf_counter()
        if self._place is not None:
            transfer = self._sent[0].transfer
            transfer.advance(nbytes)
            if transfer.done < transfer.size:
                self._place = self._place[nbytes:] or transfer.rest
                return
            self._place = None
            self._over(transfer.end(self._lane.owner))
        else:
            num_begun = len(self._begun)
            self._begun = b""
            self._take(num_begun + nbytes)
        if not self.is_ended:
            self._lane.feed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the lane."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.is_ended:
            self._broken(exc)
        self._lane.let_go(self)

    # ---- in --------------------------------------------------------------------------------------

    def _take(self, end: int) -> None:
        """Take the first bytes of the scratch: answers, parts of them, whatever came.

        Args:
            end: How many.
        """
        data, view = self._scratch.bytes, self._scratch.view
        at = 0
        while at < end:
            if self._part is _Part.HEAD:
                behind = data.find(END, at, min(end, at + MAX_HEAD_BYTES)) + len(END)
                if behind < len(END):
                    if end - at >= MAX_HEAD_BYTES:
                        self._give_up(f"sent a head of more than {MAX_HEAD_BYTES} bytes")
                    else:
                        self._begun = bytes(view[at:end])
                    return
                self._begin(bytes(view[at:behind]))
                at = behind
            elif self._part is _Part.OBJECT:
                transfer = self._sent[0].transfer
                behind = min(end, at + transfer.size - transfer.done)
                transfer.take(view[at:behind])
                at = behind
                if transfer.done < transfer.size:
                    self._place = transfer.rest
                    return
                self._over(transfer.end(self._lane.owner))
            else:
                behind = min(end, at + self._words_left)
                self._words += view[at:behind]
                self._words_left -= behind - at
                at = behind
                if not self._words_left:
                    self._words_over()
            if self.is_ended:
                return

    def _begin(self, block: bytes) -> None:
        """Take the head of an answer."""
        if not self._sent:
            self.end()  # nobody asked: an answer to the wrong request must never be taken
            return
        transfer, owner = self._sent[0].transfer, self._lane.owner
        try:
            head = self._heads.parse(block)
        except NoHeadError as error:
            self._give_up(f"sent something that is no answer ({error})")
            return
        status = head.status
        if status < 200:
            self._num_informative += 1
            if self._num_informative > MAX_INFORMATIVE:
                self._give_up(f"answered {status} more than {MAX_INFORMATIVE} times")
            return
        self._num_informative = 0
        self._goes_on = self._heads.goes_on
        self._status, self._outcome = status, None
        self._content_range = head.content_range
        self._retry_after = self._heads.retry_after
        length = 0 if status in (204, 304) else head.length
        if length is None:
            words = f"answered {status} without saying how long its answer is"
            self.end(Fault(Kind.UNSUITED, words, str(owner)))
            return
        if status in (200, 206):
            try:
                self._outcome = transfer.begin(head, owner)
            except SourceError as error:
                self._outcome = error
            if self._outcome is None:
                if length:
                    self._part = _Part.OBJECT
                else:
                    self._over(transfer.end(owner))
                return
        if length > MAX_WORDS_BYTES:
            self.end(
                self._outcome or of_answer(status, b"", str(owner), retry_after=self._retry_after)
            )
            return
        self._part = _Part.WORDS
        self._words_left = length
        self._words.clear()
        if not length:
            self._words_over()

    def _words_over(self) -> None:
        """An answer without an object is complete."""
        outcome = self._outcome
        if outcome is None:
            outcome = of_answer(
                self._status,
                bytes(self._words),
                str(self._lane.owner),
                retry_after=self._retry_after,
            )
            if self._status == 416:
                try:
                    outcome = self._sent[0].transfer.unsatisfiable(outcome, self._content_range)
                except SourceError as error:
                    outcome = error
        self._words.clear()
        self._over(outcome)

    def _over(self, outcome: Outcome | None) -> None:
        """The first of the requests has been answered.

        Args:
            outcome: None if its object is in place.
        """
        exchange = self._sent.popleft()
        self._num_answers += 1
        self.due_bytes -= exchange.due_bytes
        self._part = _Part.HEAD
        self._turn_s = self._heard_s
        if not self._goes_on:
            self.end()
        if outcome is None:
            self._lane.note_read(exchange, self._heard_s)
            exchange.arrive()
        else:
            exchange.fail(outcome)
            self._lane.note_answer(outcome)

    # ---- the end ---------------------------------------------------------------------------------

    def end(self, outcome: Outcome | None = None, *, for_all: bool = False) -> None:
        """End the connection: from now on nothing is written into the memory of any request.

        Args:
            outcome: What the first of the requests comes to; the others are asked again elsewhere.
            for_all: That all of them come to it.
        """
        if self.is_ended:
            return
        self.is_ended = True
        self._place = None
        self._begun = b""
        sent, self._sent = self._sent, deque()
        self.due_bytes = 0
        if self._transport is not None:
            self._transport.abort()
        self._lane.take_back(self, sent, outcome, for_all=for_all)

    def _give_up(self, words: str) -> None:
        self.end(Fault(Kind.NODE, words, str(self._lane.owner)))

    def _broken(self, error: Exception | None) -> None:
        """The target has closed the connection."""
        is_silent = self._part is _Part.HEAD and not self._begun
        if not self._sent:
            self.end()
            return
        first = self._sent[0]
        if is_silent and self._num_answers > first.num_before:
            self.end()  # between two answers: it was not to be known that there are no more
        elif is_silent and self._num_answers and not first.is_spared:
            # It was kept, and closed while the request was on its way: nobody's fault.
            first.is_spared = True
            self.end()
        elif not is_silent:
            self._give_up("broke off in the middle of an answer")
        elif error is None:
            self._give_up("closed the connection without an answer")
        else:
            self._give_up(f"broke off ({error or type(error).__name__})")

    def _arm(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = max(delay_s, _TICK_S)
        self._timer_s = time.perf_counter() + delay_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        """See whether something has come in time, and when to look again."""
        self._timer = None
        if self.is_ended:
            return
        now, lane = time.perf_counter(), self._lane
        if not self._sent:
            due_s = self._heard_s + IDLE_S
            if now >= due_s:
                self.end()
                return
        else:
            due_s = self._heard_s + lane.patience_s
            if now >= due_s:
                words = "did not send anything for too long"
                self.end(Fault(Kind.NODE, words, str(lane.owner)), for_all=True)
                return
            end_s = self._turn_s + lane.deadline_s
            if now >= end_s:
                self._give_up(f"took more than {lane.deadline_s:g} s ([store] deadline_s)")
                return
            due_s = min(due_s, end_s)
        self._arm(due_s - now)
