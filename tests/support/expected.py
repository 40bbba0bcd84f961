"""What a run over files must deliver, from the plan and the content of the files alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.batch import Batch
from headrace.plans.engine import BoundPlan, next_batch
from headrace.testing import Ledger
from headrace.topology import Topology
from headrace_daemon.source.local import list_folder

from .files import content

if TYPE_CHECKING:
    from headrace.plans import Cursor
    from headrace.sources import Stream


def expected(
    stream: Stream,
    *,
    epochs: int = 1,
    start: Cursor | None = None,
    topology: Topology | None = None,
) -> Ledger:
    """Return the ledger of a run up to an epoch; the files are from `write_samples`."""
    topology = topology or Topology()
    manifest = list_folder(stream.source.selections[0])
    bound = BoundPlan(stream.served_plan, len(manifest), manifest.digest)
    ledger, cursor = Ledger(), start or bound.start()
    while cursor.epoch < epochs:
        planned, cursor = next_batch(bound, cursor, topology)
        entries = [manifest[index] for index in planned.indices.tolist()]
        batch = Batch(
            {"data": [content(entry.name, entry.size) for entry in entries]},
            sample_keys=[entry.name for entry in entries],
            indices=planned.indices,
            flags=planned.flags,
            meta={"epoch": planned.epoch, "step": planned.step, "stream": ""},
            cursor=cursor,
        )
        ledger.record(batch, topology)
    return ledger
