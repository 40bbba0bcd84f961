"""Pieces: the ranges of a large object, which are read side by side into their places.

Invariant: all pieces that count are of one object.  Each answer is held against the manifest as
that of a whole object is, and against the answers of the other pieces: checksum, version and size
must be the same.  The checksum of the whole is compared when all are there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .faults import Fault, Kind
from .transfer import Head, Transfer

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from ..reader import ReadRequest
    from .clustermap import Node

LARGE_BYTES: Final = 8 << 20
"""Objects of this size, and larger ones, are read in pieces."""

MIN_BYTES: Final = 2 << 20
"""Of a piece: some milliseconds of a connection."""

MAX_BYTES: Final = 8 << 20
"""Of a piece: what is lost at most when the store sends it again."""

WIDTH: Final = 8
"""Pieces of one object that are asked for at the same time."""

AT_ONCE: Final = 2
"""Objects of one reader that are read in pieces at the same time.  Further ones come as a whole:
there are enough requests under way by then, and pieces would only cost (`bench_pieces`)."""


class Pieces:
    """A large object on its way, in pieces; a context manager that gives its views back.

    Args:
        bucket: Where it is.
        request: What to read, and where to.
    """

    def __init__(self, bucket: Bucket, request: ReadRequest) -> None:
        self._bucket = bucket
        self._request = request
        # Of the object that the pieces are of; None before the first answer.
        self._head: Head | None = None
        self.is_broken = False
        """Whether the answers are not those of one object, or no ranges: it is to be read as a
        whole."""
        size = len(request.target)
        step = max(MIN_BYTES, min(MAX_BYTES, -(-size // WIDTH)))
        self.pieces = [
            Piece(bucket, request, start, min(start + step, size), self)
            for start in range(0, size, step)
        ]

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *details: object) -> None:
        # Nothing is on its way any more; an error may keep the pieces alive for a while.
        for piece in self.pieces:
            piece.request.target.release()

    def agree(self, head: Head) -> bool:
        """Return whether an answer is of the same object as those before it."""
        known = self._head = self._head or head
        return (head.checksum, head.version) == (known.checksum, known.version)

    def whole(self) -> Transfer:
        """Return the transfer of the object as a whole, with all its bytes in place."""
        transfer = Transfer(self._bucket, self._request)
        if self._head is not None:
            transfer.take_over(self._head)
        return transfer


class Piece(Transfer):
    """A range of an object on its way into its place.

    Args:
        bucket: Where the object is.
        request: Of the whole object.
        start: Where the piece begins in it.
        stop: Where it ends.
        pieces: All of them.
    """

    __slots__ = ("_pieces", "_start", "_stop", "_total")

    def __init__(
        self, bucket: Bucket, request: ReadRequest, start: int, stop: int, pieces: Pieces
    ) -> None:
        super().__init__(bucket, request._replace(target=request.target[start:stop]))
        self._start = start
        self._stop = stop
        self._total = len(request.target)
        self._pieces = pieces

    @property
    def num_objects(self) -> int:
        """Objects that are counted when it has arrived: one for all pieces."""
        return int(not self._start)

    @property
    def range(self) -> str:
        """The value of the header ``Range`` that asks for the rest of it."""
        return f"bytes={self._start + self.done}-{self._stop - 1}"

    def begin(self, head: Head, where: Node | str) -> Fault | None:
        """Take note of the head of an answer; return why its body may not be taken.

        Raises:
            ObjectChangedError: If it is of another object than the manifest says.
        """
        self.compare(head, where)
        span = (self._start + self.done, self._stop - 1, self._total)
        if head.status != 206 or head.content_range != b"bytes %d-%d/%d" % span:
            return self._break(f"answered another range than {self.range}", where)
        if not self._pieces.agree(head):
            return self._break("has another object by now", where)
        if head.length is not None and head.length != self.size - self.done:
            return self._break(f"sends {head.length} bytes for {self.range}", where)
        return None

    def end(self, where: Node | str) -> Fault | None:
        """Check what has arrived when an answer is over; return what is wrong with it."""
        if self.done < self.size:
            return Fault(Kind.NODE, f"sent {self.done} of {self.size} bytes", str(where))
        return None

    def unsatisfiable(self, fault: Fault) -> Fault:
        """Return what status 416 comes to: the object has become shorter, the whole will tell."""
        return self._break(fault.words, fault.where)

    def _break(self, words: str, where: Node | str) -> Fault:
        self._pieces.is_broken = True
        return Fault(Kind.FINAL, words, str(where))
