"""The fetcher: reads of all feeds of the node, in groups, a bounded number of them at a time.

A group ends with its slowest read.  Where a source has several nodes, a slow one of them would come
to hold up all groups, and with them the reads of feeds that never ask it.  So the reader of such a
source bounds what it has under way at each node (`Reader.paces_itself`), and its groups take no
place here: what waits there is in slots, and these are bounded.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from ..source.roots import Roots
from ..source.together import run_together
from .inflight import Inflight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from ..source.reader import Reader, Request

GROUP_REQUESTS = 32
"""Reads that travel to a reader together: spreads the cost of a task (some 50 µs) over them."""

GROUP_BYTES = 4 << 20
"""Bytes at which a group is full all the same, so that large objects are read side by side."""

_FREE: Final[AbstractAsyncContextManager[None]] = nullcontext()
"""The place of those who take none."""


class Fetcher:
    """Reads batches in groups; groups of the batch that was asked for first go first.

    Args:
        max_in_flight: Groups under way at a time, of readers that do not pace themselves.
    """

    def __init__(self, max_in_flight: int) -> None:
        self._places = asyncio.Semaphore(max_in_flight)
        self.inflight = Inflight()
        """Reads that are under way, shared by all who want the same."""

    async def fetch(self, reader: Reader | Roots, requests: Sequence[Request]) -> None:
        """Fill the targets and places of all requests.

        When the call is over, in whatever way, nothing writes into a target any more.

        Raises:
            SourceError: The first that a group met; the others are cancelled.
        """
        divided = reader.divide(requests) if isinstance(reader, Roots) else [(reader, requests)]
        groups = [(own, group) for own, some in divided for group in _groups(some)]
        if len(groups) == 1:
            await self._read(*groups[0])
        else:
            await run_together((self._read(*group) for group in groups), name="read group")

    async def _read(self, reader: Reader, group: Sequence[Request]) -> None:
        places = _FREE if reader.paces_itself else self._places
        await self.inflight.read(reader, group, places)


def _groups(requests: Sequence[Request]) -> list[Sequence[Request]]:
    groups: list[Sequence[Request]] = []
    start = num_bytes = 0
    for end, request in enumerate(requests, start=1):
        num_bytes += request.num_bytes
        if end - start == GROUP_REQUESTS or num_bytes >= GROUP_BYTES or end == len(requests):
            groups.append(requests[start:end])
            start, num_bytes = end, 0
    return groups
