"""Frames: how messages become bytes and bytes become frames.

    frame    = u32 length of what follows these 8 bytes | u32 header length H, big endian
    control  = H is 0; one msgpack map, at most `MAX_CONTROL_BYTES`
    payload  = 0x92, header (H bytes, one msgpack map), 0xc6, u32 payload length, payload

A payload frame is one msgpack array of a map and a ``bin 32``: any msgpack library can read it.
Because H stands in front, the receiver knows where the payload begins before it reads on, and can
receive it into one buffer of its own choice.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONTROL_BYTES: Final = 1 << 20
"""Limit of a control message: far above any real one, low enough to hold for every peer."""

MAX_HEADER_BYTES: Final = 32 << 20
"""Limit of a payload frame's header: a batch of 2**18 samples with names of 100 bytes fits."""

MAX_PAYLOAD_BYTES: Final = 2**32 - 1 - MAX_HEADER_BYTES - 6
"""Limit of a payload: frame lengths are u32."""

_PREFIX: Final = struct.Struct(">II")
_ARRAY_2: Final = 0x92  # msgpack fixarray of two
_BIN_32: Final = 0xC6
_U32: Final = struct.Struct(">I")
_AROUND_HEADER: Final = 6  # 0x92 before the header; 0xc6 and u32 after it


class FramingError(Exception):
    """The bytes are no frame, or one above a limit.  Becomes a protocol error one layer up."""


class ControlFrame(NamedTuple):
    """A control message, still encoded."""

    body: bytes


class PayloadFrame(NamedTuple):
    """A header, still encoded, and its payload in the buffer that it was received into."""

    header: bytes
    payload: memoryview


def control_frame(body: bytes) -> bytes:
    """Return a whole control frame.

    Raises:
        FramingError: If the message is above `MAX_CONTROL_BYTES`.
    """
    if len(body) > MAX_CONTROL_BYTES:
        raise FramingError(
            f"control message of {len(body)} bytes is above the limit of {MAX_CONTROL_BYTES}"
        )
    return _PREFIX.pack(len(body), 0) + body


def payload_frame_head(header: bytes, payload_bytes: int) -> bytes:
    """Return all of a payload frame but its payload, which is sent right after.

    Raises:
        FramingError: If header or payload are above their limit.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise FramingError(
            f"batch header of {len(header)} bytes is above the limit of {MAX_HEADER_BYTES}: use "
            "a smaller batch"
        )
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise FramingError(
            f"batch of {payload_bytes} bytes is above the limit of {MAX_PAYLOAD_BYTES}: use a "
            "smaller batch"
        )
    return b"".join(
        (
            _PREFIX.pack(_AROUND_HEADER + len(header) + payload_bytes, len(header)),
            bytes((_ARRAY_2,)),
            header,
            bytes((_BIN_32,)),
            _U32.pack(payload_bytes),
        )
    )


class FrameReader:
    """Turns received bytes into frames, into buffers that fit exactly.

    Use: receive at most ``len(next_buffer())`` bytes into `next_buffer`, then call
    `received` with their number; repeat.  Bytes are copied nowhere else.

    Args:
        max_payload_bytes: Limit of a payload; 0 refuses payload frames.
        allocate: Called with a payload's size, returns the writable buffer for it.
    """

    def __init__(
        self, max_payload_bytes: int, allocate: Callable[[int], memoryview] | None = None
    ) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._allocate = allocate or (lambda size: memoryview(bytearray(size)))
        # The piece that is being received, and how much of it has come.
        self._piece = memoryview(bytearray(_PREFIX.size))
        self._filled = 0
        # What is being received: decides what a full piece means.
        self._on_piece: Callable[[memoryview], ControlFrame | PayloadFrame | None] = self._on_prefix
        self._header_bytes = 0
        self._payload_bytes = 0
        self._header = b""

    @property
    def is_idle(self) -> bool:
        """True between two frames, where an end of the connection loses nothing."""
        return self._on_piece == self._on_prefix and not self._filled

    def next_buffer(self) -> memoryview:
        """Return the writable buffer for the bytes that come next; never empty."""
        return self._piece[self._filled :]

    def received(self, num_bytes: int) -> ControlFrame | PayloadFrame | None:
        """Account for bytes received into `next_buffer`; return a frame if one is complete.

        Raises:
            FramingError: If the bytes are no frame or one above a limit.  The reader is of no
                use after that.
        """
        self._filled += num_bytes
        if self._filled < len(self._piece):
            return None
        frame = self._on_piece(self._piece)
        # An empty payload is complete at once.
        if frame is None and not len(self._piece):
            frame = self._on_piece(self._piece)
        return frame

    def _expect(
        self,
        piece: memoryview,
        on_piece: Callable[[memoryview], ControlFrame | PayloadFrame | None],
    ) -> None:
        self._piece = piece
        self._filled = 0
        self._on_piece = on_piece

    def _expect_prefix(self) -> None:
        self._expect(memoryview(bytearray(_PREFIX.size)), self._on_prefix)

    def _on_prefix(self, piece: memoryview) -> None:
        frame_bytes, header_bytes = _PREFIX.unpack(piece)
        if not header_bytes:
            if not 0 < frame_bytes <= MAX_CONTROL_BYTES:
                raise FramingError(
                    f"control message of {frame_bytes} bytes is outside 1..{MAX_CONTROL_BYTES}"
                )
            self._expect(memoryview(bytearray(frame_bytes)), self._on_control)
            return
        payload_bytes = frame_bytes - header_bytes - _AROUND_HEADER
        if not self._max_payload_bytes:
            raise FramingError("a payload frame, where only control messages are allowed")
        if header_bytes > MAX_HEADER_BYTES:
            raise FramingError(f"header of {header_bytes} bytes is above {MAX_HEADER_BYTES}")
        if not 0 <= payload_bytes <= self._max_payload_bytes:
            raise FramingError(
                f"payload of {payload_bytes} bytes is outside 0..{self._max_payload_bytes}"
            )
        self._header_bytes, self._payload_bytes = header_bytes, payload_bytes
        self._expect(memoryview(bytearray(header_bytes + _AROUND_HEADER)), self._on_header)

    def _on_control(self, piece: memoryview) -> ControlFrame:
        self._expect_prefix()
        return ControlFrame(bytes(piece))

    def _on_header(self, piece: memoryview) -> None:
        end = 1 + self._header_bytes
        (payload_bytes,) = _U32.unpack(piece[end + 1 :])
        if piece[0] != _ARRAY_2 or piece[end] != _BIN_32 or payload_bytes != self._payload_bytes:
            raise FramingError("a payload frame that is no msgpack array of a map and a bin 32")
        self._header = bytes(piece[1:end])
        self._expect(self._allocate(payload_bytes)[:payload_bytes], self._on_payload)

    def _on_payload(self, piece: memoryview) -> PayloadFrame:
        frame = PayloadFrame(self._header, piece)
        self._header = b""
        self._expect_prefix()
        return frame
