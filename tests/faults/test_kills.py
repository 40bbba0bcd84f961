"""Daemons and trainers that are killed: nothing is lost or repeated, and nothing stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from headrace import DaemonDataset, errors, plans
from headrace.testing import Ledger, ledger_of
from tests.support.daemon import DaemonProcess
from tests.support.files import stream_of, write_samples
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from headrace import Stream


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return stream_of(write_samples(tmp_path / "data", 200), plans.Shuffled(batch_size=4, seed=5))


@pytest.mark.slow
def test_a_killed_daemon_that_comes_back_changes_nothing(stream: Stream) -> None:
    with DaemonProcess() as daemon:
        whole = Ledger()
        calm = DaemonDataset(daemon.socket, stream)
        for _ in range(2):
            whole.entries += ledger_of(calm).entries
        calm.close()
        shaken = Ledger()
        dataset = DaemonDataset(daemon.socket, stream, deadline_s=40)
        for _ in range(2):
            for batch in dataset:
                shaken.record(batch)
                if batch.meta["step"] in (0, 7, 25, 49):
                    daemon.kill()
                    daemon.start()
        dataset.close()
    assert shaken.difference(whole) is None


def test_a_daemon_that_stays_away_is_an_error_at_the_deadline(stream: Stream) -> None:
    with DaemonProcess() as daemon:
        dataset = DaemonDataset(daemon.socket, stream, deadline_s=0.5, prefetch_batches=1)
        batches = iter(dataset)
        first = next(batches)
        daemon.kill()
        with pytest.raises(errors.DaemonUnavailableError, match=r"tried for 0\.5 s"):
            list(batches)
        state = dataset.state_dict()
        assert state["step"] > first.meta["step"]
        dataset.close()
        daemon.start()
        again = DaemonDataset(daemon.socket, stream)
        again.load_state_dict(state)
        assert next(iter(again)).meta["step"] == state["step"]
        again.close()


_TRAINER = """
import json, sys
from headrace import DaemonDataset, Objects, Stream, plans
stream = Stream(Objects(sys.argv[2]), plans.Shuffled(batch_size=4, seed=5))
dataset = DaemonDataset(sys.argv[1], stream, prefetch_batches=64)
for number, batch in enumerate(dataset):
    if number == 4:
        print(json.dumps(dataset.state_dict()), flush=True)
        sys.stdin.read()
"""


@pytest.mark.slow
def test_the_batch_after_the_saved_one_is_the_first_of_the_next_trainer(stream: Stream) -> None:

    with DaemonProcess() as daemon:
        command = [sys.executable, "-c", _TRAINER, daemon.socket, stream.source.location]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as trainer:
            assert trainer.stdout is not None
            state = json.loads(trainer.stdout.readline())
            trainer.send_signal(signal.SIGKILL)
            trainer.wait(20)
        wait_until(lambda: not daemon.status()["feeds"])
        dataset = DaemonDataset(daemon.socket, stream, prefetch_batches=64)
        dataset.load_state_dict(state)
        batch = next(iter(dataset))
        dataset.close()
        assert (batch.meta["epoch"], batch.meta["step"]) == (0, 5)
