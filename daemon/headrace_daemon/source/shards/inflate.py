"""Inflates what is compressed, a bounded piece at a time: compressed bytes in, plain ones out.

Invariant: no call gives, or holds, more than it was asked for, however small the input that becomes
it is.  The end is noticed: what the format has to prove that all came whole is checked.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import ExtraMissingError, ShardCorruptError

if TYPE_CHECKING:
    from typing import NoReturn

_PIECE: Final = 16 << 10
"""Compressed bytes at a time: what is left of them at the end of a frame is copied, and a shard may
consist of frames that are almost empty."""


class Inflater(Protocol):
    """Inflates one shard."""

    @property
    def needs_input(self) -> bool:
        """Whether there is nothing more to read without input."""
        ...

    def feed(self, data: bytes) -> None:
        """Give what follows; only when it is needed: what was given before is held no more."""
        ...

    def read(self, limit: int) -> bytes:
        """Return what is next, `limit` bytes at most; nothing where input is needed.

        Raises:
            ShardCorruptError: If it cannot be inflated.
        """
        ...

    def finish(self) -> None:
        """Say that there is no more input.

        Raises:
            ShardCorruptError: If that is too early.
        """
        ...


class Plain:
    """Gives back what was never compressed."""

    def __init__(self, shard: str) -> None:
        self._data = b""
        self._at = 0

    @property
    def needs_input(self) -> bool:
        """See `Inflater`."""
        return self._at >= len(self._data)

    def feed(self, data: bytes) -> None:
        """See `Inflater`."""
        self._data, self._at = data, 0

    def read(self, limit: int) -> bytes:
        """See `Inflater`."""
        piece = self._data[self._at : self._at + limit]
        self._at += len(piece)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        return piece

    def finish(self) -> None:
        """See `Inflater`: the tar inside says whether it is whole."""


class _Frames:
    """Inflates frames that stand one after the other."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._data = b""
        self._at = 0
        self._seen = 0  # compressed bytes in earlier input
        self._frame: Any = None  # the one that has begun, if it is not over
        self._num_frames = 0
        self._has_more = False  # the frame may give more without input
        self._error: Exception | None = None  # behind what was read last

    @property
    def needs_input(self) -> bool:
        """See `Inflater`."""
        return self._at >= len(self._data) and not self._has_more and self._error is None

    def feed(self, data: bytes) -> None:
        """See `Inflater`."""
        self._data, self._at = data, 0

    def read(self, limit: int) -> bytes:
        """See `Inflater`."""
        if self._error is not None:
            self._fail(f"it cannot be inflated ({self._error})", self._error)
        while not self.needs_input:
            if self._frame is None:
                self._skip_padding()
                if self._at >= len(self._data):
                    break
                self._frame = self._begin()
            piece = b"" if self._has_more else self._data[self._at : self._at + _PIECE]
            try:
                out, unused = self._step(piece, limit)
            except (zlib.error, RuntimeError, ValueError) as error:
                self._fail(f"it cannot be inflated ({error})", error)
            self._pass(len(piece) - unused)
            if out:
                return out
            if not piece:
                self._has_more = False
        return b""

    def finish(self) -> None:
        """See `Inflater`."""
        if self._frame is not None or not self._num_frames:
            self._fail("it ends too early, within compressed data")

    def _pass(self, num_bytes: int) -> None:
        """Go on; input that was used is let go of before more is read."""
        self._at += num_bytes
        if self._at == len(self._data):
            self._seen += self._at
            self._data, self._at = b"", 0

    def _skip_padding(self) -> None:
        """Pass what may stand between two frames."""

    def _begin(self) -> Any:  # noqa: ANN401 - of packages without types
        raise NotImplementedError

    def _step(self, piece: bytes, limit: int) -> tuple[bytes, int]:
        """Return what a piece becomes, and how much of the piece was not used."""
        raise NotImplementedError

    def _end_frame(self) -> None:
        self._frame, self._has_more = None, False
        self._num_frames += 1

    def _fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        raise ShardCorruptError(
            self._shard,
            f"{message}: the shard is damaged, so store it again",
            offset=self._seen + self._at,
        ) from cause


class Gzip(_Frames):
    """Inflates gzip (RFC 1952); zlib checks size and CRC of each member."""

    def _skip_padding(self) -> None:
        # Tapes are filled up with zeros, so they may follow a member.
        while self._num_frames and self._data[self._at : self._at + 1] == b"\0":
            piece = self._data[self._at : self._at + _PIECE]
            self._pass(len(piece) - len(piece.lstrip(b"\0")))

    def _begin(self) -> Any:  # noqa: ANN401
        return zlib.decompressobj(16 + zlib.MAX_WBITS)

    def _step(self, piece: bytes, limit: int) -> tuple[bytes, int]:
        frame, before = self._frame, self._frame.copy()
        try:
            out = frame.decompress(piece, limit)
        except zlib.error as error:
            out = _up_to_error(before, piece, limit)
            if not out:
                raise
            self._error = error
            return out, 0
        if frame.eof:
            self._end_frame()
            return out, len(frame.unused_data)
        # What zlib may hold back comes with the input that is left, at least with the checksum.
        return out, len(frame.unconsumed_tail)


def _up_to_error(frame: Any, piece: bytes, limit: int) -> bytes:  # noqa: ANN401
    """Return what stands before an error: zlib gives nothing of a piece that it stumbles over."""
    out = bytearray()
    for at in range(len(piece)):
        try:
            out += frame.decompress(piece[at : at + 1])
        except zlib.error:
            break
        if len(out) >= limit:
            break
    return bytes(out[:limit])


class Lz4(_Frames):
    """Inflates frames of LZ4, by the package of that name.

    It gives nothing of a piece (16 KiB, compressed) that it stumbles over.

    Raises:
        ExtraMissingError: If it is not installed.
    """

    def __init__(self, shard: str) -> None:
        super().__init__(shard)
        try:
            import lz4.frame
        except ImportError as error:
            raise ExtraMissingError(
                shard,
                f"shard {shard} is compressed by lz4, and the package that reads it is not "
                "installed: run pip install 'headrace[lz4]' where the daemon runs",
            ) from error
        self._decompressor = lz4.frame.LZ4FrameDecompressor

    def _begin(self) -> Any:  # noqa: ANN401
        return self._decompressor()

    def _step(self, piece: bytes, limit: int) -> tuple[bytes, int]:
        frame = self._frame
        out = frame.decompress(piece, limit)
        if frame.eof:
            unused = len(frame.unused_data or b"")
            self._end_frame()
            return out, unused
        self._has_more = not frame.needs_input
        return out, 0
