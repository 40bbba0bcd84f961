"""What the trainer processes of `tests.support.trainers` do.

Each function runs in the main thread of a process of its own, tells of each step on standard
output, and takes a line of standard input before each step where it is asked to wait.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from headrace import DaemonDataset, Stream, Topology
from headrace.errors import HeadraceError
from headrace.testing import Ledger

from .files import check

if TYPE_CHECKING:
    from headrace.batch import Batch


def tell(*words: object) -> None:
    """Say a line, at once."""
    print(*words, flush=True)  # noqa: T201 - it is how the test hears of it


def listen() -> None:
    """Wait until the test lets this process go on."""
    assert sys.stdin.readline(), "the test is gone"


def dataset_of(stream: dict[str, Any], socket: str | None, **options: Any) -> DaemonDataset:  # noqa: ANN401 - of any type
    """Return the dataset of a stream; where there is no socket, with a private daemon."""
    made = msgspec.convert(stream, Stream)
    if socket is None:
        return DaemonDataset.local(made, **options)
    return DaemonDataset(socket, made, **options)


def train(
    *,
    stream: dict[str, Any],
    socket: str | None,
    rank: int = 0,
    world_size: int = 1,
    ledger: str,
    state: str,
    epochs: int,
    waits: bool = False,
    workers: int = 0,
    **options: Any,  # noqa: ANN401 - of any type
) -> None:
    """Train up to an epoch, from the saved state on if there is one; save after each step."""
    topology = Topology(rank, world_size)
    dataset = dataset_of(stream, socket, topology=topology, **options)
    _train(dataset, topology, ledger, state, epochs, waits=waits, workers=workers)


def train_in_group(
    *,
    stream: dict[str, Any],
    socket: str,
    rank: int,
    world_size: int,
    rendezvous: str = "",
    replicas: int = 1,
    says: str = "mesh",
    on_node: int = 0,
    ledger: str,
    state: str,
    epochs: int,
    waits: bool = False,
    workers: int = 0,
    **options: Any,  # noqa: ANN401 - of any type
) -> None:
    """Do the same as one of the processes of torch.distributed.

    Args:
        replicas: How many neighbouring ranks get the same data.
        says: What says so: ``"mesh"`` or ``"group"``.
        on_node: Ranks on this node, as torchrun tells it; 0 if nothing does.
    """
    if on_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(on_node)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    topology = Topology(rank // replicas, world_size // replicas)
    if replicas > 1 and says == "group":
        groups = [
            dist.new_group(list(range(first, world_size, replicas))) for first in range(replicas)
        ]
        options["process_group"] = groups[rank % replicas]
    elif replicas > 1:
        shape, names = (topology.world_size, replicas), ("dp", "tp")
        options["mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=names)["dp"]
    dataset = dataset_of(stream, socket, **options)
    try:
        _train(dataset, topology, ledger, state, epochs, waits=waits, workers=workers)
    except HeadraceError as error:
        tell(type(error).__name__, error)
    dist.destroy_process_group()


def _train(
    dataset: DaemonDataset,
    topology: Topology,
    ledger: str,
    state: str,
    epochs: int,
    *,
    waits: bool,
    workers: int,
) -> None:
    record, saved = Ledger(Path(ledger)), Path(state)
    if saved.exists():
        dataset.load_state_dict(json.loads(saved.read_text()))
        record.cut(dataset.state_dict())
    loader = dataset.loader(workers) if workers else dataset
    tell("begins")
    while dataset.state_dict()["epoch"] < epochs:
        for batch in loader:
            if waits:
                listen()
            check(batch)
            record.record(batch, topology)
            aside = saved.with_suffix(".writing")
            aside.write_text(json.dumps(dataset.state_dict()))
            aside.replace(saved)
            tell("step", batch.meta["epoch"], batch.meta["step"])
    dataset.close()
    tell("done")


def private(*, stream: dict[str, Any], forks: bool = False) -> None:
    """Open a private daemon, tell where it is, perhaps fork, and wait."""
    dataset = dataset_of(stream, None)
    next(iter(dataset))
    daemon = dataset._link.private
    assert daemon is not None
    assert daemon._process is not None
    tell(daemon._process.pid, daemon.socket)
    if forks:
        child = os.fork()
        if not child:
            listen()  # and has everything that its parent had
            return
        tell(child)
    listen()


def leave_alive(*, stream: dict[str, Any], socket: str | None) -> None:
    """End with an iterator that is alive, in the middle of an epoch."""
    global _kept
    _kept = iter(dataset_of(stream, socket))
    tell(next(_kept).meta["step"])


_kept: Any = None


def fork(*, stream: dict[str, Any], socket: str | None) -> None:
    """Fork after connecting; both processes go on, each with what is its own."""
    dataset = dataset_of(stream, socket)
    batches = iter(dataset)
    tell("parent", entry(next(batches)))
    child = os.fork()
    if not child:
        try:
            next(batches)
        except HeadraceError as error:
            tell("child", error)
        for batch in dataset:
            tell("child", entry(batch))
        return
    assert os.waitpid(child, 0)[1] == 0
    for batch in batches:
        tell("parent", entry(batch))
    dataset.close()


def work(*, stream: dict[str, Any], socket: str | None, context: str, kinds: list[str]) -> None:
    """Iterate in DataLoader workers after the main process has, and leave them alive."""
    global _kept
    dataset = dataset_of(stream, socket)
    next(iter(dataset))
    options: dict[str, Any] = {"num_workers": 2, "multiprocessing_context": context}
    _kept = []
    for kind in kinds:
        made = dataset.loader if kind == "loader" else partial(DataLoader, dataset, batch_size=None)
        _kept.append(iter(made(**options)))
        for _ in range(2):  # torch is not quiet about a worker that is terminated before it is one
            tell(kind, entry(next(_kept[-1])))


def loop_with_workers(
    *, stream: dict[str, Any], socket: str, loader: bool, persistent: bool = False
) -> None:
    """Go on through epochs in workers, one batch for each line that is heard."""
    dataset = dataset_of(stream, socket)
    options: dict[str, Any] = {"num_workers": 2, "persistent_workers": persistent}
    if loader:
        batches: Any = dataset.loader(**options)
    else:
        batches = DataLoader(dataset, batch_size=None, **options)
    while True:
        for batch in batches:
            tell(entry(batch))
            listen()


def entry(batch: Batch) -> str:
    """Return the entry of a batch in a ledger, as one line of JSON."""
    return msgspec.json.encode(Ledger().record(batch)).decode()


def catch_interrupt(*, stream: dict[str, Any], socket: str | None) -> None:
    """Wait behind step 2, catch Ctrl-C, tell the state, and finish the epoch in a new pass."""
    dataset = dataset_of(stream, socket, prefetch_batches=1)
    try:
        for batch in dataset:
            tell("step", batch.meta["step"])
            if batch.meta["step"] == 2:
                listen()
    except KeyboardInterrupt:
        state = dataset.state_dict()
    tell("interrupted before", state["step"], "with threads", len(threading.enumerate()))
    listen()
    dataset.load_state_dict(state)
    tell(*(batch.meta["step"] for batch in dataset))
    dataset.close()


def stranger(*, stream: dict[str, Any], socket: str, uid: int) -> None:
    """Try to be served, as somebody else if it is not our own user id."""
    if uid != os.geteuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    try:
        tell(next(iter(dataset_of(stream, socket))))
    except HeadraceError as error:
        tell(type(error).__name__, error)
