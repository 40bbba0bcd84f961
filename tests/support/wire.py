"""The wire as somebody else would speak it: frames made with ``struct`` and ``msgpack`` alone.

Nothing here uses the framing or the encoder of `headrace.protocol`, so that a mistake in them
cannot hide in the tests by being made twice.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec

from headrace.protocol import Connection, Event, Payload, Role, State
from headrace.protocol import messages as m
from headrace.protocol.states import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ONE_OF_EACH: Final[dict[str, m.Message | m.Header]] = {
    m.word(message): message
    for message in (
        m.Hello(versions=(1,), agent="test/1"),
        m.Open(stream="train", rank=1, world_size=2, credit=4),
        m.Indices(batches=(m.Dictation(epoch=0, step=0, global_step=0, ids=bytes(8), cursor={}),)),
        m.Credit(total=8),
        m.Release(seqs=()),
        m.Close(),
        m.Status(request=7),
        m.Lookup(request=8, stream={"source": {}}, indices=(0, 1)),
        m.Read(request=9, indices=(3, 2)),
        m.Welcome(version=1, agent="test/1"),
        m.Opened(
            token="5eC2e7",
            stream={"source": {"uri": "/data"}},
            manifest="aa",
            blocks=("b0", "b1"),
            length=2,
            plan="cc",
            cursor={"epoch": 0},
            steps=1,
            slot_bytes=128,
            num_slots=2,
        ),
        m.EpochEnd(epoch=0, cursor={"epoch": 1}),
        m.End(reason="closed"),
        m.Notice(kind="listing", text="2 files", done=2),
        m.Error(code="plan", message="no", fault="client", scope="request", request=8),
        m.Error(code="source", message="gone", fault="data", scope="feed"),
        m.Error(code="draining", message="bye", retryable=True, scope="connection"),
        m.Report(request=7, report={"feeds": 1}),
        m.Entries(
            request=8,
            stream={},
            manifest="aa",
            blocks=(),
            length=2,
            total_bytes=5,
            plan="cc",
            cursor={"epoch": 0},
            steps=1,
            remaining=1,
            names=("a", "b"),
            sizes=(2, 3),
        ),
        m.Batch(
            seq=0,
            epoch=0,
            step=0,
            global_step=0,
            n=2,
            fields=("data",),
            ids=struct.pack("<2Q", 0, 1),
            keys=("a", "b"),
            off=struct.pack("<2Q", 0, 64),
            lengths=struct.pack("<2Q", 2, 3),
            flags=bytes(2),
            cursor={"epoch": 1},
        ),
        m.Samples(
            request=9,
            n=1,
            fields=("data",),
            keys=("a",),
            off=struct.pack("<Q", 0),
            lengths=struct.pack("<Q", 2),
        ),
    )
}
"""An example of each message, by its word in the transition table."""

CLIENT_WORDS: Final = frozenset(
    word for word, message in ONE_OF_EACH.items() if isinstance(message, m.ClientMessage)
)
DAEMON_WORDS: Final = frozenset(ONE_OF_EACH) - CLIENT_WORDS
PAYLOAD_WORDS: Final = frozenset({"batch", "samples"})

PAYLOAD: Final = b"ab".ljust(64, b"\0") + b"cde"
"""What belongs to the headers of `ONE_OF_EACH`."""


def frame(message: m.Message | m.Header | dict[Any, Any], payload: bytes | None = None) -> bytes:
    """Return a frame; a payload frame where there is a payload or the message is a header."""
    plain = (
        message
        if isinstance(message, dict)
        else msgspec.to_builtins(message, builtin_types=(bytes,))
    )
    if payload is None and isinstance(message, m.Header):
        payload = PAYLOAD
    return raw_frame(msgpack.packb(plain), payload)


def raw_frame(message: bytes, payload: bytes | None = None) -> bytes:
    """Return the frame of a message that is msgpack already, or is meant not to be."""
    if payload is None:
        return struct.pack(">II", len(message), 0) + message
    body = b"\x92" + message + b"\xc6" + struct.pack(">I", len(payload)) + payload
    return struct.pack(">II", len(body), len(message)) + body


def read_frames(data: bytes) -> list[Any]:
    """Return what the msgpack library makes of each frame in the data."""
    bodies = []
    while data:
        (frame_bytes,) = struct.unpack(">I", data[:4])
        bodies.append(msgpack.unpackb(data[8 : 8 + frame_bytes]))
        data = data[8 + frame_bytes :]
    return bodies


def sent_by(connection: Connection) -> bytes:
    """Return what a connection wants to send, as one string."""
    return b"".join(connection.data_to_send())


def say(connection: Connection, word: str) -> None:
    """Let a connection send the example of a message."""
    message = ONE_OF_EACH[word]
    if isinstance(message, m.Header):
        connection.send_payload(message, PAYLOAD)
    else:
        connection.send(message)


def hear(connection: Connection, word: str) -> list[Event]:
    """Let a connection receive the example of a message."""
    return connection.receive_data(frame(ONE_OF_EACH[word]))


def brought_to(
    state: State, role: Role, *, allocate: Callable[[int], memoryview] | None = None
) -> Connection:
    """Return a connection that a shortest conversation has brought into a state."""
    connection = Connection(role, allocate=allocate)
    mine = CLIENT_WORDS if role is Role.CLIENT else DAEMON_WORDS
    for word in path_to(state):
        if word in mine:
            say(connection, word)
        else:
            hear(connection, word)
    connection.data_to_send()
    assert connection.state is state
    assert connection.failure is None
    return connection


def path_to(state: State) -> list[str]:
    """Return the words of a shortest way through the transition table to a state."""
    paths: dict[State, list[str]] = {State.NEW: []}
    queue = deque([State.NEW])
    while queue:
        here = queue.popleft()
        for word, there in TRANSITIONS[here].items():
            if there not in paths:
                paths[there] = [*paths[here], word]
                queue.append(there)
    return paths[state]


def plain(events: Iterable[Event]) -> list[object]:
    """Return events in a form that compares by content, and not by buffer."""
    return [
        (event.header, bytes(event.payload)) if isinstance(event, Payload) else event
        for event in events
    ]
