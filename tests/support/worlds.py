"""Ranks side by side in one process, spread over daemons, and what all of them got together."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace import DaemonDataset, Topology
from headrace.batch import Batch
from headrace.testing import Ledger, LedgerEntry

from .files import check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace import Stream


class WorldRun(NamedTuple):
    """What a world did."""

    ranks: list[Ledger]
    """The ledger of each rank."""

    together: list[LedgerEntry]
    """The ledger that one rank has who gets the global batches, fillers left out."""

    state: dict[str, Any]
    """Where all ranks stand."""


def run_world(
    sockets: Sequence[str],
    stream: Stream,
    world_size: int,
    *,
    steps: int,
    state: dict[str, Any] | None = None,
    workers: int = 0,
) -> WorldRun:
    """Run some steps within an epoch; neighbouring ranks are on the same daemon.

    Args:
        sockets: Of the daemons.
        stream: What is read.
        world_size: How many ranks there are.
        steps: How many steps they make.
        state: Loaded into all ranks.
        workers: Of the loader of each rank; 0 for the bare dataset.
    """
    topologies = [Topology(rank, world_size) for rank in range(world_size)]
    datasets = [
        DaemonDataset(
            sockets[topology.rank * len(sockets) // world_size],
            stream,
            topology=topology,
            prefetch_batches=2,
        )
        for topology in topologies
    ]
    if state is not None:
        for dataset in datasets:
            dataset.load_state_dict(json.loads(json.dumps(state)))
    passes: list[Iterator[Batch]] = [
        iter(dataset.loader(workers) if workers else dataset) for dataset in datasets
    ]
    ledgers, together = [Ledger() for _ in datasets], Ledger()
    for _ in range(steps):
        batches = [next(batches) for batches in passes]
        assert len({batch.cursor for batch in batches}) == 1, "the cursor is global"
        assert len({len(batch) for batch in batches}) == 1, "all ranks do the same work"
        for batch, ledger, topology in zip(batches, ledgers, topologies, strict=True):
            check(batch)
            ledger.record(batch, topology)
        together.record(global_batch(batches))
    assert len({dataset.manifest.digest for dataset in datasets}) == 1
    states = [dataset.state_dict() for dataset in datasets]
    assert states == states[:1] * world_size
    for dataset in datasets:
        dataset.close()
    return WorldRun(ledgers, together.entries, states[0])


def global_batch(batches: Sequence[Batch]) -> Batch:
    """Return the global batch of a step, without fillers.

    Position i of a global batch is position i // R of rank i % R.
    """
    shares = [
        zip(batch.sample_keys, batch["data"], batch.indices.tolist(), batch.flags, strict=True)
        for batch in batches
    ]
    rows = [row for row in chain(*zip(*shares, strict=True)) if not row[3]]
    return Batch(
        {"data": [row[1] for row in rows]},
        sample_keys=[row[0] for row in rows],
        indices=np.array([row[2] for row in rows], dtype=np.uint64),
        flags=np.zeros(len(rows), dtype=np.uint8),
        meta=batches[0].meta,
        cursor=batches[0].cursor,
    )
