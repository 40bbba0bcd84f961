"""One peer's side of the conversation, without a socket: bytes in, messages out, bytes to send.

The four verbs: give it what was received (`next_buffer` and `received`, or `receive_data`), act on
the messages that come out, `send` messages, and write out what `data_to_send` returns after each
of these.  Sending out of turn raises `LocalProtocolError`, a bug on this side.  What the peer does
wrong is not raised: it is kept in `failure`, the connection moves to CLOSED and ignores further
input; the caller sends what is left and hangs up.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from ..errors import LocalProtocolError, RemoteProtocolError
from . import messages as m
from .credit import CreditAccount
from .framing import (
    MAX_PAYLOAD_BYTES,
    ControlFrame,
    FrameReader,
    FramingError,
    PayloadFrame,
    control_frame,
    payload_frame_head,
)
from .states import State, advance

if TYPE_CHECKING:
    from collections.abc import Callable

Buffer = bytes | memoryview


class Role(Enum):
    """Which peer this is."""

    CLIENT = "client"
    DAEMON = "daemon"


class Payload(NamedTuple):
    """A payload frame: its header, and its bytes in the buffer they were received into."""

    header: m.Header
    payload: memoryview


Event = m.Message | Payload

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODE_CONTROL: Final = {
    Role.CLIENT: msgspec.msgpack.Decoder(m.DaemonMessage),
    Role.DAEMON: msgspec.msgpack.Decoder(m.ClientMessage),
}
_DECODE_HEADER: Final = msgspec.msgpack.Decoder(m.Header)
_SENT_BY_CLIENT: Final = m.ClientMessage
_SENT_BY_DAEMON: Final = m.DaemonMessage
_MAX_REASON_CHARS: Final = 500


class Connection:
    """The protocol of one connection.

    Args:
        role: Which peer this side is.
        allocate: For clients: called with the size of a payload, returns the writable buffer to
            receive it into.  A new bytearray by default.
    """

    def __init__(self, role: Role, *, allocate: Callable[[int], memoryview] | None = None) -> None:
        self.role = role
        self.state = State.NEW
        self.failure: RemoteProtocolError | None = None
        """What the peer did wrong; None while it did nothing wrong."""
        self.credit = CreditAccount()
        """Credit of the current feed."""
        self._next_seq = 0
        self._reader = FrameReader(MAX_PAYLOAD_BYTES if role is Role.CLIENT else 0, allocate)
        self._outgoing: list[Buffer] = []

    # ---- receiving ---------------------------------------------------------------------------

    def next_buffer(self) -> memoryview:
        """Return the buffer to receive the next bytes into; then call `received`."""
        return self._reader.next_buffer()

    def received(self, num_bytes: int) -> list[Event]:
        """Account for bytes received into `next_buffer`; return the message they complete.

        The list has at most one element.  After a fault of the peer it is empty and `failure`
        is set.
        """
        if self.state is State.CLOSED:
            return []
        try:
            frame = self._reader.received(num_bytes)
        except FramingError as error:
            self._fail(str(error))
            return []
        event = None if frame is None else self._event(frame)
        return [] if event is None else [event]

    def receive_data(self, data: bytes | memoryview) -> list[Event]:
        """Take bytes that were received elsewhere; return the messages they complete."""
        events: list[Event] = []
        rest = memoryview(data)
        while rest and self.state is not State.CLOSED:
            buffer = self.next_buffer()
            taken = min(len(buffer), len(rest))
            buffer[:taken] = rest[:taken]
            rest = rest[taken:]
            events += self.received(taken)
        return events

    def receive_eof(self) -> None:
        """Take note that the peer will send nothing more."""
        if self.state is not State.CLOSED and not self._reader.is_idle:
            self._fail("the connection ended within a frame")
        self.state = State.CLOSED

    def _event(self, frame: ControlFrame | PayloadFrame) -> Event | None:
        event: Event
        try:
            if isinstance(frame, ControlFrame):
                message = _DECODE_CONTROL[self.role].decode(frame.body)
                event = message
            else:
                message = _DECODE_HEADER.decode(frame.header)
                event = Payload(message, frame.payload)
        # ValueError: a str that is no UTF-8; TypeError: a map as the key of a map.
        except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
            self._fail(f"a message that cannot be read: {error}")
            return None
        fault = self._account(message)
        if fault is not None:
            self._fail(fault)
            return None
        return event

    def _fail(self, reason: str) -> None:
        # A reason may quote what the peer sent, which may be as long as a message.
        if len(reason) > _MAX_REASON_CHARS:
            reason = f"{reason[:_MAX_REASON_CHARS]}…"
        self.failure = RemoteProtocolError(reason)
        # Lets go of a frame that will never be whole; `next_buffer` stays usable.
        self._reader = FrameReader(0)
        if self.role is Role.DAEMON and self.state is not State.CLOSED:
            error = m.Error(code="protocol", message=reason, fault="client", scope="connection")
            self._outgoing.append(control_frame(_ENCODER.encode(error)))
        self.state = State.CLOSED

    # ---- sending -----------------------------------------------------------------------------

    def send(self, message: m.Message) -> None:
        """Queue a control message.

        Raises:
            LocalProtocolError: If this peer may not send it, or not now, or it is too large.
        """
        mine = _SENT_BY_CLIENT if self.role is Role.CLIENT else _SENT_BY_DAEMON
        if not isinstance(message, mine):
            raise LocalProtocolError(f"a {self.role.value} does not send {m.word(message)!r}")
        body = _ENCODER.encode(message)
        try:
            frame = control_frame(body)
        except FramingError as error:
            raise LocalProtocolError(f"{m.word(message)!r}: {error}") from error
        fault = self._account(message)
        if fault is not None:
            raise LocalProtocolError(fault)
        self._outgoing.append(frame)

    def send_payload(self, header: m.Header, payload: Buffer) -> None:
        """Queue a header and the bytes that belong to it, which are not copied.

        The payload must stay unchanged until all of `data_to_send` is written.

        Raises:
            LocalProtocolError: If it is not the time for it, or it is too large.
        """
        if self.role is not Role.DAEMON:
            raise LocalProtocolError("a client does not send payload frames")
        try:
            head = payload_frame_head(_ENCODER.encode(header), len(payload))
        except FramingError as error:
            raise LocalProtocolError(str(error)) from error
        fault = self._account(header)
        if fault is not None:
            raise LocalProtocolError(fault)
        self._outgoing.append(head)
        if len(payload):
            self._outgoing.append(payload)

    def data_to_send(self) -> list[Buffer]:
        """Return the buffers to write, in order, and forget them."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    # ---- the rules that both directions share ------------------------------------------------

    def _account(self, message: m.Message | m.Header) -> str | None:
        """Advance the state by a message sent or received; return what is wrong, or None."""
        word = m.word(message)
        state = advance(self.state, word)
        if state is None:
            return f"{word!r} is not allowed in state {self.state.value!r}"
        fault: str | None = None
        match message:
            case m.Open():
                credit = CreditAccount()
                fault = credit.grant(message.credit)
                if fault is None:
                    self.credit, self._next_seq = credit, 0
            case m.Credit() if self.state is State.STREAMING:
                fault = self.credit.grant(message.total)
            case m.Release() if self.state is State.STREAMING:
                unsent = [seq for seq in message.seqs if not 0 <= seq < self._next_seq]
                if unsent:
                    fault = f"release of batch {unsent[0]}, which was not sent"
            case m.Batch():
                if message.seq != self._next_seq:
                    fault = f"batch {message.seq} where {self._next_seq} is due"
                elif not self.credit.spend():
                    fault = f"batch {message.seq} without credit"
                else:
                    self._next_seq += 1
            case _:
                pass
        if fault is None:
            self.state = state
        return fault
