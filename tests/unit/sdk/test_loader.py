"""`loader()`: what it takes, what it refuses, and what it checks of its workers."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from torch.utils.data import DataLoader

from headrace import DaemonDataset, Topology, errors
from headrace.batch import Batch
from headrace.loader import Loader, _LoaderPass, _Parcel
from headrace.plans import Cursor, Sequential
from headrace.protocol import messages as m
from tests.support.app import AppThread
from tests.support.fakes import fake, places
from tests.support.files import stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.testing import FakeDaemon

CURSOR = Cursor(plan="p" * 64, manifest="m" * 64)


def parcel_of(epoch: int, step: int, cursor: Cursor, value: object) -> _Parcel:
    header = m.Batch(
        seq=0,
        epoch=epoch,
        step=step,
        global_step=0,
        n=0,
        fields=(),
        ids=b"",
        off=b"",
        lengths=b"",
        flags=b"",
        cursor=cursor.to_state(),
    )
    return _Parcel(header, value)


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """Ten samples in five steps of two, in order."""
    with fake() as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_workers": -1}, r"num_workers=-1 is out of range: .* 0\.\.1024"),
        ({"num_workers": 1025}, "num_workers=1025"),
        ({"num_workers": None}, "num_workers=None"),
        ({"in_order": False}, "in_order=False would hand out batches in whatever order"),
        ({"batch_size": 8}, "batch_size= is not for loader.*: the plan cuts the batches"),
        ({"shuffle": True}, "shuffle= is not for loader.*: the plan has the order"),
        ({"drop_last": True}, "drop_last= .*: the plan has a tail"),
        ({"collate_fn": list}, "collate_fn= .*: give it to the dataset"),
        ({"prefetch_factor": 0}, r"prefetch_factor=0 is out of range: .* 1\.\.65535"),
        ({"prefetch_factor": "x"}, "prefetch_factor='x'"),
        ({"workers": 8}, "workers= is no option of loader.*num_workers, pin_memory, prefetch"),
    ],
)
def test_wrong_options_are_named(daemon: FakeDaemon, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.PlanError, match=words):
        daemon.dataset().loader(**options)


def test_in_order_may_be_said(daemon: FakeDaemon) -> None:
    assert len(daemon.dataset().loader(2, in_order=True)) == 5


def test_without_workers_it_is_the_dataset(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    loader = dataset.loader()
    batches = iter(loader)
    assert daemon.opened == [], "iter() alone has no effect"
    assert places([next(batches)]) == [(0, 0)]
    assert loader.state_dict() == dataset.state_dict()
    assert dataset.state_dict()["step"] == 1


def test_a_collation_is_what_the_loop_gets(daemon: FakeDaemon) -> None:
    """Torch would make lists of tuples and tensors of arrays."""
    dataset = daemon.dataset(collate_fn=tuple)
    assert isinstance(next(iter(dataset.loader())), tuple)


def test_forked_workers_serve_a_fake_daemon_too(daemon: FakeDaemon) -> None:
    loader = daemon.dataset().loader(2, multiprocessing_context="fork")
    assert places(loader) == [(0, step) for step in range(5)]
    assert places(loader) == [(1, step) for step in range(5)]


def test_what_comes_from_workers_is_pinned_inside_of_its_wrapping() -> None:
    class Pinned:
        def pin_memory(self) -> str:
            return "pinned"

    parcel = parcel_of(0, 1, CURSOR, {"x": [Pinned()]})
    assert parcel.pin_memory().value == {"x": ["pinned"]}


class Scripted(_LoaderPass):
    """A pass whose workers send what a test says: (epoch, step) and the place after it."""

    def __init__(self, loader: Loader, *sent: tuple[int, int, int, int]) -> None:
        super().__init__(loader)
        self._sent = sent

    def _begin(self) -> None:
        self._dataset._begin_elsewhere(self, 2)
        self._due = (0, 0)
        self._parcels = iter(
            parcel_of(
                epoch,
                step,
                msgspec.structs.replace(CURSOR, epoch=after_epoch, step=after_step),
                (epoch, step),
            )
            for epoch, step, after_epoch, after_step in self._sent
        )


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([], "ended epoch 0 where its step 0 is due"),
        ([(0, 1, 0, 2)], "sent step 1 of epoch 0 where step 0 of epoch 0 is due"),
        ([(1, 0, 1, 1)], "sent step 0 of epoch 1 where"),
        ([(0, 0, 0, 1), (0, 0, 0, 1)], "sent step 0 of epoch 0 where step 1"),
        ([(0, 0, 0, 1), (0, 1, 0, 2)], "ended epoch 0 where its step 2 is due"),
    ],
)
def test_workers_that_leave_the_order_end_the_pass(
    daemon: FakeDaemon, sent: list[tuple[int, int, int, int]], words: str
) -> None:
    batches = Scripted(daemon.dataset().loader(2), *sent)
    with pytest.raises(errors.FeedError, match=words):
        list(batches)


def test_workers_that_keep_the_order_are_believed(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    batches = Scripted(dataset.loader(2), (0, 0, 0, 1), (0, 1, 1, 0))
    assert list(batches) == [(0, 0), (0, 1)]
    assert (dataset.state_dict()["epoch"], dataset.state_dict()["step"]) == (1, 0)


def test_close_and_seek_end_the_workers(daemon: FakeDaemon) -> None:
    dataset = daemon.dataset()
    for end in (dataset.close, lambda: dataset.seek(epoch=3)):
        batches = iter(dataset.loader(1, multiprocessing_context="fork"))
        batch = next(batches)
        assert isinstance(batch, Batch)
        end()
        assert isinstance(batches, _LoaderPass)
        assert batches._parcels is None
        with pytest.raises(errors.FeedError, match="this pass was ended"):
            next(batches)
    assert torch.utils.data.get_worker_info() is None


# ---- memory --------------------------------------------------------------------------------------


def test_the_feeds_of_a_run_name_their_group(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    next(iter(daemon.dataset()))
    assert (daemon.opened[-1].ranks, daemon.opened[-1].workers) == (2, 1)
    assert daemon.opened[-1].group != ""
    next(iter(daemon.dataset(topology=Topology(0, 4))))
    assert daemon.opened[-1].group == "", "it stands alone: nothing says what others there are"


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[DaemonDataset]:
    """Return a dataset for one feed of which there is memory, two slots of 20 KiB, and not two."""
    for number in range(40):
        (tmp_path / f"{number}.bin").write_bytes(bytes(1024))
    with AppThread(memory="64KiB") as app:
        dataset = DaemonDataset(app.socket, stream_of(tmp_path, Sequential(batch_size=20)))
        yield dataset
        dataset.close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_that_does_not_fit_is_refused_before_workers_are_started(
    roomy: DaemonDataset,
) -> None:
    with pytest.raises(errors.BudgetError, match=r"1 rank\(s\) × 16 worker\(s\) .* 16 feed"):
        next(iter(roomy.loader(16)))
    assert multiprocessing.active_children() == []
    assert len(list(roomy)) == 2, "without workers it fits"


def test_plain_workers_that_do_not_fit_are_refused_by_the_product(roomy: DaemonDataset) -> None:
    loader = DataLoader(roomy, batch_size=None, num_workers=2, multiprocessing_context="fork")
    with pytest.raises(errors.BudgetError, match=r"1 rank\(s\) × 2 worker\(s\) .* 2 feed"):
        next(iter(loader))
