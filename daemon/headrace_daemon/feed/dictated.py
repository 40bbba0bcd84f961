"""Dictated streams: the client plans, and says batch by batch what is read.

The client draws a window ahead of what it has received, so what waits here is bounded by it; a
client that says more than any would is refused.  How large batches are is seen when they come:
the slots of the feed grow with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from headrace.errors import FeedError, HeadraceError, PlanError
from headrace.plans.cursor import Cursor
from headrace.plans.engine import PlannedBatch
from headrace.protocol import messages as m

from ..assemble.layout import room_of
from .planner import EpochEdge, Finish
from .rooms import Rooms

if TYPE_CHECKING:
    from headrace.plans.engine import Largest

    from .streams import BoundStream

MAX_BATCHES: Final = 1 << 14
"""Batches that a client may have dictated and not been sent."""

MAX_BYTES: Final = 16 << 20
"""Bytes of them."""


class Dictation:
    """What a client has said; kept until a planner takes it, and counted until it was sent."""

    def __init__(self) -> None:
        # As they came over the wire: what a client may nest in them takes far more as objects.
        self._batches: deque[bytes] = deque()
        # Sizes of those that were not sent yet, and their sum.
        self._sizes: deque[int] = deque()
        self.num_bytes = 0
        self._is_last = False
        self._failure: FeedError | None = None
        self._has_more = asyncio.Event()

    def take_in(self, message: m.Indices) -> None:
        """Keep what a message says, up to the limits; nothing after they were passed."""
        if self._failure is not None:
            return
        for batch in message.batches:
            said = msgspec.msgpack.encode(batch)
            self._batches.append(said)
            self._sizes.append(len(said))
            self.num_bytes += len(said)
        self._is_last |= message.is_last
        if len(self._sizes) > MAX_BATCHES or self.num_bytes > MAX_BYTES:
            self._batches.clear()
            self._failure = FeedError(
                f"the client dictates too far ahead: at most {MAX_BATCHES} batches of "
                f"{MAX_BYTES} bytes may wait",
                code="protocol",
                fault="client",
            )
        self._has_more.set()

    async def next(self) -> m.Dictation | None:
        """Return the next batch; waits for it.  None at the end of the stream.

        Raises:
            FeedError: If the client said too much.
        """
        while not self._batches:
            if self._failure is not None:
                raise self._failure
            if self._is_last:
                return None
            self._has_more.clear()
            await self._has_more.wait()
        return msgspec.msgpack.decode(self._batches.popleft(), type=m.Dictation)

    def sent(self) -> None:
        """Take note that the next batch was sent; does nothing for streams of another kind."""
        if self._sizes:
            self.num_bytes -= self._sizes.popleft()


class DictatedPlanner:
    """Makes planned batches of what a client says.

    Args:
        dictation: What it says.
        stream: Whose samples they are.
    """

    def __init__(self, dictation: Dictation, stream: BoundStream) -> None:
        self._dictation = dictation
        self._stream = stream
        self._rooms = Rooms(stream.cursor)

    async def next(self) -> list[PlannedBatch | EpochEdge | Finish]:
        """Return what comes next; waits for the client.

        Raises:
            PlanError: If what it says is no batch of the stream.
        """
        said = await self._dictation.next()
        if said is None:
            return [Finish()]
        batch = self._planned(said)
        if batch.after.epoch != batch.epoch:
            return [batch, EpochEdge(batch.epoch, batch.after)]
        return [batch]

    async def largest(self, after: int) -> Largest:
        """Return the room of the segment after another; waits until there is one."""
        return await self._rooms.largest(after)

    def _planned(self, said: m.Dictation) -> PlannedBatch:
        manifest = self._stream.source_of(said.stream).manifest
        try:
            indices = np.frombuffer(said.ids, dtype="<u8")
            flags = np.frombuffer(said.flags, dtype=np.uint8)
            after = Cursor.from_state(said.cursor)
        except (ValueError, HeadraceError) as error:
            raise PlanError(
                f"step {said.step} cannot be read as it was dictated: {error}"
            ) from None
        if not len(flags):
            flags = np.zeros(len(indices), dtype=np.uint8)
        if len(flags) != len(indices) or bool((indices >= np.uint64(len(manifest))).any()):
            raise PlanError(
                f"step {said.step} was dictated with {len(indices)} indices up to "
                f"{int(indices.max(initial=0))} and {len(flags)} flags: the source has samples "
                f"0..{len(manifest) - 1}"
            )
        num_bytes = int(room_of(manifest.lengths_of(indices)).sum())
        return PlannedBatch(
            epoch=said.epoch,
            step=said.step,
            global_step=said.global_step,
            rank=self._stream.topology.rank,
            world_size=self._stream.topology.world_size,
            indices=indices.astype(np.uint64),
            flags=flags,
            after=after,
            meta=said.meta,
            stream=said.stream,
            role=int(said.role != "main"),
            segment=self._rooms.take_in(num_bytes, said.step),
        )
