"""The board: workers that know nothing of each other agree on which pass it is."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from typing import Any

import pytest

from headrace.board import END, MAX_WORKERS, Board, Ticket, birth_of_worker, epoch_start
from headrace.errors import CursorError, FeedError

CURSOR = {"epoch": 4, "step": 7, "plan": "p" * 64, "manifest": "m" * 64}


class Workers:
    """The workers of one iterator of a DataLoader, as they ask the board."""

    def __init__(self, board: Board, number: int, *, seed: int, birth: int) -> None:
        self.board = board
        self.tickets = [Ticket(seed, birth, worker, number) for worker in range(number)]
        self.has_begun = [False] * number

    def join(self, worker: int) -> dict[str, Any]:
        is_new = not self.has_begun[worker]
        peeked = self.board.peek(self.tickets[worker], is_new=is_new)
        joined = self.board.join(self.tickets[worker], is_new=is_new)
        assert joined == peeked
        self.has_begun[worker] = True
        return joined

    def join_all(self) -> list[dict[str, Any]]:
        return [self.join(worker) for worker in reversed(range(len(self.tickets)))]


@pytest.fixture
def board() -> Board:
    return Board(epoch_start(0))


def test_all_workers_of_a_pass_begin_at_the_same_place(board: Board) -> None:
    for epoch in range(3):
        workers = Workers(board, 3, seed=100 + epoch, birth=1 + 3 * epoch)
        assert workers.join_all() == [epoch_start(epoch)] * 3


def test_persistent_workers_begin_one_pass_after_the_other(board: Board) -> None:
    workers = Workers(board, 3, seed=100, birth=1)
    for epoch in range(3):
        assert workers.join_all() == [epoch_start(epoch)] * 3


def test_a_fast_worker_does_not_take_the_others_along(board: Board) -> None:
    """A counter that each worker bumps would give the second one the next epoch."""
    first = Workers(board, 2, seed=5, birth=1)
    assert first.join(0) == epoch_start(0)
    second = Workers(board, 2, seed=6, birth=3)
    assert second.join(0) == epoch_start(1)
    assert second.join(1) == epoch_start(1)


def test_a_pass_that_was_left_before_all_had_begun_counts_under_any_seed(board: Board) -> None:
    for epoch in range(4):  # torch.manual_seed(0) before each of them
        workers = Workers(board, 4, seed=7, birth=1 + 4 * epoch)
        assert workers.join(epoch) == epoch_start(epoch)


def test_processes_that_others_start_in_between_change_nothing(board: Board) -> None:
    late = Workers(board, 4, seed=7, birth=1)
    for worker, more in enumerate((0, 1, 2, 3)):
        late.tickets[worker] = late.tickets[worker]._replace(birth=1 + more)
    assert late.join_all() == [epoch_start(0)] * 4


def test_a_worker_that_was_overtaken_says_so(board: Board) -> None:
    old = Workers(board, 2, seed=5, birth=1)
    new = Workers(board, 2, seed=6, birth=3)
    assert old.join(0) == epoch_start(0)
    assert new.join(0) == epoch_start(1)
    with pytest.raises(FeedError, match="overtaken by a newer one before it began"):
        old.join(1)
    assert new.join(1) == epoch_start(1)


def test_two_loaders_of_one_dataset_take_turns(board: Board) -> None:
    one, other = (Workers(board, 2, seed=seed, birth=seed) for seed in (5, 7))
    for epoch in range(0, 6, 2):
        assert one.join_all() == [epoch_start(epoch)] * 2
        assert other.join_all() == [epoch_start(epoch + 1)] * 2


def test_what_the_main_process_says_goes(board: Board) -> None:
    workers = Workers(board, 2, seed=5, birth=1)
    workers.join_all()
    board.put(CURSOR)
    assert board.read().current is None
    assert workers.join_all() == [CURSOR] * 2
    assert workers.join_all() == [epoch_start(5)] * 2


def test_a_rest_without_a_step_counts_as_the_next_epoch(board: Board) -> None:
    board.put(CURSOR)
    workers = Workers(board, 2, seed=5, birth=1)
    workers.join(0)
    board.settle(workers.tickets[0], {**CURSOR, "epoch": 5, "step": 0}, ends=False)
    assert workers.join(1)["epoch"] == 5
    assert workers.join_all() == [epoch_start(6)] * 2


def test_after_a_stream_that_is_one_pass_comes_its_end(board: Board) -> None:
    board.put(CURSOR)
    workers = Workers(board, 2, seed=5, birth=1)
    workers.join(0)
    board.settle(workers.tickets[0], CURSOR, ends=True)
    assert workers.join(1) == CURSOR
    assert workers.join_all() == [END] * 2


def test_the_end_is_known_when_all_have_come_to_it(board: Board) -> None:
    workers = Workers(board, 2, seed=5, birth=1)
    workers.join(0)
    for ticket in (workers.tickets[0], workers.tickets[0]):
        board.finish(ticket)
        assert not board.read().is_over
    board.finish(workers.tickets[1])
    assert board.read().is_over


def test_restored_workers_are_in_the_pass_of_their_state(board: Board) -> None:
    workers = Workers(board, 3, seed=5, birth=1)
    for ticket in workers.tickets:
        board.restore(ticket, CURSOR, ends=False)
    workers.has_begun = [True] * 3
    assert workers.join_all() == [epoch_start(5)] * 3


def test_states_of_different_passes_do_not_mix(board: Board) -> None:
    workers = Workers(board, 2, seed=5, birth=1)
    board.restore(workers.tickets[0], CURSOR, ends=False)
    with pytest.raises(CursorError, match=r"worker 1 began its pass at .* another one at"):
        board.restore(workers.tickets[1], {**CURSOR, "step": 8}, ends=False)


def test_the_largest_record_fits(board: Board) -> None:
    board.put({**CURSOR, "skips": ["x" * 2000]})
    workers = Workers(board, MAX_WORKERS, seed=2**64 - 1, birth=2**31)
    workers.join_all()
    for ticket in workers.tickets:
        board.finish(ticket)
    assert board.read().is_over


# ---- memory that processes share -----------------------------------------------------------------


def test_threads_and_forked_processes_exclude_each_other(board: Board) -> None:
    def add() -> None:
        for _ in range(100):
            with board._locked():
                record = board._read()
                record.birth += 1
                board._write(record)

    child = multiprocessing.get_context("fork").Process(target=add)
    threads = [threading.Thread(target=add) for _ in range(3)]
    child.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child.join()
    assert board.read().birth == 400


def test_a_process_that_is_killed_in_the_middle_changes_nothing_and_holds_nothing(
    board: Board,
) -> None:
    def die() -> None:
        board._locked().__enter__()
        unused = 1 - os.pread(board.descriptor, 1, 0)[0]
        os.pwrite(board.descriptor, b"garbage", 1 + unused * (16 << 10))
        os.kill(os.getpid(), signal.SIGKILL)

    before = board.read()
    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert board.read() == before
    board.put(CURSOR)
    assert board.read().next == CURSOR


def test_a_board_travels_only_to_a_process_that_is_being_started(board: Board) -> None:
    with pytest.raises(TypeError, match="a Board cannot be pickled but for a process"):
        pickle.dumps(board)


def test_a_process_that_is_no_worker_has_no_birth() -> None:
    assert birth_of_worker(0) == 0


def test_a_board_closes_its_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    board = Board(epoch_start(0))
    del board
    assert len(os.listdir("/proc/self/fd")) == before
