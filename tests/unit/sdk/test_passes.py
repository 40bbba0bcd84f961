"""Parts: what a DataLoader worker reads of an epoch, and which states it continues.

Workers of torch itself are in `tests/integration/test_workers.py`; here this process is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from torch.utils.data._utils import worker as torch_worker

from headrace import errors
from headrace.board import Board, Ticket, epoch_start
from headrace.passes import PartPass, PartState, read_part_state, ticket
from headrace.plans import Sequential
from tests.support.fakes import fake, places, receivers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.testing import FakeDaemon

TICKET = Ticket(seed=5, birth=1, worker=1, num_workers=2)
CURSOR = {"plan": "p" * 64, "manifest": "m" * 64, "epoch": 1, "step": 2}
STATE = PartState(part=1, num_parts=2, world_size=4, start={**CURSOR, "step": 0}, last=CURSOR)


def work_as(monkeypatch: pytest.MonkeyPatch, worker: int, num_workers: int) -> None:
    """Make this process the worker of a DataLoader."""
    info = torch_worker.WorkerInfo(
        id=worker,
        num_workers=num_workers,
        seed=100 + worker,
        dataset=None,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(torch_worker, "_worker_info", info)


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """Twelve samples in four steps of three."""
    with fake(12, Sequential(batch_size=3)) as daemon:
        yield daemon


@pytest.mark.parametrize("num_workers", [1, 2, 3, 6])
def test_the_parts_of_an_epoch_are_dealt_in_turn(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    dataset, board = daemon.dataset(), Board(epoch_start(2))
    for worker in range(num_workers):
        work_as(monkeypatch, worker, num_workers)
        part = PartPass(dataset, board)
        assert places(part) == [(2, step) for step in range(worker, 4, num_workers)]
        with pytest.raises(StopIteration):
            next(part)
        assert receivers() == [], "its feed is closed at the end of the part"
    assert board.read().is_over
    assert {(request.stride, request.epochs) for request in daemon.opened} == {(num_workers, 1)}


def test_every_state_of_a_part_continues_it(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = daemon.dataset()
    for worker in range(3):
        work_as(monkeypatch, worker, 3)
        whole, states = [], []
        part = iter(dataset)
        for batch in part:
            whole += places([batch])
            states.append(dataset.state_dict())
        states.append(dataset.state_dict())
        for taken, state in enumerate(states, 1):
            other = daemon.dataset()
            other.load_state_dict(state)
            assert other.state_dict() == state, "before the pass"
            assert places(iter(other)) == whole[taken:]


def test_a_part_without_a_step_ends_at_once_and_stays_so(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_as(monkeypatch, 7, 8)
    dataset = daemon.dataset()
    part = iter(dataset)
    assert list(part) == []
    state = dataset.state_dict()
    assert (state["last"], state["is_over"]) == (None, True)
    other = daemon.dataset()
    other.load_state_dict(state)
    assert list(other) == []


def test_a_part_that_delivered_nothing_says_where_its_pass_begins(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = daemon.dataset()
    dataset.seek(epoch=3)
    work_as(monkeypatch, 1, 2)
    part = iter(dataset)
    state = dataset.state_dict()
    assert state["last"] is None
    assert (state["start"]["epoch"], state["start"]["step"]) == (3, 0)
    assert state["start"]["manifest"] == daemon.manifest.digest
    assert places(part) == [(3, 1), (3, 3)]


def test_an_error_ends_the_part_for_good(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sample: dict[str, Any]) -> object:
        raise ValueError(sample["__key__"])

    work_as(monkeypatch, 0, 2)
    part = iter(daemon.dataset(transform=refuse, collate_fn=list))
    for _ in range(2):
        with pytest.raises(ValueError, match="s000"):
            next(part)
    assert receivers() == []


def test_too_many_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    work_as(monkeypatch, 0, 1025)
    with pytest.raises(errors.FeedError, match="num_workers=1025 is above the limit of 1024"):
        ticket()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"part": 0}, "belongs to DataLoader worker 0 of 2, this is worker 1 of 2"),
        ({"num_parts": 3}, "belongs to DataLoader worker 1 of 3, this is worker 1 of 2"),
        ({"world_size": 2}, "was made by world size 2, this run has 4"),
        ({"start": {**CURSOR, "epoch": -1}}, "cursor epoch=-1 is out of range"),
        ({"last": {"format": 99}}, "the state has format 99"),
        ({"last": {"epoch": 1}}, "is not a Headrace cursor"),
        ({"is_over": 3}, "none of a DataLoader worker"),
        ({"more": 1}, "none of a DataLoader worker"),
    ],
)
def test_a_part_continues_only_where_it_belongs(change: dict[str, Any], words: str) -> None:
    state = msgspec.to_builtins(STATE)
    assert read_part_state(state, TICKET, 4) == STATE
    with pytest.raises(errors.CursorError, match=words):
        read_part_state({**state, **change}, TICKET, 4)


def test_a_part_does_not_take_the_state_of_a_whole_stream() -> None:
    with pytest.raises(errors.CursorError, match="load it into the dataset in the main process"):
        read_part_state(CURSOR, TICKET, 4)
