"""The tools for tests: a ledger that forgets nothing, a fake that behaves, assertions that fail."""

from __future__ import annotations

import json
import threading
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from headrace import DaemonDataset, Topology, errors
from headrace.batch import Batch
from headrace.errors import PlanError
from headrace.plans import (
    ByteBudget,
    Cursor,
    Every,
    FromSampler,
    Interleaved,
    Limits,
    Sequential,
    Shuffled,
    VariableBatch,
)
from headrace.testing import FakeDaemon, Ledger, assert_resumes_exactly, checksum, ledger_of
from tests.support.fakes import fake, places, samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make(*values: bytes, ids: tuple[int, ...] = (), **meta: Any) -> Batch:  # noqa: ANN401 - plain values
    return Batch(
        {"data": list(values)},
        sample_keys=[f"s{number}" for number in range(len(values))],
        indices=np.array(ids or range(len(values)), dtype=np.uint64),
        flags=np.zeros(len(values), dtype=np.uint8),
        meta={"epoch": 0, "step": 0, "stream": "train", **meta},
        cursor={},
    )


# ---- the ledger ----------------------------------------------------------------------------------


def test_an_entry_says_who_was_given_what() -> None:
    entry = Ledger().record(make(b"ab", b"c", ids=(7, 3), epoch=2, step=5), Topology(1, 4))
    expected = zlib.crc32(
        (7).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"ab"
        + (3).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"c"
    )  # fmt: skip
    assert msgspec.to_builtins(entry) == {
        "epoch": 2,
        "step": 5,
        "rank": 1,
        "world_size": 4,
        "stream": "train",
        "ids": (7, 3),
        "crc": expected,
    }


@pytest.mark.parametrize(
    "other",
    [
        make(b"ab", b"d"),
        make(b"ab", b"c", ids=(1, 0)),
        make(b"a", b"bc"),
        make(b"ab", b"c", b""),
    ],
)
def test_the_checksum_sees_bytes_ids_and_where_values_end(other: Batch) -> None:
    assert checksum(other) != checksum(make(b"ab", b"c"))


def test_a_ledger_in_a_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    first = Ledger(path)
    first.record(make(b"a"))
    second = Ledger(path)
    assert second.entries == first.entries
    second.record(make(b"b", step=1))
    lines = path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert Ledger(path).entries == second.entries


def test_a_line_that_a_kill_has_cut_off_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = Ledger(path)
    for step in range(2):
        whole.record(make(b"a", step=step))
    data = path.read_bytes()
    for cut in range(len(data) - 1, data.index(b"\n"), -7):
        path.write_bytes(data[:cut])
        ledger = Ledger(path)
        assert ledger.entries == whole.entries[:1]
        ledger.record(make(b"a", step=1))
        assert Ledger(path).difference(whole) is None


def test_cutting_forgets_what_comes_at_or_after_a_cursor(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for epoch in range(2):
        for step in range(3):
            ledger.record(make(b"a", epoch=epoch, step=step))
    cursor = Cursor(plan="p", manifest="m", epoch=1, step=1)
    ledger.cut(cursor.to_state())
    assert [(e.epoch, e.step) for e in ledger.entries] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert Ledger(path).entries == ledger.entries
    ledger.cut(Cursor(plan="p", manifest="m"))
    assert ledger.entries == Ledger(path).entries == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_difference_is_told_in_words() -> None:
    one, other = Ledger(), Ledger()
    for ledger in (one, other):
        ledger.record(make(b"a"))
    assert one.difference(other) is None
    other.record(make(b"b", step=1))
    assert one.difference(other) == "1 entries != 2 entries"
    one.record(make(b"c", step=1))
    difference = one.difference(other)
    assert difference is not None
    assert difference.startswith("entry 1: LedgerEntry(epoch=0, step=1")


# ---- the fake ------------------------------------------------------------------------------------


def test_the_fake_serves_samples_in_the_order_of_its_plan() -> None:
    plan = Shuffled(batch_size=3, seed=1)
    with FakeDaemon(samples(7), plan) as daemon:
        assert daemon.stream.plan == plan
        batches = list(daemon.dataset())
    assert {key: value for batch in batches for key, value in batch} == samples(7)
    assert daemon.num_sent >= 3


def test_the_fake_serves_a_run_of_several_streams_to_its_end() -> None:
    plan = Interleaved(
        train=VariableBatch(batch_size=2),
        extras={"val": Every(ByteBudget(max_bytes=100), epochs=1)},
        limits=Limits(epochs=2),
    )
    with FakeDaemon(samples(7), plan) as daemon:
        dataset = daemon.dataset()
        batches = list(dataset)
        assert len(batches) == len(dataset)
        assert list(dataset) == []
        apart = plan.batch_sampler([len(value) for value in samples(7).values()], 0, 1)
        expected = [(b.stream, b.indices.tolist(), b.told) for b in apart.batches()]
        found: list[Any] = []
        for batch in batches:
            told = {name: batch.meta[name] for name in expected[len(found)][2]}
            found.append((batch.meta["stream"], batch.indices.tolist(), told))
        assert found == expected
        assert {batch.meta["role"] for batch in batches} == {"main", "extra"}


def test_the_fake_has_no_sampler() -> None:
    with pytest.raises(PlanError, match="a FakeDaemon executes plans of headrace"):
        FakeDaemon(samples(3), FromSampler([[0]]))  # type: ignore[arg-type]


def test_the_fake_reads_two_at_a_time_by_default() -> None:
    with FakeDaemon(samples(3)) as daemon:
        assert [batch.sample_keys for batch in daemon.dataset()] == [["s000", "s001"], ["s002"]]


def test_the_fake_serves_several_at_once() -> None:
    with fake() as daemon:
        one, other = iter(daemon.dataset()), iter(daemon.dataset())
        for _ in range(5):
            assert list(next(one)) == list(next(other))


def test_the_fake_drops_connections_when_it_is_told_to() -> None:
    with fake() as daemon:
        daemon.hang_up_after = 2
        assert places(daemon.dataset()) == [(0, step) for step in range(5)]
        assert len(daemon.opened) >= 3
        assert daemon.opened[1].start is not None
        assert daemon.opened[1].start["step"] == 2


def test_the_fake_that_is_closed_takes_nobody_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    daemon = fake()
    dataset = daemon.dataset(deadline_s=0.01)
    next(iter(dataset))
    daemon.close()
    daemon.close()
    with pytest.raises(errors.DaemonUnavailableError, match="the fake daemon is closed"):
        dataset.read([0])
    dataset.close()
    assert set(threading.enumerate()) == before


# ---- the assertion -------------------------------------------------------------------------------


def test_a_good_dataset_resumes_exactly() -> None:
    with fake(7, Shuffled(batch_size=2, seed=3)) as daemon:
        assert_resumes_exactly(daemon.dataset)
        assert_resumes_exactly(daemon.dataset, epochs=1)


class Ahead(DaemonDataset):
    """Says that it stands where it has read to."""

    def state_dict(self, *, after: Batch | Cursor | None = None) -> dict[str, Any]:
        state = super().state_dict(after=after)
        if state["step"] == 2:
            state |= {"step": 3, "position": 6, "update": 3, "sample": 6}
        return state


class Forgetful(DaemonDataset):
    """Begins at the start of the epoch whatever it was told."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seek(epoch=state["epoch"])


class Lazy(DaemonDataset):
    """Has nothing more to give once it was resumed."""

    is_resumed = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.is_resumed = True

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.is_resumed else super().__iter__()


class Drifting(DaemonDataset):
    """Gives the right samples with other bytes after a resume."""

    is_resumed = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.is_resumed = True

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            values = [value + b"!" for value in batch["data"]]
            yield batch.with_columns({"data": values}) if self.is_resumed else batch


@pytest.mark.parametrize("kind", [Ahead, Forgetful, Lazy, Drifting])
def test_a_broken_dataset_is_found_out(kind: type[DaemonDataset]) -> None:
    with fake(8, Sequential(batch_size=2)) as daemon:

        def make() -> DaemonDataset:
            dataset = kind("/s", daemon.stream)
            dataset._link.dial = daemon._dial
            return dataset

        with pytest.raises(AssertionError, match="resumed after"):
            assert_resumes_exactly(make, epochs=1)


def test_ledgers_of_two_ranks_differ() -> None:
    with fake() as daemon:
        ledgers = [
            ledger_of(daemon.dataset(topology=Topology(rank, 2)), Topology(rank, 2))
            for rank in range(2)
        ]
    assert ledgers[0].difference(ledgers[1]) is not None
    assert [entry.rank for entry in ledgers[1].entries] == [1, 1, 1]
