"""Counts over many batches in bounded memory: what a summary says, as plain data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.plans.engine import Flag

from .rows import sizes, weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from headrace.plans import ByteBudget
    from headrace.plans.engine import PlannedBatch

    from .subject import Subject

_KEPT: Final = 1 << 18
"""Values of a spread that are kept; when there are more, every other one is forgotten."""

_EDGES: Final = np.array(
    [0.0, *(float(digit * 10**power) for power in range(19) for digit in (1, 2, 5))]
)
"""Edges of the bins of a distribution: 1, 2, 5, 10, …, and 0 for what is below 1."""

MAX_SCALES: Final = 4096
"""Different scales that are told apart."""


class Spread:
    """The smallest, largest and mean of many numbers, their median, and how they are distributed.

    The median is exact up to `_KEPT` numbers, and then that of evenly spread ones.
    """

    def __init__(self) -> None:
        self.count = 0
        self._low = np.inf
        self._high = -np.inf
        self.total: float = 0
        self._stride = 1
        self._kept: list[NDArray[Any]] = []
        self._num_kept = 0
        self._bins = np.zeros(len(_EDGES), dtype=np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count some numbers >= 0."""
        if not len(values):
            return
        self._low = min(self._low, values.min().item())
        self._high = max(self._high, values.max().item())
        self.total += values.sum().item()
        found = values[-self.count % self._stride :: self._stride]
        self._kept.append(found.copy())
        self._num_kept += len(found)
        self.count += len(values)
        while self._num_kept > _KEPT:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._num_kept = len(self._kept[0])
            self._stride *= 2
        at = np.searchsorted(_EDGES, values, side="right") - 1
        self._bins += np.bincount(at, minlength=len(_EDGES))

    def facts(self) -> dict[str, Any] | None:
        """Return the numbers; None where nothing was counted."""
        if not self.count:
            return None
        median = np.median(np.concatenate(self._kept)).item()
        return {
            "min": self._low,
            "median": int(median) if median == int(median) else median,
            "mean": self.total / self.count,
            "max": self._high,
        }

    def bins(self) -> list[dict[str, Any]]:
        """Return the distribution: each bin with numbers from `from` on and below `to`."""
        found = np.flatnonzero(self._bins)
        if not len(found):
            return []
        # Empty bins between full ones are shown, so that a picture has no hidden gaps.
        return [
            {
                "from": int(_EDGES[at]),
                "to": int(_EDGES[at + 1]) if at + 1 < len(_EDGES) else None,
                "count": int(self._bins[at]),
            }
            for at in range(int(found[0]), int(found[-1]) + 1)
        ]


class Tally:
    """What some batches have in common.

    Args:
        subject: What is planned.
        budget: The plan, if it is one with a budget.
    """

    def __init__(self, subject: Subject, budget: ByteBudget | None = None) -> None:
        self._subject = subject
        self._budget = budget
        self.num_batches = 0
        self.num_samples = 0
        self.num_fillers = 0
        self._batch_bytes = Spread()
        self._batch_sizes = Spread()
        self._sample_sizes = Spread()
        self._fills = Spread()
        self._num_filled = 0
        self._num_oversized = 0
        self._scales: Counter[tuple[tuple[str, int], ...]] = Counter()
        self._has_more_scales = False

    def add(self, batches: list[PlannedBatch]) -> None:
        """Count the batches of a chunk."""
        if not batches:
            return
        lengths = np.array([len(batch.indices) for batch in batches])
        fillers = [int(np.count_nonzero(batch.flags & Flag.PADDING)) for batch in batches]
        self.num_batches += len(batches)
        self.num_fillers += sum(fillers)
        self.num_samples += int(lengths.sum()) - sum(fillers)
        self._batch_sizes.add(lengths)
        found = [sizes(batch, self._subject) for batch in batches]
        known = [one for one in found if one is not None]
        if known:
            self._sample_sizes.add(np.concatenate(known))
            self._batch_bytes.add(np.array([one.sum() for one in known]))
        for batch, length in zip(batches, lengths.tolist(), strict=True):
            if "height" in batch.meta:
                self._count_scale((*batch.meta.items(), ("batch_size", length)))
        if self._budget is not None:
            self._count_fills(batches, self._budget)

    def _count_scale(self, scale: tuple[tuple[str, int], ...]) -> None:
        if scale in self._scales or len(self._scales) < MAX_SCALES:
            self._scales[scale] += 1
        else:
            self._has_more_scales = True

    def _count_fills(self, batches: list[PlannedBatch], budget: ByteBudget) -> None:
        # Neither the fillers of a last round nor the ranks that it leaves without a batch.
        real = [b for b in batches if len(b.indices) and not int(b.flags[0]) & Flag.WRAPPED]
        self._num_filled += len(real)
        self._num_oversized += sum(bool(int(b.flags[0]) & Flag.OVERSIZED) for b in real)
        self._fills.add(np.array([(weight(b) or 0) / budget.budget for b in real]))

    def facts(self) -> dict[str, Any]:
        """Return what was counted as plain data; its keys are the same for all plans."""
        budget = self._budget
        return {
            "batches": self.num_batches,
            "samples": self.num_samples,
            "fillers": self.num_fillers,
            "bytes": int(self._batch_bytes.total) if self._batch_bytes.count else None,
            "batch_bytes": self._batch_bytes.facts(),
            "batch_sizes": _with_bins(self._batch_sizes),
            "sample_bytes": _with_bins(self._sample_sizes),
            "scales": list(self._scale_facts()),
            "has_more_scales": self._has_more_scales,
            "budget": None
            if budget is None
            else {
                "limit": budget.budget,
                "column": budget.column,
                "batches": self._num_filled,
                "oversized": self._num_oversized,
                "fill": self._fills.facts(),
            },
        }

    def _scale_facts(self) -> Iterator[dict[str, int]]:
        for scale, count in sorted(self._scales.items()):
            yield {**dict(scale), "count": count}


def _with_bins(spread: Spread) -> dict[str, Any] | None:
    facts = spread.facts()
    return None if facts is None else {**facts, "bins": spread.bins()}
