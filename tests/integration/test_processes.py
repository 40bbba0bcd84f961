"""M3, M9: trainers that exit, fork, are interrupted, or have DataLoader workers."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from headrace import DaemonDataset, Stream, errors
from headrace.plans import Shuffled
from headrace.testing import Ledger
from tests.support.app import AppThread, Reads
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.trainers import Trainer, Trainers

STEPS = 10
DEADLINE_S = 20.0

QUICK_S = 4.5
"""What takes well below a second, and would take at least 5 if somebody waited for somebody."""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), STEPS * 4)
    return stream_of(folder, Shuffled(batch_size=4, seed=17))


@pytest.fixture(scope="module")
def plain(stream: Stream) -> dict[str, Any]:
    """The stream, to be passed to a process."""
    made: dict[str, Any] = msgspec.to_builtins(stream)
    return made


@pytest.fixture(scope="module")
def lines(stream: Stream) -> list[str]:
    """The entries of three epochs in a ledger, as trainers tell them."""
    entries = expected(stream, epochs=3).entries
    return [msgspec.json.encode(entry).decode() for entry in entries]


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


def wait_for_death(pid: int) -> None:
    """Wait until a process is gone, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        assert ready, f"process {pid} lives on"
    finally:
        os.close(descriptor)


# ---- the end -------------------------------------------------------------------------------------


def test_an_exit_with_a_live_iterator_is_quick_and_quiet(
    trainers: Trainers, daemon: DaemonProcess, plain: dict[str, Any]
) -> None:
    trainer = trainers.start("leave_alive", stream=plain, socket=daemon.socket)
    assert trainer.hear() == "0"
    begun = time.monotonic()
    assert trainer.wait() == 0
    assert time.monotonic() - begun < QUICK_S
    assert trainer.stderr == ""


def test_an_exit_with_a_private_daemon_takes_it_along(
    trainers: Trainers, plain: dict[str, Any]
) -> None:
    trainer = trainers.start("private", stream=plain)
    pid, socket = trainer.hear().split()
    begun = time.monotonic()
    trainer.say()
    assert trainer.wait() == 0
    assert time.monotonic() - begun < QUICK_S
    assert trainer.stderr == ""
    assert not psutil.pid_exists(int(pid))
    assert not Path(socket).parent.exists()


# ---- Ctrl-C --------------------------------------------------------------------------------------


def assert_one_interrupt(trainer: Trainer) -> None:
    """Fail unless the process ended soon, by Ctrl-C and with a single traceback."""
    begun = time.monotonic()
    trainer.kill(signal.SIGINT)
    assert trainer.wait() == -signal.SIGINT
    assert time.monotonic() - begun < QUICK_S
    assert trainer.stderr.count("Traceback") == 1, trainer.stderr
    assert trainer.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "Exception" not in trainer.stderr


def training(trainers: Trainers, plain: dict[str, Any], socket: str | None, path: Path) -> Trainer:
    return trainers.start(
        "train",
        stream=plain,
        socket=socket,
        ledger=str(path / "ledger.jsonl"),
        state=str(path / "state.json"),
        epochs=1,
        prefetch_batches=2,
    )


def test_ctrl_c_while_a_batch_is_waited_for_ends_the_trainer(
    trainers: Trainers, plain: dict[str, Any], tmp_path: Path
) -> None:
    reads = Reads()
    with AppThread(reads=reads) as app:
        app.call(reads.close_gate)
        trainer = training(trainers, plain, app.socket, tmp_path)
        assert trainer.hear() == "begins"
        app.wait_until(lambda: app.app.report()["feeds"])
        assert_one_interrupt(trainer)
        app.call(reads.open_gate)
        app.wait_until(lambda: not app.app.report()["feeds"])
        assert app.call(app.app.report)["memory"]["held_bytes"] == 0


def test_ctrl_c_while_the_daemon_hangs_ends_the_trainer(
    trainers: Trainers, daemon: DaemonProcess, plain: dict[str, Any], tmp_path: Path
) -> None:
    trainer = training(trainers, {**plain, "plan": _large(plain)}, daemon.socket, tmp_path)
    trainer.hear_until("step 0 0")
    daemon.freeze()
    while trainer.hear_soon():
        pass
    assert_one_interrupt(trainer)
    daemon.thaw()


def _large(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the plan with so many steps that none of its epochs ends."""
    return {**plain["plan"], "batch_size": 1}


def test_ctrl_c_while_the_daemon_is_away_ends_the_trainer(
    trainers: Trainers, daemon: DaemonProcess, plain: dict[str, Any], tmp_path: Path
) -> None:
    trainer = training(trainers, {**plain, "plan": _large(plain)}, daemon.socket, tmp_path)
    trainer.hear_until("step 0 0")
    daemon.kill()
    while trainer.hear_soon():
        pass
    begun = time.monotonic()
    trainer.kill(signal.SIGINT)
    assert trainer.wait() == -signal.SIGINT
    assert time.monotonic() - begun < QUICK_S
    assert trainer.stderr.count("Traceback") == 1, trainer.stderr


def test_ctrl_c_that_is_caught_loses_nothing(trainers: Trainers, plain: dict[str, Any]) -> None:
    reads = Reads()
    with AppThread(reads=reads) as app:
        trainer = trainers.start("catch_interrupt", stream=plain, socket=app.socket)
        trainer.hear_until("step 2")
        app.call(reads.close_gate)  # few batches are read by now, by far not all
        trainer.say()
        heard = 3
        while line := trainer.hear_soon():
            assert line == f"step {heard}"
            heard += 1
        trainer.kill(signal.SIGINT)
        assert trainer.hear() == f"interrupted before {heard} with threads 1", trainer.stderr
        app.call(reads.open_gate)
        trainer.say()
        assert trainer.hear() == " ".join(map(str, range(heard, STEPS)))
        assert trainer.wait() == 0


# ---- forks and workers ---------------------------------------------------------------------------


def test_after_a_fork_both_processes_go_on(
    trainers: Trainers, daemon: DaemonProcess, plain: dict[str, Any], lines: list[str]
) -> None:
    trainer = trainers.start("fork", stream=plain, socket=daemon.socket)
    heard = trainer.hear_all()
    assert trainer.wait() == 0
    assert trainer.stderr == ""
    assert heard == [
        f"parent {lines[0]}",
        "child this iterator belongs to the parent process: call iter() anew after a fork",
        # The next epoch, in a feed of its own.
        *(f"child {line}" for line in lines[STEPS : 2 * STEPS]),
        *(f"parent {line}" for line in lines[1:STEPS]),
    ]


@pytest.mark.timeout(180)  # spawned workers import torch, which takes seconds of CPU each
@pytest.mark.parametrize(
    ("context", "kinds"), [("fork", ["plain", "loader"]), ("spawn", ["loader"])]
)
def test_an_exit_with_live_workers_is_quick_and_quiet(
    trainers: Trainers,
    daemon: DaemonProcess,
    plain: dict[str, Any],
    lines: list[str],
    context: str,
    kinds: list[str],
) -> None:
    trainer = trainers.start(
        "work", stream=plain, socket=daemon.socket, context=context, kinds=kinds
    )
    for epoch, kind in enumerate(kinds, 1):
        heard = [trainer.hear() for _ in range(2)]
        due = lines[epoch * STEPS : epoch * STEPS + 2]
        assert heard == [f"{kind} {line}" for line in due], trainer.stderr
    begun = time.monotonic()
    workers = psutil.Process(trainer.pid).children(recursive=True)
    assert trainer.wait() == 0
    assert time.monotonic() - begun < QUICK_S
    assert trainer.stderr == ""
    for worker in workers:
        wait_for_death(worker.pid)
    wait_until(lambda: not daemon.status()["feeds"])


@pytest.mark.parametrize("is_loader", [False, True])
def test_the_workers_of_a_killed_trainer_end_and_so_do_their_feeds(
    trainers: Trainers,
    daemon: DaemonProcess,
    plain: dict[str, Any],
    lines: list[str],
    is_loader: bool,
) -> None:
    trainer = trainers.start(
        "loop_with_workers", stream=plain, socket=daemon.socket, loader=is_loader
    )
    assert trainer.hear() == lines[0], trainer.stderr
    workers = psutil.Process(trainer.pid).children()
    assert len(workers) == 2
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    for worker in workers:
        wait_for_death(worker.pid)
    wait_until(lambda: not daemon.status()["feeds"])
    assert daemon.status()["memory"]["guaranteed_bytes"] == 0


@pytest.mark.slow
def test_being_stopped_for_10_s_changes_nothing(
    trainers: Trainers, daemon: DaemonProcess, plain: dict[str, Any], lines: list[str]
) -> None:
    """Trainers with and without workers, and then the daemon itself."""
    arguments: dict[str, Any] = {"stream": plain, "socket": daemon.socket}
    stopped = [
        trainers.start("loop_with_workers", loader=is_loader, **arguments)
        for is_loader in (False, True)
    ]
    other = trainers.start("loop_with_workers", loader=True, persistent=True, **arguments)
    everyone = [*stopped, other]
    for trainer in everyone:
        assert trainer.hear() == lines[0], trainer.stderr
    processes = [
        process
        for trainer in stopped
        for process in (psutil.Process(trainer.pid), *psutil.Process(trainer.pid).children())
    ]
    for process in processes:
        process.suspend()
    daemon.freeze()
    begun = time.monotonic()
    while time.monotonic() - begun < 10:
        select.select([], [], [], 10.05 - (time.monotonic() - begun))
    daemon.thaw()
    other.say(len(lines))
    assert [other.hear() for _ in lines[1:]] == lines[1:], "the others do not matter to it"
    for process in processes:
        process.resume()
    for trainer in stopped:
        trainer.say(len(lines))
        assert [trainer.hear() for _ in lines[1:]] == lines[1:]
        assert trainer.stderr == ""


def test_a_dataset_that_is_closed_or_left_in_the_middle_goes_on(
    daemon: DaemonProcess, stream: Stream
) -> None:
    truth = expected(stream, epochs=4).entries
    dataset, beside = (DaemonDataset(daemon.socket, stream) for _ in range(2))
    ledger, kept = Ledger(), []
    for stop in (3, 1, 2):  # leaves of the first three epochs, with another dataset on the socket
        for batch, other in zip(dataset, beside, strict=False):
            ledger.record(batch)
            kept.append(other)
            if batch.meta["step"] + 1 == stop:
                break
    assert ledger.entries == [*truth[:3], truth[STEPS], *truth[2 * STEPS : 2 * STEPS + 2]]
    batches = iter(dataset)
    ledger.record(next(batches))
    dataset.close()
    with pytest.raises(errors.FeedError, match="this pass was ended"):
        next(batches)
    dataset.load_state_dict(dataset.state_dict())
    for batch in dataset:
        ledger.record(batch)
    assert ledger.entries[6:] == truth[3 * STEPS :]
    for batch in kept:
        ledger.record(batch)
    assert ledger.entries[-6:] == ledger.entries[:6], "what is held stays as it was"
    dataset.close()
    beside.close()
    assert daemon.status()["feeds"] == []


# ---- a private daemon ----------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private daemons make their folders."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def daemon_of(dataset: DaemonDataset) -> psutil.Process:
    assert dataset._link.private is not None
    assert dataset._link.private._process is not None
    return psutil.Process(dataset._link.private._process.pid)


def test_a_private_daemon_serves_and_goes(stream: Stream, temporary: Path) -> None:
    dataset = DaemonDataset.local(stream, memory="8MiB", prefetch_batches=2)
    ledger = Ledger()
    for _ in range(2):
        for batch in dataset:
            check(batch)
            ledger.record(batch)
    assert ledger.difference(expected(stream, epochs=2)) is None
    assert len(dataset) == STEPS
    process = daemon_of(dataset)
    dataset.close()
    assert not process.is_running()
    assert list(temporary.iterdir()) == []
    with pytest.raises(errors.DaemonUnavailableError, match="was closed"):
        next(iter(dataset))


def test_a_private_daemon_goes_with_its_dataset(stream: Stream, temporary: Path) -> None:
    dataset = DaemonDataset.local(stream)
    next(iter(dataset))
    process = daemon_of(dataset)
    del dataset
    assert not process.is_running()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_private_daemon_that_dies_is_started_again(
    stream: Stream, temporary: Path, number: signal.Signals
) -> None:
    dataset = DaemonDataset.local(stream, prefetch_batches=1)
    ledger = Ledger()
    seen: set[int] = set()
    for batch in dataset:
        ledger.record(batch)
        assert dataset._link.private is not None
        with dataset._link.private._lock:  # held until one that is being started listens
            process = dataset._link.private._process
        if process is not None and process.poll() is None and len(seen) < 3:  # it is back
            seen.add(process.pid)
            process.send_signal(number)
            process.wait(DEADLINE_S)
    assert ledger.difference(expected(stream)) is None
    assert len(seen) == 3
    dataset.close()
    assert list(temporary.iterdir()) == []


def test_a_private_daemon_is_refused_what_cannot_be_served(temporary: Path) -> None:
    with pytest.raises(errors.PlanError, match=r"local\(\) takes Stream\(source, plan\)"):
        DaemonDataset.local("train")  # type: ignore[arg-type]
    stream = stream_of(temporary / "nothing", Shuffled(batch_size=1))
    dataset = DaemonDataset.local(stream)
    with pytest.raises(errors.FeedError, match="does not exist"):
        next(iter(dataset))
    dataset.close()
    with pytest.raises(errors.DaemonUnavailableError, match="'lots' is no size"):
        DaemonDataset.local(stream, memory="lots")
    with pytest.raises(errors.PlanError, match="prefetch_batches=0"):
        DaemonDataset.local(stream, prefetch_batches=0)
    assert list(temporary.iterdir()) == []


def test_a_private_daemon_ends_with_its_parent_however_it_ends(
    trainers: Trainers, plain: dict[str, Any]
) -> None:
    trainer = trainers.start("private", stream=plain)
    pid, socket = trainer.hear().split()
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    wait_for_death(int(pid))
    assert not Path(socket).parent.exists()


def test_a_forked_child_does_not_keep_a_private_daemon_alive(
    trainers: Trainers, plain: dict[str, Any]
) -> None:
    trainer = trainers.start("private", stream=plain, forks=True)
    pid, socket = trainer.hear().split()
    child = psutil.Process(int(trainer.hear()))
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    wait_for_death(int(pid))
    assert not Path(socket).parent.exists()
    assert child.is_running()
    child.kill()


def test_a_private_daemon_is_quiet_about_ctrl_c(
    trainers: Trainers, plain: dict[str, Any], tmp_path: Path
) -> None:
    trainer = training(trainers, plain, None, tmp_path)
    trainer.hear_until("step 0 3")
    (daemon,) = psutil.Process(trainer.pid).children()
    trainer.kill(signal.SIGINT)
    assert trainer.wait() in (-signal.SIGINT, 0)
    wait_for_death(daemon.pid)
    assert trainer.stderr.count("Traceback") <= 1
    state = tmp_path / "state.json"
    assert (
        json.loads(state.read_text())["step"]
        == len(Ledger(tmp_path / "ledger.jsonl").entries) % STEPS
    )
