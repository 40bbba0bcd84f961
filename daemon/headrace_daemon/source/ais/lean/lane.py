"""A lane: one target, the connections to it, and the requests that wait for one.

What is asked goes to connections that are idle, a few requests to each, then to new ones, and then,
when there are as many as there may be, behind the requests that these have already.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .... import __version__
from ..client import CONNECT_S
from ..faults import Fault, Kind
from .connection import Connection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..clustermap import Node
    from ..counts import NodeCounts
    from .exchanges import Exchange, Outcome
    from .wire import LeanWire

MAX_CONNECTIONS: Final = 16
"""To one target."""

DEPTH: Final = 8
"""Requests that wait for their answers on one connection."""

SHARE: Final = 4
"""Requests that an idle connection is given at once while others could take the rest."""

PIPELINED_BYTES: Final = 256 << 10
"""Of bodies that are due on one connection, unless it is a single one: what stands behind them has
to wait for them."""


class Lane:
    """The way to one target.

    Args:
        owner: The target; its address is ``http://…``.
        wire: Whose lane it is.
        counts: Of the target.
    """

    def __init__(self, owner: Node, wire: LeanWire, counts: NodeCounts) -> None:
        self.owner = owner
        self._wire = wire
        self._counts = counts
        self._gate = wire.targets.gate(owner.url, str(owner))
        self.patience_s = wire.stall_s
        """How long the target may send nothing that is due."""
        self.deadline_s = wire.deadline_s
        """How long one answer may take."""
        parts = urlsplit(owner.url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._lead = f"GET {parts.path}"  # as a rule the path is empty
        self._tail = (
            f" HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: headrace/{__version__}\r\n"
            "Accept-Encoding: identity\r\n"
        )
        # Submitted and not sent.
        self._waiting: deque[Exchange] = deque()
        self._connections: list[Connection] = []
        self._opening: set[Connection] = set()
        # Ended ones that are not lost yet.
        self._ending: set[Connection] = set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""
        return not (self._waiting or self._connections or self._opening or self._ending)

    # ---- requests --------------------------------------------------------------------------------

    def submit(self, exchanges: Iterable[Exchange]) -> None:
        """Ask for something."""
        self._waiting.extend(exchanges)
        self._spread()

    def feed(self, connection: Connection) -> None:
        """Give a connection something to do if it has little."""
        if self._waiting and 2 * len(connection) <= DEPTH:
            self._give(connection, DEPTH)

    def forget(self) -> None:
        """Let go of requests that nobody waits for any more."""
        self._waiting = deque(one for one in self._waiting if not one.is_over)

    def _spread(self) -> None:
        """Bring what waits on its way."""
        for connection in self._connections:
            if not self._waiting:
                return
            if not len(connection):
                self._give(connection, SHARE)
        if not self._waiting:
            return
        num_places = len(self._waiting)
        if self._waiting[0].due_bytes <= PIPELINED_BYTES // SHARE:
            num_places = -(-num_places // SHARE)
        num_wanted = num_places - len(self._opening)
        num_allowed = MAX_CONNECTIONS - len(self._connections) - len(self._opening)
        for _ in range(min(num_wanted, num_allowed)):
            self._open()
        if num_wanted > num_allowed:
            for connection in self._connections:
                self.feed(connection)

    def _give(self, connection: Connection, depth: int) -> None:
        """Send as many requests as a connection may have."""
        waiting = self._waiting
        exchanges: list[Exchange] = []
        texts: list[str] = []
        num_more = depth - len(connection)
        num_bytes = connection.due_bytes
        is_idle = not len(connection)
        while waiting and len(exchanges) < num_more:
            exchange = waiting[0]
            if exchange.is_over:
                waiting.popleft()
                continue
            num_bytes += exchange.due_bytes
            if num_bytes > PIPELINED_BYTES and not (is_idle and not exchanges):
                break
            exchanges.append(waiting.popleft())
            asked = exchange.transfer.range
            texts.append(
                f"{self._lead}{exchange.path}{self._tail}Range: {asked}\r\n\r\n"
                if asked
                else f"{self._lead}{exchange.path}{self._tail}\r\n"
            )
        if exchanges:
            connection.send(exchanges, "".join(texts).encode("ascii"))

    def note_read(self, exchange: Exchange, now_s: float) -> None:
        """Count an object, or a range of one, that arrived."""
        if not self._gate.is_calm:
            self._gate.note(None)
        counts, transfer = self._counts, exchange.transfer
        counts.num_reads += transfer.num_reads
        counts.num_ranges += transfer.num_ranges
        counts.num_lean += transfer.num_reads
        counts.num_bytes += transfer.size
        counts.total_s += now_s - exchange.started_s

    def note_answer(self, outcome: Outcome) -> None:
        """Take note of an answer that brought no object, or of a connection that broke."""
        if self._gate.note(outcome):
            self._fail_waiting(self._gate.refusal())

    # ---- connections -----------------------------------------------------------------------------

    def _open(self) -> None:
        connection = Connection(self, self._wire.scratch, self._wire.heads)
        self._opening.add(connection)
        self._wire.start(self._connect(connection), name=f"connect {self.owner.id}")

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: connection, self._host, self._port)
        except TimeoutError:
            self._unreached(connection, "did not accept a connection in time")
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error)
            self._unreached(connection, f"cannot be reached ({words})")
        finally:
            self._opening.discard(connection)
            self._wire.drop(self)

    def _unreached(self, connection: Connection, words: str) -> None:
        self._opening.discard(connection)
        fault = Fault(Kind.NODE, words, str(self.owner))
        self.note_answer(fault)
        if not self._connections and not self._opening:
            self._fail_waiting(fault)

    def _fail_waiting(self, outcome: Outcome) -> None:
        waiting, self._waiting = self._waiting, deque()
        for exchange in waiting:
            if not exchange.is_over:
                exchange.fail(outcome)

    def take_in(self, connection: Connection) -> None:
        """Use a connection that is there now."""
        self._opening.discard(connection)
        if connection.is_ended:  # while it came
            return
        self._connections.append(connection)
        self._spread()

    def take_back(
        self,
        connection: Connection,
        sent: Sequence[Exchange],
        outcome: Outcome | None,
        *,
        for_all: bool,
    ) -> None:
        """Use a connection no more; ask for what it has not answered again.

        Args:
            connection: It has ended.
            sent: What it has not answered.
            outcome: What the first of it comes to, if that is known.
            for_all: That all of it comes to that.
        """
        if connection in self._connections:
            self._connections.remove(connection)
            self._ending.add(connection)
        unanswered = [exchange for exchange in sent if not exchange.is_over]
        if outcome is not None and sent and not sent[0].is_over:
            failed, unanswered = (unanswered, []) if for_all else (unanswered[:1], unanswered[1:])
            for exchange in failed:
                exchange.fail(outcome)
        for exchange in sent:
            exchange.connection = None
        for exchange in unanswered:
            exchange.due_bytes = exchange.transfer.size - exchange.transfer.done
        self._waiting.extendleft(reversed(unanswered))
        if outcome is not None and sent:
            self.note_answer(outcome)
            if self._gate.is_barred:  # what stands behind a probe that failed must wait as well
                self._fail_waiting(self._gate.refusal())
        if self._waiting:
            self._spread()

    def let_go(self, connection: Connection) -> None:
        """Forget a connection that is lost."""
        self._ending.discard(connection)
        self._wire.drop(self)

    def close(self, outcome: Outcome) -> None:
        """End everything."""
        self._fail_waiting(outcome)
        for connection in list(self._connections):
            connection.end(outcome, for_all=True)
