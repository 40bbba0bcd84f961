"""E1-E4, E7, M2: runs of several ranks, on one node or more, and what happens to their daemons.

The ranks that need torch.distributed are processes; the others are datasets of this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from headrace import DaemonDataset, Stream, Topology, errors
from headrace.plans import Cursor, Shuffled
from headrace.testing import Ledger, LedgerEntry
from tests.support.app import AppThread
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import stream_of, write_samples
from tests.support.waiting import wait_until
from tests.support.worlds import run_world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.plans.cut import Tail
    from tests.support.trainers import Trainer, Trainers

NUM_SAMPLES = 2000


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, ...]]:
    """Return the daemons of two nodes."""
    config = tmp_path_factory.mktemp("config") / "headrace.toml"
    # How long the memory of a run waits for it that does not begin after all.
    config.write_text("[daemon]\ngrace_s = 2\n")
    with (
        DaemonProcess("--config", str(config)) as one,
        DaemonProcess("--config", str(config)) as two,
    ):
        yield one, two
        wait_until(lambda: is_quiet(one.status()) and is_quiet(two.status()))


def is_quiet(report: dict[str, Any]) -> bool:
    memory = report["memory"]
    return not (report["feeds"] or memory["held_bytes"] or memory["guaranteed_bytes"])


@pytest.fixture(scope="module")
def sockets(nodes: tuple[DaemonProcess, ...]) -> list[str]:
    return [node.socket for node in nodes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples"), NUM_SAMPLES, max_bytes=300)


class Epoch(NamedTuple):
    """A stream, and what one rank gets in its first epoch: the last step is short."""

    stream: Stream
    truth: list[LedgerEntry]

    @property
    def steps(self) -> int:
        return len(self.truth)


def epoch_of(folder: Path, global_batch: int) -> Epoch:
    stream = stream_of(folder, Shuffled(global_batch_size=global_batch, seed=17))
    truth = expected(stream).entries
    assert sorted(chain(*(entry.ids for entry in truth))) == list(range(NUM_SAMPLES))
    assert len(truth[-1].ids) == NUM_SAMPLES % global_batch
    return Epoch(stream, truth)


@pytest.fixture(scope="module")
def of_24(folder: Path) -> Epoch:
    return epoch_of(folder, 24)


@pytest.fixture(scope="module")
def of_192(folder: Path) -> Epoch:
    return epoch_of(folder, 192)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12, 24])
def test_the_global_batches_are_the_same_for_every_world_size(
    sockets: list[str], of_24: Epoch, world_size: int
) -> None:
    run = run_world(sockets, of_24.stream, world_size, steps=of_24.steps)
    assert run.together == of_24.truth
    for rank, ledger in enumerate(run.ranks):
        truth = expected(of_24.stream, topology=Topology(rank, world_size))
        assert ledger.difference(truth) is None


def test_ranks_get_the_same_however_they_are_spread_over_nodes(
    sockets: list[str], of_192: Epoch
) -> None:
    with ExitStack() as running:
        others = [running.enter_context(AppThread()).socket for _ in range(6)]
        ledgers = [
            run_world([*sockets, *others][:number], of_192.stream, 8, steps=of_192.steps).ranks
            for number in (1, 2, 4, 8)
        ]
    for rank in range(8):
        truth = expected(of_192.stream, topology=Topology(rank, 8))
        assert [of_ranks[rank].difference(truth) for of_ranks in ledgers] == [None] * 4


@pytest.mark.parametrize(
    "worlds",
    [(8, 4), (4, 8), (8, 6), (6, 1), (1, 8), (2, 3), (32, 16), (8, 64), (8, 2, 8), (3, 64, 2)],
)
def test_the_world_may_change_in_the_middle_of_an_epoch_and_again(
    sockets: list[str], of_192: Epoch, worlds: tuple[int, ...]
) -> None:
    state: dict[str, Any] | None = None
    done: list[LedgerEntry] = []
    for number, world_size in enumerate(worlds, 1):
        steps = of_192.steps - len(done) if number == len(worlds) else 4
        run = run_world(sockets, of_192.stream, world_size, state=state, steps=steps)
        done += run.together
        state = run.state
    assert done == of_192.truth
    assert state is not None
    assert (state["epoch"], state["step"], state["sample"]) == (1, 0, NUM_SAMPLES)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # from Python 3.12 on
def test_the_world_may_change_together_with_the_number_of_workers(
    sockets: list[str], of_192: Epoch
) -> None:
    state: dict[str, Any] | None = None
    done: list[LedgerEntry] = []
    for world_size, workers, steps in ((2, 2, 3), (3, 0, 2), (1, 2, 2), (2, 1, of_192.steps - 7)):
        run = run_world(
            sockets, of_192.stream, world_size, state=state, steps=steps, workers=workers
        )
        done += run.together
        state = run.state
    assert done == of_192.truth


def test_a_world_size_that_does_not_divide_is_refused_with_the_list_of_those_that_do(
    sockets: list[str], of_24: Epoch
) -> None:
    state = run_world(sockets, of_24.stream, 8, steps=3).state
    dataset = DaemonDataset(sockets[0], of_24.stream, topology=Topology(0, 7))
    for batches in (dataset, dataset.loader(2)):
        with pytest.raises(errors.PlanError, match=r"7.* 1, 2, 3, 4, 6, 8, 12, 24"):
            next(iter(batches))
        dataset.load_state_dict(state)
    dataset.close()


@pytest.mark.parametrize("tail", ["short", "wrap", "drop"])
@pytest.mark.parametrize("batch", [{"batch_size": 7}, {"global_batch_size": 21}])
def test_every_tail_is_as_many_steps_on_all_ranks(
    sockets: list[str], folder: Path, tail: Tail, batch: dict[str, Any]
) -> None:
    stream = stream_of(folder, Shuffled(seed=3, tail=tail, **batch))
    steps = NUM_SAMPLES // 21 + (tail != "drop")
    run = run_world(sockets, stream, 3, steps=steps)
    assert (run.state["epoch"], run.state["step"]) == (1, 0), "on all of them"
    for rank, ledger in enumerate(run.ranks):
        truth = expected(stream, topology=Topology(rank, 3))
        assert ledger.difference(truth) is None
    num_ids = sum(len(entry.ids) for entry in run.together)
    assert num_ids == (NUM_SAMPLES if tail != "drop" else NUM_SAMPLES // 21 * 21)


@pytest.mark.parametrize("tail", ["short", "wrap"])
@pytest.mark.parametrize("batch", [{"batch_size": 1}, {"global_batch_size": 8}])
def test_fewer_samples_than_ranks(
    sockets: list[str], tmp_path: Path, tail: Tail, batch: dict[str, Any]
) -> None:
    stream = stream_of(write_samples(tmp_path, 3), Shuffled(seed=1, tail=tail, **batch))
    run = run_world(sockets, stream, 8, steps=1)
    assert [sorted(entry.ids) for entry in run.together] == [[0, 1, 2]]
    for rank, ledger in enumerate(run.ranks):
        truth = expected(stream, topology=Topology(rank, 8))
        assert ledger.difference(truth) is None


def test_fewer_samples_than_ranks_of_which_none_may_be_short_are_refused_on_all(
    sockets: list[str], tmp_path: Path
) -> None:
    stream = stream_of(write_samples(tmp_path, 3), Shuffled(global_batch_size=8, tail="drop"))
    for rank in range(8):
        dataset = DaemonDataset(sockets[rank % 2], stream, topology=Topology(rank, 8))
        with pytest.raises(errors.PlanError, match="3 samples"):
            next(iter(dataset))


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


@pytest.mark.parametrize(("world_size", "replicas", "says"), [(4, 2, "group"), (8, 4, "mesh")])
def test_ranks_that_replicate_get_identical_batches(
    trainers: Trainers,
    sockets: list[str],
    small: Stream,
    tmp_path: Path,
    world_size: int,
    replicas: int,
    says: str,
) -> None:
    job = Job(trainers, tmp_path, small, world_size)
    finish(job.start(sockets, replicas=replicas, says=says))
    for rank in range(world_size):
        topology = Topology(rank // replicas, world_size // replicas)
        assert job.difference(rank, topology, small, 1) is None
    groups = [Ledger(job.ledger(rank)).entries for rank in range(0, world_size, replicas)]
    ids = [index for entries in groups for entry in entries for index in entry.ids]
    assert sorted(ids) == list(range(96)), "groups are disjoint"


def test_ranks_that_load_different_states_are_told_before_the_first_batch(
    trainers: Trainers,
    nodes: tuple[DaemonProcess, ...],
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
    trainers: Trainers, nodes: tuple[DaemonProcess, ...], tmp_path: Path
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
    nodes: tuple[DaemonProcess, ...],
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


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Return a stream whose batches have 20 KiB for each of two ranks."""
    folder = tmp_path_factory.mktemp("samples")
    for number in range(80):
        (folder / f"{number:02}.bin").write_bytes(bytes(1024))
    return stream_of(folder, Shuffled(global_batch_size=40, seed=5))


def test_a_run_that_does_not_fit_is_refused_before_its_ranks_wait_for_each_other(
    trainers: Trainers, large: Stream, tmp_path: Path
) -> None:
    with DaemonProcess("--memory", "100KiB") as daemon:
        job = Job(trainers, tmp_path, large, 2)
        for rank in job.start([daemon.socket], workers=2, on_node=2):
            assert rank.hear() == "begins", rank.stderr
            said = rank.hear()
            assert said.startswith("BudgetError a run over "), said
            assert "with 2 rank(s) × 2 worker(s) on this node has 4 feed(s) of 2 slots" in said
            assert "needs 163840 bytes" in said
            assert "the budget is 102400 bytes ([daemon] memory)" in said
            assert rank.wait() == 0
        assert "feed opened" not in daemon.log


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_does_not_fit_on_one_node_is_refused_on_all(
    trainers: Trainers, sockets: list[str], large: Stream, tmp_path: Path, workers: int
) -> None:
    """The rank on the node with memory does not wait until the deadline, which is 300 s."""
    with DaemonProcess("--memory", "32KiB") as tight:
        job = Job(trainers, tmp_path, large, 2)
        ranks = job.start([tight.socket, sockets[1]], workers=workers, on_node=1)
        heard = [(rank.hear(), rank.hear(), rank.wait()) for rank in ranks]
        assert "feed opened" not in tight.log
    reason = f"1 rank(s) × {workers or 1} worker(s) on this node"
    for begins, said, status in heard:
        assert (begins, status) == ("begins", 0)
        assert reason in said
    assert heard[0][1].startswith("BudgetError a run over ")
    assert heard[1][1].startswith("FeedError rank 0 cannot begin its pass: a run over ")


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
    nodes: tuple[DaemonProcess, ...], small: Stream, tmp_path: Path
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
