"""Pieces: the parts of a large object, or of a large range, which are read side by side.

Invariant: all pieces that count are of one object.  Each answer is held against the manifest as
that of a whole object is, and against the answers of the other pieces: checksum, version and size
must be the same.  The checksum of a whole object is compared when all of it is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..reader import RangeRequest
from .faults import Fault, Kind
from .ranges import RangeTransfer
from .transfer import Transfer

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from ..reader import Request
    from .clustermap import Node
    from .transfer import Head

LARGE_BYTES: Final = 8 << 20
"""Objects and ranges of this size, and larger ones, are read in pieces."""

MIN_BYTES: Final = 2 << 20
"""Of a piece: some milliseconds of a connection."""

MAX_BYTES: Final = 8 << 20
"""Of a piece: what is lost at most when the store sends it again."""

WIDTH: Final = 8
"""Pieces of one request that are asked for at the same time."""

AT_ONCE: Final = 2
"""Requests of one reader that are read in pieces at the same time.  Further ones come as a whole:
there are enough requests under way by then, and pieces would only cost (`bench_pieces`)."""


def transfer_of(bucket: Bucket, request: Request) -> Transfer:
    """Return the transfer of a request that is read as a whole."""
    if isinstance(request, RangeRequest):
        return RangeTransfer(bucket, request)
    return Transfer(bucket, request)


def is_large(request: Request) -> bool:
    """Tell whether a request is to be read in pieces.

    A range that is all of its object is not: it drops what lies between its places, so the
    checksum can be held only against bytes that come in their order.
    """
    if request.num_bytes < LARGE_BYTES:
        return False
    return not (isinstance(request, RangeRequest) and request.num_bytes == request.object_bytes)


class Pieces:
    """A large object or range on its way, in pieces; a context manager that gives its views back.

    Args:
        bucket: Where the object is.
        request: What to read, and where to.
    """

    def __init__(self, bucket: Bucket, request: Request) -> None:
        self.asked = transfer_of(bucket, request)
        """What is to be read, as a whole."""
        # Of the object that the pieces are of; None before the first answer.
        self._head: Head | None = None
        self.is_broken = False
        """Whether the answers are not those of one object, or no ranges: it is to be read as a
        whole."""
        begin = request.start if isinstance(request, RangeRequest) else 0
        end = begin + request.num_bytes
        step = max(MIN_BYTES, min(MAX_BYTES, -(-request.num_bytes // WIDTH)))
        self.pieces = [
            Piece(bucket, request.part(start, min(start + step, end)), self)
            for start in range(begin, end, step)
        ]
        first = self.pieces[0]
        first.num_reads, first.num_ranges = 1, int(isinstance(request, RangeRequest))

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *details: object) -> None:
        # Nothing is on its way any more; an error may keep the pieces alive for a while.
        for piece in self.pieces:
            piece.release()

    def agree(self, head: Head) -> bool:
        """Return whether an answer is of the same object as those before it."""
        known = self._head = self._head or head
        return (head.checksum, head.version) == (known.checksum, known.version)

    def whole(self) -> Transfer:
        """Return what was asked for, with all its bytes in place."""
        if self._head is not None:
            self.asked.take_over(self._head)
        return self.asked


class Piece(RangeTransfer):
    """A part of a large object or range on its way into its places.

    Args:
        bucket: Where the object is.
        request: For the part, with views of its own.
        pieces: All of them.
    """

    __slots__ = ("_pieces", "num_ranges", "num_reads")

    def __init__(self, bucket: Bucket, request: RangeRequest, pieces: Pieces) -> None:
        super().__init__(bucket, request)
        self._pieces = pieces
        self._is_whole = False  # whatever it is a part of
        # Counted when it has arrived: of all pieces, the first stands for the request.
        self.num_reads = self.num_ranges = 0

    @property
    def what(self) -> str:
        """What it is a part of, for messages: nobody knows of pieces."""
        return self._pieces.asked.what

    @property
    def subject(self) -> str:
        """What a clause about the object begins with."""
        return self._pieces.asked.subject

    def release(self) -> None:
        """Give the views of the memory back."""
        for place in self._places:
            place.target.release()

    def begin(self, head: Head, where: Node | str) -> Fault | None:
        """Take note of the head of an answer; return why its body may not be taken.

        Raises:
            ObjectChangedError: If it is of another object than the manifest says.
        """
        fault = super().begin(head, where)
        if fault is not None:
            return self._break(fault)
        if not self._pieces.agree(head):
            return self._break(Fault(Kind.FINAL, "has another object by now", str(where)))
        return None

    def unsatisfiable(self, fault: Fault, content_range: bytes) -> Fault:
        """Return what status 416 comes to: the object has become shorter, the whole will tell."""
        return self._break(fault)

    def _break(self, fault: Fault) -> Fault:
        self._pieces.is_broken = True
        return fault._replace(kind=Kind.FINAL)
