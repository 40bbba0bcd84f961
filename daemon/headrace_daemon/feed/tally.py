"""The tally of a run: what all its feeds on this node have left out, and where that ends them.

The ranks of a run meet different samples.  If each counted its own, one would end where the others
go on, and they would notice in a collective.  So the feeds of a run count together, as their reads
end, which is ahead of delivery, and all stop in front of the same step: the one in which the limit
is passed, or, where that is noticed late, the first that none of them has given away.

Invariant: no feed gives a batch at `end` or behind it, and `end` never lies before a batch that a
feed has given.  Knows no clock and no loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.errors import FeedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from headrace.sources import Skip

    from ..errors import ObjectError

Place = tuple[int, int]
"""Epoch and step: the same for all ranks."""

MAX_TOLD: Final = 5
"""Samples that the error names."""


class Tally:
    """What was left out, by all feeds of a run or by one that stands alone.

    Args:
        skip: The policy, which all of them have.
    """

    def __init__(self, skip: Skip) -> None:
        self._skip = skip
        self._feeds: list[Callable[[], None]] = []
        # What was left out before, by era: a stretch of the run that begins with nothing.
        self._known: dict[int, set[int]] = {}
        # Where each other sample is met first, and what is wrong with it; likewise.
        self._found: dict[int, dict[int, tuple[Place, str]]] = {}
        # Behind the last batch that was given.
        self._given: Place = (0, 0)
        self._failure = ""
        self.end: Place | None = None
        """The first place that no feed gives; None while the limit holds."""

    def _era(self, epoch: int) -> int:
        return epoch if self._skip.repair else 0

    # ---- feeds -----------------------------------------------------------------------------------

    def join(self, on_end: Callable[[], None], epoch: int, skips: Iterable[int]) -> None:
        """Take in a feed.

        Args:
            on_end: Called when `end` has changed.
            epoch: Where it begins.
            skips: What its cursor says was left out before.
        """
        self._feeds.append(on_end)
        era = self._era(epoch)
        self._known.setdefault(era, set()).update(skips)
        self._judge(era)

    def leave(self, on_end: Callable[[], None]) -> bool:
        """Let go of a feed; return whether it was the last one."""
        self._feeds.remove(on_end)
        return not self._feeds

    def give(self, place: Place) -> None:
        """Take note that a feed gives a batch away."""
        self._given = max(self._given, (place[0], place[1] + 1))
        for era in [era for era in self._found if era < self._era(place[0]) - 1]:
            self._known.pop(era, None)
            del self._found[era]  # no feed can be so far behind

    def ends(self, place: Place) -> bool:
        """Return whether a feed gives nothing at a place any more."""
        return self.end is not None and place >= self.end

    # ---- samples ---------------------------------------------------------------------------------

    def note(self, sample: int, error: ObjectError, place: Place) -> None:
        """Take note that a sample cannot be read.

        Args:
            sample: Its number among those of all sources.
            error: Why.
            place: Where it is due.
        """
        era = self._era(place[0])
        if sample in self._known.get(era, ()):
            return
        found = self._found.setdefault(era, {})
        if sample not in found or place < found[sample][0]:
            found[sample] = (place, str(error))
            self._judge(era)

    def _judge(self, era: int) -> None:
        """See where the limit is passed, and tell the feeds if that is news."""
        found, known = self._found.get(era, {}), self._known.get(era, set())
        places = sorted(place for sample, (place, _) in found.items() if sample not in known)
        number = max(0, self._skip.limit - len(known))
        if number >= len(places):
            return
        end = max(places[number], self._given)
        if self.end is None or end < self.end:
            self.end = end
            for on_end in list(self._feeds):
                on_end()

    def failure(self) -> FeedError:
        """Return the error that ends each feed: to all of them it says the same."""
        if not self._failure:
            assert self.end is not None
            era = self._era(self.end[0])
            found, known = self._found.get(era, {}), self._known.get(era, set())
            new = sorted((told, name) for name, told in found.items() if name not in known)
            words = [text for (_, text), _ in new]
            more = len(words) - MAX_TOLD
            told = "; ".join(words[:MAX_TOLD]) + (f"; and {more} more" if more > 0 else "")
            self._failure = (
                f"{len(known) + len(words)} samples cannot be read, and on_bad leaves out "
                f"{self._skip.limit} at most, of all ranks on this node together: {told}; restore "
                "them, or raise the limit"
            )
        return FeedError(self._failure, code="source", fault="data")


class Tallies:
    """The tallies of the runs of a daemon, each for as long as it has a feed."""

    def __init__(self) -> None:
        self._tallies: dict[object, Tally] = {}

    def of(self, key: object, skip: Skip) -> Tally:
        """Return the tally of a run; `join` it in the same turn of the loop."""
        return self._tallies.setdefault(key, Tally(skip))

    def forget(self, tally: Tally) -> None:
        """Let go of a tally that no feed has any more."""
        self._tallies = {key: one for key, one in self._tallies.items() if one is not tally}
