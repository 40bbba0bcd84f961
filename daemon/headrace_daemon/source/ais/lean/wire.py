"""The lean wire of a store: a lane for each target, and reads that wait for their rounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from ...together import Tasks
from ..faults import Fault, Kind
from .connection import Scratch
from .heads import Heads
from .lane import Lane

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from types import TracebackType

    from ..clustermap import Node
    from ..counts import Counts
    from ..targets import Targets
    from .exchanges import Exchange

SCHEME: Final = "http://"


class LeanWire:
    """Connections to the targets of a cluster; a context manager.

    Args:
        counts: Where reads are counted.
        targets: Who may be asked; the caller has seen to it that what is submitted may be sent.
        stall_s: How long a target may send nothing that is due, seconds.
        deadline_s: How long one answer may take, seconds.
    """

    def __init__(
        self, counts: Counts, targets: Targets, *, stall_s: float, deadline_s: float
    ) -> None:
        self._counts = counts
        self.targets = targets
        self.stall_s = stall_s
        self.deadline_s = deadline_s
        self.scratch = Scratch()
        self.heads = Heads()
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._connecting = Tasks("the store")
        # Set when no lane is left.
        self._is_clear = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._connecting.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for lane in list(self._lanes.values()):
            lane.close(Fault(Kind.FINAL, "is not read any more: the store is closed", "headrace"))
            self.drop(lane)
        try:
            await self._connecting.__aexit__(kind, error, traceback)
        finally:
            while self._lanes:
                self._is_clear.clear()
                await self._is_clear.wait()

    @staticmethod
    def reaches(owner: Node) -> bool:
        """Tell whether a target can be asked this way."""
        return owner.url.startswith(SCHEME) and owner.url.isascii()

    @property
    def is_idle(self) -> bool:
        """Whether there is no connection, and nothing waits for one."""
        return not self._lanes

    def start(self, job: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run a job of a lane."""
        self._connecting.start(job, name=name)

    def submit(self, exchanges: Sequence[Exchange]) -> None:
        """Ask for something; the rounds of the exchanges are told how they end."""
        by_owner: dict[Node, list[Exchange]] = {}
        for exchange in exchanges:
            by_owner.setdefault(exchange.owner, []).append(exchange)
        for owner, part in by_owner.items():
            self._lane(owner).submit(part)

    def withdraw(self, exchanges: Sequence[Exchange]) -> None:
        """Take back what has not ended: from now on nothing is written into its memory."""
        is_any = False
        for exchange in exchanges:
            if not exchange.is_over:
                exchange.is_over = is_any = True
        if not is_any:
            return
        for exchange in exchanges:
            if exchange.connection is not None:
                exchange.connection.end()
        for lane in list(self._lanes.values()):
            lane.forget()
            self.drop(lane)

    def drop(self, lane: Lane) -> None:
        """Forget a lane if nothing is left of it."""
        key = (lane.owner.id, lane.owner.url)
        if lane.is_empty and self._lanes.get(key) is lane:
            del self._lanes[key]
            if not self._lanes:
                self._is_clear.set()

    def _lane(self, owner: Node) -> Lane:
        key = (owner.id, owner.url)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(owner, self, self._counts.of(owner))
        return lane
