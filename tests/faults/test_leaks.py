"""M1, M4: whoever comes and goes, however, leaves nothing in the daemon or in the trainer."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from headrace import DaemonDataset, Stream, errors
from headrace.client import Channel
from headrace.plans import Shuffled
from headrace.protocol import messages as m
from headrace.testing import Ledger, ledger_of
from headrace_daemon.settings import FetchSettings
from tests.support.app import AppThread, Reads
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.fakes import assert_no_receiver_is_left
from tests.support.files import stream_of, write_samples
from tests.support.waiting import DEADLINE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from tests.support.trainers import Trainers

STEPS = 12
ALLOWED_BYTES: Final = 5 << 20


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), STEPS * 8)
    return stream_of(folder, Shuffled(batch_size=8, seed=17))


def least(measure: Callable[[], int]) -> int:
    """Return the least of several values: what is on its way out does not count."""
    return min(measure() for _ in range(20))


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_quiet(report: dict[str, Any], connections: int = 0) -> bool:
    """Tell whether a daemon holds nothing for anybody."""
    memory = report["memory"]
    return (
        not report["feeds"]
        and report["connections"] == connections
        and not memory["held_bytes"]
        and not memory["guaranteed_bytes"]
    )


# ---- ways to come and go -------------------------------------------------------------------------


def finish(path: str, stream: Stream) -> None:
    dataset = DaemonDataset(path, stream)
    assert len(list(dataset)) == STEPS
    dataset.close()


def break_off(path: str, stream: Stream) -> None:
    dataset = DaemonDataset(path, stream, prefetch_batches=64)
    next(iter(dataset))
    dataset.close()


def drop(path: str, stream: Stream) -> None:
    batches = iter(DaemonDataset(path, stream))
    next(batches)
    del batches
    gc.collect()


def ask(path: str, stream: Stream) -> None:
    dataset = DaemonDataset(path, stream)
    assert len(dataset) == STEPS
    assert len(dataset.read(range(10))) == 10


def be_refused(path: str, stream: Stream) -> None:
    dataset = DaemonDataset(path, Stream(stream.source, Shuffled(batch_size=1, tail="drop")))
    dataset.load_state_dict(dataset.state_dict() | {"manifest": "0" * 64})
    with pytest.raises(errors.ManifestMismatchError):
        next(iter(dataset))


def close_while_opening(path: str, stream: Stream) -> None:
    with Channel.connect(path) as channel:
        channel.send(m.Open(stream=msgspec.to_builtins(stream), credit=4))
        channel.send(m.Close())
        while not isinstance(channel.receive(), m.End):
            pass


def talk_nonsense(path: str, stream: Stream) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.settimeout(DEADLINE_S)
        while sock.recv(1 << 16):
            pass


def stop_within_a_frame(path: str, stream: Stream) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"\0\0\1\0\0\0\0\0half")


def say_nothing(path: str, stream: Stream) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


WAYS: Final = (
    finish,
    break_off,
    drop,
    ask,
    be_refused,
    close_while_opening,
    talk_nonsense,
    stop_within_a_frame,
    say_nothing,
)


@pytest.mark.parametrize("way", WAYS)
def test_no_task_and_no_memory_is_left(stream: Stream, way: Callable[[str, Stream], None]) -> None:
    with AppThread(reads=Reads(1), grace_s=0.01) as app:
        finish(app.socket, stream)  # lists the folder
        app.wait_until(lambda: is_quiet(app.app.report()))
        assert_no_receiver_is_left()
        tasks = app.num_tasks()
        descriptors = least(num_descriptors)
        for _ in range(3):
            way(app.socket, stream)
            app.wait_until(lambda: is_quiet(app.app.report()))
        assert_no_receiver_is_left()
        app.wait_until(lambda: len(asyncio.all_tasks()) <= tasks + 1)
        wait_until(lambda: num_descriptors() <= descriptors)
        finish(app.socket, stream)


def until_killed(stream: Stream, folder: Path) -> dict[str, Any]:
    """Return what tells a trainer to train until it is killed."""
    return {
        "stream": msgspec.to_builtins(stream),
        "ledger": str(folder / "ledger.jsonl"),
        "state": str(folder / "state.json"),
        "epochs": 10**6,
        "prefetch_batches": 64,
        "waits": True,
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_hundred_clients_that_come_and_go_leave_nothing(
    stream: Stream, trainers: Trainers, tmp_path: Path
) -> None:
    """Some are followed by a trainer that is killed in the middle of its work."""
    killed = until_killed(stream, tmp_path)
    with DaemonProcess() as daemon:

        def visit(number: int) -> None:
            WAYS[number % len(WAYS)](daemon.socket, stream)
            if number % 4:  # 25 of the hundred
                return
            trainer = trainers.start("train", socket=daemon.socket, **killed)
            trainer.say(1)
            assert trainer.hear() == "begins"
            assert trainer.hear().startswith("step")
            trainer.kill()
            assert trainer.wait() == -signal.SIGKILL
            trainers.close_all()

        def wait_for_quiet() -> None:
            wait_until(lambda: is_quiet(daemon.status(), connections=1))
            assert_no_receiver_is_left()

        for number in range(2 * len(WAYS)):
            visit(number)
        wait_for_quiet()
        usage = daemon.usage
        descriptors, own_descriptors = least(usage.num_fds), least(num_descriptors)
        own_threads = threading.active_count()
        memory = usage.memory_info().rss
        for number in range(100):
            visit(number)
        wait_for_quiet()
        wait_until(lambda: usage.num_fds() <= descriptors)
        # Those that read (`max_in_flight`) come as they are needed; and the loop, and one of numpy.
        assert usage.num_threads() <= FetchSettings().max_in_flight + 2
        assert usage.memory_info().rss - memory < ALLOWED_BYTES
        assert (num_descriptors(), threading.active_count()) == (own_descriptors, own_threads)
        assert ledger_of(DaemonDataset(daemon.socket, stream)).difference(expected(stream)) is None


def test_the_memory_of_a_trainer_that_dies_goes_at_once_and_others_do_not_notice(
    stream: Stream, trainers: Trainers, tmp_path: Path
) -> None:
    with AppThread(grace_s=3600) as app:
        other = DaemonDataset(app.socket, stream)
        batches = iter(other)
        ledger = Ledger()
        ledger.record(next(batches))
        trainer = trainers.start(
            "train",
            socket=app.socket,
            stream=msgspec.to_builtins(stream),
            ledger=str(tmp_path / "ledger.jsonl"),
            state=str(tmp_path / "state.json"),
            epochs=1,
            waits=True,
        )
        trainer.say()
        trainer.hear_until("step 0 0")
        assert len(app.call(app.app.report)["feeds"]) == 2
        trainer.kill()
        app.wait_until(lambda: len(app.app.report()["feeds"]) == 1)
        (feed,) = app.call(app.app.report)["feeds"]
        assert app.call(app.app.report)["memory"]["guaranteed_bytes"] == 2 * feed["slot_bytes"]
        for batch in batches:
            ledger.record(batch)
        other.close()
        assert ledger.difference(expected(stream)) is None


def test_a_killed_trainer_is_cleared_away_within_a_second_and_holds_nobody_up(
    stream: Stream, trainers: Trainers, tmp_path: Path
) -> None:
    """Once of ten times is enough: others use the machine as well."""
    killed = until_killed(stream, tmp_path)
    found: list[tuple[float, float]] = []
    with DaemonProcess() as daemon:
        other = DaemonDataset(daemon.socket, stream)
        batches, ledger = endless(other), Ledger()
        ledger.record(next(batches))
        wait_until(lambda: daemon.status()["connections"] == 2)
        descriptors = daemon.usage.num_fds()
        while not any(cleared_s < 1 and slowest < 2 for cleared_s, slowest in found):
            assert len(found) < 10, f"seconds, slowest step by the median one: {found}"
            trainer = trainers.start("train", socket=daemon.socket, **killed)
            trainer.say(1)
            trainer.hear_until("begins")
            assert trainer.hear().startswith("step")
            assert len(daemon.status()["feeds"]) == 2
            steps_s = []
            for number in range(24):
                begun = time.monotonic()
                if number == 12:
                    trainer.kill()
                    killed_at = begun
                ledger.record(next(batches))
                train_for(0.008)
                steps_s.append(time.monotonic() - begun)
            wait_until(lambda: len(daemon.status()["feeds"]) == 1)
            wait_until(lambda: daemon.usage.num_fds() <= descriptors)
            cleared_s = time.monotonic() - killed_at
            report = daemon.status()
            assert report["memory"]["guaranteed_bytes"] == 2 * report["feeds"][0]["slot_bytes"]
            found.append((cleared_s, max(steps_s[12:]) / statistics.median(steps_s)))
        other.close()
    truth = expected(stream, epochs=25).entries
    assert ledger.entries == truth[: len(ledger.entries)]


def endless(dataset: DaemonDataset) -> Iterator[Batch]:
    """Go on from epoch to epoch."""
    while True:
        yield from dataset


def train_for(seconds: float) -> None:
    """Use the processor for a time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_feed_whose_client_does_not_come_back_goes_after_its_grace(stream: Stream) -> None:
    with AppThread(grace_s=0.05) as app:
        with Channel.connect(app.socket) as channel:
            channel.send(m.Open(stream=msgspec.to_builtins(stream), credit=1))
            assert isinstance(channel.receive(), m.Opened)
        app.wait_until(lambda: is_quiet(app.app.report()))


def test_a_feed_waits_for_its_client_within_its_grace_and_serves_it_from_the_same_memory(
    stream: Stream,
) -> None:
    with AppThread(grace_s=3600) as app:
        # With one batch at a time there is a connection whenever there is another batch.
        dataset = DaemonDataset(app.socket, stream, prefetch_batches=1)
        ledger = Ledger()
        pools = set()
        for batch in dataset:
            ledger.record(batch)
            (entry,) = app.call(lambda: app.app._registry.feeds)
            pools.add(entry.feed.pool)
            if batch.meta["step"] % 4 == 0:
                receiver = dataset._receiver
                assert receiver is not None
                assert receiver._channel is not None
                receiver._channel.shutdown()
        dataset.close()
        assert ledger.difference(expected(stream)) is None
        assert len(pools) == 1
        app.wait_until(lambda: is_quiet(app.app.report()))
