"""The transfer of one object: what has arrived of it, and whether an answer continues it.

Knows no connection, no clock and no loop: whoever has the connection tells it the head of each
answer, lets the bytes into `rest` or hands them over, and asks at the end whether they are right.
What has arrived is kept when a connection breaks; more is taken only from an object with the same
checksum and version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import LIST_ANEW, ObjectChangedError
from .checksums import begin_digest, is_intact
from .faults import Fault, Kind

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from ..reader import ReadRequest, Request
    from .checksums import Digest
    from .clustermap import Node

WARM_BYTES: Final = 256 << 10
"""Objects of this size, and larger ones, are held against their checksum as they arrive: at the end
their first bytes have left the cache of the processor."""


class Head(NamedTuple):
    """What the head of an answer with status 200 or 206 says of an object."""

    status: int
    length: int | None
    """Bytes of the body; None where the answer does not say."""

    checksum_type: bytes
    checksum: bytes
    version: bytes
    content_range: bytes


class Transfer:
    """An object on its way into the memory of its request.

    Args:
        bucket: Where it is, for messages.
        request: What to read, and where to.
    """

    __slots__ = (
        "_bucket",
        "_checksum_type",
        "_digest",
        "_stamp",
        "_target",
        "done",
        "request",
        "size",
    )

    num_reads = 1
    """Reads that are counted when it has arrived."""

    num_ranges = 0
    """Of them, those of ranges."""

    def __init__(self, bucket: Bucket, request: ReadRequest) -> None:
        self._bucket = bucket
        self._target = target = request.target
        self.request: Request = request
        self.size = len(target)
        self.done = 0
        """Bytes that have arrived."""
        # Checksum and version of the object that the bytes in place are of.
        self._stamp = (b"", b"")
        self._checksum_type = b""
        # Of what has arrived; None where the whole is looked at when it is there.
        self._digest: Digest | None = None

    @property
    def what(self) -> str:
        """The object, for messages."""
        return f"object {self._bucket.address(self.request.name)}"

    @property
    def subject(self) -> str:
        """What a clause about the object begins with."""
        return self.what

    @property
    def name(self) -> str:
        """Its name in the bucket."""
        return self.request.name

    def explain_missing(self, fault: Fault) -> str:
        """Say in words that there is no such object, and what to do."""
        return (
            f"{self.subject} is in the manifest but not in the store any more ({fault}): "
            f"{LIST_ANEW}"
        )

    @property
    def range(self) -> str:
        """The value of the header ``Range`` that asks for the rest; empty for the whole."""
        return f"bytes={self.done}-" if self.done else ""

    # ---- bytes -----------------------------------------------------------------------------------

    @property
    def rest(self) -> memoryview | None:
        """The memory to receive the next bytes into, for `advance`; None to `take` them instead."""
        return self._target[self.done :]

    def advance(self, num_bytes: int) -> None:
        """Take note of bytes that were received into `rest`."""
        done = self.done
        self.done = end = done + num_bytes
        if self._digest is not None:
            self._digest.update(self._target[done:end])

    def take(self, data: memoryview | bytes) -> None:
        """Copy the next bytes to where they belong; not more than are missing."""
        done = self.done
        self.done = end = done + len(data)
        self._target[done:end] = data
        if self._digest is not None:
            self._digest.update(data)

    def forget(self) -> None:
        """Begin again: what has arrived does not count."""
        self.done = 0
        self._digest = None

    # ---- answers ---------------------------------------------------------------------------------

    def begin(self, head: Head, where: Node | str) -> Fault | None:
        """Take note of the head of an answer; return why its body may not be taken.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        stamp = (head.checksum, head.version)
        done, size = self.done, self.size
        if done and (
            head.status != 206
            or stamp != self._stamp
            or head.content_range != b"bytes %d-%d/%d" % (done, size - 1, size)
        ):
            self.forget()
            return Fault(Kind.BUSY, "has another object by now", str(where))
        self._stamp = stamp
        self._checksum_type = head.checksum_type
        if head.length is not None and head.length != size - done:
            raise self._changed(f"has {head.length} bytes", f"{size - done}", where)
        self.compare(head, where)
        if not done and head.checksum and size >= WARM_BYTES:
            self._digest = begin_digest(head.checksum_type)
        return None

    def take_over(self, head: Head) -> None:
        """Take note that all bytes are in place, of an object with this head."""
        self._stamp = (head.checksum, head.version)
        self._checksum_type = head.checksum_type
        self._digest = None
        self.done = self.size

    def compare(self, head: Head, where: Node | str) -> None:
        """Compare what an answer says of its object with what the manifest says.

        Raises:
            ObjectChangedError: If it is another object.
        """
        request = self.request
        # A provider may list checksums of another type than the store keeps.
        if request.checksum and len(request.checksum) == len(head.checksum):
            if request.checksum != head.checksum:
                raise self._changed(
                    f"has checksum {_text(head.checksum)} (version {_text(head.version)})",
                    _text(request.checksum),
                    where,
                )
        elif request.version and head.version and request.version != head.version:
            raise self._changed(f"has version {_text(head.version)}", _text(request.version), where)

    def too_many(self, where: Node | str) -> Fault:
        """Forget what has arrived, since more came than there may be; return that as a fault."""
        self.forget()
        return Fault(Kind.NODE, f"sent more than {self.size} bytes", str(where))

    def end(self, where: Node | str) -> Fault | None:
        """Check what has arrived when an answer is over; return what is wrong with it."""
        if self.done < self.size:
            return Fault(Kind.NODE, f"sent {self.done} of {self.size} bytes", str(where))
        checksum = self._stamp[0]
        if self._digest is not None:
            is_right = self._digest.hexdigest().encode() == checksum
        else:
            is_right = is_intact(self._target, self._checksum_type, checksum)
        return None if is_right else self._corrupt(where)

    def unsatisfiable(self, fault: Fault, content_range: bytes) -> Fault:
        """Return what status 416 comes to: the object has become shorter, the whole will tell.

        Args:
            fault: The answer.
            content_range: The header of it, which may say how long the object is.

        Raises:
            ObjectChangedError: If it says that it is another object than that of the manifest.
        """
        self.forget()
        return fault._replace(kind=Kind.BUSY)

    def _corrupt(self, where: Node | str) -> Fault:
        self.forget()
        words = f"sent bytes without the checksum {_text(self._stamp[0])}"
        return Fault(Kind.CORRUPT, words, str(where))

    def _changed(self, is_new: str, was: str, where: Node | str) -> ObjectChangedError:
        return ObjectChangedError(
            self.what,
            f"{self.subject} {is_new} at {where}, the manifest says {was}: it was changed after "
            f"the listing; {LIST_ANEW}",
        )


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
