"""Rooms: how large slots have to be where batches show their size only when they come.

A segment begins with each batch that needs more than the slots have.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from headrace.errors import PlanError
from headrace.plans.engine import Largest
from headrace.protocol.framing import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from headrace.plans.cursor import Cursor

GROWTH: Final = 1.25
"""Slots grow by this at least, so that few batches make them grow."""


class Rooms:
    """The room of slots, by segment.

    Args:
        cursor: Any; stands for the end of each segment, which nobody knows.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._rooms = [0]
        self._has_grown = asyncio.Event()

    def take_in(self, num_bytes: int, step: int) -> int:
        """Return the segment of a batch.

        Raises:
            PlanError: If it is too large to be sent.
        """
        if num_bytes > MAX_PAYLOAD_BYTES:
            raise PlanError(
                f"step {step} has {num_bytes} bytes, above the limit of {MAX_PAYLOAD_BYTES}: "
                "use a smaller batch"
            )
        if num_bytes > self._rooms[-1] or len(self._rooms) == 1:
            self._rooms.append(max(num_bytes, int(self._rooms[-1] * GROWTH)))
            self._has_grown.set()
        return len(self._rooms) - 1

    async def largest(self, after: int) -> Largest:
        """Return the room of the segment after another; waits until there is one."""
        while len(self._rooms) <= after + 1:
            self._has_grown.clear()
            await self._has_grown.wait()
        return Largest(self._rooms[after + 1], after + 1, self._cursor)
