"""Batches as rows: the plain data of ``--json``, and a table for people.

Both are written chunk by chunk, so that a range of any length needs the memory of one chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.filesize import decimal

from headrace.plans import ByteBudget, VideoVariable
from headrace.plans.engine import Flag
from headrace.plans.scaled import ScaledBatches

from .subject import streams_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.plans.engine import PlannedBatch

    from .subject import Subject

_SHOWN_IDS: Final = 8
_IDS: Final = "sample ids (+ marks fillers)"


def row(batch: PlannedBatch, subject: Subject) -> dict[str, Any]:
    """Return all of a batch as plain data."""
    manifest = subject.manifest(batch.stream)
    return {
        "epoch": batch.epoch,
        "step": batch.step,
        "global_step": batch.global_step,
        "rank": batch.rank,
        "stream": batch.stream,
        "origin": None if batch.origin is None else list(batch.origin),
        "ids": batch.indices.tolist(),
        "names": None if manifest is None else manifest.names_of(batch.indices),
        "padding": [bool(flag & Flag.PADDING) for flag in batch.flags.tolist()],
        "flags": batch.flags.tolist(),
        "bytes": num_bytes(batch, subject),
        "meta": dict(batch.meta),
        "cursor": batch.after.to_state(),
    }


def num_bytes(batch: PlannedBatch, subject: Subject) -> int | None:
    """Return the bytes of a batch, fillers included; None where sizes are not known."""
    found = sizes(batch, subject)
    return None if found is None else int(found.sum())


def weight(batch: PlannedBatch) -> float | None:
    """Return what the budget of a plan counted of a batch; None for a plan without a budget."""
    found: float | None = batch.meta.get("bytes", batch.meta.get("total"))
    return found


def sizes(batch: PlannedBatch, subject: Subject) -> Any:  # noqa: ANN401 - an array of numbers
    """Return the bytes of each entry of a batch; None where they are not known."""
    known = subject.data.part(batch.stream).columns.get("sizes")
    return None if known is None else np.asarray(known[batch.indices])


class Table:
    """Rows as aligned lines; columns that say nothing about a plan are left out.

    Args:
        subject: What is planned.
        has_ranks: Whether several ranks are shown.
    """

    def __init__(self, subject: Subject, *, has_ranks: bool) -> None:
        self._subject = subject
        plans = streams_of(subject.plan)
        present = {
            "epoch": True,
            "step": True,
            "rank": has_ranks,
            "stream": "" not in plans,
            "samples": True,
            "bytes": any(
                "sizes" in data.columns for data in (subject.data, *subject.data.parts.values())
            ),
            "total": any(
                isinstance(plan, ByteBudget) and plan.max_total is not None
                for plan in plans.values()
            ),
            "size": any(isinstance(plan, ScaledBatches) for plan in plans.values()),
            "frames": any(isinstance(plan, VideoVariable) for plan in plans.values()),
            "clips": any(isinstance(plan, VideoVariable) for plan in plans.values()),
            _IDS: True,
        }
        self._columns = [name for name, is_present in present.items() if is_present]
        self._widths: dict[str, int] = {}

    def lines(self, batches: Iterable[PlannedBatch]) -> Iterator[str]:
        """Yield the lines of some batches, before the first one that of the titles."""
        cells = [self._cells(batch) for batch in batches]
        if not self._widths:
            for name in self._columns:
                self._widths[name] = max(len(name), *(len(found.get(name, "")) for found in cells))
            yield self._line({name: name for name in self._columns})
        yield from map(self._line, cells)

    def _line(self, cells: dict[str, str]) -> str:
        *columns, last = self._columns
        parts = [cells.get(name, "").rjust(self._widths[name]) for name in columns]
        return "  ".join([*parts, cells.get(last, "")]).rstrip()

    def _cells(self, batch: PlannedBatch) -> dict[str, str]:
        meta, size = batch.meta, num_bytes(batch, self._subject)
        inside = "" if batch.origin is None else f" {batch.origin[0]}:{batch.origin[1]}"
        cells = {
            "epoch": str(batch.epoch),
            "step": str(batch.step),
            "rank": str(batch.rank),
            "stream": f"{batch.stream}{inside}",
            "samples": str(len(batch.indices)),
            "bytes": "" if size is None else decimal(size),
            _IDS: _ids(batch),
        }
        if "height" in meta:
            cells["size"] = f"{meta['height']}×{meta['width']}"
        for name in ("frames", "clips", "total"):
            if name in meta:
                cells[name] = str(meta[name])
        return cells


def _ids(batch: PlannedBatch) -> str:
    fillers = batch.flags & Flag.PADDING > 0
    shown = [
        f"+{index}" if is_filler else str(index)
        for index, is_filler in zip(
            batch.indices[:_SHOWN_IDS].tolist(), fillers[:_SHOWN_IDS].tolist(), strict=True
        )
    ]
    if len(batch.indices) > _SHOWN_IDS:
        shown.append("…")
        hidden = int(fillers[_SHOWN_IDS:].sum())
        if hidden:
            shown.append(f"(+{hidden} fillers)" if hidden > 1 else "(+1 filler)")
    return " ".join(shown)
