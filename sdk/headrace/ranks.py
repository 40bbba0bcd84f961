"""Comparing ranks: that all processes of a group are about to read the same, from the same place.

Each process publishes a few facts in the store that torch.distributed has for its rendezvous, and
waits for those of the others, up to a deadline.  That is no collective: it needs no device, cannot
get out of step with the collectives of the trainer, and times out without breaking the group.
A process that cannot begin publishes why, so that no other one waits for it.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from . import errors
from .client import Retry
from .conversion import prepare

if TYPE_CHECKING:
    from collections.abc import Iterable


class Facts(msgspec.Struct, frozen=True, kw_only=True, tag="facts"):
    """What one process is about to do."""

    stream: str
    """Name of the stream, or of its source."""

    world_size: int
    plan: str
    """Digest of the plan."""

    manifest: str
    """Digest of the manifest."""

    length: int
    """Samples in the manifest."""

    epoch: int
    step: int
    position: int
    """Where the pass begins."""


class Absence(msgspec.Struct, frozen=True, tag="absence"):
    """That one process does not begin."""

    reason: str


class Meeting(NamedTuple):
    """The processes that compare, and where."""

    store: Any
    """A `Store` of torch.distributed that all of them share."""

    rank: int
    """Global rank of this process."""

    members: tuple[int, ...]
    """Global ranks, this one included."""

    number: int
    """How often they have met before: names in the store are never used twice."""

    @property
    def base(self) -> str:
        """What the names of this meeting in the store begin with."""
        return f"headrace/{'-'.join(map(str, self.members))}/{self.number}"

    @property
    def mine(self) -> str:
        """The name of what this process publishes."""
        return f"{self.base}/{self.rank}"


_counts: Counter[tuple[int, ...]] = Counter()


def meeting(group: Any = None) -> Meeting | None:  # noqa: ANN401 - a ProcessGroup
    """Return the next meeting of a process group, by default of all ranks; None if alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    if group is None:
        members = tuple(range(distributed.get_world_size()))
    else:
        members = tuple(distributed.get_process_group_ranks(group))
    if len(members) < 2:
        return None
    # It has no public name, and has had this one in all versions of torch that we support.
    store = distributed.distributed_c10d._get_default_store()
    number = _counts[members]
    _counts[members] += 1
    return Meeting(store, distributed.get_rank(), members, number)


def compare(meeting: Meeting, facts: Facts, blocks: Iterable[str], *, deadline_s: float) -> None:
    """Wait until all members have published their facts, and refuse differences.

    All members come to the same conclusion.

    Args:
        meeting: Who compares.
        facts: Those of this process.
        blocks: Digests of the blocks of its manifest, to say where two differ.
        deadline_s: How long to wait for the others, seconds.

    Raises:
        FeedError: If one does not begin.
        PlanError: If two have different plans.
        ManifestMismatchError: If two have different data.
        CursorError: If two begin at different places.
        TopologyError: If two count the ranks differently, or one does not come.
    """
    store, members = meeting.store, meeting.members
    store.set(f"{meeting.mine}/blocks", " ".join(blocks))
    store.set(meeting.mine, msgspec.json.encode(facts).decode())
    names = [f"{meeting.base}/{rank}" for rank in members]
    retry = Retry(deadline_s, threading.Event().wait)
    # Not `store.wait`: it cannot be interrupted, and is not quiet about a deadline.
    while not store.check(names):
        if not retry.pause():
            absent = [
                rank for rank, name in zip(members, names, strict=True) if not store.check([name])
            ]
            raise errors.TopologyError(
                f"rank(s) {', '.join(map(str, absent))} did not begin a pass over a DaemonDataset "
                f"within {deadline_s:g} s: all ranks have to, in the same order; for a dataset "
                "that not all ranks read pass topology=, or check_ranks=False"
            )
    found: dict[int, Facts] = {}
    for rank, value in zip(members, _get(store, names), strict=True):
        match msgspec.json.decode(value, type=Facts | Absence):
            case Absence(reason):
                raise errors.FeedError(
                    f"rank {rank} cannot begin its pass: {reason}", code="ranks", fault="client"
                )
            case Facts() as theirs:
                found[rank] = theirs
    first = found[members[0]]
    for rank, theirs in found.items():
        if theirs != first:
            _refuse(meeting, (members[0], first), (rank, theirs))


def stay_away(meeting: Meeting, reason: str) -> None:
    """Tell the other members that this process does not begin, instead of `compare`."""
    meeting.store.set(meeting.mine, msgspec.json.encode(Absence(reason)).decode())


def _get(store: Any, names: list[str]) -> list[bytes]:  # noqa: ANN401 - a Store
    if store.has_extended_api():
        return list(store.multi_get(names))
    return [store.get(name) for name in names]


def _refuse(meeting: Meeting, one: tuple[int, Facts], other: tuple[int, Facts]) -> None:
    (rank, mine), (other_rank, theirs) = one, other
    if mine.plan != theirs.plan:
        raise errors.PlanError(
            f"ranks have different plans: rank {rank} has {mine.plan[:12]}… ({mine.stream}), rank "
            f"{other_rank} has {theirs.plan[:12]}… ({theirs.stream}): give all the same stream"
        )
    if mine.manifest != theirs.manifest:
        raise errors.ManifestMismatchError(
            f"ranks have different data: rank {rank} has manifest {mine.manifest[:12]}… of "
            f"{mine.length} samples, rank {other_rank} has {theirs.manifest[:12]}… of "
            f"{theirs.length} samples{_where(meeting, one, other)}: let the daemons of both "
            "nodes list the same data (headrace index --refresh)"
        )
    if mine.world_size != theirs.world_size:
        raise errors.TopologyError(
            f"ranks count differently: rank {rank} is one of {mine.world_size}, rank {other_rank} "
            f"one of {theirs.world_size}: give all the same process_group= or mesh="
        )
    raise errors.CursorError(
        f"ranks begin at different places: rank {rank} at {_place(mine)}, rank {other_rank} at "
        f"{_place(theirs)}: load the same state on all of them"
    )


def _where(meeting: Meeting, one: tuple[int, Facts], other: tuple[int, Facts]) -> str:
    """Say in which samples two manifests of one length begin to differ."""
    (rank, mine), (other_rank, theirs) = one, other
    if mine.length != theirs.length:
        return ""
    # They were published before the facts.
    names = [f"{meeting.base}/{number}/blocks" for number in (rank, other_rank)]
    first, second = (value.decode().split() for value in _get(meeting.store, names))
    for number, (block, their_block) in enumerate(zip(first, second, strict=False)):
        if block != their_block:
            start = number * mine.length // len(first)
            stop = (number + 1) * mine.length // len(first)
            return f", which differ first in the samples {start} to {max(start, stop - 1)}"
    return ""


def _place(facts: Facts) -> str:
    return f"epoch {facts.epoch} step {facts.step} (sample {facts.position} of its order)"


prepare(Facts | Absence)
