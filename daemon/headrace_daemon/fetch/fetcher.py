"""The fetcher: a bounded number of reads under way, over all feeds of the node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..source.roots import Roots
from ..source.together import run_together
from .inflight import Inflight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..source.reader import Reader, Request

GROUP_REQUESTS = 32
"""Reads that travel to a reader together: spreads the cost of a task (some 50 µs) over them."""

GROUP_BYTES = 4 << 20
"""Bytes at which a group is full all the same, so that large objects are read side by side."""


class Fetcher:
    """Reads batches in groups; groups of the batch that was asked for first go first.

    Args:
        max_in_flight: Groups under way at a time.
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
        await self.inflight.read(reader, group, self._places)


def _groups(requests: Sequence[Request]) -> list[Sequence[Request]]:
    groups: list[Sequence[Request]] = []
    start = num_bytes = 0
    for end, request in enumerate(requests, start=1):
        num_bytes += request.num_bytes
        if end - start == GROUP_REQUESTS or num_bytes >= GROUP_BYTES or end == len(requests):
            groups.append(requests[start:end])
            start, num_bytes = end, 0
    return groups
