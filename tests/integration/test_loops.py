"""Training loops as people write them: Lightning's, a Hugging Face trainer's, Accelerate's.

None of these packages is here: what they do to a loader is, in a few lines each.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest
from torch.utils.data import DataLoader, IterableDataset

from headrace import DaemonDataset, Stream, Topology
from headrace.plans import Shuffled
from headrace.testing import Ledger, LedgerEntry
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from headrace.batch import Batch

STEPS = 6
EPOCHS = 3

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.fixture(scope="module")
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), 4 * STEPS)
    return stream_of(folder, Shuffled(global_batch_size=4, seed=17))


@pytest.fixture(scope="module")
def truth(stream: Stream) -> list[LedgerEntry]:
    return expected(stream, epochs=EPOCHS).entries


@pytest.fixture
def make(daemon: DaemonProcess, stream: Stream) -> Iterator[Callable[..., DaemonDataset]]:
    """Return what makes datasets, which are closed at the end."""
    made: list[DaemonDataset] = []

    def make(**options: Any) -> DaemonDataset:  # noqa: ANN401 - of any type
        made.append(DaemonDataset(daemon.socket, stream, **options))
        return made[-1]

    yield make
    for dataset in made:
        dataset.close()


class Trained:
    """Records what a loop trains on, and stops it where a job would be killed."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.ledger = Ledger()
        self._stop_after = stop_after

    def step(self, batch: Batch) -> None:
        check(batch)
        self.ledger.record(batch)
        if len(self.ledger.entries) == self._stop_after:
            raise KeyboardInterrupt


def test_the_bare_dataset_is_a_loop(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry]
) -> None:
    dataset, trained = make(), Trained()
    for number in range(EPOCHS):
        dataset.set_epoch(number)  # not needed, and no harm
        for batch in dataset:
            trained.step(batch)
            saved = dataset.state_dict()
            assert saved == dataset.state_dict(after=batch)
    assert trained.ledger.entries == truth


# ---- Lightning -----------------------------------------------------------------------------------


def fit_like_lightning(loader: Any, trained: Trained, *, first_epoch: int = 0) -> None:  # noqa: ANN401
    """Ask for the length once, fetch just as many batches of each epoch, never one too many."""
    num_batches = len(loader)
    for number in range(first_epoch, EPOCHS):
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(number)
        for batch in islice(iter(loader), num_batches):
            trained.step(batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lightning_like_loop_gets_each_epoch_in_order(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry], num_workers: int
) -> None:
    trained = Trained()
    fit_like_lightning(make().loader(num_workers), trained)
    assert trained.ledger.entries == truth


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lightning_like_loop_saves_and_loads_the_state_of_its_loader(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry], num_workers: int
) -> None:
    """Lightning calls `state_dict` of a loader that has it, and `load_state_dict` at a restart."""
    loader, trained = make().loader(num_workers), Trained(stop_after=STEPS + 2)
    with pytest.raises(KeyboardInterrupt):
        fit_like_lightning(loader, trained)
    saved = json.dumps(loader.state_dict())
    again = make().loader(num_workers)
    again.load_state_dict(json.loads(saved))
    rest = Trained()
    assert len(again) == STEPS, "the whole epoch, whatever the position"
    for batch in again:
        rest.step(batch)
    fit_like_lightning(again, rest, first_epoch=2)
    assert trained.ledger.entries + rest.ledger.entries == truth


def test_a_loop_that_looks_one_batch_ahead_saves_after_the_batch_it_has_trained_on(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry]
) -> None:
    dataset = make()
    batches = dataset.loader(2)
    ahead = iter(batches)
    batch = next(ahead)
    trained = Trained()
    for following in islice(ahead, 3):
        trained.step(batch)
        saved = dataset.state_dict(after=batch)
        batch = following
    resumed = make()
    resumed.load_state_dict(saved)
    for batch in resumed:
        trained.step(batch)
    assert trained.ledger.entries == truth[:STEPS]


# ---- a Hugging Face trainer ----------------------------------------------------------------------


def train_like_hugging_face(
    get_loader: Callable[[], Any],
    trained: Trained,
    *,
    steps_done: int = 0,
    accumulate: int = 2,
) -> None:
    """Announce epochs by `set_epoch`, fetch batches by twos, count steps (``ignore_data_skip``)."""
    loader = get_loader()
    steps_of_epoch = len(loader)
    for number in range(steps_done // steps_of_epoch, EPOCHS):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(number)
        batches = iter(loader)
        while fetched := list(islice(batches, accumulate)):
            for batch in fetched:
                trained.step(batch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_hugging_face_like_loop_gets_each_epoch_in_order(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry], num_workers: int
) -> None:
    trained = Trained()
    train_like_hugging_face(lambda: make().loader(num_workers), trained)
    assert trained.ledger.entries == truth


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_hugging_face_like_loop_continues_where_its_state_was_taken(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry], num_workers: int
) -> None:
    trained, kept = Trained(stop_after=STEPS + 3), make()
    with pytest.raises(KeyboardInterrupt):
        train_like_hugging_face(lambda: kept.loader(num_workers), trained)
    # It had fetched one batch more than it has trained on: its own count says where it stood.
    assert kept.state_dict()["update"] == len(trained.ledger.entries) + 1
    resumed, rest = make(), Trained()
    resumed.seek(update=len(trained.ledger.entries))
    train_like_hugging_face(
        lambda: resumed.loader(num_workers), rest, steps_done=len(trained.ledger.entries)
    )
    assert trained.ledger.entries + rest.ledger.entries == truth


def test_what_a_hugging_face_trainer_makes_by_itself_is_refused(
    make: Callable[..., DaemonDataset],
) -> None:
    """It gives the dataset to a DataLoader that batches with a collator of its own."""
    loader = DataLoader(make(), batch_size=8, collate_fn=lambda rows: {"rows": rows})
    with pytest.raises(TypeError, match=r"use DataLoader\(dataset, batch_size=None\)"):
        train_like_hugging_face(lambda: loader, Trained())


# ---- Accelerate ----------------------------------------------------------------------------------


class SplitLikeAccelerate(IterableDataset[Any]):
    """What Accelerate makes of an IterableDataset: each process reads all and keeps its part."""

    def __init__(self, dataset: IterableDataset[Any], rank: int, world_size: int) -> None:
        self.dataset = dataset
        self._rank, self._world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:
        together: list[Any] = []
        for element in self.dataset:
            together.append(element)
            if len(together) == self._world_size:
                yield together[self._rank]
                together = []


def prepare_like_accelerate(loader: Any, rank: int, world_size: int) -> Any:  # noqa: ANN401
    """Make DataLoaders of IterableDatasets anew, and leave alone what is none."""
    if not isinstance(loader, DataLoader):
        return loader
    return DataLoader(
        SplitLikeAccelerate(loader.dataset, rank, world_size),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=loader.num_workers,
    )


def ledger_of_epochs(loader: Iterable[Batch], topology: Topology, epochs: int) -> list[LedgerEntry]:
    ledger = Ledger()
    for _ in range(epochs):
        for batch in loader:
            check(batch)
            ledger.record(batch, topology)
    return ledger.entries


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_accelerate_like_loop_leaves_a_loader_alone(
    make: Callable[..., DaemonDataset], stream: Stream, num_workers: int
) -> None:
    for rank in range(2):
        topology = Topology(rank, 2)
        loader = make(topology=topology).loader(num_workers)
        prepared = prepare_like_accelerate(loader, rank, 2)
        found = ledger_of_epochs(prepared, topology, EPOCHS)
        assert found == expected(stream, epochs=EPOCHS, topology=topology).entries


def test_a_data_loader_that_accelerate_splits_needs_a_dataset_of_one_rank(
    make: Callable[..., DaemonDataset], truth: list[LedgerEntry]
) -> None:
    alone = Topology(0, 1)
    for rank in range(2):
        loader: DataLoader[Batch] = DataLoader(make(topology=alone), batch_size=None)
        prepared = prepare_like_accelerate(loader, rank, 2)
        assert ledger_of_epochs(prepared, alone, EPOCHS) == truth[rank::2]
