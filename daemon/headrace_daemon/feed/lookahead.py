"""How many batches a feed reads at a time: as many as the latency at hand asks for.

What a client asks for (`prefetch`) is enough near the store.  Further away the time that a batch
takes is mostly travel, and more of them under way cost the store nothing: rate is batches under way
divided by that time (Little's law).  Once batches wait for each other, their time grows instead of
the rate.  So the number grows while the source is the slower side and a batch takes hardly longer
than the quickest one did, and shrinks when it takes far longer: the rule of TCP Vegas (Brakmo and
Peterson, 1995).

Knows no clock and no loop.  Invariant: never fewer slots than the client asked for, never more than
`MAX_FACTOR` times as many.  They are surplus of the budget like all others, and shed like them.
"""

from __future__ import annotations

from math import inf
from typing import Final

MAX_FACTOR: Final = 8
"""Times as many slots as were asked for, at most: with the defaults and 32 samples in a batch there
are 1,280 samples under way, which is 25,000 a second at 50 ms."""

ROUND: Final = 16
"""Batches between two changes, or as many as there are slots."""

NEAR_S: Final = 0.002
"""Batches that take no longer than this, seconds, need no more slots."""

FREE_RATIO: Final = 1.5
"""Below this many times the shortest time batches hardly wait for each other."""

FULL_RATIO: Final = 4.0
"""Above it they mostly do."""


class Lookahead:
    """The number of slots of one feed.

    Args:
        num_asked: Slots that the client asked for, at least 2.
    """

    def __init__(self, num_asked: int) -> None:
        self._num_asked = num_asked
        self.num_slots = num_asked
        """How many the feed may have."""
        # The shortest time of a batch.  It is never forgotten: once batches wait for each other, no
        # time shows any more how long one takes alone.
        self._shortest_s = inf
        # Of the present round.
        self._num_filled = 0
        self._total_s = 0.0
        self._num_given = 0
        self._num_short = 0

    def note_filled(self, seconds: float) -> None:
        """Take note that a batch was read, in so many seconds."""
        self._num_filled += 1
        self._total_s += seconds
        self._shortest_s = min(self._shortest_s, seconds)

    def note_given(self, *, is_next_ready: bool) -> bool:
        """Take note that a batch was given away; return whether `num_slots` has changed.

        Args:
            is_next_ready: Whether the next one was there.
        """
        self._num_given += 1
        self._num_short += not is_next_ready
        if self._num_given < max(ROUND, self.num_slots) or not self._num_filled:
            return False
        mean_s = self._total_s / self._num_filled
        is_short = 2 * self._num_short >= self._num_given
        before = self.num_slots
        if mean_s > FULL_RATIO * self._shortest_s:
            self.num_slots = max(self._num_asked, before - max(1, before // 8))
        elif is_short and mean_s > NEAR_S and mean_s < FREE_RATIO * self._shortest_s:
            self.num_slots = min(MAX_FACTOR * self._num_asked, 2 * before)
        self._num_filled = self._num_given = self._num_short = 0
        self._total_s = 0.0
        return self.num_slots != before
