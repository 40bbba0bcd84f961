"""E1-E4, E7, M2: runs of several ranks, on one node or more, and what happens to their daemons.

The ranks that need torch.distributed are processes; the others are datasets of this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace import DaemonDataset, Stream, Topology, errors
from headrace.plans import Cursor, Shuffled
from headrace.testing import Ledger
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.batch import Batch
    from tests.support.trainers import Trainer, Trainers

NUM_SAMPLES = 2000
GLOBAL_BATCH = 192
STEPS = 11
"""The last one is short, and filled up."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[DaemonProcess, DaemonProcess]]:
    """Return the daemons of two nodes."""
    with DaemonProcess() as one, DaemonProcess() as other:
        yield one, other
        wait_until(lambda: not one.status()["feeds"] and not other.status()["feeds"])
        for daemon in (one, other):
            memory = daemon.status()["memory"]
            assert (memory["held_bytes"], memory["guaranteed_bytes"]) == (0, 0)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), NUM_SAMPLES, max_bytes=300)
    return stream_of(folder, Shuffled(global_batch_size=GLOBAL_BATCH, seed=17))


def run_world(
    nodes: Sequence[DaemonProcess],
    stream: Stream,
    world_size: int,
    *,
    state: dict[str, Any] | None = None,
    steps: int = STEPS,
) -> tuple[list[list[int]], dict[str, Any]]:
    """Run ranks side by side, spread over nodes, and return the global batches and a state.

    Position i of a global batch is position i // R of rank i % R, fillers left out.
    """
    ranks = [
        DaemonDataset(
            nodes[rank * len(nodes) // world_size].socket,
            stream,
            topology=Topology(rank, world_size),
            prefetch_batches=1,
        )
        for rank in range(world_size)
    ]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(json.loads(json.dumps(state)))
    passes = [iter(rank) for rank in ranks]
    steps_of_all = []
    for _ in range(steps):
        batches: list[Batch] = [next(batches) for batches in passes]
        assert len({batch.cursor for batch in batches}) == 1, "the cursor is global"
        assert len({len(batch) for batch in batches}) == 1, "all ranks do the same work"
        for batch in batches:
            check(batch)
        rows = zip(
            *(zip(b.indices.tolist(), b.flags.tolist(), strict=True) for b in batches), strict=True
        )
        steps_of_all.append([index for index, flags in chain(*rows) if not flags])
    states = [rank.state_dict() for rank in ranks]
    assert states == states[:1] * world_size
    for rank in ranks:
        rank.close()
    return steps_of_all, states[0]


@pytest.fixture(scope="module")
def whole(nodes: tuple[DaemonProcess, DaemonProcess], stream: Stream) -> list[list[int]]:
    """Return the global batches of an epoch, as one rank reads them."""
    steps, _ = run_world(nodes[:1], stream, 1)
    assert [
        entry.ids[: len(step)] for entry, step in zip(expected(stream).entries, steps, strict=True)
    ] == [tuple(step) for step in steps]
    assert sorted(chain(*steps)) == list(range(NUM_SAMPLES))
    return steps


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8, 12, 24])
def test_the_global_batches_are_the_same_for_every_world_size_and_number_of_nodes(
    nodes: tuple[DaemonProcess, DaemonProcess],
    stream: Stream,
    whole: list[list[int]],
    world_size: int,
) -> None:
    for used in (nodes[:1], nodes):
        assert run_world(used, stream, world_size)[0] == whole


@pytest.mark.parametrize(
    "worlds",
    [(8, 4), (4, 8), (8, 6), (6, 1), (1, 8), (2, 3), (32, 16), (8, 64), (8, 2, 8), (3, 64, 2)],
)
def test_the_world_may_change_in_the_middle_of_an_epoch_and_again(
    nodes: tuple[DaemonProcess, DaemonProcess],
    stream: Stream,
    whole: list[list[int]],
    worlds: tuple[int, ...],
) -> None:
    state: dict[str, Any] | None = None
    done: list[list[int]] = []
    for number, world_size in enumerate(worlds, 1):
        steps = STEPS - len(done) if number == len(worlds) else 4
        some, state = run_world(nodes, stream, world_size, state=state, steps=steps)
        done += some
    assert done == whole
    assert state is not None
    assert (state["epoch"], state["step"], state["sample"]) == (1, 0, NUM_SAMPLES)


def test_a_world_size_that_does_not_divide_is_refused_with_the_list_of_those_that_do(
    nodes: tuple[DaemonProcess, DaemonProcess], stream: Stream
) -> None:
    _, state = run_world(nodes, stream, 8, steps=3)
    dataset = DaemonDataset(nodes[0].socket, stream, topology=Topology(0, 7))
    dataset.load_state_dict(state)
    usable = "1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 192"
    with pytest.raises(errors.PlanError, match=f"7.* {usable}"):
        next(iter(dataset))
    dataset.close()


def test_fewer_samples_than_ranks(
    nodes: tuple[DaemonProcess, DaemonProcess], tmp_path: Path
) -> None:
    stream = stream_of(write_samples(tmp_path, 3), Shuffled(global_batch_size=8, seed=1))
    steps, _ = run_world(nodes, stream, 8, steps=1)
    assert [sorted(step) for step in steps] == [[0, 1, 2]]


# ---- processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), 96)
    return stream_of(folder, Shuffled(global_batch_size=8, seed=5))


class Job:
    """Ranks as processes: the files of each, and what they were started with."""

    def __init__(self, trainers: Trainers, folder: Path, stream: Stream, world_size: int) -> None:
        self._trainers, self._folder = trainers, folder
        self._stream = msgspec.to_builtins(stream)
        self._world_size = world_size
        self._num_started = 0

    def start(self, sockets: Sequence[str], **arguments: Any) -> list[Trainer]:  # noqa: ANN401
        self._num_started += 1
        return [
            self._trainers.start(
                "train_in_group",
                stream=self._stream,
                socket=sockets[rank % len(sockets)],
                rank=rank,
                world_size=self._world_size,
                rendezvous=str(self._folder / f"rendezvous{self._num_started}"),
                ledger=str(self.ledger(rank)),
                state=str(self.state(rank)),
                **{"epochs": 1, **arguments},
            )
            for rank in range(self._world_size)
        ]

    def ledger(self, rank: int) -> Path:
        return self._folder / f"ledger{rank}.jsonl"

    def state(self, rank: int) -> Path:
        return self._folder / f"state{rank}.json"

    def difference(self, rank: int, topology: Topology, stream: Stream, epochs: int) -> str | None:
        truth = expected(stream, epochs=epochs, topology=topology)
        return Ledger(self.ledger(rank)).difference(truth)


def finish(trainers: Sequence[Trainer]) -> None:
    for trainer in trainers:
        said = trainer.hear_all()
        assert said[-1:] == ["done"], (said, trainer.stderr)
        assert trainer.wait() == 0


def test_ranks_that_replicate_get_identical_batches(
    trainers: Trainers,
    nodes: tuple[DaemonProcess, DaemonProcess],
    small: Stream,
    tmp_path: Path,
) -> None:
    job = Job(trainers, tmp_path, small, 4)
    finish(job.start([node.socket for node in nodes], replicas=2))
    for rank in range(4):
        assert job.difference(rank, Topology(rank // 2, 2), small, 1) is None


def test_ranks_that_load_different_states_are_told_before_the_first_batch(
    trainers: Trainers,
    nodes: tuple[DaemonProcess, DaemonProcess],
    small: Stream,
    tmp_path: Path,
) -> None:
    job = Job(trainers, tmp_path, small, 2)
    for rank, steps in enumerate((2, 3)):
        truth = DaemonDataset(nodes[0].socket, small, topology=Topology(rank, 2))
        batches = iter(truth)
        for _ in range(steps):
            next(batches)
        job.state(rank).write_text(json.dumps(truth.state_dict()))
        truth.close()
    for trainer in job.start([nodes[0].socket]):
        said = trainer.hear_until("begins")
        assert said == ["begins"]
        assert trainer.hear() == (
            "CursorError ranks begin at different places: rank 0 at epoch 0 step 2 (sample 16 of "
            "its order), rank 1 at epoch 0 step 3 (sample 24 of its order): load the same state "
            "on all of them"
        )
        assert trainer.wait() == 0


def test_ranks_whose_nodes_list_different_data_are_told(
    trainers: Trainers, nodes: tuple[DaemonProcess, DaemonProcess], tmp_path: Path
) -> None:
    folder = write_samples(tmp_path / "data", 32)
    stream = stream_of(folder, Shuffled(global_batch_size=8, seed=5))
    len(DaemonDataset(nodes[0].socket, stream))  # listed by one node
    (folder / "late.bin").write_bytes(b"late")
    for trainer in Job(trainers, tmp_path, stream, 2).start([node.socket for node in nodes]):
        assert trainer.hear() == "begins"
        said = trainer.hear()
        assert said.startswith("ManifestMismatchError ranks have different data: rank 0 has"), said
        assert "of 32 samples" in said
        assert "of 33 samples" in said
        assert trainer.wait() == 0


def test_a_rank_that_does_not_come_is_named(
    trainers: Trainers,
    nodes: tuple[DaemonProcess, DaemonProcess],
    small: Stream,
    tmp_path: Path,
) -> None:
    job = Job(trainers, tmp_path, small, 2)
    done = Cursor(plan=small.plan.digest, manifest="", epoch=1)
    job.state(1).write_text(json.dumps(done.to_state()))  # it has nothing left to do
    here, _absent = job.start([nodes[0].socket], deadline_s=0.5)
    assert here.hear() == "begins"
    assert here.hear().startswith("TopologyError rank(s) 1 did not begin a pass"), here.stderr
    assert here.wait() == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_daemon_changes_nothing_for_two_ranks_with_two_workers_each(
    trainers: Trainers, small: Stream, tmp_path: Path, how: signal.Signals
) -> None:
    job = Job(trainers, tmp_path, small, 2)
    with DaemonProcess() as daemon:
        ranks = job.start([daemon.socket], workers=2, epochs=2, waits=True, prefetch_batches=1)
        for rank in ranks:
            rank.say(3)
            rank.hear_until("step 0 2")
        daemon.process.send_signal(how)
        daemon.process.wait(30)
        for rank in ranks:
            rank.say(100)
        daemon.start()
        finish(ranks)
    for number in range(2):
        assert job.difference(number, Topology(number, 2), small, 2) is None


def torchrun(**given: Any) -> tuple[int, str]:  # noqa: ANN401 - of any type
    """Run the job of `tests.support.job` and return its exit status and what it said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", "-m", "tests.support.job", json.dumps(given)]
    job = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = job.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    return job.returncode, said


@pytest.mark.slow
@pytest.mark.timeout(250)  # six processes that import torch, which takes seconds of CPU each
def test_a_job_of_torchrun_goes_on_after_a_rank_was_killed(
    nodes: tuple[DaemonProcess, DaemonProcess], small: Stream, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "stream": msgspec.to_builtins(small),
        "sockets": [node.socket for node in nodes],
        "folder": str(tmp_path),
        "epochs": 2,
    }
    status, said = torchrun(**given, killed_at=7, workers=0)
    assert status != 0
    assert "Signal 9 (SIGKILL)" in said, said
    saved = json.loads((tmp_path / "state.json").read_text())
    assert (saved["epoch"], saved["step"]) == (0, 7), "the last step that all ranks finished"
    status, said = torchrun(**given, killed_at=None, workers=2)
    assert status == 0, said
    ledgers = [Ledger(tmp_path / f"ledger{rank}.jsonl") for rank in range(2)]
    for rank, ledger in enumerate(ledgers):
        truth = expected(small, epochs=2, topology=Topology(rank, 2))
        assert ledger.difference(truth) is None
    steps = [[(entry.epoch, entry.step) for entry in ledger.entries] for ledger in ledgers]
    assert steps[0] == steps[1], "equal steps"
    for number in range(2):
        ids = [i for ledger in ledgers for e in ledger.entries if e.epoch == number for i in e.ids]
        assert sorted(ids) == list(range(96)), "disjoint, and complete"
