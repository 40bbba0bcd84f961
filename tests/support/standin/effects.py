"""What a fault does to an answer.

An effect edits a reply (wait here, break off there, flip that byte), replaces it, or changes the
cluster just before it is made.  Those of batches are read by `batches`, which knows the members.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .replies import Abort, Do, Headers, Refused, Reply, Wait, error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .cluster import Cluster
    from .nodes import Node
    from .replies import Call, Item, Step

Position: TypeAlias = int | Literal["first", "middle", "last"]
"""A byte of a body, from 0: what comes before it is sent."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A request that meets an effect.

    Args:
        call: The request.
        node: Who answers it.
        cluster: The cluster.
        change: Replaces the bytes of the object that is asked for.
    """

    call: Call
    node: Node
    cluster: Cluster
    change: Callable[[bytes, bool], None]


class Effect:
    """The base of all effects: nothing happens."""

    __slots__ = ()

    def prepare(self, scene: Scene) -> None:
        """Do what has to be done before the answer is made."""

    def replace(self, scene: Scene) -> Reply | None:
        """Return the answer to give instead, or None."""

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""


# --- Time ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delay(Effect):
    """Wait before the first byte of the answer.

    Args:
        seconds: None: for ever.
    """

    seconds: float | None

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        reply.before.append(Wait(self.seconds))


@dataclass(frozen=True, slots=True)
class Stall(Effect):
    """Send a part of the body, then nothing, with the connection open; then go on.

    Args:
        after_bytes: Where.
        seconds: None: it never goes on.
    """

    after_bytes: Position
    seconds: float | None = None

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        _insert(reply, self.after_bytes, Wait(self.seconds))


@dataclass(frozen=True, slots=True)
class Slow(Effect):
    """Send the body at a rate.

    Args:
        bytes_per_s: The rate, at least 1.
    """

    bytes_per_s: float

    def __post_init__(self) -> None:
        if self.bytes_per_s < 1:
            raise ValueError(f"bytes_per_s is {self.bytes_per_s}; it must be at least 1")

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        block_bytes = max(1, int(self.bytes_per_s / 50))
        wait = Wait(block_bytes / self.bytes_per_s)
        slow: list[Item] = []
        for item in reply.items():
            if not isinstance(item, (bytes, memoryview)):
                slow.append(item)
                continue
            for start in range(0, len(item), block_bytes):
                slow += [wait, item[start : start + block_bytes]]
        reply.body = slow


# --- Broken connections -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut(Effect):
    """Close the connection in good order in the middle of a body: a short read.

    Args:
        after_bytes: Where.
    """

    after_bytes: Position

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        _insert(reply, self.after_bytes, Abort())


@dataclass(frozen=True, slots=True)
class Reset(Effect):
    """Reset the connection.

    Args:
        after_bytes: Where in the body; None: before the first byte of the answer.  With
            ``reused=True`` in the match this is the race of a client that uses an idle connection
            while the server drops it.
    """

    after_bytes: Position | None = None

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        if self.after_bytes is None:
            reply.before.append(Abort(reset=True))
        else:
            _insert(reply, self.after_bytes, Abort(reset=True))


@dataclass(frozen=True, slots=True)
class Hangup(Effect):
    """Close the connection in good order without an answer."""

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        reply.before.append(Abort())


@dataclass(frozen=True, slots=True)
class DropIdle(Effect):
    """Answer in full, and then drop the connection, which was to stay open.

    Args:
        reset: By a reset, not in good order.
    """

    reset: bool = False

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        reply.after.append(Abort(self.reset))


@dataclass(frozen=True, slots=True)
class Crash(Effect):
    """The node dies, see `Node.stop`.

    Args:
        after_bytes: Where in the body; None: before the first byte of the answer.
    """

    after_bytes: Position | None = None

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        steps: list[Step] = [Do(scene.node.die), Abort(reset=True)]
        if self.after_bytes is None:
            reply.before += steps
        else:
            _insert(reply, self.after_bytes, *steps)


# --- Wrong answers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status(Effect):
    """Answer with an error.

    Args:
        status: Of HTTP.
        message: For people.
        tcode: AIStore's type of the error.
        is_empty: Without a body, as some 503 of a node that starts or stops.
        retry_after: The header ``Retry-After``, as what stands before a node may send it.
    """

    status: int
    message: str = "scripted"
    tcode: str = ""
    is_empty: bool = False
    retry_after: str = ""

    def replace(self, scene: Scene) -> Reply | None:
        """Return the answer to give instead."""
        if self.is_empty:
            return Reply(self.status)
        headers: Headers = []
        if self.status == 416:
            headers.append(("Content-Range", "bytes */0"))
        if self.retry_after:
            headers.append(("Retry-After", self.retry_after))
        refused = Refused(self.status, self.message, tcode=self.tcode, headers=headers)
        return error(scene.call, scene.node.name, refused)


BUSY = Status(409, "object is busy: a cold GET is in progress", "ErrBusy")
"""Another client's cold GET holds the object."""
DIRECT_DENIED = Status(403, "direct target access denied")
"""The cluster wants every read to come through a proxy; match with ``direct=True``."""
LIST_FAILED = Status(
    400,
    "failed to call t[gone] list-objects: dial tcp 127.0.0.1:9: connect: connection refused",
    "ErrFailedTo",
)
"""A target does not answer the proxy that lists."""
TOO_MANY_REQUESTS = Status(429, "Too Many Requests", "ErrRateLimitFrontend")
"""The proxy's rate limit; for batches at a proxy, the designated target's admission."""
UNAVAILABLE = Status(503, is_empty=True)
"""The node starts or stops."""


@dataclass(frozen=True, slots=True)
class Corrupt(Effect):
    """Flip all bits of one byte of the body; only a checksum shows it.

    Args:
        at_byte: Which.
    """

    at_byte: Position = "middle"

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        offset = _offset(reply, self.at_byte)
        body = reply.items()
        for index, item in enumerate(body):
            if not isinstance(item, (bytes, memoryview)):
                continue
            if offset < len(item):
                flipped = bytearray(item)
                flipped[offset] ^= 0xFF
                body[index] = bytes(flipped)
                return
            offset -= len(item)


@dataclass(frozen=True, slots=True)
class Change(Effect):
    """The object is overwritten just before it is read.

    Args:
        data: What it contains from now on.
        keep_version: With the version that it had.
    """

    data: bytes
    keep_version: bool = False

    def prepare(self, scene: Scene) -> None:
        """Do what has to be done before the answer is made."""
        scene.change(self.data, self.keep_version)


@dataclass(frozen=True, slots=True)
class WrongLength(Effect):
    """Declare another length than that of the body, and keep the connection open.

    Args:
        by: Bytes more, or fewer if negative.
    """

    by: int

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        reply.items()
        assert reply.length is not None
        reply.length = max(0, reply.length + self.by)


@dataclass(frozen=True, slots=True)
class WrongRange(Effect):
    """Send as many bytes from another place of the object, and say so: 206, whatever was asked."""

    def edit(self, scene: Scene, reply: Reply) -> None:
        """Edit the answer."""
        if reply.status not in {200, 206}:
            return
        body = b"".join(item for item in reply.items() if isinstance(item, (bytes, memoryview)))
        reply.body = body[1:] + body[:1]
        said = dict(reply.headers).get("Content-Range", f"bytes 0-{len(body) - 1}/{len(body)}")
        start, last, total = map(int, re.findall(r"\d+", said))
        shifted = ("Content-Range", f"bytes {start + 1}-{last + 1}/{total + 1}")
        others = [header for header in reply.headers if header[0] != "Content-Range"]
        reply.status, reply.headers = 206, [*others, shifted]


@dataclass(frozen=True, slots=True)
class Redirect(Effect):
    """Send the client elsewhere with the same request.

    Args:
        url: The address of a node; empty: that of the node itself, in circles.
        status: Of HTTP.
    """

    url: str = ""
    status: int = 307

    def replace(self, scene: Scene) -> Reply | None:
        """Return the answer to give instead."""
        return Reply(self.status, [("Location", (self.url or scene.node.url) + scene.call.target)])


# --- Batches ------------------------------------------------------------------------------------


class BatchEffect(Effect):
    """An effect on a batch, at its designated target."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ShortBatch(BatchEffect):
    """The archive ends early, is closed properly, and comes with status 200.

    Args:
        after_members: The members that it has.
    """

    after_members: int


@dataclass(frozen=True, slots=True)
class CutBatch(BatchEffect):
    """The connection is closed within the data of a member, or behind its header if it is empty.

    Args:
        after_members: The members that are complete.
    """

    after_members: int


@dataclass(frozen=True, slots=True)
class StallBatch(BatchEffect):
    """Nothing is sent for a while; what comes then is correct.

    Args:
        before_member: The first member that has to wait.
        seconds: None: for ever.
    """

    before_member: int
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WholeMember(BatchEffect):
    """The range of an entry is ignored.

    Args:
        member: Its place in the batch.
    """

    member: int


# --- Positions ----------------------------------------------------------------------------------


def _offset(reply: Reply, position: Position) -> int:
    reply.items()
    length = reply.num_bytes()
    if position == "first":
        return 0
    if position == "middle":
        return length // 2
    if position == "last":
        return max(length - 1, 0)
    return min(position, length)


def _insert(reply: Reply, position: Position, *steps: Step) -> None:
    """Put steps into a body, before the byte at `position`."""
    left = _offset(reply, position)
    before: list[Item] = []
    after: list[Item] = []
    for item in reply.items():
        if after or not isinstance(item, (bytes, memoryview)):
            (after if after else before).append(item)
        elif len(item) <= left:
            before.append(item)
            left -= len(item)
        else:
            before.append(item[:left])
            after.append(item[left:])
    reply.body = [*before, *steps, *after]
