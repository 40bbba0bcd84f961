"""E5, E6: DataLoader workers, however they are started, yield the order of the plan.

One daemon serves all of these tests, and all of them compare ledgers.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from headrace import DaemonDataset, Stream, errors
from headrace.plans import Shuffled
from headrace.testing import Ledger, LedgerEntry
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.fakes import assert_no_receiver_is_left
from tests.support.files import check, stream_of, write_samples
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from headrace.batch import Batch

STEPS = 7
EPOCHS = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # From Python 3.12 on; forking is what is tested.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata uses it
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon
        wait_until(lambda: not daemon.status()["feeds"])
        assert daemon.status()["memory"]["held_bytes"] == 0


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), 4 * STEPS - 1)
    return stream_of(folder, Shuffled(batch_size=4, seed=17))


@pytest.fixture(scope="module")
def truth(stream: Stream) -> list[LedgerEntry]:
    return expected(stream, epochs=EPOCHS + 3).entries


@pytest.fixture
def dataset(daemon: DaemonProcess, stream: Stream) -> Iterator[DaemonDataset]:
    dataset = DaemonDataset(daemon.socket, stream)
    yield dataset
    dataset.close()


def entries(batches: Iterable[Batch]) -> list[LedgerEntry]:
    ledger = Ledger()
    for batch in batches:
        check(batch)
        ledger.record(batch)
    return ledger.entries


def passes(loader: Iterable[Batch], number: int = EPOCHS) -> list[LedgerEntry]:
    return [entry for _ in range(number) for entry in entries(loader)]


def epoch(truth: list[LedgerEntry], number: int) -> list[LedgerEntry]:
    return [entry for entry in truth if entry.epoch == number]


# ---- order and epochs ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_persistent", [False, True])
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_plain_workers_yield_each_epoch_in_order(
    dataset: DaemonDataset, truth: list[LedgerEntry], num_workers: int, is_persistent: bool
) -> None:
    loader = DataLoader(
        dataset, batch_size=None, num_workers=num_workers, persistent_workers=is_persistent
    )
    assert len(loader) == STEPS
    assert passes(loader) == truth[: EPOCHS * STEPS]


@pytest.mark.parametrize("is_persistent", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_a_loader_yields_each_epoch_in_order(
    dataset: DaemonDataset, truth: list[LedgerEntry], num_workers: int, is_persistent: bool
) -> None:
    options = {"persistent_workers": is_persistent} if num_workers else {}
    loader = dataset.loader(num_workers, **options)
    assert len(loader) == STEPS
    assert passes(loader) == truth[: EPOCHS * STEPS]
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["step"]) == (EPOCHS, 0)


def test_more_workers_than_steps(dataset: DaemonDataset, truth: list[LedgerEntry]) -> None:
    loader = DataLoader(dataset, batch_size=None, num_workers=16)
    assert passes(loader, 2) == truth[: 2 * STEPS]
    assert entries(dataset.loader(16)) == epoch(truth, 2)


@pytest.mark.slow
@pytest.mark.timeout(180)  # six processes that import torch, which takes seconds of CPU each
def test_spawned_workers_yield_each_epoch_in_order(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert passes(loader) == truth[: EPOCHS * STEPS]


@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_of_a_fork_server_yield_each_epoch_in_order(
    dataset: DaemonDataset, truth: list[LedgerEntry], is_persistent: bool
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headrace.dataset", "tests.integration.test_workers"])
    options: dict[str, Any] = {
        "num_workers": 2,
        "persistent_workers": is_persistent,
        "multiprocessing_context": context,
    }
    assert passes(DataLoader(dataset, batch_size=None, **options)) == truth[: EPOCHS * STEPS]
    assert entries(dataset.loader(**options)) == epoch(truth, EPOCHS)


class Delay:
    """Holds workers up for random times, at their start and before each sample."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(seed)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.002 * self._rng.random())
        return sample

    def begin(self, worker: int) -> None:
        self._rng = random.Random(f"{self._seed} {worker} {os.getpid()}")
        time.sleep(0.05 * self._rng.random())


@pytest.mark.parametrize("seed", range(6))
def test_epochs_follow_each_other_whatever_the_scheduler_does(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], seed: int
) -> None:
    """Passes are left anywhere, and torch is seeded with the same number before each."""
    rng, delay = random.Random(seed), Delay(seed)
    dataset = DaemonDataset(daemon.socket, stream, transform=delay, collate_fn=_names)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=rng.choice((2, 3)),
        persistent_workers=bool(seed % 2),
        worker_init_fn=delay.begin,
    )
    plain = DaemonDataset(daemon.socket, stream)
    for _ in range(5):
        if seed % 3:
            torch.manual_seed(0)
        whole = [batch.sample_keys for batch in plain]
        stop = rng.choice((1, 1, 2, STEPS - 1, STEPS))
        seen = []
        for names in loader:
            seen.append(names)
            if len(seen) == stop:
                break
        assert seen == whole[:stop]


def _names(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["__key__"] for sample in samples]


# ---- the position in the main process ------------------------------------------------------------


@pytest.mark.parametrize("is_persistent", [False, True])
def test_what_the_main_process_says_counts_for_plain_workers(
    dataset: DaemonDataset, truth: list[LedgerEntry], is_persistent: bool
) -> None:
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=is_persistent)
    batches = iter(dataset)
    next(batches)
    assert entries(loader) == epoch(truth, 1), "the main process was in epoch 0"
    dataset.set_epoch(2)
    assert entries(loader) == epoch(truth, 2), "as it would have been"
    dataset.set_epoch(1)
    assert entries(loader) == epoch(truth, 1)
    dataset.seek(update=2 * STEPS + 3)
    assert entries(loader) == epoch(truth, 2)[3:]
    dataset.load_state_dict(next(iter(dataset)).cursor.to_state())
    assert entries(loader) == epoch(truth, 3)[1:]
    assert len(dataset) == STEPS
    assert entries(dataset) == epoch(truth, 4), "the main process takes over"
    assert dataset.state_dict()["epoch"] == 5


def test_a_set_epoch_in_the_middle_of_plain_workers_is_a_no_op(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    loader = DataLoader(dataset, batch_size=None, num_workers=2, prefetch_factor=1)
    batches = iter(loader)
    first = next(batches)
    dataset.set_epoch(0)
    assert entries([first, *batches]) == epoch(truth, 0)
    assert entries(loader) == epoch(truth, 1)


def test_the_state_beside_plain_workers_is_refused(dataset: DaemonDataset) -> None:
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    batches = iter(loader)
    batch = next(batches)
    for ask in (dataset.state_dict, lambda: dataset.remaining):
        with pytest.raises(errors.FeedError, match=r"use dataset\.loader\(num_workers=…\)"):
            ask()
    assert dataset.state_dict(after=batch)["step"] == 1


def test_a_copy_in_a_worker_cannot_be_moved(dataset: DaemonDataset) -> None:
    def move(worker: int) -> None:
        dataset.seek(epoch=worker)

    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=move)
    with pytest.raises(errors.FeedError, match="set positions in the main process"):
        next(iter(loader))


def test_batches_are_not_batched_in_workers_either(dataset: DaemonDataset) -> None:
    with pytest.raises(TypeError, match="use DataLoader\\(dataset, batch_size=None\\)"):
        next(iter(DataLoader(dataset, batch_size=8, num_workers=1)))


# ---- the state of a loader -----------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [2, 3])
def test_every_state_of_a_loader_continues_with_any_number_of_workers(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], num_workers: int
) -> None:
    dataset = DaemonDataset(daemon.socket, stream)
    loader = dataset.loader(num_workers, persistent_workers=True)
    states = [loader.state_dict()]
    for batch in loader:
        states.append(loader.state_dict())
        assert states[-1] == dataset.state_dict(after=batch)
    for taken, state in enumerate(states):
        other = DaemonDataset(daemon.socket, stream).loader((0, 2, 5 - num_workers)[taken % 3])
        other.load_state_dict(json.loads(json.dumps(state)))
        rest = entries(other) + (entries(other) if taken < STEPS else [])
        assert rest == truth[taken : 2 * STEPS], f"after {taken} batches"


@pytest.mark.parametrize("is_persistent", [False, True])
def test_raw_batches_of_many_sizes_reach_the_loop_whole(
    daemon: DaemonProcess,
    tmp_path: Path,
    is_persistent: bool,
) -> None:
    folder = write_samples(tmp_path, 400, max_bytes=100_000)
    stream = stream_of(folder, Shuffled(batch_size=5, seed=8))
    dataset = DaemonDataset(daemon.socket, stream, prefetch_batches=2)
    truth = expected(stream, epochs=4).entries
    loader = dataset.loader(2, persistent_workers=is_persistent, prefetch_factor=1)
    seen = []
    for stop in (3, 80, 1, 80):
        for batch in loader:
            seen += entries([batch])
            if batch.meta["step"] + 1 == stop:
                break
    assert seen == truth[:3] + truth[80:160] + truth[160:161] + truth[240:]


def test_a_loader_moves_its_dataset(dataset: DaemonDataset, truth: list[LedgerEntry]) -> None:
    loader = dataset.loader(2)
    for batch in loader:
        if batch.meta["step"] == 2:
            break
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["step"]) == (0, 3)
    assert dataset.remaining == STEPS, "of the next pass"
    assert entries(loader) == epoch(truth, 1)
    loader.set_epoch(4)
    batches = iter(loader)
    assert next(batches).meta["epoch"] == 4
    assert dataset.remaining == STEPS - 1
    newer = iter(dataset)
    assert next(newer).meta["epoch"] == 5
    with pytest.raises(errors.FeedError, match="this pass was ended by a newer one"):
        next(batches)
    assert [batch.meta["epoch"] for batch in loader] == [6] * STEPS


class Fragile:
    """A transform that fails, once a file is there, in a way that the file says."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if os.path.exists(self.path) and sample["__key__"] == "s00006.bin":
            os.unlink(self.path)
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_worker_that_is_killed_costs_no_batch(
    daemon: DaemonProcess,
    stream: Stream,
    tmp_path: Path,
    is_persistent: bool,
) -> None:
    flag = tmp_path / "fail"
    flag.touch()
    options: dict[str, Any] = {"transform": Fragile(str(flag)), "collate_fn": _names}
    dataset = DaemonDataset(daemon.socket, stream, **options)
    whole = [batch.sample_keys for batch in DaemonDataset(daemon.socket, stream)]
    seen: list[list[str]] = []
    with pytest.raises(RuntimeError, match=r"killed by signal|exited unexpectedly"):
        for names in dataset.loader(2, persistent_workers=is_persistent):
            seen += [names]
    dataset.load_state_dict(dataset.state_dict())
    seen += dataset.loader(2)
    assert seen == whole


# ---- coming and going ----------------------------------------------------------------------------


class Remains(NamedTuple):
    """What a loop may leave behind in this process and beside it."""

    descriptors: int
    threads: int
    children: int
    shared: frozenset[str]
    """Names of shared memory, those of other programs included."""

    @classmethod
    def now(cls) -> Remains:
        gc.collect()
        return cls(
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(multiprocessing.active_children()),
            frozenset(os.listdir("/dev/shm")),
        )

    def is_within(self, before: Remains) -> bool:
        """Tell whether there is nothing that was not there before."""
        return self.shared <= before.shared and all(
            now <= then for now, then in zip(self[:3], before[:3], strict=True)
        )


def leave_early(batches: Iterable[Batch]) -> None:
    for _ in batches:
        break


def fail(batches: Iterable[Batch]) -> None:
    with pytest.raises(ZeroDivisionError):
        for batch in batches:
            batch.meta["step"] // 0


def hold_and_drop(batches: Iterable[Batch]) -> None:
    iterator = iter(batches)
    kept = [next(iterator), next(iterator)]
    del iterator
    check(kept[0])


@pytest.mark.parametrize("use", [list, leave_early, fail, hold_and_drop])
@pytest.mark.parametrize("kind", ["loader", "persistent", "plain", "stateful"])
def test_whatever_a_loop_does_nothing_is_left(
    daemon: DaemonProcess, stream: Stream, kind: str, use: Callable[[Iterable[Batch]], object]
) -> None:
    def once() -> None:
        dataset = DaemonDataset(daemon.socket, stream)
        made: Any
        if kind in ("loader", "persistent"):
            made = dataset.loader(2, persistent_workers=kind == "persistent")
        else:
            make = DataLoader if kind == "plain" else StatefulDataLoader
            made = make(dataset, batch_size=None, num_workers=2)
        for _ in range(2):
            use(made)

    once()  # what torch keeps for good
    assert_no_receiver_is_left()
    wait_until(lambda: not multiprocessing.active_children())
    before = Remains.now()
    once()
    wait_until(lambda: Remains.now().is_within(before))
    wait_until(lambda: not daemon.status()["feeds"])
    assert daemon.status()["memory"]["held_bytes"] == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_private_daemon_that_dies_under_workers_is_started_again(
    stream: Stream, truth: list[LedgerEntry], how: signal.Signals
) -> None:
    dataset = DaemonDataset.local(stream, prefetch_batches=1)
    seen = []
    for batch in dataset.loader(2, prefetch_factor=1):
        seen += entries([batch])
        if len(seen) == 2:
            assert dataset._private is not None
            process = dataset._private._process
            assert process is not None
            process.send_signal(how)
    assert seen == epoch(truth, 0)
    dataset.close()
    with pytest.raises(errors.DaemonUnavailableError, match="was closed"):
        list(dataset.loader(2))


def test_two_datasets_on_one_socket_go_their_own_ways(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry]
) -> None:
    one, other = (DaemonDataset(daemon.socket, stream) for _ in range(2))
    other.seek(epoch=3)
    pairs = list(zip(one.loader(2), other.loader(2), strict=True))
    assert entries(pair[0] for pair in pairs) == epoch(truth, 0)
    assert entries(pair[1] for pair in pairs) == epoch(truth, 3)


# ---- StatefulDataLoader --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_workers", "is_persistent"), [(0, False), (2, False), (2, True), (3, False), (3, True)]
)
def test_a_stateful_loader_is_exact_at_every_stop(
    daemon: DaemonProcess,
    tmp_path: Path,
    num_workers: int,
    is_persistent: bool,
) -> None:
    stream = stream_of(write_samples(tmp_path, 19), Shuffled(batch_size=4, seed=3))
    truth = expected(stream, epochs=3).entries

    def make() -> Any:  # noqa: ANN401
        return StatefulDataLoader(
            DaemonDataset(daemon.socket, stream),
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=is_persistent,
        )

    loader = make()
    states = [json.dumps(loader.state_dict())]
    whole = []
    for _ in range(2):
        for batch in loader:
            whole += entries([batch])
            states.append(json.dumps(loader.state_dict()))
    assert whole == truth[:10]
    for taken, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        rest: list[LedgerEntry] = []
        while len(rest) < len(truth) - taken:
            rest += entries(resumed)
        assert rest == truth[taken:], f"resumed after {taken} batches: {state}"


def test_the_state_of_a_part_is_not_that_of_a_stream(dataset: DaemonDataset) -> None:
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
    next(iter(loader))
    part = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    with pytest.raises(errors.CursorError, match="the state of DataLoader worker 1 of 2"):
        dataset.load_state_dict(part)


def test_a_worker_refuses_the_state_of_a_whole_stream(dataset: DaemonDataset) -> None:
    state = dataset.state_dict()

    def load(worker: int) -> None:
        dataset.load_state_dict(state)

    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=load)
    with pytest.raises(errors.CursorError, match="load it into the dataset in the main process"):
        next(iter(loader))
