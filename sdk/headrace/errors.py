"""The error tree of the SDK and of the wire.

    HeadraceError
    ├── PlanError                    the plan cannot be built, or is not the one agreed on
    │   ├── NoStepError              the plan makes no step of the data
    │   ├── ManifestMismatchError    the data is not the data that the position was made for
    │   └── CursorError              the position does not fit this plan, or cannot be read
    ├── MemberError                  the members of a shard do not form samples
    ├── TopologyError                rank and world size are unusable or contradict each other
    ├── ProtocolError
    │   ├── LocalProtocolError       we broke the contract: a bug here
    │   ├── RemoteProtocolError      the peer broke it
    │   └── VersionMismatchError     no protocol version in common
    ├── FeedError                    the daemon ended this feed; carries code, fault and cause
    │   └── BudgetError              the daemon's memory cannot hold what the feed needs
    └── DaemonUnavailableError       no daemon at that socket, or it went away for too long

The daemon adds the family of source errors (``headrace_daemon.errors``).  An error says whose
fault it is and whether a retry makes sense by its *class*; ``str(error)`` is one sentence with
the thing, the value, the limit and the next step.
"""

from __future__ import annotations

import copy
from typing import ClassVar


class HeadraceError(Exception):
    """Base of everything that Headrace raises on purpose."""

    code: ClassVar[str] = "internal"
    """Stable word that stands for the class on the wire."""


class PlanError(HeadraceError, ValueError):
    """A plan, a source or a stream is described in a way that cannot be executed."""

    code = "plan"


class NoStepError(PlanError):
    """The plan makes no step at all of the data: it takes nothing of it, or drops it all."""

    code = "steps"


class ManifestMismatchError(PlanError):
    """Two peers, or a cursor and a source, do not talk about the same data."""

    code = "manifest"


class CursorError(PlanError):
    """A cursor cannot be read, is newer than this program, or belongs to another plan."""

    code = "cursor"


class MemberError(HeadraceError, ValueError):
    """Two members of a shard claim the same field of the same sample.

    Attributes:
        member: Name of the second one.
        key: Key of the sample.
        field: The field.
        shard: Name of the shard; empty if it is not known.
    """

    code = "source"

    def __init__(self, member: str, *, key: str, field: str, shard: str = "") -> None:
        where = f"shard {shard!r}" if shard else "the shard"
        super().__init__(
            f"member {member!r} repeats field {field!r} of sample {key!r} in {where}: a sample has "
            "each field once, so rename or remove one of the members"
        )
        self.member = member
        self.key = key
        self.field = field
        self.shard = shard


class TopologyError(HeadraceError, ValueError):
    """Rank and world size are out of range, or two sources of them disagree."""

    code = "topology"


class ProtocolError(HeadraceError):
    """The conversation over the socket left the rules of ``sdk/PROTOCOL.md``."""

    code = "protocol"


class LocalProtocolError(ProtocolError):
    """This side tried to break the protocol: a bug here."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; the connection cannot be used any more."""


class VersionMismatchError(ProtocolError):
    """The peers have no protocol version in common: upgrade the older one."""

    code = "version"


class FeedError(HeadraceError):
    """The daemon ended this feed.

    Attributes:
        code: Stable word for the cause (``"source"``, ``"budget"``, ``"trust"``, …).
        fault: Whose fault it is: ``"client"``, ``"daemon"``, ``"data"`` or ``"source"``.
        retryable: True when the same request may succeed later without any change.
    """

    code = "feed"

    def __init__(
        self, message: str, *, code: str = "feed", fault: str = "daemon", retryable: bool = False
    ) -> None:
        super().__init__(message)
        # An instance may carry a more precise word than its class.
        self.code = code  # type: ignore[misc]
        self.fault = fault
        self.retryable = retryable


class BudgetError(FeedError):
    """The memory budget of the daemon cannot hold the slots that a feed needs."""

    def __init__(
        self, message: str, *, code: str = "budget", fault: str = "client", retryable: bool = True
    ) -> None:
        super().__init__(message, code=code, fault=fault, retryable=retryable)


class DaemonUnavailableError(HeadraceError):
    """No daemon answers at the socket, or it stayed away past the deadline."""

    code = "unavailable"


def without_frames(error: BaseException) -> BaseException:
    """Return an equal error to keep, which holds no frame.

    An error that was raised holds its frames, and they hold whoever keeps it: a cycle, in which
    descriptors and memory would wait for the garbage collector.
    """
    try:
        kept = copy.copy(error)
    except (TypeError, ValueError, AttributeError):
        return error  # of a user's class that cannot be copied
    return kept if type(kept) is type(error) else error
