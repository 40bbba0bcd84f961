"""A connection to a target: however its answers are cut up, every byte lands where it belongs."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Final, cast

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.buckets import Bucket
from headrace_daemon.errors import ObjectChangedError
from headrace_daemon.source.ais import ranges
from headrace_daemon.source.ais.clustermap import Node
from headrace_daemon.source.ais.faults import Fault, Kind
from headrace_daemon.source.ais.lean.connection import (
    MAX_INFORMATIVE,
    MAX_WORDS_BYTES,
    SCRATCH_BYTES,
    Connection,
    Scratch,
)
from headrace_daemon.source.ais.lean.exchanges import Exchange, Round
from headrace_daemon.source.ais.lean.heads import MAX_HEAD_BYTES, Heads
from headrace_daemon.source.ais.ranges import RangeTransfer
from headrace_daemon.source.ais.transfer import Transfer
from headrace_daemon.source.reader import RangeRequest, ReadRequest
from tests.support.loops import run
from tests.support.raw_target import answer
from tests.support.reading_ais import target_of
from tests.support.spans import Span, spans

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from headrace_daemon.errors import SourceError
    from headrace_daemon.source.ais.lean.lane import Lane

BUCKET: Final = Bucket.parse("ais://b")
NODE: Final = Node("t", "http://t:1")


class FakeTransport:
    def __init__(self) -> None:
        self.sent = b""
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.is_aborted = True


class FakeLane:
    """Notes what a connection tells it."""

    owner = NODE
    patience_s = 1000.0
    deadline_s = 1000.0

    def __init__(self) -> None:
        self.is_in = False
        self.num_bad_answers = 0
        self.num_read = 0
        self.returned: list[Exchange] = []
        self.outcome: Fault | SourceError | None = None
        self.is_for_all = False

    def take_in(self, connection: Connection) -> None:
        self.is_in = True

    def feed(self, connection: Connection) -> None: ...

    def note_read(self, exchange: Exchange, now_s: float) -> None:
        self.num_read += 1

    def note_answer(self, outcome: Fault | SourceError) -> None:
        self.num_bad_answers += 1

    def take_back(
        self,
        connection: Connection,
        sent: Sequence[Exchange],
        outcome: Fault | SourceError | None,
        *,
        for_all: bool,
    ) -> None:
        self.returned, self.outcome, self.is_for_all = list(sent), outcome, for_all

    def let_go(self, connection: Connection) -> None:
        self.is_in = False


class Talk:
    """A connection, the requests sent on it, and what comes of them."""

    def __init__(self, *bodies: bytes, checksum: bytes = b"", spans: Sequence[Span] = ()) -> None:
        self.bodies = bodies
        self.spans = spans
        self.lane = FakeLane()
        self.transport = FakeTransport()
        self.connection = Connection(cast("Lane", self.lane), Scratch(), Heads())
        self.round = Round(len(bodies) + len(spans))
        self.targets = [bytearray(b"\xee" * (len(body) + 2)) for body in bodies]
        self.exchanges = []
        for number, target in enumerate(self.targets):
            request = ReadRequest(str(number), memoryview(target)[1:-1], checksum)
            transfer = Transfer(BUCKET, request)
            self.exchanges.append(Exchange(transfer, f"/{number}", NODE, self.round))
        for span in spans:  # behind the others
            ranged = RangeTransfer(BUCKET, span.request("r"))
            self.exchanges.append(Exchange(ranged, "/r", NODE, self.round))
        self.connection.connection_made(cast("asyncio.BaseTransport", self.transport))
        self.connection.send(self.exchanges, b"requests")

    def hear(self, data: bytes, at_once: int = 1 << 30) -> None:
        """Receive bytes, some at once at most, as a loop would."""
        while data and not self.connection.is_ended:
            place = self.connection.get_buffer(-1)
            size = min(len(place), at_once, len(data))
            place[:size] = data[:size]
            self.connection.buffer_updated(size)
            data = data[size:]

    def lost(self, error: Exception | None = None) -> None:
        self.connection.connection_lost(error)

    @property
    def arrived(self) -> list[bool]:
        return [
            exchange.is_over and exchange.transfer.done == exchange.transfer.size
            for exchange in self.exchanges
        ]

    def check(self) -> None:
        """Everything has arrived, and nothing was written beside it."""
        assert self.lane.num_read == len(self.bodies) + len(self.spans)
        assert self.round.is_over
        assert not self.round.has_failed
        for target, body in zip(self.targets, self.bodies, strict=True):
            assert target == b"\xee" + body + b"\xee"
        for span in self.spans:
            span.check()
        assert not self.connection.is_ended
        assert len(self.connection) == self.connection.due_bytes == 0

    async def failure(self) -> Fault | SourceError:
        failure = await self.round.next_failure()
        assert failure is not None
        return failure[1]


def range_answer(span: Span) -> bytes:
    """Return the answer with a range: the checksum with it is that of the whole object."""
    return answer(
        span.body,
        status="206 Partial Content",
        checksum=xxhash.xxh64_hexdigest(span.content),
        more=f"Content-Range: bytes {span.asked}/{len(span.content)}\r\n",
    )


BODIES: Final = (b"first", b"", b"\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n", b"last")


def test_answers_in_one_piece_are_taken_apart() -> None:
    async def main() -> None:
        talk = Talk(*BODIES)
        assert talk.transport.sent == b"requests"
        talk.hear(b"".join(map(answer, BODIES)))
        talk.check()
        talk.connection.end()

    run(main())


def test_answers_may_be_cut_anywhere() -> None:
    async def main() -> None:
        data = b"".join(map(answer, BODIES))
        for at in range(1, len(data)):
            talk = Talk(*BODIES)
            talk.hear(data[:at])
            talk.hear(data[at:])
            talk.check()
            talk.connection.end()
        for size in range(1, 200):
            talk = Talk(*BODIES)
            talk.hear(data, at_once=size)
            talk.check()
            talk.connection.end()

    run(main())


def test_what_does_not_come_with_the_head_is_received_in_its_place() -> None:
    async def main() -> None:
        body = bytes(range(256)) * 2_000
        talk = Talk(body, b"next")
        data = answer(body)
        talk.hear(data[:300])
        place = talk.connection.get_buffer(-1)
        assert place.obj is talk.targets[0]
        assert len(place) == len(data) - 300
        talk.hear(data[300:], at_once=SCRATCH_BYTES)
        talk.hear(answer(b"next"))
        talk.check()
        talk.connection.end()

    run(main())


def test_a_large_answer_in_one_piece_is_taken() -> None:
    async def main() -> None:
        body = bytes(range(256)) * 2_000
        talk = Talk(body)
        talk.hear(answer(body))
        talk.check()
        talk.connection.end()

    run(main())


def test_an_error_is_kept_and_the_next_answer_is_taken() -> None:
    async def main() -> None:
        told = b'{"tcode": "ErrNotFound", "message": "no such object"}'
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(told) + told
        for size in (1, 7, 1 << 20):
            talk = Talk(b"a", b"b", b"c")
            talk.hear(answer(b"a") + missing + answer(b"c"), at_once=size)
            fault = await talk.failure()
            assert isinstance(fault, Fault)
            assert fault.kind is Kind.MISSING
            assert "no such object" in fault.words
            assert talk.arrived == [True, False, True]
            assert talk.targets[1] == b"\xee\xee\xee"
            talk.connection.end()

    run(main())


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("length", [b"", b"Content-Length: 10\r\n"])
def test_answers_that_never_have_a_body_are_over_with_their_heads(
    status: bytes, length: bytes
) -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n" + answer(b"b"))
        fault = await talk.failure()
        assert isinstance(fault, Fault)
        assert status[:3].decode() in fault.words
        assert talk.arrived == [False, True]
        talk.connection.end()

    run(main())


def test_informative_answers_are_passed_over() -> None:
    async def main() -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        talk = Talk(b"a", b"b")
        talk.hear(hints + answer(b"a") + hints + answer(b"b"), at_once=5)
        talk.check()
        talk.connection.end()

    run(main())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INFORMATIVE + 1), "answered 100"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "sent something that is no answer"),
        (b"nonsense\r\n\r\n", "sent something that is no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "sent something that is no answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 10_000, "sent a head of more than 16384 bytes"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_HEAD_BYTES, "sent a head of more than"),
        (b"x" * 200_000, "sent a head of more than"),
    ],
)
@pytest.mark.parametrize("at_once", [100, 1 << 30])
def test_what_is_no_answer_ends_the_connection(data: bytes, told: str, at_once: int) -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(data, at_once)
        assert talk.transport.is_aborted
        assert talk.connection.is_ended
        assert talk.lane.returned == talk.exchanges
        assert not talk.lane.is_for_all, "the second is asked again"
        assert isinstance(talk.lane.outcome, Fault)
        assert talk.lane.outcome.kind is Kind.NODE
        assert told in talk.lane.outcome.words

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\na",
        b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_an_answer_of_unknown_length_is_not_for_this_wire(data: bytes) -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(data)
        assert isinstance(talk.lane.outcome, Fault)
        assert talk.lane.outcome.kind is Kind.UNSUITED
        assert talk.transport.is_aborted
        assert talk.targets[0] == b"\xee\xee\xee"

    run(main())


def test_an_object_of_another_length_is_not_taken() -> None:
    async def main() -> None:
        for body in (b"shorter", b"longer than it was", b"", b"x" * (MAX_WORDS_BYTES + 1)):
            talk = Talk(b"as it was", b"next")
            talk.hear(answer(body) + answer(b"next"))
            if len(body) > MAX_WORDS_BYTES:
                assert isinstance(talk.lane.outcome, ObjectChangedError)
                assert talk.transport.is_aborted
            else:
                assert isinstance(await talk.failure(), ObjectChangedError)
                assert talk.arrived[1]
                talk.connection.end()
            assert talk.targets[0] == b"\xee" * 11

    run(main())


def test_bytes_without_their_checksum_are_a_fault() -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(answer(b"a", checksum="0" * 16) + answer(b"b"))
        fault = await talk.failure()
        assert isinstance(fault, Fault)
        assert fault.kind is Kind.CORRUPT
        assert talk.exchanges[0].transfer.done == 0
        assert talk.arrived[1]
        talk.connection.end()

    run(main())


def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async def main() -> None:
        talk = Talk(b"a")
        talk.hear(answer(b"a") + answer(b"b"))
        assert talk.arrived == [True]
        assert talk.transport.is_aborted
        assert talk.lane.returned == []

    run(main())


def test_a_body_that_is_too_long_is_no_next_answer() -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(answer(b"a") + b"and more" + answer(b"b"))
        assert talk.arrived == [True, False]
        assert isinstance(talk.lane.outcome, Fault)
        assert talk.lane.returned == talk.exchanges[1:]
        assert talk.targets[1] == b"\xee\xee\xee"

    run(main())


def test_a_connection_that_is_to_be_closed_is_used_no_more() -> None:
    async def main() -> None:
        talk = Talk(b"a", b"b")
        talk.hear(answer(b"a", more="Connection: close\r\n") + answer(b"b"))
        assert talk.arrived == [True, False]
        assert talk.lane.returned == talk.exchanges[1:]
        assert talk.lane.outcome is None, "nobody's fault"

    run(main())


@pytest.mark.parametrize("error", [None, ConnectionResetError(104, "reset")])
def test_a_break_charges_the_answer_under_way_only(error: Exception | None) -> None:
    async def main() -> None:
        data = answer(b"12345678")
        for at in range(1, len(data)):
            talk = Talk(b"12345678", b"b")
            talk.hear(data[:at])
            talk.lost(error)
            assert talk.lane.returned == talk.exchanges
            assert isinstance(talk.lane.outcome, Fault)
            assert talk.lane.outcome.words == "broke off in the middle of an answer"
            assert not talk.lane.is_for_all
            assert talk.exchanges[0].transfer.done == max(0, 8 - (len(data) - at))
            assert not talk.lane.is_in

    run(main())


@pytest.mark.parametrize("error", [None, ConnectionResetError(104, "reset")])
def test_a_kept_connection_that_breaks_is_nobodys_fault_once(error: Exception | None) -> None:
    async def main() -> None:
        fresh = Talk(b"a", b"b")
        fresh.lost(error)
        assert isinstance(fresh.lane.outcome, Fault)
        assert fresh.lane.outcome.kind is Kind.NODE
        kept = Talk(b"a")
        kept.hear(answer(b"a"))
        kept.connection.send(fresh.exchanges, b"")
        kept.lost(error)
        assert kept.lane.outcome is None
        assert kept.lane.returned == fresh.exchanges
        again = Talk(b"a")
        again.hear(answer(b"a"))
        again.connection.send(fresh.exchanges, b"")
        again.lost(error)
        assert isinstance(again.lane.outcome, Fault), "once"

    run(main())


@pytest.mark.parametrize("error", [None, ConnectionResetError(104, "reset")])
def test_a_break_between_two_answers_is_nobodys_fault(error: Exception | None) -> None:
    async def main() -> None:
        left = Talk(b"0", b"a", b"b", b"c").exchanges[1:]
        for body in (b"0", b"1", b"2"):
            talk = Talk(body)
            talk.connection.send(left, b"")
            talk.hear(answer(body))
            talk.lost(error)
            assert talk.lane.outcome is None
            assert talk.lane.returned == left

    run(main())


def test_nothing_is_written_once_it_has_ended() -> None:
    async def main() -> None:
        body = bytes(1000)
        data = answer(body)
        for at in range(len(data)):
            talk = Talk(body, b"b")
            talk.hear(data[:at])
            talk.connection.end()
            assert talk.transport.is_aborted
            before = [bytes(target) for target in talk.targets]
            place = talk.connection.get_buffer(-1)
            assert place.obj not in talk.targets
            place[:100] = b"z" * 100
            talk.connection.buffer_updated(100)
            assert [bytes(target) for target in talk.targets] == before
            talk.lost()
            for exchange in talk.exchanges:
                target_of(exchange.transfer.request).release()
            for target in talk.targets:
                target.append(0)  # BufferError while anybody has a view of it

    run(main())


# ---- ranges --------------------------------------------------------------------------------------

CONTENT: Final = random.Random(5).randbytes(400)


@given(
    st.lists(spans(CONTENT), min_size=1, max_size=3),
    st.lists(st.integers(1, 700), min_size=1, max_size=12),
    st.sampled_from([0, 16, ranges.DIRECT_BYTES]),
)
def test_ranges_may_be_cut_anywhere(
    asked: list[Span], portions: list[int], direct_bytes: int
) -> None:
    async def main() -> None:
        talk = Talk(b"a body", spans=asked)
        for span in asked:
            span.memory[:] = b"\xee" * len(span.memory)
        data = answer(b"a body") + b"".join(map(range_answer, asked))
        sizes = itertools.cycle(portions)
        while data:
            size = next(sizes)
            talk.hear(data[:size])
            data = data[size:]
        talk.check()
        talk.connection.end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "DIRECT_BYTES", direct_bytes)
        run(main())


def test_a_large_range_is_received_in_its_places_and_its_gaps_are_not_kept() -> None:
    async def main() -> None:
        content = random.Random(6).randbytes(1_000_000)
        parts = [(300_000, 500_000), (500_000, 500_100), (700_000, 800_000)]
        span = Span.of(content, 1_000, 999_000, parts)
        talk = Talk(spans=[span])
        data = range_answer(span)
        begin = len(data) - len(span.body) - span.start  # of the object in what is sent
        talk.hear(data[: begin + 300_010])
        place = talk.connection.get_buffer(-1)
        assert place.obj is span.memory
        assert len(place) == 200_000 - 10
        talk.hear(data[begin + 300_010 : begin + 500_000])
        assert talk.connection.get_buffer(-1).obj is not span.memory, "small: with what follows it"
        talk.hear(data[begin + 500_000 : begin + 600_000])
        place = talk.connection.get_buffer(-1)
        assert place.obj is not span.memory, "a gap"
        assert len(place) == SCRATCH_BYTES
        talk.hear(data[begin + 600_000 :], at_once=SCRATCH_BYTES)
        talk.check()
        talk.connection.end()

    run(main())


def test_nothing_is_written_into_places_once_it_has_ended() -> None:
    async def main() -> None:
        span = Span.of(CONTENT, 0, 400, [(10, 100), (200, 390)])
        data = answer(CONTENT)
        for at in range(len(data)):
            span.memory[:] = b"\xee" * len(span.memory)
            talk = Talk(spans=[span])
            talk.hear(data[:at], at_once=50)
            talk.connection.end()
            before = bytes(span.memory)
            place = talk.connection.get_buffer(-1)
            assert place.obj is not span.memory
            place[:100] = b"z" * 100
            talk.connection.buffer_updated(100)
            assert span.memory == before
            request = talk.exchanges[0].transfer.request
            assert isinstance(request, RangeRequest)
            for piece in request.places:
                piece.target.release()
            talk.lost()
            span.memory.append(0)  # BufferError while anybody has a view of it
            span.memory.pop()

    run(main())


@pytest.mark.parametrize(
    ("told", "is_changed"),
    [(b"Content-Range: bytes */11\r\n", True), (b"", False)],
)
def test_no_such_range_is_an_answer_like_any_other(told: bytes, is_changed: bool) -> None:
    async def main() -> None:
        span = Span.of(CONTENT, 20, 30)
        talk = Talk(b"a", spans=[span, Span.of(CONTENT, 0, 10)])
        refused = b"HTTP/1.1 416 No\r\n" + told + b"Content-Length: 2\r\n\r\n{}"
        talk.hear(answer(b"a") + refused + range_answer(talk.spans[1]))
        outcome = await talk.failure()
        if is_changed:
            assert isinstance(outcome, ObjectChangedError)
            assert "bytes 20-29 of object ais://b/r: it has 11 bytes" in str(outcome)
        else:
            assert isinstance(outcome, Fault)
            assert outcome.kind is Kind.WRONG
        assert span.is_untouched()
        talk.spans[1].check()
        talk.connection.end()

    run(main())
