"""Exchanges, each a request and its answer, and rounds of them: what one reader waits for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ....errors import SourceError
    from ..clustermap import Node
    from ..faults import Fault
    from ..transfer import Transfer
    from .connection import Connection

    Outcome = Fault | SourceError


class Exchange:
    """One request to a target and its answer.

    Args:
        transfer: What is asked for.
        path: Of the request, with its query.
        owner: The target.
        round_: Is told how it ends.
    """

    __slots__ = (
        "connection",
        "due_bytes",
        "is_over",
        "is_spared",
        "num_before",
        "owner",
        "path",
        "round",
        "started_s",
        "transfer",
    )

    def __init__(self, transfer: Transfer, path: str, owner: Node, round_: Round) -> None:
        self.transfer = transfer
        self.path = path
        self.owner = owner
        self.round = round_
        self.due_bytes = transfer.size - transfer.done
        """Of the body of a good answer."""
        self.started_s = time.perf_counter()
        """When it was wanted, by ``time.perf_counter``."""
        # None unless it was sent and has not been answered.
        self.connection: Connection | None = None
        self.num_before = 0
        """Answers that its connection had given when it was sent."""
        self.is_spared = False
        """Whether it was asked again already because a kept connection turned out to be closed."""
        self.is_over = False
        """Whether its round knows how it ended, or does not want to know any more."""

    def arrive(self) -> None:
        """Tell the round that the object is in its place."""
        self.is_over = True
        self.connection = None
        self.round.note_arrival()

    def fail(self, outcome: Outcome) -> None:
        """Tell the round that it is not."""
        self.is_over = True
        self.connection = None
        self.round.note_failure(self, outcome)


class Round:
    """What one reader waits for: how some exchanges end.

    It does not hold the exchanges, which hold it.

    Args:
        num_exchanges: How many.
    """

    __slots__ = ("_failures", "_num_open", "_waiters")

    def __init__(self, num_exchanges: int) -> None:
        self._num_open = num_exchanges
        self._failures: deque[tuple[Exchange, Outcome]] = deque()
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def is_over(self) -> bool:
        """Whether every exchange has ended."""
        return not self._num_open

    @property
    def has_failed(self) -> bool:
        """Whether there is a failure that nobody has taken."""
        return bool(self._failures)

    def note_arrival(self) -> None:
        """Count an exchange that ended well."""
        self._num_open -= 1
        if not self._num_open:
            self._wake()

    def note_failure(self, exchange: Exchange, outcome: Outcome) -> None:
        """Keep one that did not for `next_failure`."""
        self._num_open -= 1
        self._failures.append((exchange, outcome))
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until there is a failure, or every exchange has ended."""
        while self._num_open and not self._failures:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def next_failure(self) -> tuple[Exchange, Outcome] | None:
        """Wait for an exchange that failed; return None when there will be none any more."""
        await self.wait()
        return self._failures.popleft() if self._failures else None
