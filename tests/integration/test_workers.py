"""R3-R5, E5, E6: DataLoader workers, however they are started, yield the order of the plan.

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
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from headrace import DaemonDataset, Stream, errors
from headrace.collate import samples_of
from headrace.plans import Every, Interleaved, Limits, Sequential, Shuffled
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


@pytest.fixture
def collected() -> Iterator[None]:
    """Let go of iterators that an exception keeps: else a worker of a later test may have to."""
    yield
    gc.collect()


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
@pytest.mark.parametrize("num_workers", [1, 2, 4, 16])
def test_plain_workers_yield_each_epoch_in_order(
    dataset: DaemonDataset, truth: list[LedgerEntry], num_workers: int, is_persistent: bool
) -> None:
    """Of 16 workers most have no step."""
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


def test_a_data_loader_without_workers_is_a_loop_over_the_dataset(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    loader = DataLoader(dataset, batch_size=None)
    assert len(loader) == STEPS
    seen = []
    for _ in range(EPOCHS):
        for batch in loader:
            seen += entries([batch])
            assert dataset.state_dict() == dataset.state_dict(after=batch)
    assert seen == truth[: EPOCHS * STEPS]
    dataset.seek(update=STEPS + 2)
    dataset.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert passes(loader, 2) == truth[STEPS + 2 : 3 * STEPS]


@pytest.mark.parametrize("is_loader", [False, True])
def test_of_many_workers_everybody_gets_data(
    daemon: DaemonProcess, tmp_path: Path, is_loader: bool
) -> None:
    """One folder, or shard, is no limit to the number of workers."""
    stream = stream_of(write_samples(tmp_path, 40), Shuffled(batch_size=2, seed=5))
    pids = Pids()
    dataset = DaemonDataset(daemon.socket, stream, collate_fn=pids)
    make = dataset.loader if is_loader else partial(DataLoader, dataset, batch_size=None)
    given = list(make(num_workers=16))
    of_steps = [pid for pid, _ in given]
    assert len(set(of_steps)) == 16
    assert of_steps == (of_steps[:16] * 2)[:20], "dealt in turn"
    whole = [batch.sample_keys for batch in DaemonDataset(daemon.socket, stream)]
    assert [names for _, names in given] == whole


class Pids:
    """A collation that says which process it ran in."""

    def __call__(self, samples: list[dict[str, Any]]) -> tuple[int, list[str]]:
        return os.getpid(), _names(samples)


def test_batches_that_are_kept_stay_as_they_were(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    """All of two epochs are held while later ones arrive."""
    loop = dataset.loader(2, persistent_workers=True, prefetch_factor=1)
    for first, batches in ((0, loop), (2, dataset)):
        kept = [*batches, *batches]
        assert entries(kept) == truth[first * STEPS : (first + 2) * STEPS]


@pytest.mark.slow
@pytest.mark.timeout(120)  # two processes that import torch, which takes seconds of CPU each
def test_spawned_workers_yield_each_epoch_in_order(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry]
) -> None:
    delay = Delay(1)
    dataset = DaemonDataset(daemon.socket, stream, transform=delay)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="spawn",
        worker_init_fn=delay.begin,
    )
    assert passes(loader) == truth[: EPOCHS * STEPS]


@pytest.mark.parametrize("is_persistent", [False, True])
def test_workers_of_a_fork_server_yield_each_epoch_in_order(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], is_persistent: bool
) -> None:
    delay = Delay(2)
    dataset = DaemonDataset(daemon.socket, stream, transform=delay)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["headrace.dataset", "tests.integration.test_workers"])
    options: dict[str, Any] = {
        "num_workers": 2,
        "persistent_workers": is_persistent,
        "multiprocessing_context": context,
        "worker_init_fn": delay.begin,
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
    dataset = DaemonDataset(daemon.socket, stream, transform=delay)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=rng.choice((2, 3)),
        persistent_workers=bool(seed % 2),
        worker_init_fn=delay.begin,
    )
    for number in range(5):
        if seed % 3:
            torch.manual_seed(0)
        stop = rng.choice((1, 1, 2, STEPS - 1, STEPS))
        seen = []
        for batch in loader:
            seen += entries([batch])
            if len(seen) == stop:
                break
        assert seen == epoch(truth, number)[:stop]


@pytest.mark.parametrize("seed", range(4))
def test_three_passes_are_three_epochs_whatever_the_scheduler_does(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], seed: int
) -> None:
    delay = Delay(seed)
    dataset = DaemonDataset(daemon.socket, stream, transform=delay)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2 + seed % 2, worker_init_fn=delay.begin
    )
    assert passes(loader) == truth[: EPOCHS * STEPS]


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


@pytest.mark.usefixtures("collected")
def test_a_copy_in_a_worker_cannot_be_moved(dataset: DaemonDataset) -> None:
    def move(worker: int) -> None:
        dataset.seek(epoch=worker)

    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=move)
    with pytest.raises(errors.FeedError, match="set positions in the main process"):
        next(iter(loader))


@pytest.mark.usefixtures("collected")
def test_batches_are_not_batched_in_workers_either(dataset: DaemonDataset) -> None:
    with pytest.raises(TypeError, match="use DataLoader\\(dataset, batch_size=None\\)"):
        next(iter(DataLoader(dataset, batch_size=8, num_workers=1)))


# ---- the state of a loader -----------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 4])
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
        other = DaemonDataset(daemon.socket, stream).loader((0, 1, 2, 4)[taken % 4])
        other.load_state_dict(json.loads(json.dumps(state)))
        rest = entries(other) + (entries(other) if taken < STEPS else [])
        assert rest == truth[taken : 2 * STEPS], f"after {taken} batches"


def test_the_number_of_workers_may_change_at_every_step(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    done: list[LedgerEntry] = []
    for num_workers in (0, 2, 4, 1, 2, 0, 4):
        batches = iter(dataset.loader(num_workers))
        done += entries([next(batches)])
        dataset.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert done == epoch(truth, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_may_be_taken_at_any_moment(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], num_workers: int
) -> None:
    """And be loaded at any moment: into a new session or one that runs, once or twice."""
    options = {"persistent_workers": True} if num_workers else {}
    dataset, running = (DaemonDataset(daemon.socket, stream) for _ in range(2))
    loop = dataset.loader(num_workers, **options)
    seen: list[LedgerEntry] = []
    states: list[tuple[int, str]] = []

    def take() -> None:
        one, two = (json.dumps(dataset.state_dict()) for _ in range(2))
        assert one == two
        states.append((len(seen), one))

    take()  # before anything
    for stop in (STEPS, 3):
        batches = iter(loop)
        take()  # before the first batch
        for _ in range(stop):
            seen += entries([next(batches)])
            take()
        if stop == STEPS:
            assert next(batches, None) is None
        del batches
        take()  # between two epochs, or after an early end of the loop
    assert seen == truth[: STEPS + 3]
    dataset.close()

    loop = running.loader(num_workers, **options)
    for number, (taken, state) in enumerate(states):
        batches = iter(loop)  # of the session that runs
        for _ in range(1 + number % 3):
            next(batches)
        new = DaemonDataset(daemon.socket, stream)
        for resumed, times in ((running, 1 + number % 2), (new, 2 - number % 2)):
            for _ in range(times):
                resumed.load_state_dict(json.loads(state))
            again = loop if resumed is running else resumed
            rest = [*entries(again), *entries(again)]
            assert rest == truth[taken : taken + len(rest)], f"after {taken} batches: {state}"
            assert len(rest) == 2 * STEPS - taken % STEPS
        new.close()
    running.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_within_accumulated_gradients_is_that_of_the_micro_step(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], num_workers: int
) -> None:
    """Of four micro-steps to an update, two are done; or nothing counts but whole updates."""
    dataset = DaemonDataset(daemon.socket, stream, prefetch_batches=64)
    batches = iter(dataset.loader(num_workers))
    given = [next(batches) for _ in range(4 + 2)]
    states = {6: dataset.state_dict(), 4: dataset.state_dict(after=given[3])}
    assert entries(given) == truth[:6]
    dataset.close()
    for taken, state in states.items():
        resumed = DaemonDataset(daemon.socket, stream, prefetch_batches=64)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert entries(resumed.loader(num_workers)) == truth[taken:STEPS]
        resumed.close()


class Shapes:
    """A collation whose batches are of a different kind at each step."""

    def __init__(self, names: list[list[str]]) -> None:
        self._names = names

    def __call__(self, samples: list[dict[str, Any]]) -> Any:  # noqa: ANN401 - of any type
        return self.of(samples)[self._names.index(_names(samples))]

    @staticmethod
    def of(samples: list[dict[str, Any]]) -> list[Any]:
        names = _names(samples)
        sizes = torch.tensor([len(sample["data"]) for sample in samples])
        return [
            sizes,
            {"sizes": sizes, "names": names},
            (sizes, names),
            [{"name": name} for name in names],
            {"outer": {"inner": (sizes, [{"names": names}])}},
            {"sizes": sizes, "nothing": {}},
            {"names": names},
        ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_position_does_not_depend_on_the_kind_of_the_batches(
    daemon: DaemonProcess, stream: Stream, truth: list[LedgerEntry], num_workers: int
) -> None:
    plain = DaemonDataset(daemon.socket, stream)
    whole = list(plain)
    assert entries(whole) == epoch(truth, 0)
    collation = Shapes([batch.sample_keys for batch in whole])
    dataset = DaemonDataset(daemon.socket, stream, collate_fn=collation)
    for step, (batch, made) in enumerate(zip(whole, dataset.loader(num_workers), strict=True)):
        assert dataset.state_dict() == plain.state_dict(after=batch)
        wanted = Shapes.of(samples_of(batch))[step]
        assert type(made) is type(wanted)
        assert repr(made) == repr(wanted)


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


@pytest.mark.usefixtures("collected")
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


# ---- pinned memory -------------------------------------------------------------------------------


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Let there seem to be an accelerator, and return what is pinned for it."""
    tensors: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor.clone())
        return tensors[-1]

    for name, answer in (
        ("is_available", True),
        ("current_accelerator", torch.device("cuda")),
        ("current_device_index", 0),
        ("set_device_index", None),
    ):
        monkeypatch.setattr(torch.accelerator, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return tensors


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("is_loader", [False, True])
def test_tensors_are_pinned_and_the_rest_passes_whole(
    daemon: DaemonProcess,
    stream: Stream,
    truth: list[LedgerEntry],
    pinned: list[torch.Tensor],
    is_loader: bool,
    num_workers: int,
) -> None:
    raw, sized = (
        DaemonDataset(daemon.socket, stream, transform=function) for function in (None, _sized)
    )
    loaders = [
        dataset.loader(num_workers, pin_memory=True)
        if is_loader
        else DataLoader(dataset, batch_size=None, num_workers=num_workers, pin_memory=True)
        for dataset in (raw, sized)
    ]
    assert entries(loaders[0]) == epoch(truth, 0)
    assert pinned == []
    for step, batch in enumerate(loaders[1]):
        assert any(batch["size"] is tensor for tensor in pinned)
        assert batch["size"].tolist() == [len(data) for data in batch["data"]]
        assert entries([batch.with_columns({"data": batch["data"]})]) == truth[step : step + 1]
        if is_loader or not num_workers:
            assert sized.state_dict() == sized.state_dict(after=batch)
    assert len(pinned) == STEPS


def _sized(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "size": len(sample["data"])}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_torch_says_that_nothing_is_pinned(
    dataset: DaemonDataset, truth: list[LedgerEntry]
) -> None:
    loader = dataset.loader(2, pin_memory=True)
    with pytest.warns(UserWarning, match="no accelerator is found"):
        assert entries(loader) == epoch(truth, 0)


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
            assert dataset._link.private is not None
            process = dataset._link.private._process
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
    states = [(0, json.dumps(loader.state_dict()))]
    whole: list[LedgerEntry] = []
    for _ in range(2):
        for batch in loader:
            whole += entries([batch])
            states.append((len(whole), json.dumps(loader.state_dict())))
        states.append((len(whole), json.dumps(loader.state_dict())))  # between two epochs
    assert whole == truth[:10]
    for taken, state in states:
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        rest: list[LedgerEntry] = []
        while len(rest) < len(truth) - taken:
            rest += entries(resumed)
        assert rest == truth[taken:], f"resumed after {taken} batches: {state}"


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_run_that_a_stateful_loader_goes_on_with_ends_once(
    daemon: DaemonProcess, tmp_path: Path, num_workers: int
) -> None:
    plan = Interleaved(
        train=Shuffled(batch_size=4, seed=3),
        extras={"val": Every(Sequential(batch_size=8), epochs=1)},
        limits=Limits(epochs=2),
    )
    stream = stream_of(write_samples(tmp_path, 12), plan)

    def make() -> Any:  # noqa: ANN401
        return StatefulDataLoader(
            DaemonDataset(daemon.socket, stream), batch_size=None, num_workers=num_workers
        )

    loader = make()
    whole, states = [], []
    for batch in loader:
        whole += entries([batch])
        states.append(loader.state_dict())
    assert len(whole) == 10
    assert entries(loader) == []
    for taken in (1, 6, 9, 10):
        resumed = make()
        resumed.load_state_dict(states[taken - 1])
        assert entries(resumed) == whole[taken:]
        assert entries(resumed) == []


def test_the_state_of_a_part_is_not_that_of_a_stream(dataset: DaemonDataset) -> None:
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
    next(iter(loader))
    part = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_1"]["dataset_state"]
    with pytest.raises(errors.CursorError, match="the state of DataLoader worker 1 of 2"):
        dataset.load_state_dict(part)


@pytest.mark.usefixtures("collected")
def test_a_worker_refuses_the_state_of_a_whole_stream(dataset: DaemonDataset) -> None:
    state = dataset.state_dict()

    def load(worker: int) -> None:
        dataset.load_state_dict(state)

    loader = DataLoader(dataset, batch_size=None, num_workers=1, worker_init_fn=load)
    with pytest.raises(errors.CursorError, match="load it into the dataset in the main process"):
        next(iter(loader))
