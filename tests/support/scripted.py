"""A daemon that says what the test says, when the test says it, over a socket pair."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, TypeVar

from headrace.client import Channel
from headrace.plans import Cursor, Sequential
from headrace.protocol import Connection, Role
from headrace.protocol import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S: Final = 20.0
"""Far more than any answer takes: it turns a hang into a failure that shows where."""

PLAN: Final = Sequential(batch_size=1)
MANIFEST: Final = "ab" * 32

_Message = TypeVar("_Message", bound=m.Message)


def cursor(epoch: int, step: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a cursor
    """Return the state of a cursor of `PLAN`."""
    return Cursor(
        **{"plan": PLAN.digest, "manifest": MANIFEST, "epoch": epoch, "step": step, **changes}
    ).to_state()


def opened(epoch: int = 0, step: int = 0, *, steps: int = 100) -> m.Opened:
    """Return the answer to an `open`."""
    return m.Opened(
        token="token",
        stream={},
        manifest=MANIFEST,
        blocks=(),
        length=100,
        plan=PLAN.digest,
        cursor=cursor(epoch, step),
        steps=steps,
        slot_bytes=1,
        num_slots=2,
    )


class Conversation:
    """The daemon's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.connection = Connection(Role.DAEMON)
        self._heard: list[m.Message] = []

    def hear(self, kind: type[_Message]) -> _Message:
        """Return the next message, which must be of a kind; waits for it."""
        message = self.hear_any()
        assert isinstance(message, kind), message
        return message

    def hear_any(self) -> m.Message:
        """Return the next message; waits for it."""
        while not self._heard:
            data = self.sock.recv(1 << 16)
            assert data, "the client hung up where a message is due"
            for event in self.connection.receive_data(data):
                assert not isinstance(event, tuple)
                self._heard.append(event)
            assert self.connection.failure is None, self.connection.failure
        return self._heard.pop(0)

    def hears_nothing_more(self) -> None:
        """Wait until the client hangs up, and fail if it says anything before."""
        with contextlib.suppress(ConnectionResetError):
            assert not self._heard, self._heard
            assert self.sock.recv(1 << 16) == b""

    def say(self, *messages: m.Message) -> None:
        for message in messages:
            self.connection.send(message)
        self._flush()

    def say_batch(
        self,
        epoch: int,
        step: int,
        *,
        after: dict[str, Any] | None = None,
        payload: bytes = b"x",
    ) -> None:
        """Send the batch of a step, with one sample in it."""
        self.connection.send_payload(
            m.Batch(
                seq=self.connection.credit.spent,
                epoch=epoch,
                step=step,
                global_step=step,
                n=1,
                fields=("data",),
                ids=struct.pack("<Q", step),
                keys=(f"s{step}",),
                off=struct.pack("<Q", 0),
                lengths=struct.pack("<Q", len(payload)),
                flags=bytes(1),
                cursor=cursor(epoch, step + 1) if after is None else after,
            ),
            payload,
        )
        self._flush()

    def _flush(self) -> None:
        for buffer in self.connection.data_to_send():
            self.sock.sendall(buffer)

    def greet(self) -> None:
        self.hear(m.Hello)
        self.say(m.Welcome(version=1))

    def open(self, epoch: int = 0, step: int = 0, *, steps: int = 100) -> m.Open:
        """Greet, answer `open`, and return it."""
        self.greet()
        request = self.hear(m.Open)
        self.say(opened(epoch, step, steps=steps))
        return request

    def hang_up(self) -> None:
        self.sock.close()


class ScriptedDaemon:
    """Takes connections; each is led by the test.  A context manager."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()
        self._conversations: list[Conversation] = []

    def dial(self) -> socket.socket:
        """Return the client's end of a new connection."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_S)
        self._waiting.put(ours)
        return theirs

    def connect(self, allocate: Callable[[int], memoryview] | None) -> Channel:
        """Return a new channel that has greeted nobody yet, as `Receiver` wants it."""
        return Channel(self.dial(), allocate=allocate, silence_s=DEADLINE_S)

    def accept(self) -> Conversation:
        """Return the next connection; waits for it."""
        conversation = Conversation(self._waiting.get(timeout=DEADLINE_S))
        self._conversations.append(conversation)
        return conversation

    def __enter__(self) -> ScriptedDaemon:
        return self

    def __exit__(self, *details: object) -> None:
        for conversation in self._conversations:
            conversation.hang_up()
        while not self._waiting.empty():
            self._waiting.get().close()
