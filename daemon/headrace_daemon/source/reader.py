"""The one seam through which bytes of samples enter the daemon."""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from ..errors import ObjectError


class ReadRequest(NamedTuple):
    """A whole object and the memory it goes into."""

    name: str
    """Name in the manifest."""

    target: memoryview
    """Writable, exactly as long as the manifest says the object is."""

    checksum: bytes = b""
    """As the manifest has it; empty where unknown."""

    version: bytes = b""
    """Likewise."""

    on_bad: Callable[[ObjectError], None] | None = None
    """Called, possibly from a thread, if this object cannot be read while others can; the target is
    then left as it is.  None: that fails the whole read."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are read."""
        return len(self.target)

    @property
    def identity(self) -> Hashable:
        """What is read: who asks one location for the same is given the same."""
        return (self.name, len(self.target), self.checksum, self.version)

    def copy_from(self, filled: Request) -> None:
        """Fill the target from that of a request with the same identity."""
        assert isinstance(filled, ReadRequest)
        self.target[:] = filled.target

    def part(self, start: int, stop: int) -> RangeRequest:
        """Return the request for a range of the object, with a view of its own."""
        places = [Place(start, self.target[start:stop])]
        size = len(self.target)
        return RangeRequest(self.name, start, stop, size, places, self.checksum, self.version)


class Place(NamedTuple):
    """Where some bytes of an object go."""

    start: int
    """Where they begin in the object."""

    target: memoryview
    """Writable, as long as they are; may be empty."""


_START = attrgetter("start")
_TARGET = attrgetter("target")


class RangeRequest(NamedTuple):
    """A range of an object, and where the values that lie in it go; the rest of it is dropped."""

    name: str
    """Name of the object."""

    start: int
    """Where the range begins, bytes."""

    stop: int
    """Where it ends, ``start < stop <= object_bytes``."""

    object_bytes: int
    """Size of the whole object, as the manifest has it."""

    places: Sequence[Place]
    """Ascending, without overlap, all within the range."""

    checksum: bytes = b""
    """Of the whole object, as the manifest has it; empty where unknown."""

    version: bytes = b""
    """Likewise."""

    on_bad: Callable[[ObjectError], None] | None = None
    """As for `ReadRequest`: the object cannot be read."""

    @property
    def num_bytes(self) -> int:
        """Bytes that are read, those that are dropped included."""
        return self.stop - self.start

    @property
    def identity(self) -> Hashable:
        """What is read, and which of it is kept: what one request drops another may want."""
        # In C: there may be a thousand places.
        starts = tuple(map(_START, self.places))
        lengths = tuple(map(len, map(_TARGET, self.places)))
        return (
            self.name,
            self.start,
            self.stop,
            self.object_bytes,
            starts,
            lengths,
            self.checksum,
            self.version,
        )

    def copy_from(self, filled: Request) -> None:
        """Fill the places from those of a request with the same identity."""
        assert isinstance(filled, RangeRequest)
        for own, other in zip(self.places, filled.places, strict=True):
            own.target[:] = other.target

    def part(self, start: int, stop: int) -> RangeRequest:
        """Return the request for a part of the range, with views of its own.

        Args:
            start: Where it begins in the object, not before the range.
            stop: Where it ends, not behind the range.
        """
        places = []
        for place in self.places:
            first = max(start, place.start)
            last = min(stop, place.start + len(place.target))
            if first < last:
                target = place.target[first - place.start : last - place.start]
                places.append(Place(first, target))
        return self._replace(start=start, stop=stop, places=places)


Request: TypeAlias = ReadRequest | RangeRequest


def leave_out(request: Request, error: ObjectError) -> None:
    """Take note that an object cannot be read, or raise if nobody wants to know.

    Raises:
        ObjectError: The error.
    """
    if request.on_bad is None:
        raise error
    request.on_bad(error)


class Reader(Protocol):
    """Reads objects of one source, whole or ranges of them."""

    @property
    def location(self) -> str:
        """What it reads: equal requests for readers of one location are the same."""
        ...

    @property
    def paces_itself(self) -> bool:
        """Whether it bounds what it has under way, by each place that it reads from.

        Then a slow place does not hold up the others.  If not, the fetcher bounds it as a whole.
        """
        ...

    async def read(self, requests: Sequence[Request]) -> None:
        """Fill the targets and places of all requests.

        Whole objects and ranges may stand side by side.  What is wrong with an object is said of
        each of its ranges that was asked for: other ranges may have been read before it changed.
        When the call is over, also by an error or a cancellation, nothing writes into a target
        any more: the caller may hand the memory to somebody else.

        Raises:
            SourceError: Naming the object that is missing, changed or unreadable.
        """
        ...


def release(requests: Sequence[Request]) -> None:
    """Let go of the memory of some requests."""
    for request in requests:
        if isinstance(request, ReadRequest):
            request.target.release()
        else:
            deque(map(memoryview.release, map(_TARGET, request.places)), maxlen=0)
