"""The journal of a feed: which samples it has left out because they could not be read.

It grows in the order of delivery, so that the cursor of a batch has what was left out up to there
and nothing that was read ahead.  What is in it is not read again, so a continuation leaves out the
same samples, whatever has become of them.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import FeedError
from headrace.plans.cursor import MAX_SKIPS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headrace.sources import Skip

    from ..errors import ObjectError

SOURCE: Final = 1 << 48
"""Distance between the numbers of the samples of two sources of a stream."""


class Journal:
    """What was left out.

    Args:
        skip: The policy; None: nothing may be left out.
        epoch: The epoch that begins, or goes on.
        skips: What was left out before.
    """

    def __init__(self, skip: Skip | None, *, epoch: int = 0, skips: Iterable[int] = ()) -> None:
        self._skip = skip
        self._epoch = epoch
        self._skips = sorted(set(skips))
        self._known = set(self._skips)

    @property
    def allows(self) -> bool:
        """Whether anything may be left out."""
        return self._skip is not None

    @property
    def skips(self) -> tuple[int, ...]:
        """All of it, ascending."""
        return tuple(self._skips)

    def leaves_out(self, sample: int, epoch: int) -> bool:
        """Return whether a sample is not to be read in an epoch."""
        if self._skip is None or (self._skip.repair and epoch != self._epoch):
            return False
        return sample in self._known

    def __len__(self) -> int:
        return len(self._skips)

    def add(self, found: Mapping[int, ObjectError]) -> list[str]:
        """Take in what a batch has left out, and return a line for each that is new.

        The limit is that of the run (`Tally`); this one is that of a cursor.

        Raises:
            FeedError: If it is more than a cursor can name.
        """
        assert self._skip is not None or not found, "nothing may be left out"
        lines = []
        for sample, error in found.items():
            if sample in self._known:
                continue
            if len(self._skips) >= MAX_SKIPS:
                raise FeedError(
                    f"{error} (one more than the {MAX_SKIPS} samples that a state can name as left "
                    "out: restore them)",
                    code="source",
                    fault="data",
                )
            self._known.add(sample)
            insort(self._skips, sample)
            lines.append(f"left out: {error}")
        return lines

    def begin_epoch(self, epoch: int) -> None:
        """Forget what an epoch has to try again."""
        if epoch != self._epoch and self._skip is not None and self._skip.repair:
            self._skips, self._known = [], set()
        self._epoch = epoch

    def told(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a cursor, as plain data, with what was left out up to there."""
        return state if not self._skips else {**state, "skips": list(self._skips)}
