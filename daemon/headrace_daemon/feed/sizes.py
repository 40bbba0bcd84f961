"""Sizes of slots: how large the batches of a segment of a stream are.

Finding that means to look at every sample of the segment, so it is done once for all who ask, and
kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import msgspec

from headrace.plans.engine import (
    BoundPlan,
    Largest,
    advance,
    largest_batch,
    remaining_steps,
    settle,
)
from headrace.topology import Topology

from ..assemble.layout import ALIGNMENT, room_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from headrace.manifest import Manifest
    from headrace.plans.cursor import Cursor
    from headrace.plans.order import Indices

    from .streams import BoundStream

_Key = tuple[Topology, tuple[int, ...], bytes]
_Kept = OrderedDict[_Key, asyncio.Future[Largest]]

CLOSE: Final = 1.1
"""Where no sample is larger than the mean by more than this, a batch of the largest samples is
taken for the largest batch: no search is worth the difference."""

MAX_SCAN: Final = 1 << 27
"""Samples of a rank that are searched for its largest batch, some ten seconds; of more, a batch of
the largest samples is taken for it."""

MAX_KEPT: Final = 256
"""Segments of one plan."""


class SlotSizes:
    """Finds the largest batch of segments.

    Args:
        executor: Threads for that.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        # What was found, or is being looked for; as long as the plan is in use.
        self._kept: WeakKeyDictionary[BoundPlan, _Kept] = WeakKeyDictionary()

    async def of_rank(self, stream: BoundStream, cursor: Cursor) -> Largest:
        """Return the largest payload that the rank meets from a cursor to the end of its segment.

        Cancelled, the search goes on for others.
        """
        place = (cursor.epoch, cursor.step, cursor.position, cursor.update, cursor.sample)
        child = msgspec.json.encode(cursor.child, order="sorted")
        key = (stream.topology, place, child)
        kept = self._kept.setdefault(stream.bound, OrderedDict())
        found = kept.get(key)
        if found is None:
            loop = asyncio.get_running_loop()
            found = loop.run_in_executor(self._executor, _largest, stream, cursor)
            found.add_done_callback(lambda done: _forget_failure(kept, key, done))
            kept[key] = found
            while len(kept) > MAX_KEPT:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        try:
            return await asyncio.shield(found)
        finally:
            del found  # or its error would keep this frame, and this frame it

    async def of_any(self, stream: BoundStream, cursor: Cursor) -> int:
        """Return the largest payload that any rank meets, bytes; as `of_rank`, which is for one."""
        largest = 0
        for rank in range(stream.topology.world_size):
            topology = Topology(rank, stream.topology.world_size)
            found = await self.of_rank(stream._replace(topology=topology), cursor)
            largest = max(largest, found.weight)
        return largest


def _forget_failure(kept: _Kept, key: _Key, done: asyncio.Future[Largest]) -> None:
    if done.cancelled() or done.exception() is not None:
        kept.pop(key, None)


def _largest(stream: BoundStream, cursor: Cursor) -> Largest:
    manifests = {name: source.manifest for name, source in stream.sources.items()}
    return largest_payload(stream.bound, cursor, stream.topology, manifests)


def largest_payload(
    bound: BoundPlan, cursor: Cursor, topology: Topology, manifests: Mapping[str, Manifest]
) -> Largest:
    """Return the largest payload that a rank meets from a cursor to the end of its segment.

    Args:
        bound: The plan.
        cursor: Where to begin.
        topology: Which rank of how many.
        manifests: That of the stream under an empty name, those of parts of the plan by theirs.
    """
    main = _weigher(manifests[""])
    if not bound.program.streams:
        return _bounded(bound, cursor, topology, manifests[""]) or largest_batch(
            bound, cursor, topology, main
        )
    weigh = dict.fromkeys(bound.program.streams, main)
    own = {name: _weigher(manifest) for name, manifest in manifests.items() if name}
    return largest_batch(bound, cursor, topology, weigh | own)


def _bounded(
    bound: BoundPlan, cursor: Cursor, topology: Topology, manifest: Manifest
) -> Largest | None:
    """Return an upper bound where it is close, or the order is too long to be looked at."""
    world_size = topology.world_size
    num_samples = bound.program.batch_samples(world_size)
    if num_samples is None:
        return None
    extent = manifest.extent
    # Of several values, each may be rounded up.
    padding = (len(manifest.fields) - 1) * ALIGNMENT
    largest = -(-extent.largest_bytes // ALIGNMENT) * ALIGNMENT + padding
    mean = extent.total_bytes / len(manifest)
    is_long = len(manifest) // world_size > MAX_SCAN
    if largest > CLOSE * mean and not is_long:
        return None
    cursor = settle(bound, cursor, world_size)
    after = advance(bound, cursor, world_size, remaining_steps(bound, cursor, world_size))
    return Largest(num_samples * largest, cursor.epoch, after)


def _weigher(manifest: Manifest) -> Callable[[Indices], Any]:
    return lambda indices: room_of(manifest.lengths_of(indices))
