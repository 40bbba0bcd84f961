"""The targets as those who read meet them: a gate before each, behind a `Breaker`.

A gate is kept for an address, since this is what fails: a target that comes back under another one
begins anew.  Who is not let through waits here, in order of arrival; the first goes as the next
probe, and all go when the target has answered.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from .breaker import Breaker
from .faults import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...errors import SourceError

logger = logging.getLogger(__name__)

MAX_GATES: Final = 4096
"""Addresses of which something is known: beyond, those that give no trouble are forgotten."""

AT_ONCE: Final = 64
"""Exchanges with one node by aiohttp, each with a connection.  The lean wire has bounds of its own
(`lane.py`)."""

_PORTS: Final = {"http": 80, "https": 443}


class Gate:
    """The way to one target.

    Args:
        where: The target, for people.
        clock: Monotonic seconds.
        rng: Draws pauses.
        deadline_s: How long a read is tried.
    """

    def __init__(
        self,
        where: str,
        clock: Callable[[], float],
        rng: random.Random,
        deadline_s: float = inf,
    ) -> None:
        self.where = where
        """The target, for people."""
        self._clock = clock
        self._breaker = Breaker(rng, deadline_s)
        self._waiters: deque[asyncio.Future[None]] = deque()
        # Wakes the first of them when a probe is due.
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""
        # Why it was barred when that was last said in the log; empty once all is calm again.
        self._told_cause = ""
        self.is_confirmed = False
        """Whether a proxy has sent a read here since it was barred: there is no other way."""
        self.places = asyncio.Semaphore(AT_ONCE)
        """One is taken for each exchange by aiohttp, unless that is a probe."""
        self.num_turned_away = 0
        """Reads that were not let through, each time; those that waited for a connection, too."""

    @property
    def is_calm(self) -> bool:
        """Whether all is well: an answer need not be noted."""
        return self._breaker.is_calm

    @property
    def is_barred(self) -> bool:
        """Whether only probes are let through."""
        return not self._breaker.is_closed

    @property
    def num_waiting(self) -> int:
        """Reads that wait."""
        return len(self._waiters)

    def admits(self) -> bool:
        """Decide whether one request may be sent to the target now."""
        if self._breaker.is_closed:
            return True
        is_let_through = self._breaker.admits(self._clock())
        if is_let_through:
            self._arm()
        return is_let_through

    def refusal(self) -> Fault:
        """Return what a read comes to that is not let through."""
        words = f"is not asked now: it failed {self._breaker.num_faults} times in a row"
        return Fault(
            Kind.BARRED, f"{words}, the last time it {self._reason}", self.where, gate=self
        )

    def note(self, outcome: Fault | SourceError | None) -> bool:
        """Take note of what became of a request; return whether that bars the gate.

        Args:
            outcome: None if all is well.  What is wrong with an object alone is an answer.
        """
        breaker = self._breaker
        if isinstance(outcome, Fault) and outcome.kind is Kind.NODE:
            self._reason = outcome.words
            is_tripped = breaker.note_fault(self._clock())
            if is_tripped:
                self._tell_barred()
                self._arm()
            return is_tripped
        if breaker.note_answer():
            self.is_confirmed = False
            logger.info(
                "target asked again target=%s after_s=%.1f",
                self.where,
                self._clock() - breaker.since_s,
            )
            while self._waiters:
                self._wake_first()
        if breaker.is_calm:
            self._told_cause = ""
        return False

    def _tell_barred(self) -> None:
        cause = re.sub(r"\d+", "", self._reason)
        level = logging.DEBUG if cause == self._told_cause else logging.WARNING
        self._told_cause = cause
        logger.log(
            level,
            "target not asked for a while target=%s faults=%d trips=%d: it %s",
            self.where,
            self._breaker.num_faults,
            self._breaker.num_trips,
            self._reason,
        )

    async def wait(self, longest_s: float) -> bool:
        """Wait to be let through; return False if that took too long.

        Cancelled, it leaves nothing behind.

        Args:
            longest_s: How long at most, seconds.
        """
        if not self.is_barred:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._arm()
        try:
            async with asyncio.timeout(longest_s):
                await waiter
        except TimeoutError:
            return False
        else:
            return True
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            self._arm()

    def _arm(self) -> None:
        """See to it that the first is woken when a probe is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters and not self._breaker.is_closed:
            delay_s = max(0.0, self._breaker.probe_s - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake_first)

    def _wake_first(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def report(self) -> dict[str, Any]:
        """Return what ``headrace status --json`` says of a gate that is barred."""
        breaker = self._breaker
        return {
            "target": self.where,
            "state": breaker.state.name.lower(),
            "reason": self._reason,
            "faults": breaker.num_faults,
            "since_s": round(self._clock() - breaker.since_s, 1),
            "waiting": self.num_waiting,
        }

    @property
    def num_trips(self) -> int:
        """How often it was barred."""
        return self._breaker.num_trips

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        return self.is_calm and not self._waiters


class Targets:
    """The gates of a cluster.

    Args:
        clock: Monotonic seconds.
        rng: Draws pauses; they have no influence on any order of samples.
        deadline_s: How long a read is tried.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        deadline_s: float = inf,
    ) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._rng = rng or random.Random()
        # By address, and by whatever was written for it.
        self._gates: dict[str, Gate] = {}
        self._written: dict[str, Gate] = {}

    def gate(self, url: str, where: str = "") -> Gate:
        """Return the gate of an address.

        Args:
            url: It begins with ``http://`` or ``https://``; its path does not matter.
            where: The target, for people; by default its address.
        """
        gate = self._written.get(url)
        if gate is None:
            parts = urlsplit(url)
            address = f"{parts.hostname}:{parts.port or _PORTS.get(parts.scheme, 0)}"
            gate = self._gates.get(address)
            if gate is None:
                self._tidy()
                where = where or f"target {url}"
                gate = Gate(where, self._clock, self._rng, self._deadline_s)
                self._gates[address] = gate
            self._written[url] = gate
        if where:
            gate.where = where
        return gate

    def _tidy(self) -> None:
        if len(self._gates) < MAX_GATES:
            return
        self._gates = {key: gate for key, gate in self._gates.items() if not gate.is_idle}
        self._written = {key: gate for key, gate in self._written.items() if not gate.is_idle}

    @property
    def barred(self) -> list[Gate]:
        """Gates that let probes through only."""
        return [gate for gate in self._gates.values() if gate.is_barred]

    def report(self) -> dict[str, Any]:
        """Return what ``headrace status --json`` says of them."""
        gates = self._gates.values()
        return {
            "breakers": [gate.report() for gate in self.barred],
            "trips": sum(gate.num_trips for gate in gates),
            "turned_away": sum(gate.num_turned_away for gate in gates),
        }
