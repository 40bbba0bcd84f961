"""L1: the budget is the limit, whoever sleeps, and nobody waits for a sleeper."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from headrace import DaemonDataset, Stream, errors
from headrace.plans import Sequential, Shuffled
from headrace.protocol import messages as m
from headrace.testing import Ledger, ledger_of
from tests.support.app import AppThread
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import stream_of, write_samples
from tests.support.loops import turns
from tests.support.sleeper import ALLOWANCE, Sleeper, peak_bytes
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainers import Trainers

MIB: Final = 1 << 20
BUDGET: Final = 64 * MIB

NUM_LARGE = 96


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """96 files of 2 MiB: three times the budget.  They are all hole, and cost no disk."""
    folder = tmp_path_factory.mktemp("large")
    for index in range(NUM_LARGE):
        with (folder / f"{index:03}").open("wb") as file:
            file.truncate(2 * MIB)
    return stream_of(folder, Sequential(batch_size=1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return stream_of(
        write_samples(tmp_path_factory.mktemp("small"), 60), Shuffled(batch_size=4, seed=3)
    )


def is_full(report: dict[str, Any]) -> bool:
    """Tell whether there are feeds, and nothing more can be read ahead for them."""
    feeds, memory = report["feeds"], report["memory"]
    rest = memory["budget_bytes"] - memory["held_bytes"]
    return bool(feeds) and all(
        feed["ready"] == feed["slots"] and rest < feed["slot_bytes"] for feed in feeds
    )


@pytest.mark.slow
def test_the_daemon_stays_within_base_and_budget_while_its_clients_sleep(large: Stream) -> None:
    with DaemonProcess("--memory", "64MiB") as daemon:
        with Sleeper(daemon.socket, large, prefetch=1) as first:  # lists the folder
            first.leave()
        base = daemon.usage.memory_info().rss
        # One takes nothing; one lets batches come and does not read them; one is just slow.
        with (
            Sleeper(daemon.socket, large),
            Sleeper(daemon.socket, large, credit=1000),
            Sleeper(daemon.socket, large, credit=1) as slow,
        ):
            for step in range(NUM_LARGE):
                assert slow.take() == step
                slow.channel.send(m.Credit(total=step + 2))
            wait_until(lambda: daemon.status()["memory"]["held_bytes"] > 0.9 * BUDGET)
            memory = daemon.status()["memory"]
            assert memory["held_bytes"] <= BUDGET
            assert memory["guaranteed_bytes"] <= BUDGET
            assert peak_bytes(daemon.process.pid) <= base + BUDGET + ALLOWANCE


def test_reading_stops_when_nobody_takes_batches_and_goes_on_when_somebody_does(
    large: Stream,
) -> None:
    with AppThread(memory="64MiB") as app:
        with Sleeper(app.socket, large, credit=0) as sleeper:
            app.wait_until(lambda: is_full(app.app.report()))
            read = len(app.reads.names)
            assert read == len(set(app.reads.names)) == BUDGET // (2 * MIB)
            app.run(turns(1000))
            assert len(app.reads.names) == read, "it does not read on"
            sleeper.channel.send(m.Credit(total=NUM_LARGE))
            steps = [sleeper.take() for _ in range(NUM_LARGE)]
            assert steps == list(range(NUM_LARGE))
        assert app.call(app.app.report)["memory"]["held_bytes"] <= BUDGET


def test_a_client_that_sleeps_does_not_block_another(large: Stream, small: Stream) -> None:
    with AppThread(memory="64MiB") as app, Sleeper(app.socket, large):
        app.wait_until(lambda: is_full(app.app.report()))
        for stream in (small, large):
            dataset = DaemonDataset(app.socket, stream, prefetch_batches=16)
            if stream is small:
                assert ledger_of(dataset).difference(expected(small)) is None
            else:
                assert len(list(dataset)) == NUM_LARGE
            dataset.close()
        assert app.call(app.app.report)["memory"]["held_bytes"] <= BUDGET


def test_clients_that_sleep_give_their_surplus_to_those_that_come(large: Stream) -> None:
    """Each is guaranteed two slots of 2 MiB, so sixteen of them fill 64 MiB."""
    with AppThread(memory="64MiB") as app, contextlib.ExitStack() as stack:
        sleepers = [stack.enter_context(Sleeper(app.socket, large)) for _ in range(16)]
        report = app.call(app.app.report)
        assert report["memory"]["guaranteed_bytes"] == BUDGET
        assert report["memory"]["held_bytes"] <= BUDGET
        dataset = DaemonDataset(app.socket, large)
        with pytest.raises(errors.BudgetError) as caught:
            next(iter(dataset))
        words = str(caught.value)
        assert f"needs 2 slots of {2 * MIB} bytes" in words
        assert f"the budget is {BUDGET} bytes ([daemon] memory), of which {BUDGET} are" in words
        assert "promised to 16 open feed(s) and 0 are left" in words
        for sleeper in sleepers:
            sleeper.channel.send(m.Credit(total=3))
            sleeper.leave()
        assert len(list(dataset)) == NUM_LARGE
        dataset.close()


def test_a_trainer_that_is_stopped_does_not_disturb_another(
    small: Stream, trainers: Trainers, tmp_path: Path
) -> None:
    arguments = {"stream": msgspec.to_builtins(small), "epochs": 1, "waits": True}
    with AppThread() as app:
        stopped = trainers.start(
            "train",
            socket=app.socket,
            ledger=str(tmp_path / "ledger.jsonl"),
            state=str(tmp_path / "state.json"),
            **arguments,
        )
        stopped.say(3)
        stopped.hear_until("step 0 2")
        stopped.kill(signal.SIGSTOP)
        other = DaemonDataset(app.socket, small)
        for _ in range(3):
            assert len(list(other)) == 15
        other.close()
        stopped.kill(signal.SIGCONT)
        stopped.say(20)
        assert stopped.hear_all()[-1] == "done"
        assert stopped.wait() == 0
    assert Ledger(tmp_path / "ledger.jsonl").difference(expected(small)) is None
