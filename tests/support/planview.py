"""``headrace plan`` over data without a source, and the batches that it must print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from headrace.plans import Data

from .commands import headrace_here

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.plans import Plan
    from headrace.plans.engine import PlannedBatch


class PlanView:
    """The command for one plan, with the columns of its data in files.

    Args:
        plan: What is planned.
        data: Its data; only those parts are taken that the plan has.
        parts: Names of the parts of the plan.
        folder: Where the files are written.
    """

    def __init__(self, plan: Plan, data: Data, parts: tuple[str, ...], folder: Path) -> None:
        own = {name: part for name, part in data.parts.items() if name in parts}
        self.data = Data(data.length, columns=data.columns, shards=data.shards, parts=own)
        path = folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        self._words: list[str | Path] = ["--stream", path, "--length", str(data.length)]
        for name, part in own.items():
            self._words += ["--length", f"{name}={part.length}"]
        for name, column in data.columns.items():
            np.save(folder / f"{name}.npy", column)
            self._words += ["--column", f"{name}={folder / name}.npy"]

    def document(self, *arguments: str | Path) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        done = headrace_here("plan", *self._words, *arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def steps(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """Return the printed steps."""
        steps: list[dict[str, Any]] = self.document(*arguments)["steps"]
        return steps


def expected(batch: PlannedBatch) -> dict[str, Any]:
    """Return what must be printed of a batch, names and bytes aside."""
    return {
        "epoch": batch.epoch,
        "step": batch.step,
        "global_step": batch.global_step,
        "rank": batch.rank,
        "stream": batch.stream,
        "origin": None if batch.origin is None else list(batch.origin),
        "ids": batch.indices.tolist(),
        "flags": batch.flags.tolist(),
        "meta": dict(batch.meta),
        "cursor": batch.after.to_state(),
    }


def without_data(row: dict[str, Any]) -> dict[str, Any]:
    """Return a printed step without what depends on the data behind it."""
    return {name: row[name] for name in row if name not in ("names", "bytes", "padding")}
