"""Who reads from the stage: feeds that pass through shards in long runs, most of them on this node.

All others read ranges of what they deliver, which is right, and best, for samples that are shuffled
over all shards, and for one feed in order whose batches are long (`Course.of`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..fetch.seats import Member
from ..fetch.windows import Course

if TYPE_CHECKING:
    from headrace.protocol import messages as m

    from ..fetch.seats import Seat
    from ..fetch.stage import Stage
    from .streams import BoundStream


def take_seat(
    stage: Stage, stream: BoundStream, request: m.Open, last_epoch: int | None
) -> Seat | None:
    """Return the seat of a feed at the stage, or None if that is of no use to it.

    Args:
        stage: That of the node.
        stream: What is read, and from where on.
        request: Says who reads it.
        last_epoch: The last one; None: without end.
    """
    rank, world_size = stream.topology.rank, stream.topology.world_size
    source, bound, cursor = stream.source, stream.bound, stream.cursor
    has_group = bool(request.group)
    ranks, workers = (request.ranks, request.workers) if has_group else (1, request.stride)
    course = Course.of(
        bound,
        source.manifest,
        source.reader,
        world_size,
        is_alone=world_size == 1,
        limit_bytes=stage.window_limit_bytes,
    )
    if course is None:
        return None
    # Ranks that get the same samples read as one.
    is_replicated = bool(getattr(bound.plan, "replicated", False))
    others = 1 if is_replicated else world_size
    # A group says how many of its ranks are here; a rank whose place was given explicitly does not.
    num_ranks = ranks if ranks > 1 else world_size
    member = Member(
        part=(0 if is_replicated else rank, request.first, request.stride),
        share=1 / (others * request.stride),
        declared_share=min(1.0, ranks / others) if has_group else 0.0,
        num_expected=num_ranks * workers,
        start=(cursor.epoch, cursor.position),
        last_epoch=last_epoch,
    )
    # Shares are told apart by rank, so those of another world size are of another audience.
    key = (stream.stream.source.identity, bound.manifest, bound.digest, world_size)
    return stage.join(key, course, member)
