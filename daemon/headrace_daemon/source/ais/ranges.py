"""The transfer of a range of an object: its bytes go to several places, or nowhere.

Invariant: nothing is written but what belongs to a place, in whatever portions the bytes come.
Each answer must be of exactly the range that was asked for, and of the object of the manifest: its
size, checksum and version come with every range.  The bytes themselves can be held against the
checksum of the object only where the range is all of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from .checksums import begin_digest
from .faults import Fault, Kind
from .transfer import Head, Transfer

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from ...errors import ObjectChangedError
    from ..reader import RangeRequest
    from .checksums import Digest
    from .clustermap import Node

DIRECT_BYTES: Final = 32 << 10
"""A shorter rest of a place is received with what follows it, and copied: a call of its own costs
more than the copy."""

_TOTAL: Final = re.compile(rb"bytes (?:\*|\d{1,19}-\d{1,19})/(\d{1,19})")


class RangeTransfer(Transfer):
    """A range of an object on its way into the places of its request.

    Args:
        bucket: Where the object is, for messages.
        request: What to read, and where to.
    """

    __slots__ = ("_is_whole", "_next", "_places", "_start", "_stop", "_total")

    num_ranges = 1

    def __init__(self, bucket: Bucket, request: RangeRequest) -> None:
        # Not by the base class, whose requests have one target.
        self._bucket = bucket
        self.request = request
        self._start = request.start
        self._stop = request.stop
        self._total = request.object_bytes
        self.size = request.stop - request.start
        self.done = 0
        self._stamp = (b"", b"")
        self._checksum_type = b""
        self._places = request.places
        # The first place that is not known to be full.
        self._next = 0
        self._is_whole = not self._start and self._stop == self._total
        # Of what has arrived, where the whole object is asked for.
        self._digest: Digest | None = None

    @property
    def what(self) -> str:
        """The range, for messages."""
        return f"bytes {self._start}-{self._stop - 1} of {super().what}"

    @property
    def subject(self) -> str:
        """What a clause about the object begins with."""
        return f"{self.what}: it"

    @property
    def range(self) -> str:
        """The value of the header ``Range`` that asks for the rest; empty for a whole object."""
        if self._is_whole and not self.done:
            return ""
        return f"bytes={self._start + self.done}-{self._stop - 1}"

    # ---- bytes -----------------------------------------------------------------------------------

    @property
    def rest(self) -> memoryview | None:
        """The memory to receive the next bytes into, for `advance`; None to `take` them instead."""
        at = self._start + self.done
        places = self._places
        while self._next < len(places):
            start, target = places[self._next]
            offset = at - start
            if offset < 0:
                return None
            num_left = len(target) - offset
            if num_left > 0:
                if num_left < DIRECT_BYTES and at + num_left < self._stop:
                    return None
                return target[offset:]
            self._next += 1
        return None

    def advance(self, num_bytes: int) -> None:
        """Take note of bytes that were received into `rest`."""
        if self._digest is not None:
            start, target = self._places[self._next]
            offset = self._start + self.done - start
            self._digest.update(target[offset : offset + num_bytes])
        self.done += num_bytes

    def take(self, data: memoryview | bytes) -> None:
        """Copy the next bytes to where they belong; not more than are missing."""
        at = self._start + self.done
        end = at + len(data)
        self.done += len(data)
        if self._digest is not None:
            self._digest.update(data)
        places = self._places
        number = self._next
        while number < len(places):
            start, target = places[number]
            stop = start + len(target)
            if at <= start and stop <= end:  # all of it, as a rule
                target[:] = data[start - at : stop - at]
            else:
                first = max(at, start)
                last = min(end, stop)
                if first < last:
                    target[first - start : last - start] = data[first - at : last - at]
                if stop > end:
                    break
            number += 1
        self._next = number

    def forget(self) -> None:
        """Begin again: what has arrived does not count."""
        self.done = self._next = 0
        self._digest = None

    # ---- answers ---------------------------------------------------------------------------------

    def begin(self, head: Head, where: Node | str) -> Fault | None:
        """Take note of the head of an answer; return why its body may not be taken.

        Raises:
            ObjectChangedError: If it is of another object than the manifest says.
        """
        self.compare(head, where)
        stamp = (head.checksum, head.version)
        if self.done and stamp != self._stamp:
            self.forget()
            return Fault(Kind.BUSY, "has another object by now", str(where))
        self._stamp = stamp
        num_left = self.size - self.done
        if self._is_whole and not self.done:
            if head.length is not None and head.length != num_left:
                raise self._resized(head.length, where)
            self._digest = begin_digest(head.checksum_type) if head.checksum else None
            return None
        span = (self._stop - num_left, self._stop - 1, self._total)
        if head.status != 206 or head.content_range != b"bytes %d-%d/%d" % span:
            size = head.length if head.status == 200 else _total(head.content_range)
            if size is not None and size != self._total:
                raise self._resized(size, where)
            told = head.content_range.decode(errors="replace")[:60] or "no range"
            words = f"answered {head.status} with {told} instead of {self.range}"
            return Fault(Kind.WRONG, words, str(where))
        if head.length is not None and head.length != num_left:
            words = f"sends {head.length} bytes instead of {self.range}"
            return Fault(Kind.WRONG, words, str(where))
        return None

    def end(self, where: Node | str) -> Fault | None:
        """Check what has arrived when an answer is over; return what is wrong with it."""
        if self.done < self.size:
            return Fault(Kind.NODE, f"sent {self.done} of {self.size} bytes", str(where))
        if self._digest is not None and self._digest.hexdigest().encode() != self._stamp[0]:
            return self._corrupt(where)
        return None

    def unsatisfiable(self, fault: Fault, content_range: bytes) -> Fault:
        """Return what status 416 comes to: the object is as it was, or says how long it is.

        Raises:
            ObjectChangedError: If it has another size than the manifest says.
        """
        size = _total(content_range)
        if size is not None and size != self._total:
            raise self._resized(size, fault.where)
        return fault._replace(kind=Kind.WRONG)

    def _resized(self, size: int, where: Node | str) -> ObjectChangedError:
        return self._changed(f"has {size} bytes", str(self._total), where)


def _total(content_range: bytes) -> int | None:
    """Return the size of the object by a header ``Content-Range``; None if it does not say it."""
    found = _TOTAL.fullmatch(content_range)
    return None if found is None else int(found[1])
