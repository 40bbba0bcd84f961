"""Samples that cannot be read: what is left out, how often it is tried, and what a state says."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from headrace import DaemonDataset, Objects, Skip, Stream, Topology
from headrace.errors import FeedError, PlanError
from headrace.plans import Every, Interleaved, Limits, Sequential, Shuffled
from headrace.plans.flags import Flag
from tests.support.app import AppThread, Reads
from tests.support.files import content, write_samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from headrace.plans import Plan
    from headrace.sources import Source

NUM_SAMPLES = 40
BAD = ("s00006.bin", "3/s00010.bin", "4/s00025.bin")
"""One that is gone, one that is longer, one that is a folder now."""


@pytest.fixture
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB", reads=Reads(1)) as app:
        yield app


@pytest.fixture
def folder(tmp_path: Path, app: AppThread) -> Path:
    """A folder that was listed before some of it was damaged."""
    folder = write_samples(tmp_path / "data", NUM_SAMPLES, max_bytes=300)
    dataset = DaemonDataset(app.socket, stream_of(folder, "fail"))
    assert len(dataset) == 10
    (folder / BAD[0]).unlink()
    with (folder / BAD[1]).open("ab") as file:
        file.write(b"more")
    (folder / BAD[2]).unlink()
    (folder / BAD[2]).mkdir()
    return folder


def repair(folder: Path) -> None:
    (folder / BAD[2]).rmdir()
    for name in BAD:
        index = int(name.split("/")[-1][1:6])
        size = len(ORIGINAL[index])
        (folder / name).write_bytes(content(name, size))


ORIGINAL: dict[int, bytes] = {}


@pytest.fixture(autouse=True)
def originals(tmp_path: Path) -> None:
    copy = write_samples(tmp_path / "copy", NUM_SAMPLES, max_bytes=300)
    for path in copy.rglob("*.bin"):
        ORIGINAL[int(path.name[1:6])] = path.read_bytes()


def stream_of(source: Path | Source, on_bad: Any, plan: Plan | None = None) -> Stream:  # noqa: ANN401
    source = source if isinstance(source, Objects) else Objects(str(source))
    return Stream(source, plan or Shuffled(batch_size=4, seed=3), on_bad=on_bad)


def told(batch: Batch) -> list[tuple[str, bool]]:
    """Return which samples came, and see that they are what they are called."""
    found = []
    rows = zip(batch.sample_keys, batch["data"], batch.flags.tolist(), strict=True)
    for name, value, flag in rows:
        assert (value is None) == bool(flag & Flag.HOLE)
        if value is not None:
            assert value == content(name, len(value))
        found.append((name, value is not None))
    return found


def run(dataset: DaemonDataset, epochs: int = 1) -> list[list[tuple[str, bool]]]:
    return [told(batch) for _ in range(epochs) for batch in dataset]


def holes(steps: list[list[tuple[str, bool]]]) -> list[str]:
    return sorted(name for step in steps for name, is_here in step if not is_here)


def test_a_hole_moves_nothing_and_stays(
    app: AppThread, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = DaemonDataset(app.socket, stream_of(folder.parent / "copy", "fail"))
    truth = [[name for name, _ in step] for step in run(whole, 2)]
    dataset = DaemonDataset(app.socket, stream_of(folder, "skip"))
    with caplog.at_level(logging.WARNING, logger="headrace"):
        first = run(dataset)
        asked = len(app.reads.names)
        second = run(dataset)
    assert [[name for name, _ in step] for step in first + second] == truth
    assert holes(first) == holes(second) == sorted(BAD)
    warnings = [record.message for record in caplog.records if "left out" in record.message]
    assert len(warnings) == 3
    assert not set(BAD) & set(app.reads.names[asked + 40 :]), "what is known is not tried again"
    state = dataset.state_dict()
    assert [dataset.manifest[index].name for index in state["skips"]] == sorted(BAD)
    assert max(feed["skipped"] for feed in app.app.report()["feeds"]) >= 6
    dataset.close()
    whole.close()


def test_every_state_leaves_out_the_same_also_after_a_repair(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, "skip"))
    steps, states = [], []
    for batch in dataset:
        steps.append(told(batch))
        states.append(json.loads(json.dumps(dataset.state_dict())))
    second = run(dataset)
    dataset.close()
    repair(folder)
    for at, state in enumerate(states, 1):
        again = DaemonDataset(app.socket, stream_of(folder, "skip"))
        again.load_state_dict(state)
        rest = run(again)
        known = {again.manifest[index].name for index in state["skips"]}
        assert known == {name for step in steps[:at] for name, is_here in step if not is_here}
        for got, was in zip(rest, (steps + second)[at:], strict=False):
            # What was not given yet may be read again; what was left out is not.
            assert [name for name, _ in got] == [name for name, _ in was]
            assert all(is_here != (name in known) for name, is_here in got)
        again.close()


def test_an_epoch_may_try_again_what_the_one_before_left_out(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, Skip(repair=True)), prefetch_batches=64)
    batches = iter(dataset)
    first = [told(next(batches)) for _ in range(9)]
    repair(folder)
    first += [told(batch) for batch in batches]
    assert holes(first) == sorted(BAD)
    assert dataset.state_dict()["skips"] == []
    dataset.close()
    again = DaemonDataset(app.socket, stream_of(folder, Skip(repair=True)))
    again.load_state_dict(dataset.state_dict())
    assert holes(run(again)) == []
    again.close()


def test_a_pass_that_is_left_takes_the_list_along(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, "skip", Sequential(batch_size=40)))
    for batch in dataset:
        assert holes([told(batch)]) == sorted(BAD)
        break
    dataset.seek(epoch=3)
    repair(folder)
    assert holes(run(dataset)) == sorted(BAD)
    dataset.close()


@pytest.mark.parametrize("limit", [0, 2])
def test_one_more_than_the_limit_ends_the_stream(app: AppThread, folder: Path, limit: int) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, Skip(limit=limit)))
    found: list[list[tuple[str, bool]]] = []
    with pytest.raises(FeedError, match=f"on_bad leaves out {limit} at most") as caught:
        for batch in dataset:
            found.append(told(batch))  # noqa: PERF401 - what came before the error counts
    assert len(holes(found)) == limit
    assert any(name in str(caught.value) for name in BAD)
    assert len(dataset.state_dict()["skips"]) == limit
    dataset.close()


def test_without_a_policy_the_first_one_ends_the_stream(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, "fail"))
    with pytest.raises(FeedError, match="restore it, or list anew"):
        list(dataset)
    dataset.close()


def test_functions_get_what_is_there(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(
        app.socket,
        stream_of(folder, "skip", Sequential(batch_size=4)),
        transform=lambda sample: sample["__key__"],
        collate_fn=list,
    )
    names = [name for batch in dataset for name in batch]
    assert len(names) == NUM_SAMPLES - len(BAD)
    assert not set(names) & set(BAD)
    alone = DaemonDataset(
        app.socket,
        stream_of(folder, "skip", Sequential(batch_size=1)),
        transform=lambda sample: len(sample["data"]),
    )
    assert len(list(alone)) == NUM_SAMPLES
    columns = DaemonDataset(
        app.socket,
        stream_of(folder, "skip", Sequential(batch_size=40)),
        transform=lambda sample: {"size": len(sample["data"])},
    )
    (batch,) = columns
    assert len(batch) == len(batch["size"]) == NUM_SAMPLES - len(BAD)
    sizes = [columns.manifest[index].size for index in batch.indices.tolist()]
    assert batch["size"].tolist() == sizes
    columns.close()
    for one in (dataset, alone):
        one.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_keep_one_list(app: AppThread, folder: Path, workers: int) -> None:
    dataset = DaemonDataset(app.socket, stream_of(folder, "skip"))
    loader = dataset.loader(workers)
    first = [told(batch) for batch in loader]
    assert holes(first) == sorted(BAD)
    state = dataset.state_dict()
    assert len(state["skips"]) == 3
    repair(folder)
    assert holes([told(batch) for batch in loader]) == sorted(BAD)
    other = DaemonDataset(app.socket, stream_of(folder, "skip"))
    other.load_state_dict(state)
    assert holes(run(other)) == sorted(BAD)
    for one in (dataset, other):
        one.close()


def test_feeds_that_share_reads_have_policies_of_their_own(app: AppThread, folder: Path) -> None:
    plan = Sequential(batch_size=4)
    app.reads.close_gate()
    skips = [DaemonDataset(app.socket, stream_of(folder, "skip", plan)) for _ in range(2)]
    fails = DaemonDataset(app.socket, stream_of(folder, "fail", plan))
    passes = [iter(dataset) for dataset in (*skips, fails)]
    for one in passes:
        one._begin()  # type: ignore[attr-defined]
        one._has_begun = True  # type: ignore[attr-defined]
    app.reads.open_gate()
    for one in passes[:2]:
        assert holes([told(batch) for batch in one]) == sorted(BAD)
    with pytest.raises(FeedError, match="restore it, or list anew"):
        list(passes[2])
    for dataset in (*skips, fails):
        dataset.close()


def test_parts_with_sources_of_their_own_are_told_apart(app: AppThread, folder: Path) -> None:
    other = write_samples(folder.parent / "other", 8)
    plan = Interleaved(
        train=Sequential(batch_size=40),
        extras={"val": Every(Sequential(batch_size=8), epochs=1, source=Objects(str(other)))},
        limits=Limits(epochs=2),
    )
    dataset = DaemonDataset(app.socket, stream_of(folder, "skip", plan))
    assert len(dataset) == 4
    (other / "s00006.bin").unlink()
    steps = [told(batch) for batch in dataset]
    assert [holes([step]) for step in steps] == [sorted(BAD), ["s00006.bin"]] * 2
    skips = dataset.state_dict()["skips"]
    assert len(skips) == 4
    assert [skip >> 48 for skip in skips] == [0, 0, 0, 1]
    dataset.close()


def test_ranks_leave_out_what_they_meet(app: AppThread, folder: Path) -> None:
    found = []
    for rank in range(2):
        dataset = DaemonDataset(app.socket, stream_of(folder, "skip"), topology=Topology(rank, 2))
        steps = run(dataset)
        assert len(steps) == 5
        found += holes(steps)
        dataset.close()
    assert sorted(found) == sorted(BAD)


@pytest.mark.parametrize("late", [False, True])
def test_the_limit_counts_for_all_ranks_and_ends_them_at_one_step(
    app: AppThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Only rank 1 meets bad samples; whoever is ahead, both end in front of the same step."""
    folder = write_samples(tmp_path / "many", 60)
    whole = DaemonDataset(app.socket, stream_of(folder, "fail", Sequential(batch_size=1)))
    assert len(whole) == 60
    bad = [whole.manifest[2 * step + 1].name for step in (12, 14, 16)]
    whole.close()
    for name in bad:
        (folder / name).unlink()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"run {late}")

    def begin(rank: int, on_bad: Any, state: Any = None) -> Any:  # noqa: ANN401
        monkeypatch.setenv("RANK", str(rank))
        dataset = DaemonDataset(app.socket, stream_of(folder, on_bad, Sequential(batch_size=1)))
        if state is not None:
            dataset.load_state_dict(state)
        batches = iter(dataset)
        return dataset, [told(next(batches))], batches

    def end(steps: list[Any], batches: Iterator[Batch]) -> str:
        with pytest.raises(FeedError) as caught:
            for batch in batches:
                steps.append(told(batch))  # noqa: PERF401 - what came before the error counts
        return str(caught.value)

    policy = Skip(limit=2)
    first, steps_0, batches_0 = begin(0, policy)
    if late:  # rank 0 is given more than rank 1 has read
        steps_0 += [told(next(batches_0)) for _ in range(19)]
    second, steps_1, batches_1 = begin(1, policy)
    errors = [end(steps_1, batches_1), end(steps_0, batches_0)]
    assert errors[0] == errors[1]
    assert "3 samples cannot be read, and on_bad leaves out 2 at most" in errors[0]
    assert all(name in errors[0] for name in bad)
    assert len(steps_0) == len(steps_1)
    assert len(steps_0) >= 20 if late else len(steps_0) == 16
    state = json.loads(json.dumps(second.state_dict()))
    for one in (first, second):
        one.close()
    # Any rank goes on from there, with more room.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again, steps_2, batches_2 = begin(0, Skip(limit=3), state)
    other, steps_3, batches_3 = begin(1, Skip(limit=3), state)
    steps_2 += [told(batch) for batch in batches_2]
    steps_3 += [told(batch) for batch in batches_3]
    assert len(steps_0) + len(steps_2) == len(steps_1) + len(steps_3) == 30
    assert holes(steps_1 + steps_3) == sorted(bad)
    for one in (again, other):
        one.close()


@pytest.mark.parametrize(
    ("on_bad", "words"),
    [
        ("never", "on_bad='never'"),
        (3, "on_bad=3"),
    ],
)
def test_another_policy_is_refused(on_bad: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(PlanError, match=words):
        stream_of(Objects("/data"), on_bad)
    for limit in (-1, 1001):
        with pytest.raises(PlanError, match=f"on_bad limit={limit} is out of range"):
            Skip(limit=limit)
