"""D1-D5: the order is that of the plan, whatever happens on the way."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from headrace import DaemonDataset, Stream, Topology
from headrace.plans import Sequential, Shuffled
from headrace.testing import Ledger, ledger_of
from tests.support.app import AppThread, Reads
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples
from tests.support.loops import LOOPS

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.batch import Batch
    from tests.support.loops import Loop

NUM_SAMPLES = 300


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), NUM_SAMPLES)
    return stream_of(folder, Shuffled(batch_size=16, seed=17))


@pytest.fixture(scope="module")
def truth(stream: Stream) -> Ledger:
    """The ledger of two epochs, from the plan and the files."""
    return expected(stream, epochs=2)


def run(socket: str, stream: Stream, *, epochs: int = 2, **options: Any) -> Ledger:  # noqa: ANN401 - of any type
    """Return the ledger of some epochs."""
    dataset = DaemonDataset(socket, stream, **options)
    ledger = Ledger()
    for _ in range(epochs):
        for batch in dataset:
            check(batch)
            ledger.record(batch)
    dataset.close()
    return ledger


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("max_in_flight", [1, 8, 64])
@pytest.mark.parametrize("prefetch_batches", [1, 4, 64])
def test_depth_concurrency_and_delays_change_nothing(
    stream: Stream, truth: Ledger, prefetch_batches: int, max_in_flight: int, loop: Loop
) -> None:
    reads = Reads(seed=100 * prefetch_batches + max_in_flight)
    with AppThread(loop=loop, max_in_flight=max_in_flight, reads=reads) as app:
        ledger = run(app.socket, stream, prefetch_batches=prefetch_batches)
    assert ledger.difference(truth) is None


@pytest.mark.parametrize("seed", range(5))
def test_delays_do_change_the_order_of_the_reads(stream: Stream, truth: Ledger, seed: int) -> None:
    """Or the test above would show nothing."""
    finished: list[str] = []

    class Noting(Reads):
        async def before(self, requests: Any) -> None:  # noqa: ANN401 - as in Reads
            await super().before(requests)
            finished.extend(request.name for request in requests)

    reads = Noting(seed)
    with AppThread(reads=reads) as app:
        ledger = run(app.socket, stream, epochs=1, prefetch_batches=64)
    assert ledger.entries == truth.entries[: len(ledger.entries)]
    begun = reads.names[: len(finished)]
    assert set(finished) <= set(reads.names)
    assert finished != begun


def test_the_smallest_memory_changes_nothing(stream: Stream, truth: Ledger) -> None:
    """Two slots, although 64 batches are wanted: there is no room for more."""
    with AppThread(memory="40kB", reads=Reads(1)) as app:
        ledger = run(app.socket, stream, prefetch_batches=64)
    assert ledger.difference(truth) is None


def test_fresh_daemons_deliver_the_same(stream: Stream, truth: Ledger) -> None:
    for _ in range(3):
        with DaemonProcess() as daemon:
            assert run(daemon.socket, stream).difference(truth) is None


def test_epochs_differ_and_have_each_sample_once(stream: Stream) -> None:
    with AppThread() as app:
        ledger = run(app.socket, stream, epochs=3)
    orders = [
        [index for entry in ledger.entries if entry.epoch == epoch for index in entry.ids]
        for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(NUM_SAMPLES)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_seeds_differ(stream: Stream, truth: Ledger) -> None:
    other = Stream(stream.source, Shuffled(batch_size=16, seed=18))
    with AppThread() as app:
        assert run(app.socket, other).difference(truth) is not None


def test_random_numbers_of_the_trainer_change_nothing(stream: Stream, truth: Ledger) -> None:
    def draw(sample: dict[str, Any]) -> Any:  # noqa: ANN401 - the sample as it was
        random.random()
        np.random.rand(3)
        torch.rand(3)
        return {"data": sample["data"]}

    ledger = Ledger()
    with AppThread() as app:
        dataset = DaemonDataset(app.socket, stream, transform=draw)
        for epoch in range(2):
            for batch in dataset:
                ledger.record(batch)
                for seed in (epoch, batch.meta["step"]):
                    random.seed(seed)
                    np.random.seed(seed)
                    torch.manual_seed(seed)
                torch.randperm(5)
        dataset.close()
    assert ledger.difference(truth) is None


def test_random_numbers_of_the_trainer_are_left_alone(stream: Stream) -> None:
    """A loader that draws from them would change what the model does."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected_draws = (torch.rand(1).item(), float(np.random.rand()), random.random())
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    with AppThread() as app:
        run(app.socket, stream, epochs=1)
    assert (torch.rand(1).item(), float(np.random.rand()), random.random()) == expected_draws


def test_a_sequential_plan_reads_the_files_in_their_order(stream: Stream) -> None:
    plan = Sequential(batch_size=7)
    with AppThread(reads=Reads(2)) as app:
        dataset = DaemonDataset(app.socket, Stream(stream.source, plan))
        names = [key for batch in dataset for key in batch.sample_keys]
        dataset.close()
    assert names == sorted(names, key=str.encode)
    assert len(names) == NUM_SAMPLES


# ---- what the command line says ------------------------------------------------------------------


def planned(config: Path, *arguments: str) -> dict[str, Any]:
    """Return what ``headrace plan --json`` prints."""
    command = [sys.executable, "-m", "headrace_daemon", "plan", "--config", str(config), "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_headrace_plan_prints_what_a_trainer_receives(
    stream: Stream, tmp_path: Path, rank: int, world_size: int
) -> None:
    folder = stream.source.location
    config = tmp_path / "headrace.toml"
    config.write_text(
        f'default_stream = "train"\n'
        f'[daemon]\nstate_dir = "{tmp_path}/state"\n'
        f"[streams.train]\n"
        f'source = {{ type = "Objects", uri = "{folder}" }}\n'
        f'plan = {{ type = "Shuffled", global_batch_size = 16, seed = 17 }}\n'
    )
    received: dict[int, Batch] = {}
    with DaemonProcess("--config", str(config)) as daemon:
        dataset = DaemonDataset(daemon.socket, topology=Topology(rank, world_size))
        steps = len(dataset)
        for _ in range(2):
            for batch in dataset:
                received[batch.meta["global_step"]] = batch
        dataset.close()
    ranks = ("--rank", str(rank), "--world-size", str(world_size))
    everything = planned(config, *ranks, "--steps", f"0:{2 * steps}")
    assert everything["steps_per_epoch"] == steps
    assert len(everything["steps"]) == len(received) == 2 * steps
    # The first step of the next epoch has two names.
    single = planned(config, *ranks, "--epoch", "1", "--steps", "0")["steps"]
    assert single == everything["steps"][steps : steps + 1]
    for row in everything["steps"]:
        batch = received[row["global_step"]]
        assert (row["epoch"], row["step"]) == (batch.meta["epoch"], batch.meta["step"])
        assert row["ids"] == batch.indices.tolist()
        assert row["names"] == batch.sample_keys
        assert row["bytes"] == sum(map(len, batch["data"]))
        assert row["cursor"] == batch.cursor.to_state()
        assert row["padding"] == [bool(flag & 1) for flag in batch.flags.tolist()]


def test_ledgers_are_made_of_what_was_received(stream: Stream, truth: Ledger) -> None:
    """The oracle of this file and `ledger_of` agree on one that was really received."""
    with AppThread() as app:
        dataset = DaemonDataset(app.socket, stream)
        ledger = ledger_of(dataset)
        dataset.close()
    assert ledger.entries == truth.entries[: len(ledger.entries)]
    assert len(ledger.entries) == len(truth.entries) // 2
