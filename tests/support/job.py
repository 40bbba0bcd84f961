"""What torchrun starts: a rank that trains, saves with its job, and may be killed.

    torchrun --nproc_per_node=2 -m tests.support.job '{"stream": …, "sockets": […], …}'

The ranks go from step to step together, and rank 0 saves the state for all, as jobs do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import torch.distributed as dist

from headrace import DaemonDataset, Stream, Topology
from headrace.testing import Ledger

from .files import check


def main() -> None:
    """Train up to an epoch, unless a rank is to be killed before."""
    given = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = Path(given["folder"])
    dataset = DaemonDataset(given["sockets"][rank], msgspec.convert(given["stream"], Stream))
    ledger, saved = Ledger(folder / f"ledger{rank}.jsonl"), folder / "state.json"
    if saved.exists():
        dataset.load_state_dict(json.loads(saved.read_text()))
        ledger.cut(dataset.state_dict())
    dist.barrier()  # nobody saves before all have loaded
    while dataset.state_dict()["epoch"] < given["epochs"]:
        for batch in dataset.loader(given["workers"]):
            check(batch)
            ledger.record(batch, Topology(rank, world_size))
            if (rank, batch.meta["step"]) == (1, given["killed_at"]):
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
            if rank == 0:
                aside = folder / "state.writing"
                aside.write_text(json.dumps(dataset.state_dict()))
                aside.replace(saved)
    dataset.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
