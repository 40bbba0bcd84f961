"""Frames: exact bytes, exact buffers, and refusals that cost nothing."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.protocol.framing import (
    MAX_CONTROL_BYTES,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    ControlFrame,
    FrameReader,
    FramingError,
    PayloadFrame,
    control_frame,
    payload_frame_head,
)
from tests.support.wire import raw_frame

HEADER = b"\x81\xa1n\x01"
AROUND_HEADER = 6  # 0x92 before it; 0xc6 and u32 after it
LARGEST_U32 = 2**32 - 1

REFUSED_PREFIXES = {
    "an empty control message": (0, 0),
    "a control message above the limit": (MAX_CONTROL_BYTES + 1, 0),
    "the largest control message there is": (LARGEST_U32, 0),
    "a header above the limit": (MAX_HEADER_BYTES + 1 + AROUND_HEADER, MAX_HEADER_BYTES + 1),
    "the largest header there is": (LARGEST_U32, LARGEST_U32),
    "a payload above the limit": (MAX_PAYLOAD_BYTES + 1 + 1 + AROUND_HEADER, 1),
    "the largest payload there is": (LARGEST_U32, 1),
    "a header that is longer than its frame": (10, 11),
    "a frame with no room for what stands around its header": (10 + AROUND_HEADER - 1, 10),
}


class Spy:
    """An `allocate` that remembers what was asked for."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []

    def __call__(self, size: int) -> memoryview:
        self.buffers.append(bytearray(size))
        return memoryview(self.buffers[-1])


def receive(
    reader: FrameReader, data: bytes, max_bytes: int = 1 << 20
) -> list[ControlFrame | PayloadFrame]:
    """Receive as a socket does: at most `max_bytes` at once, never more than the buffer holds."""
    frames = []
    while data:
        buffer = reader.next_buffer()
        taken = min(len(buffer), len(data), max_bytes)
        assert taken
        buffer[:taken] = data[:taken]
        data = data[taken:]
        frame = reader.received(taken)
        if frame is not None:
            frames.append(frame)
    return frames


# ---- writing ---------------------------------------------------------------------------------


def test_control_frame_is_two_lengths_and_the_message() -> None:
    assert control_frame(b"abc") == b"\0\0\0\x03\0\0\0\0abc"


def test_payload_frame_is_one_msgpack_array_behind_two_lengths() -> None:
    frame = payload_frame_head(HEADER, 3) + b"abc"
    frame_bytes, header_bytes = struct.unpack(">II", frame[:8])
    assert frame_bytes == len(frame) - 8
    assert header_bytes == len(HEADER)
    assert frame[9 : 9 + header_bytes] == HEADER
    assert msgpack.unpackb(frame[8:]) == [{"n": 1}, b"abc"]


def test_control_message_at_the_limit_can_be_sent() -> None:
    assert len(control_frame(bytes(MAX_CONTROL_BYTES))) == 8 + MAX_CONTROL_BYTES


def test_control_message_above_the_limit_is_not_sent() -> None:
    with pytest.raises(
        FramingError, match=f"{MAX_CONTROL_BYTES + 1} .* limit of {MAX_CONTROL_BYTES}"
    ):
        control_frame(bytes(MAX_CONTROL_BYTES + 1))


def test_header_above_the_limit_is_not_sent() -> None:
    with pytest.raises(FramingError, match=r"header .* use a smaller batch"):
        payload_frame_head(bytes(MAX_HEADER_BYTES + 1), 0)


def test_payload_above_the_limit_is_not_sent() -> None:
    with pytest.raises(FramingError, match=r"batch of .* use a smaller batch"):
        payload_frame_head(HEADER, MAX_PAYLOAD_BYTES + 1)


def test_largest_payload_frame_fits_its_length_field() -> None:
    head = payload_frame_head(bytes(MAX_HEADER_BYTES), MAX_PAYLOAD_BYTES)
    assert struct.unpack(">I", head[:4]) == (LARGEST_U32,)


# ---- reading ---------------------------------------------------------------------------------


@given(
    messages=st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    payload=st.binary(max_size=200),
    max_bytes=st.integers(1, 300),
)
def test_what_is_written_is_read_whatever_the_size_of_the_pieces(
    messages: list[bytes], payload: bytes, max_bytes: int
) -> None:
    data = b"".join(map(control_frame, messages))
    data += payload_frame_head(HEADER, len(payload)) + payload
    data += control_frame(b"last")
    *controls, batch, last = receive(FrameReader(1000), data, max_bytes)
    assert controls == [ControlFrame(message) for message in messages]
    assert batch == PayloadFrame(HEADER, memoryview(payload))
    assert last == ControlFrame(b"last")


def test_buffer_never_reaches_past_the_frame() -> None:
    data = raw_frame(HEADER, b"abc")
    reader = FrameReader(1000)
    done = 0
    while done < len(data):
        buffer = reader.next_buffer()
        assert 0 < len(buffer) <= len(data) - done
        buffer[:1] = data[done : done + 1]
        reader.received(1)
        done += 1
    assert reader.is_idle


def test_payload_lies_in_the_buffer_that_was_allocated_for_it() -> None:
    spy = Spy()
    (frame,) = receive(FrameReader(1000, spy), raw_frame(HEADER, b"abc"))
    assert isinstance(frame, PayloadFrame)
    assert frame.payload.obj is spy.buffers[0]
    assert spy.buffers == [b"abc"]


def test_payload_is_received_right_into_the_allocated_buffer() -> None:
    spy = Spy()
    reader = FrameReader(1000, spy)
    receive(reader, raw_frame(HEADER, b"abc")[:-3])
    assert reader.next_buffer().obj is spy.buffers[0]


def test_allocated_buffer_may_be_larger_than_the_payload() -> None:
    room = bytearray(64)
    reader = FrameReader(1000, lambda size: memoryview(room))
    (frame,) = receive(reader, raw_frame(HEADER, b"abc"))
    assert frame == PayloadFrame(HEADER, memoryview(b"abc"))


def test_frame_keeps_its_bytes_when_the_next_one_comes() -> None:
    reader = FrameReader(1000)
    first, second = receive(reader, raw_frame(HEADER, b"abc") + raw_frame(HEADER, b"xyz"))
    assert first == PayloadFrame(HEADER, memoryview(b"abc"))
    assert second == PayloadFrame(HEADER, memoryview(b"xyz"))


def test_empty_payload_is_complete_with_its_header() -> None:
    spy = Spy()
    assert receive(FrameReader(1000, spy), raw_frame(HEADER, b"") + raw_frame(b"x")) == [
        PayloadFrame(HEADER, memoryview(b"")),
        ControlFrame(b"x"),
    ]


def test_reader_is_idle_only_between_frames() -> None:
    for data in (raw_frame(b"abc"), raw_frame(HEADER, b"abc")):
        reader = FrameReader(1000)
        assert reader.is_idle
        for position in range(len(data) - 1):
            receive(reader, data[position : position + 1])
            assert not reader.is_idle
        receive(reader, data[-1:])
        assert reader.is_idle


# ---- refusing --------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", REFUSED_PREFIXES.values(), ids=REFUSED_PREFIXES)
def test_impossible_lengths_are_refused_from_the_prefix_without_memory_for_them(
    lengths: tuple[int, int],
) -> None:
    spy = Spy()
    reader = FrameReader(MAX_PAYLOAD_BYTES, spy)
    prefix = struct.pack(">II", *lengths)
    tracemalloc.start()
    try:
        with pytest.raises(FramingError):
            receive(reader, prefix)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 10
    assert spy.buffers == []


@pytest.mark.parametrize("header_bytes", [1, 1000, MAX_HEADER_BYTES, LARGEST_U32])
def test_payload_frame_is_refused_from_the_prefix_where_none_is_allowed(header_bytes: int) -> None:
    spy = Spy()
    with pytest.raises(FramingError, match="only control messages"):
        receive(FrameReader(0, spy), struct.pack(">II", LARGEST_U32, header_bytes))
    assert spy.buffers == []


def test_payload_above_the_limit_of_the_reader_is_refused() -> None:
    spy = Spy()
    assert len(receive(FrameReader(3, spy), raw_frame(HEADER, b"abc"))) == 1
    with pytest.raises(FramingError, match=r"payload of 4 bytes is outside 0\.\.3"):
        receive(FrameReader(3, spy), raw_frame(HEADER, b"abcd")[:8])
    assert len(spy.buffers) == 1


def test_control_message_at_the_limit_is_read() -> None:
    (frame,) = receive(FrameReader(0), raw_frame(bytes(MAX_CONTROL_BYTES)))
    assert frame == ControlFrame(bytes(MAX_CONTROL_BYTES))


def test_header_at_the_limit_is_read() -> None:
    (frame,) = receive(
        FrameReader(1000), raw_frame(bytes(MAX_HEADER_BYTES), b"abc"), max_bytes=MAX_HEADER_BYTES
    )
    assert isinstance(frame, PayloadFrame)
    assert len(frame.header) == MAX_HEADER_BYTES


def test_payload_at_the_limit_is_asked_memory_for() -> None:
    class AskedError(Exception):
        pass

    def ask(size: int) -> memoryview:
        raise AskedError(size)

    head = payload_frame_head(HEADER, MAX_PAYLOAD_BYTES)
    with pytest.raises(AskedError, match=str(MAX_PAYLOAD_BYTES)):
        receive(FrameReader(MAX_PAYLOAD_BYTES, ask), head)


@pytest.mark.parametrize(
    "position",
    [8, 9 + len(HEADER), 13 + len(HEADER)],
    ids=["array", "bin", "length"],
)
def test_payload_frame_that_is_no_array_of_map_and_bin_is_refused_before_memory_is_asked_for(
    position: int,
) -> None:
    spy = Spy()
    data = bytearray(raw_frame(HEADER, b"abc"))
    data[position] ^= 1
    with pytest.raises(FramingError, match="no msgpack array"):
        receive(FrameReader(1000, spy), bytes(data))
    assert spy.buffers == []
