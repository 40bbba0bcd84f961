"""One peer's side of the conversation: what it lets through, either way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest

from headrace.errors import LocalProtocolError, RemoteProtocolError
from headrace.protocol import Connection, Payload, Role, State
from headrace.protocol import messages as m
from headrace.protocol.credit import MAX_CREDIT
from headrace.protocol.framing import MAX_CONTROL_BYTES, MAX_PAYLOAD_BYTES
from headrace.protocol.states import advance
from tests.support.wire import (
    CLIENT_WORDS,
    DAEMON_WORDS,
    ONE_OF_EACH,
    PAYLOAD,
    PAYLOAD_WORDS,
    brought_to,
    frame,
    hear,
    plain,
    raw_frame,
    read_frames,
    say,
    sent_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

WORDS_OF = {Role.CLIENT: CLIENT_WORDS, Role.DAEMON: DAEMON_WORDS}
OTHER = {Role.CLIENT: Role.DAEMON, Role.DAEMON: Role.CLIENT}

SENT = [(role, state, word) for role in Role for state in State for word in sorted(WORDS_OF[role])]
"""Who may try to send what, and in which state it is."""

HEARD = [(OTHER[role], state, word) for role, state, word in SENT]
"""Who may receive what, and in which state it is."""


def ids(cases: Iterable[tuple[Role, State, str]]) -> list[str]:
    return [f"{role.value}-{state.value}-{word}" for role, state, word in cases]


def batch(seq: int) -> m.Batch:
    return m.Batch(
        seq=seq,
        epoch=0,
        step=seq,
        global_step=seq,
        n=0,
        fields=(),
        ids=b"",
        off=b"",
        lengths=b"",
        flags=b"",
        cursor={},
    )


def streaming(role: Role, *, credit: int = 4, batches: int = 0) -> Connection:
    """Return a connection with an open feed, some credit, and some batches sent or received."""
    connection = brought_to(State.READY, role)
    opened = ONE_OF_EACH["opened"]
    assert isinstance(opened, m.Opened)
    if role is Role.CLIENT:
        connection.send(m.Open(credit=credit))
        connection.receive_data(frame(opened))
        for seq in range(batches):
            connection.receive_data(frame(batch(seq), b""))
    else:
        connection.receive_data(frame(m.Open(credit=credit)))
        connection.send(opened)
        for seq in range(batches):
            connection.send_payload(batch(seq), b"")
    connection.data_to_send()
    assert connection.state is State.STREAMING
    return connection


def assert_failed(connection: Connection, reason: str) -> None:
    """Check that the peer's fault is noted, told to it, and the end of the conversation."""
    assert isinstance(connection.failure, RemoteProtocolError)
    assert reason in str(connection.failure)
    assert connection.state is State.CLOSED
    last_words = read_frames(sent_by(connection))
    if connection.role is Role.CLIENT:
        assert last_words == []
    else:
        assert last_words == [
            {
                "type": "error",
                "code": "protocol",
                "message": str(connection.failure),
                "fault": "client",
                "scope": "connection",
            }
        ]


# ---- what the table says ---------------------------------------------------------------------


@pytest.mark.parametrize(("role", "state", "word"), SENT, ids=ids(SENT))
def test_message_is_sent_exactly_where_the_table_has_it(
    role: Role, state: State, word: str
) -> None:
    connection = brought_to(state, role)
    following = advance(state, word)
    if following is None:
        with pytest.raises(LocalProtocolError, match=f"'{word}' is not allowed in .*{state.value}"):
            say(connection, word)
        assert connection.state is state
        assert connection.data_to_send() == []
    else:
        say(connection, word)
        assert connection.state is following
        assert read_frames(sent_by(connection)) == read_frames(frame(ONE_OF_EACH[word]))
    assert connection.failure is None


@pytest.mark.parametrize(("role", "state", "word"), HEARD, ids=ids(HEARD))
def test_message_is_received_exactly_where_the_table_has_it(
    role: Role, state: State, word: str
) -> None:
    connection = brought_to(state, role)
    following = advance(state, word)
    events = plain(hear(connection, word))
    if state is State.CLOSED:
        assert events == []
        assert connection.failure is None
    elif following is None:
        assert events == []
        assert_failed(connection, f"'{word}' is not allowed in state '{state.value}'")
    else:
        message = ONE_OF_EACH[word]
        assert events == [(message, PAYLOAD) if word in PAYLOAD_WORDS else message]
        assert connection.state is following
        assert connection.failure is None
        assert connection.data_to_send() == []


@pytest.mark.parametrize("word", sorted(DAEMON_WORDS - PAYLOAD_WORDS))
def test_client_does_not_send_what_is_the_daemons_to_say(word: str) -> None:
    client = brought_to(State.STREAMING, Role.CLIENT)
    with pytest.raises(LocalProtocolError, match=f"a client does not send '{word}'"):
        say(client, word)
    assert client.state is State.STREAMING
    assert client.data_to_send() == []


@pytest.mark.parametrize("word", sorted(PAYLOAD_WORDS))
def test_client_does_not_send_payloads(word: str) -> None:
    client = brought_to(State.STREAMING, Role.CLIENT)
    with pytest.raises(LocalProtocolError, match="a client does not send payload frames"):
        say(client, word)
    assert client.data_to_send() == []


@pytest.mark.parametrize("word", sorted(CLIENT_WORDS))
def test_daemon_does_not_send_what_is_the_clients_to_say(word: str) -> None:
    daemon = brought_to(State.STREAMING, Role.DAEMON)
    with pytest.raises(LocalProtocolError, match=f"a daemon does not send '{word}'"):
        say(daemon, word)
    assert daemon.state is State.STREAMING
    assert daemon.data_to_send() == []


@pytest.mark.parametrize("word", sorted(CLIENT_WORDS))
def test_client_refuses_what_is_its_own_to_say(word: str) -> None:
    client = brought_to(State.STREAMING, Role.CLIENT)
    assert hear(client, word) == []
    assert_failed(client, "cannot be read")


@pytest.mark.parametrize("word", sorted(DAEMON_WORDS - PAYLOAD_WORDS))
def test_daemon_refuses_what_is_its_own_to_say(word: str) -> None:
    daemon = brought_to(State.STREAMING, Role.DAEMON)
    assert hear(daemon, word) == []
    assert_failed(daemon, "cannot be read")


@pytest.mark.parametrize("word", sorted(PAYLOAD_WORDS))
def test_daemon_refuses_payload_frames(word: str) -> None:
    daemon = brought_to(State.STREAMING, Role.DAEMON)
    assert hear(daemon, word) == []
    assert_failed(daemon, "only control messages are allowed")


def test_header_in_a_control_frame_is_refused() -> None:
    client = streaming(Role.CLIENT)
    assert client.receive_data(raw_frame(frame(batch(0), b"")[9:-5])) == []
    assert_failed(client, "cannot be read")


def test_control_message_in_a_payload_frame_is_refused() -> None:
    client = streaming(Role.CLIENT)
    assert client.receive_data(frame(m.End(reason="closed"), b"abc")) == []
    assert_failed(client, "cannot be read")


# ---- crossing messages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["opened", "batch", "epoch_end", "end"],
        ["opened", "batch", "error.feed"],
        ["opened", "end"],
        ["error.feed"],
        ["notice", "error.request", "opened", "report", "samples", "entries", "end"],
    ],
    ids=" ".join,
)
def test_close_may_cross_anything_that_the_feed_had_to_say(words: list[str]) -> None:
    client, daemon = (brought_to(State.OPENING, role) for role in (Role.CLIENT, Role.DAEMON))
    client.send(m.Close())
    for word in words:
        say(daemon, word)
    assert daemon.receive_data(sent_by(client)) == [m.Close()]
    assert len(client.receive_data(sent_by(daemon))) == len(words)
    assert client.failure is None
    assert daemon.failure is None
    assert client.state is daemon.state is State.READY


@pytest.mark.parametrize("last", ["end", "error.feed"])
def test_credit_and_release_may_cross_the_end_of_the_feed(last: str) -> None:
    client, daemon = (streaming(role, batches=2) for role in (Role.CLIENT, Role.DAEMON))
    client.send(m.Credit(total=9))
    client.send(m.Release(seqs=(0, 1)))
    say(daemon, last)
    daemon.receive_data(sent_by(client))
    client.receive_data(sent_by(daemon))
    assert client.failure is None
    assert daemon.failure is None
    assert client.state is daemon.state is State.READY


def test_feed_may_follow_a_feed_whose_end_crossed_the_close() -> None:
    client, daemon = (streaming(role, batches=2) for role in (Role.CLIENT, Role.DAEMON))
    client.send(m.Close())
    say(daemon, "end")
    client.receive_data(sent_by(daemon))
    client.send(m.Open(credit=1))
    daemon.receive_data(sent_by(client))
    say(daemon, "opened")
    daemon.send_payload(batch(0), b"abc")
    assert plain(client.receive_data(sent_by(daemon)))[1:] == [(batch(0), b"abc")]
    assert client.state is daemon.state is State.STREAMING


# ---- the peer's faults -----------------------------------------------------------------------

UNREADABLE = {
    "no msgpack": b"\xc1",
    "no map": b"\x01",
    "an array": b"\x91\x01",
    "an empty map": b"\x80",
    "an unknown message": msgpack.packb({"type": "dance"}),
    "a type that is no string": msgpack.packb({"type": 1}),
    "a type of a megabyte": msgpack.packb({"type": "x" * (MAX_CONTROL_BYTES - 20)}),
    "a missing key": msgpack.packb({"type": "hello"}),
    "a value of another type": msgpack.packb({"type": "hello", "versions": "1"}),
    "a key that is no string": msgpack.packb({"type": "hello", "versions": [1], 5: 6}),
    "bytes behind the map": msgpack.packb({"type": "hello", "versions": [1]}) + b"\x00",
    "a string that is no UTF-8": b"\x82\xa4type\xa5hello\xa8versions\x91\xa1\xff",
    "a map cut short": b"\x82\xa4type\xa5hello",
    "an array of 2**32 - 1 that is not there": b"\x82\xa4type\xa5hello\xa8versions\xdd"
    + b"\xff" * 4,
    "a map of 2**32 - 1 that is not there": b"\xdf\xff\xff\xff\xff",
    "a string of 4 GiB that is not there": b"\x82\xa4type\xa5hello\xa5agent\xdb\xff\xff\xff\xff",
    "deep nesting": b"\x82\xa4type\xa4open\xa6stream\x81\xa1a" + b"\x91" * 900_000 + b"\x01",
    "deep nesting under an unknown key": b"\x82\xa4type\xa4open\xa3abc"
    + b"\x91" * 900_000
    + b"\x01",
    "a map as a key": b"\x82\xa4type\xa4open\xa6stream\x81\xa1a\x81\x80\x01",
    "an impossible timestamp": b"\x82\xa4type\xa4open\xa6stream\x81\xa1a\xd7\xff" + b"\xff" * 8,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("role", Role)
def test_message_that_cannot_be_read_is_the_peers_fault(role: Role, body: bytes) -> None:
    connection = brought_to(State.READY, role)
    assert connection.receive_data(raw_frame(body)) == []
    assert_failed(connection, "a message that cannot be read")


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_header_that_cannot_be_read_is_the_peers_fault(body: bytes) -> None:
    client = streaming(Role.CLIENT)
    assert client.receive_data(raw_frame(body, b"abc")) == []
    assert_failed(client, "a message that cannot be read")


def test_reason_of_a_failure_stays_short_enough_for_a_log() -> None:
    daemon = brought_to(State.READY, Role.DAEMON)
    daemon.receive_data(raw_frame(UNREADABLE["a type of a megabyte"]))
    assert len(str(daemon.failure)) < 1000


FAULTS = {
    "a broken frame": bytes(8),
    "a message that cannot be read": raw_frame(b"\xc1"),
    "a message out of turn": frame(m.Hello(versions=(1,))),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_after_a_fault_nothing_more_is_received_or_sent(fault: bytes) -> None:
    daemon = brought_to(State.READY, Role.DAEMON)
    good = frame(m.Status(request=1))
    events = daemon.receive_data(good + fault + good)
    assert events == [m.Status(request=1)]
    assert_failed(daemon, "")
    failure = daemon.failure
    for _ in range(3):
        assert daemon.receive_data(good + fault) == []
        buffer = daemon.next_buffer()
        assert len(buffer) > 0
        assert daemon.received(len(buffer)) == []
    daemon.receive_eof()
    assert daemon.failure is failure
    assert daemon.data_to_send() == []
    with pytest.raises(LocalProtocolError):
        say(daemon, "notice")
    assert daemon.data_to_send() == []


def test_what_was_queued_before_a_fault_is_still_sent() -> None:
    daemon = brought_to(State.READY, Role.DAEMON)
    daemon.send(m.Report(request=1, report={}))
    daemon.receive_data(bytes(8))
    assert [message["type"] for message in read_frames(sent_by(daemon))] == ["report", "error"]


def test_input_after_the_end_of_the_connection_is_ignored() -> None:
    client = brought_to(State.READY, Role.CLIENT)
    good = frame(m.Notice(kind="waiting", text=""))
    events = client.receive_data(frame(ONE_OF_EACH["error.connection"]) + good + bytes(8))
    assert events == [ONE_OF_EACH["error.connection"]]
    assert client.state is State.CLOSED
    assert client.failure is None


def test_daemon_can_refuse_a_client_before_it_said_anything() -> None:
    client, daemon = Connection(Role.CLIENT), Connection(Role.DAEMON)
    say(daemon, "error.connection")
    client.send(m.Hello(versions=(1,)))
    assert client.receive_data(sent_by(daemon)) == [ONE_OF_EACH["error.connection"]]
    assert daemon.receive_data(sent_by(client)) == []
    assert daemon.failure is None


# ---- the end of the input --------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("role", Role)
def test_end_between_two_frames_is_no_fault(role: Role, state: State) -> None:
    connection = brought_to(state, role)
    connection.receive_eof()
    assert connection.state is State.CLOSED
    assert connection.failure is None
    assert connection.data_to_send() == []


@pytest.mark.parametrize("role", Role)
def test_end_within_a_frame_is_a_fault(role: Role) -> None:
    connection = brought_to(State.READY, role)
    connection.receive_data(b"\0")
    connection.receive_eof()
    assert_failed(connection, "the connection ended within a frame")


# ---- our own mistakes ------------------------------------------------------------------------


def test_control_message_above_the_limit_is_not_sent() -> None:
    daemon = brought_to(State.READY, Role.DAEMON)
    with pytest.raises(LocalProtocolError, match=f"'report': .* limit of {MAX_CONTROL_BYTES}"):
        daemon.send(m.Report(report={"x": "x" * MAX_CONTROL_BYTES}))
    assert daemon.state is State.READY
    assert daemon.data_to_send() == []


def test_payload_above_the_limit_is_not_sent() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return MAX_PAYLOAD_BYTES + 1

    daemon = streaming(Role.DAEMON, credit=1)
    with pytest.raises(LocalProtocolError, match="above the limit"):
        daemon.send_payload(batch(0), Huge())
    assert daemon.data_to_send() == []
    daemon.send_payload(batch(0), b"")


@pytest.mark.parametrize("credit", [-1, MAX_CREDIT + 1])
def test_feed_with_impossible_credit_is_not_opened(credit: int) -> None:
    client = brought_to(State.READY, Role.CLIENT)
    with pytest.raises(LocalProtocolError, match="credit"):
        client.send(m.Open(credit=credit))
    assert client.state is State.READY
    client.send(m.Open(credit=1))
    daemon = brought_to(State.READY, Role.DAEMON)
    daemon.receive_data(frame(m.Open(credit=credit)))
    assert_failed(daemon, "credit")


# ---- credit, order and release ---------------------------------------------------------------


def test_batches_up_to_the_credit_are_sent_and_received() -> None:
    client, daemon = (streaming(role, credit=2) for role in (Role.CLIENT, Role.DAEMON))
    for seq in range(2):
        daemon.send_payload(batch(seq), b"")
    assert len(client.receive_data(sent_by(daemon))) == 2
    assert client.credit.available == daemon.credit.available == 0


def test_batch_without_credit_is_not_sent() -> None:
    daemon = streaming(Role.DAEMON, credit=1, batches=1)
    with pytest.raises(LocalProtocolError, match="batch 1 without credit"):
        daemon.send_payload(batch(1), b"")
    assert daemon.data_to_send() == []
    assert daemon.credit.available == 0
    daemon.receive_data(frame(m.Credit(total=2)))
    daemon.send_payload(batch(1), b"")


def test_batch_without_credit_is_the_daemons_fault() -> None:
    client = streaming(Role.CLIENT, credit=1, batches=1)
    assert client.receive_data(frame(batch(1), b"")) == []
    assert_failed(client, "batch 1 without credit")
    assert client.credit.available == 0


@pytest.mark.parametrize("seq", [0, 3, -1, 2**63])
def test_batch_out_of_order_is_not_sent(seq: int) -> None:
    daemon = streaming(Role.DAEMON, batches=2)
    with pytest.raises(LocalProtocolError, match=f"batch {seq} where 2 is due"):
        daemon.send_payload(batch(seq), b"")
    assert daemon.data_to_send() == []
    assert daemon.credit.available == 2
    daemon.send_payload(batch(2), b"")


@pytest.mark.parametrize("seq", [0, 3, -1, 2**63])
def test_batch_out_of_order_is_the_daemons_fault(seq: int) -> None:
    client = streaming(Role.CLIENT, batches=2)
    assert client.receive_data(frame(batch(seq), b"")) == []
    assert_failed(client, f"batch {seq} where 2 is due")


@pytest.mark.parametrize("total", [3, 0, -1, 5 + MAX_CREDIT])
def test_credit_that_shrinks_or_is_too_much_is_refused_on_both_sides(total: int) -> None:
    client = streaming(Role.CLIENT)
    with pytest.raises(LocalProtocolError, match=f"credit total={total}"):
        client.send(m.Credit(total=total))
    assert client.data_to_send() == []
    assert client.credit.granted == 4
    client.send(m.Credit(total=5))
    daemon = streaming(Role.DAEMON)
    assert daemon.receive_data(frame(m.Credit(total=total))) == []
    assert_failed(daemon, f"credit total={total}")
    assert daemon.credit.granted == 4


def test_batches_that_crossed_the_close_cost_credit_too() -> None:
    client = streaming(Role.CLIENT, credit=1)
    client.send(m.Close())
    client.data_to_send()
    assert len(client.receive_data(frame(batch(0), b""))) == 1
    client.receive_data(frame(batch(1), b""))
    assert_failed(client, "batch 1 without credit")


@pytest.mark.parametrize("role", Role)
def test_next_feed_counts_from_the_beginning(role: Role) -> None:
    connection = streaming(role, credit=2, batches=2)
    if role is Role.CLIENT:
        connection.receive_data(frame(m.End(reason="finished")))
        connection.send(m.Open(credit=1))
        connection.receive_data(frame(ONE_OF_EACH["opened"]))
        connection.receive_data(frame(batch(0), b""))
    else:
        connection.send(m.End(reason="finished"))
        connection.receive_data(frame(m.Open(credit=1)))
        say(connection, "opened")
        connection.send_payload(batch(0), b"")
    assert connection.failure is None
    assert (connection.credit.granted, connection.credit.spent) == (1, 1)


def test_credit_after_the_feed_is_over_grants_nothing() -> None:
    daemon = streaming(Role.DAEMON, batches=2)
    daemon.send(m.End(reason="finished"))
    daemon.receive_data(frame(m.Credit(total=1)))
    assert daemon.failure is None
    assert daemon.credit.granted == 4


@pytest.mark.parametrize("seqs", [(), (0,), (1, 0), (1, 1)])
def test_batches_that_were_sent_can_be_released(seqs: tuple[int, ...]) -> None:
    client, daemon = (streaming(role, batches=2) for role in (Role.CLIENT, Role.DAEMON))
    client.send(m.Release(seqs=seqs))
    assert daemon.receive_data(sent_by(client)) == [m.Release(seqs=seqs)]


@pytest.mark.parametrize("seq", [2, 99, -1, 2**63])
def test_release_of_a_batch_that_was_not_sent_is_refused_on_both_sides(seq: int) -> None:
    reason = f"release of batch {seq}, which was not sent"
    client, daemon = (streaming(role, batches=2) for role in (Role.CLIENT, Role.DAEMON))
    with pytest.raises(LocalProtocolError, match=reason):
        client.send(m.Release(seqs=(0, seq)))
    assert client.data_to_send() == []
    assert daemon.receive_data(frame(m.Release(seqs=(0, seq)))) == []
    assert_failed(daemon, reason)


# ---- payloads --------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"abc", memoryview(bytearray(b"abc"))], ids=["bytes", "view"])
def test_payload_to_send_is_handed_on_and_not_copied(payload: bytes | memoryview) -> None:
    daemon = streaming(Role.DAEMON)
    daemon.send_payload(batch(0), payload)
    head, body = daemon.data_to_send()
    assert body is payload
    assert read_frames(bytes(head) + bytes(body)) == read_frames(frame(batch(0), b"abc"))


def test_empty_payload_is_no_buffer_to_write() -> None:
    daemon = streaming(Role.DAEMON)
    daemon.send_payload(batch(0), memoryview(b""))
    (head,) = daemon.data_to_send()
    assert read_frames(bytes(head)) == read_frames(frame(batch(0), b""))


def test_what_is_to_be_sent_is_handed_out_once_and_in_order() -> None:
    daemon = streaming(Role.DAEMON)
    notice = m.Notice(kind="waiting", text="")
    daemon.send(notice)
    daemon.send_payload(batch(0), b"abc")
    daemon.send(m.End(reason="finished"))
    assert read_frames(sent_by(daemon)) == read_frames(
        frame(notice) + frame(batch(0), b"abc") + frame(m.End(reason="finished"))
    )
    assert daemon.data_to_send() == []


def test_payload_is_received_into_the_allocated_buffer() -> None:
    buffers: list[bytearray] = []

    def allocate(size: int) -> memoryview:
        buffers.append(bytearray(size))
        return memoryview(buffers[-1])

    client = Connection(Role.CLIENT, allocate=allocate)
    client.send(m.Hello(versions=(1,)))
    client.receive_data(frame(ONE_OF_EACH["welcome"]))
    (event,) = client.receive_data(frame(ONE_OF_EACH["samples"]))
    assert isinstance(event, Payload)
    assert event.header == ONE_OF_EACH["samples"]
    assert event.payload.obj is buffers[0]
    assert buffers == [PAYLOAD]


def test_any_msgpack_library_can_read_a_batch_frame() -> None:
    daemon = streaming(Role.DAEMON)
    header = ONE_OF_EACH["batch"]
    assert isinstance(header, m.Batch)
    daemon.send_payload(header, PAYLOAD)
    ((plain_header, payload),) = read_frames(sent_by(daemon))
    assert payload == PAYLOAD
    assert plain_header == {
        "type": "batch",
        "seq": 0,
        "epoch": 0,
        "step": 0,
        "global_step": 0,
        "n": 2,
        "fields": ["data"],
        "ids": header.ids,
        "keys": ["a", "b"],
        "off": header.off,
        "len": header.lengths,
        "flags": header.flags,
        "cursor": {"epoch": 1},
    }
