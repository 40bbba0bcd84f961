"""Whatever arrives, in whatever pieces and at whatever time: nothing raises, and peers agree."""

from __future__ import annotations

import mmap
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import RemoteProtocolError
from headrace.protocol import Connection, Event, Role, State
from headrace.protocol import messages as m
from headrace.protocol.framing import MAX_CONTROL_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES
from headrace.protocol.states import TRANSITIONS
from tests.support.wire import (
    ONE_OF_EACH,
    PAYLOAD,
    brought_to,
    frame,
    plain,
    raw_frame,
    read_frames,
    say,
    sent_by,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hypothesis.strategies import SearchStrategy

roles = st.sampled_from(Role)
states = st.sampled_from([state for state in State if state is not State.CLOSED])


def conversation(*parts: m.Message | m.Header) -> bytes:
    return b"".join(map(frame, parts))


def batch(seq: int, *, n: int = 2) -> m.Batch:
    header = ONE_OF_EACH["batch"]
    assert isinstance(header, m.Batch)
    return msgspec.structs.replace(header, seq=seq, n=n)


# Long runs of input in which the receiver has to say nothing.
CONVERSATIONS: dict[str, tuple[Role, State, bytes]] = {
    "greeting a client": (Role.DAEMON, State.NEW, conversation(ONE_OF_EACH["hello"])),
    "asking a daemon": (
        Role.DAEMON,
        State.READY,
        conversation(
            *(ONE_OF_EACH[word] for word in ("status", "lookup", "read", "open", "close"))
        ),
    ),
    "feeding on a daemon": (
        Role.DAEMON,
        State.STREAMING,
        conversation(*(ONE_OF_EACH[word] for word in ("credit", "release", "status", "close"))),
    ),
    "greeting a daemon": (
        Role.CLIENT,
        State.GREETED,
        conversation(*(ONE_OF_EACH[word] for word in ("welcome", "notice", "error.connection"))),
    ),
    "feeding a client": (
        Role.CLIENT,
        State.OPENING,
        conversation(
            *(ONE_OF_EACH[word] for word in ("notice", "error.request", "opened")),
            batch(0),
            batch(1),
            *(ONE_OF_EACH[word] for word in ("report", "samples", "epoch_end")),
            batch(2),
            *(ONE_OF_EACH[word] for word in ("entries", "error.feed", "error.connection")),
        ),
    ),
}
each_conversation = pytest.mark.parametrize(
    ("role", "state", "data"), CONVERSATIONS.values(), ids=CONVERSATIONS
)
conversations = st.sampled_from(list(CONVERSATIONS.values()))


def hear_in_pieces(connection: Connection, pieces: Iterable[bytes]) -> list[object]:
    return plain([event for piece in pieces for event in connection.receive_data(piece)])


def hear_in_reads(connection: Connection, data: bytes, sizes: Callable[[], int]) -> list[object]:
    """Receive as a socket does, into the buffers that the connection offers."""
    events: list[Event] = []
    while data:
        buffer = connection.next_buffer()
        taken = min(len(buffer), len(data), sizes())
        assert taken, "there is always room for more"
        buffer[:taken] = data[:taken]
        data = data[taken:]
        events += connection.received(taken)
    return plain(events)


def heard_whole(role: Role, state: State, data: bytes) -> list[object]:
    connection = brought_to(state, role)
    events = hear_in_pieces(connection, [data])
    assert connection.failure is None
    assert len(events) == len(read_frames(data))
    return events


def assert_sound(connection: Connection) -> None:
    """Check what holds whatever a peer has sent."""
    assert connection.credit.available >= 0
    last_words = read_frames(sent_by(connection))
    if connection.failure is None:
        assert last_words == []
        return
    assert isinstance(connection.failure, RemoteProtocolError)
    assert connection.state is State.CLOSED
    if connection.role is Role.CLIENT:
        assert last_words == []
    else:
        assert [(word["type"], word["scope"]) for word in last_words] == [("error", "connection")]
    good = frame(ONE_OF_EACH["notice" if connection.role is Role.CLIENT else "status"])
    assert connection.receive_data(good) == []
    assert connection.next_buffer()
    connection.receive_eof()
    assert connection.data_to_send() == []


# ---- pieces ----------------------------------------------------------------------------------


@each_conversation
def test_conversation_split_at_any_place_is_the_same_conversation(
    role: Role, state: State, data: bytes
) -> None:
    whole = heard_whole(role, state, data)
    for place in range(len(data) + 1):
        connection = brought_to(state, role)
        assert hear_in_pieces(connection, [data[:place], data[place:]]) == whole
        assert connection.failure is None


@each_conversation
def test_conversation_byte_by_byte_is_the_same_conversation(
    role: Role, state: State, data: bytes
) -> None:
    whole = heard_whole(role, state, data)
    connection = brought_to(state, role)
    assert hear_in_pieces(connection, (data[i : i + 1] for i in range(len(data)))) == whole


@given(st.data(), conversations)
def test_conversation_split_at_many_places_is_the_same_conversation(
    choices: st.DataObject, case: tuple[Role, State, bytes]
) -> None:
    role, state, data = case
    places = sorted(choices.draw(st.lists(st.integers(0, len(data)), max_size=30)))
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    assert hear_in_pieces(brought_to(state, role), pieces) == heard_whole(role, state, data)


@given(st.data(), conversations)
def test_conversation_read_from_a_socket_is_the_same_conversation(
    choices: st.DataObject, case: tuple[Role, State, bytes]
) -> None:
    role, state, data = case
    sizes = choices.draw(st.lists(st.integers(1, 500), min_size=1, max_size=5))
    turn = iter(range(len(data)))
    events = hear_in_reads(brought_to(state, role), data, lambda: sizes[next(turn) % len(sizes)])
    assert events == heard_whole(role, state, data)


@each_conversation
def test_conversation_cut_off_at_any_place_gives_its_whole_messages(
    role: Role, state: State, data: bytes
) -> None:
    whole = heard_whole(role, state, data)
    edges = {0}
    for place in range(1, len(data) + 1):
        connection = brought_to(state, role)
        events = hear_in_pieces(connection, [data[:place]])
        assert events == whole[: len(events)]
        if len(events) == len(edges):
            edges.add(place)
        is_closed = connection.state is State.CLOSED
        connection.receive_eof()
        assert connection.state is State.CLOSED
        assert (connection.failure is None) == (place in edges or is_closed)
        assert_sound(connection)
    assert len(edges) == len(whole) + 1


# ---- garbage ---------------------------------------------------------------------------------


@given(roles, states, st.binary(max_size=400))
def test_random_bytes_never_raise(role: Role, state: State, data: bytes) -> None:
    connection = brought_to(state, role)
    connection.receive_data(data)
    connection.receive_eof()
    assert_sound(connection)


@given(roles, states, st.binary(max_size=60), st.none() | st.binary(max_size=60))
def test_random_bytes_in_a_good_frame_never_raise(
    role: Role, state: State, body: bytes, payload: bytes | None
) -> None:
    connection = brought_to(state, role)
    connection.receive_data(raw_frame(body, payload))
    assert_sound(connection)


values: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.integers() | st.binary(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def packed(value: object) -> bytes:
    try:
        data: bytes = msgpack.packb(value)
    except OverflowError:  # an integer that msgpack has no form for
        data = msgpack.packb(None)
    return data


@given(roles, states, values, st.none() | st.binary(max_size=8))
def test_any_msgpack_value_never_raises(
    role: Role, state: State, value: object, payload: bytes | None
) -> None:
    connection = brought_to(state, role)
    connection.receive_data(raw_frame(packed(value), payload))
    assert_sound(connection)


@given(st.data(), roles, states, st.sampled_from(sorted(ONE_OF_EACH)))
def test_any_value_in_any_key_of_any_message_never_raises(
    choices: st.DataObject, role: Role, state: State, word: str
) -> None:
    message = ONE_OF_EACH[word]
    keys = [field.encode_name for field in msgspec.structs.fields(message)]
    fields = choices.draw(st.dictionaries(st.sampled_from(["type", "other", *keys]), values))
    is_header = isinstance(message, m.Header)
    body = packed(msgspec.to_builtins(message, builtin_types=(bytes,)) | fields)
    connection = brought_to(state, role)
    connection.receive_data(raw_frame(body, PAYLOAD if is_header else None))
    assert_sound(connection)


@given(st.data(), conversations)
def test_damaged_conversation_never_raises(
    choices: st.DataObject, case: tuple[Role, State, bytes]
) -> None:
    role, state, whole = case
    data = bytearray(whole)
    for _ in range(choices.draw(st.integers(1, 3))):
        place = choices.draw(st.integers(0, len(data) - 1))
        act = choices.draw(st.sampled_from(["flip", "drop", "insert", "repeat"]))
        if act == "flip":
            data[place] ^= choices.draw(st.integers(1, 255))
        elif act == "drop" and len(data) > 1:
            del data[place : place + choices.draw(st.integers(1, 9))]
        elif act == "insert":
            data[place:place] = choices.draw(st.binary(min_size=1, max_size=9))
        else:
            data[place:place] = data[place : place + choices.draw(st.integers(1, 99))]
        data = data or bytearray(1)
    connection = brought_to(state, role, allocate=lazy)
    connection.receive_data(bytes(data))
    connection.receive_eof()
    assert_sound(connection)


def lazy(size: int) -> memoryview:
    """Allocate what a damaged length asks for: as long as nothing is written, it costs nothing."""
    return memoryview(mmap.mmap(-1, max(1, size)))


# ---- sizes -----------------------------------------------------------------------------------

LARGEST_U32 = 2**32 - 1
OVERSIZED = {
    "control message": (MAX_CONTROL_BYTES + 1, 0),
    "largest control message": (LARGEST_U32, 0),
    "header": (LARGEST_U32, MAX_HEADER_BYTES + 1),
    "largest header": (LARGEST_U32, LARGEST_U32),
    "payload": (MAX_PAYLOAD_BYTES + 1 + 1 + 6, 1),
    "largest payload": (LARGEST_U32, 1),
}
PAYLOAD_TO_A_DAEMON = {
    "smallest payload": (1 + 6, 1),
    "usual payload": (10_000, 200),
    "header at its limit": (MAX_HEADER_BYTES + 6, MAX_HEADER_BYTES),
}
REFUSED = [
    *((role, lengths) for role in Role for lengths in OVERSIZED.values()),
    *((Role.DAEMON, lengths) for lengths in PAYLOAD_TO_A_DAEMON.values()),
]


@pytest.mark.parametrize(("role", "lengths"), REFUSED)
def test_oversized_frame_is_refused_from_its_prefix_without_memory_for_it(
    role: Role, lengths: tuple[int, int]
) -> None:
    def never(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes asked for")

    connection = brought_to(State.STREAMING, role, allocate=never)
    prefix = struct.pack(">II", *lengths)
    connection.receive_data(prefix[:-1])
    assert connection.state is State.STREAMING
    tracemalloc.start()
    try:
        connection.receive_data(prefix[-1:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10
    assert connection.failure is not None
    assert_sound(connection)


# Enough to show in the figures if memory was taken for it, not enough to hurt.
CLAIMED = 1 << 25
BOMBS = {
    "array": (b"\xdd", b"\xc0"),
    "map": (b"\xdf", b"\xc0"),
    "string": (b"\xdb", b"a"),
    "bytes": (b"\xc6", b"a"),
    "extension": (b"\xc9", b"a"),
}


@pytest.mark.parametrize(("code", "item"), BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("key", ["versions", "stream", "indices", "unknown", "type"])
@pytest.mark.parametrize("word", ["hello", "open", "read"])
def test_length_within_a_message_takes_no_memory_before_its_content_is_there(
    word: str, key: str, code: bytes, item: bytes
) -> None:
    claim = code + struct.pack(">I", CLAIMED) + item * 10
    fields = [(b"\xa4type", msgpack.packb(word)), (msgpack.packb(key), claim)]
    body = b"\x82" + b"".join(name + value for name, value in fields)
    connection = brought_to(State.READY, Role.DAEMON)
    tracemalloc.start()
    try:
        connection.receive_data(raw_frame(body))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert connection.failure is not None
    assert_sound(connection)


# ---- time ------------------------------------------------------------------------------------


class TwoPeers(RuleBasedStateMachine):
    """Two peers that say anything they may say, over two pipes that deliver when they like.

    The peers are as wayward as the rules allow: a client closes, asks and grants at any time, a
    daemon streams, ends and fails at any time.  Neither may ever see a fault in the other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.client = brought_to(State.READY, Role.CLIENT)
        self.daemon = brought_to(State.READY, Role.DAEMON)
        self.to_daemon = bytearray()
        self.to_client = bytearray()
        # What was sent and has not arrived.
        self.client_said: list[object] = []
        self.daemon_said: list[object] = []

    @initialize(
        state=st.sampled_from([State.READY, State.OPENING, State.STREAMING]),
        credit=st.integers(0, 3),
    )
    def begin(self, state: State, credit: int) -> None:
        """Begin anywhere on the way to a feed: that spares a search many steps."""
        if state is not State.READY:
            self.client_opens(credit)
            self.everything_arrives()
        if state is State.STREAMING:
            self.daemon_opens()
            self.everything_arrives()

    # ---- the client

    def client_sends(self, message: m.Message) -> None:
        note(f"client in {self.client.state.value}: {message}")
        self.client.send(message)
        self.client_said.append(message)
        self.to_daemon += sent_by(self.client)

    def client_may(self, word: str) -> bool:
        return word in TRANSITIONS[self.client.state]

    @precondition(lambda self: self.client_may("open"))
    @rule(credit=st.integers(0, 3))
    def client_opens(self, credit: int) -> None:
        self.client_sends(m.Open(credit=credit))

    @precondition(lambda self: self.client_may("credit"))
    @rule(more=st.integers(0, 3))
    def client_grants(self, more: int) -> None:
        self.client_sends(m.Credit(total=self.client.credit.granted + more))

    @precondition(lambda self: self.client_may("release"))
    @rule(choices=st.data())
    def client_releases(self, choices: st.DataObject) -> None:
        received = range(self.client.credit.spent)
        seqs = choices.draw(st.lists(st.sampled_from(received), max_size=3)) if received else []
        self.client_sends(m.Release(seqs=tuple(seqs)))

    @precondition(lambda self: self.client_may("close"))
    @rule()
    def client_closes(self) -> None:
        self.client_sends(m.Close())

    @precondition(lambda self: self.client_may("status"))
    @rule(word=st.sampled_from(["status", "lookup", "read"]))
    def client_asks(self, word: str) -> None:
        message = ONE_OF_EACH[word]
        assert isinstance(message, m.ClientMessage)
        self.client_sends(message)

    # ---- the daemon

    def daemon_says(self, word: str) -> None:
        note(f"daemon in {self.daemon.state.value}: {word}")
        say(self.daemon, word)
        message = ONE_OF_EACH[word]
        self.daemon_said.append((message, PAYLOAD) if isinstance(message, m.Header) else message)
        self.to_client += sent_by(self.daemon)

    def daemon_may(self, word: str) -> bool:
        return word in TRANSITIONS[self.daemon.state]

    @rule(word=st.sampled_from(["notice", "report", "entries", "samples", "error.request"]))
    def daemon_answers(self, word: str) -> None:
        self.daemon_says(word)

    @precondition(lambda self: self.daemon_may("opened"))
    @rule()
    def daemon_opens(self) -> None:
        self.daemon_says("opened")

    @precondition(lambda self: self.daemon_may("batch") and self.daemon.credit.available)
    @rule()
    def daemon_streams(self) -> None:
        seq = self.daemon.credit.spent
        note(f"daemon in {self.daemon.state.value}: batch {seq}")
        self.daemon.send_payload(batch(seq), PAYLOAD)
        self.daemon_said.append((batch(seq), PAYLOAD))
        self.to_client += sent_by(self.daemon)

    @precondition(lambda self: self.daemon_may("epoch_end"))
    @rule()
    def daemon_ends_the_epoch(self) -> None:
        self.daemon_says("epoch_end")

    @precondition(lambda self: self.daemon_may("end"))
    @rule()
    def daemon_ends_the_feed(self) -> None:
        self.daemon_says("end")

    @precondition(lambda self: self.daemon_may("error.feed"))
    @rule()
    def daemon_fails_the_feed(self) -> None:
        self.daemon_says("error.feed")

    # ---- the pipes

    @precondition(lambda self: self.to_daemon)
    @rule(num_bytes=st.integers(1, 200))
    def some_bytes_reach_the_daemon(self, num_bytes: int) -> None:
        events = plain(self.daemon.receive_data(bytes(self.to_daemon[:num_bytes])))
        del self.to_daemon[:num_bytes]
        assert events == self.client_said[: len(events)]
        del self.client_said[: len(events)]

    @precondition(lambda self: self.to_client)
    @rule(num_bytes=st.integers(1, 800))
    def some_bytes_reach_the_client(self, num_bytes: int) -> None:
        events = plain(self.client.receive_data(bytes(self.to_client[:num_bytes])))
        del self.to_client[:num_bytes]
        assert events == self.daemon_said[: len(events)]
        del self.daemon_said[: len(events)]

    def everything_arrives(self) -> None:
        if self.to_daemon:
            self.some_bytes_reach_the_daemon(len(self.to_daemon))
        if self.to_client:
            self.some_bytes_reach_the_client(len(self.to_client))
        assert self.client_said == self.daemon_said == []

    # ---- what holds

    @invariant()
    def nobody_sees_a_fault(self) -> None:
        assert self.client.failure is None
        assert self.daemon.failure is None

    @invariant()
    def credit_is_never_negative(self) -> None:
        assert self.client.credit.available >= 0
        assert self.daemon.credit.available >= 0

    @invariant()
    def peers_agree_when_nothing_is_under_way(self) -> None:
        if not self.to_client and not self.to_daemon:
            assert self.client.state is self.daemon.state

    def both_are(self, state: State) -> bool:
        return self.client.state is self.daemon.state is state

    def teardown(self) -> None:
        """Whatever has happened: once the client wants an end, both meet again in READY."""
        if self.client.state in (State.OPENING, State.STREAMING):
            self.client_closes()
        self.everything_arrives()
        if self.daemon.state is State.CLOSING:
            self.daemon_ends_the_feed()
            self.everything_arrives()
        self.nobody_sees_a_fault()
        assert self.both_are(State.READY)
        # Both can go on.
        self.client_opens(1)
        self.everything_arrives()
        self.daemon_opens()
        self.daemon_streams()
        self.everything_arrives()
        assert self.both_are(State.STREAMING)


TestTwoPeers = pytest.mark.timeout(600)(TwoPeers.TestCase)  # the thorough profile takes a while
TestTwoPeers.settings = settings(
    stateful_step_count=40,
    # One example is one history of many: fewer would leave crossings untried.
    max_examples=max(200, settings().max_examples),
)
