"""Tries under one deadline, with pauses that grow and are jittered."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class Retry:
    """A series of tries of one operation.

    Each pause is drawn evenly between a quarter and the whole of a limit that doubles, so that many
    who failed together do not come back together (M. Brooker, "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015).

    Args:
        deadline_s: Seconds from the first try until `pause` gives up.
        spent_s: Seconds that the first try has taken so far.
        sleep: Waits for some seconds.
        clock: Monotonic seconds.
        rng: Draws the pauses; they have no influence on any order of samples.
    """

    __slots__ = ("_clock", "_end", "_limit_s", "_rng", "_sleep", "deadline_s", "num_tries")

    def __init__(
        self,
        deadline_s: float,
        *,
        spent_s: float = 0.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._rng = rng or random.Random()
        self._end = clock() + deadline_s - spent_s
        self._limit_s = FIRST_PAUSE_S
        self.deadline_s = deadline_s
        self.num_tries = 1
        """Tries so far, the one under way included."""

    @property
    def left_s(self) -> float:
        """Seconds to the deadline; not below 0."""
        return max(0.0, self._end - self._clock())

    def again(self) -> bool:
        """Count another try that needs no pause; return False when there is to be none."""
        if not self.left_s:
            return False
        self.num_tries += 1
        return True

    def uncount(self) -> None:
        """Take back a try that was counted and not made."""
        self.num_tries -= 1

    async def pause(self, at_least_s: float = 0.0) -> bool:
        """Wait before the next try; return False when there is to be none.

        Args:
            at_least_s: How long at least, seconds; what is drawn is added to it.
        """
        if not self.left_s:
            return False
        pause_s = self._rng.uniform(self._limit_s / 4, self._limit_s) + at_least_s
        await self._sleep(min(pause_s, self.left_s))
        self._limit_s = min(2 * self._limit_s, LONGEST_PAUSE_S)
        return self.again()

    def explain(self) -> str:
        """Say in words how often it was tried and what the limit was, for a message."""
        times = "once" if self.num_tries == 1 else f"{self.num_tries} times"
        return f"tried {times} within {self.deadline_s:g} s ([store] deadline_s)"
