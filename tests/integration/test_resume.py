"""R2-R8: a resume is a seek, to the batch after the last one that the loop was given.

In all of these tests leaving out steps one by one raises.
"""

from __future__ import annotations

import json
import random
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace import DaemonDataset, Stream, Topology
from headrace.plans import Cursor, Shuffled, engine
from headrace.testing import Ledger, assert_resumes_exactly
from headrace_daemon.feed import planner
from headrace_daemon.source.local import list_folder
from tests.support.app import AppThread, Reads
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.trainers import Trainers

NUM_SAMPLES = 240
STEPS = 60


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), NUM_SAMPLES)
    return stream_of(folder, Shuffled(global_batch_size=4, seed=17))


class Planned:
    """Where planning began."""

    def __init__(self) -> None:
        self.starts: list[tuple[int, int]] = []

    def next_batches(self, bound: Any, cursor: Cursor, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as in the engine
        self.starts.append((cursor.epoch, cursor.step))
        return self._plan(bound, cursor, *args, **options)

    _plan = staticmethod(engine.next_batches)


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> Planned:
    """Note where planning begins; leaving out steps is impossible."""

    def skip(self: planner.Planner, steps: int) -> None:
        assert not steps, f"{steps} steps are left out one by one"

    planned = Planned()
    monkeypatch.setattr(planner.Planner, "_skip", skip)
    monkeypatch.setattr(planner, "next_batches", planned.next_batches)
    return planned


@pytest.fixture
def app() -> Iterator[AppThread]:
    with AppThread(reads=Reads(7)) as app:
        yield app


# ---- the trainer dies ----------------------------------------------------------------------------


def test_a_killed_trainer_continues_after_the_last_batch_it_was_given(
    stream: Stream, app: AppThread, planned: Planned, trainers: Trainers, tmp_path: Path
) -> None:
    arguments = {
        "stream": msgspec.to_builtins(stream),
        "socket": app.socket,
        "ledger": str(tmp_path / "ledger.jsonl"),
        "state": str(tmp_path / "state.json"),
        "epochs": 1,
        "prefetch_batches": 64,
        "waits": True,
    }
    first = trainers.start("train", **arguments)
    first.say(5)
    assert first.hear_until("step 0 4") == ["begins", *(f"step 0 {step}" for step in range(5))]
    # Everything is read ahead, and far beyond what was given.
    app.wait_until(lambda: len(app.reads.names) >= NUM_SAMPLES)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    app.wait_until(lambda: not app.app.report()["feeds"])
    state = Cursor.from_state(json.loads((tmp_path / "state.json").read_text()))
    assert (state.epoch, state.step) == (0, 5)

    del planned.starts[:]
    del app.reads.names[:]
    second = trainers.start("train", **arguments)
    second.say(1)
    assert second.hear_until("step 0 5") == ["begins", "step 0 5"]
    assert planned.starts[0] == (0, 5), "the first step that is planned is the one that is due"
    second.say(STEPS)
    assert second.hear_all()[-1] == "done"
    assert second.wait() == 0
    truth = expected(stream)
    assert Ledger(tmp_path / "ledger.jsonl").difference(truth) is None
    manifest = list_folder(stream.source.selections[0])
    left = {manifest.name(index) for entry in truth.entries[5:] for index in entry.ids}
    assert set(app.reads.names[: len(left)]) == left, "nothing else was read"


def test_a_trainer_that_is_killed_many_times_delivers_the_whole_run(
    stream: Stream, app: AppThread, trainers: Trainers, tmp_path: Path
) -> None:
    arguments = {
        "stream": msgspec.to_builtins(stream),
        "socket": app.socket,
        "ledger": str(tmp_path / "ledger.jsonl"),
        "state": str(tmp_path / "state.json"),
        "epochs": 2,
        "waits": True,
    }
    for steps in (0, 1, 59, 1, 1, 20):  # the third ends in the last step of an epoch
        trainer = trainers.start("train", **arguments)
        trainer.say(steps)
        for _ in range(steps + 1):
            assert trainer.hear()
        trainer.kill()
        assert trainer.wait() == -signal.SIGKILL
    trainer = trainers.start("train", **arguments)
    trainer.say(2 * STEPS)
    assert trainer.hear_all()[-1] == "done"
    assert trainer.wait() == 0
    assert Ledger(tmp_path / "ledger.jsonl").difference(expected(stream, epochs=2)) is None


@pytest.mark.parametrize("seed", range(4))
def test_ten_random_kills_in_one_epoch(
    stream: Stream, app: AppThread, trainers: Trainers, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    saved, ledger = tmp_path / "state.json", tmp_path / "ledger.jsonl"
    arguments = {
        "stream": msgspec.to_builtins(stream),
        "socket": app.socket,
        "ledger": str(ledger),
        "state": str(saved),
        "epochs": 1,
        "waits": True,
    }
    updates, sizes = [0], []
    for _ in range(10):
        trainer = trainers.start("train", prefetch_batches=rng.choice((1, 4, 64)), **arguments)
        steps = rng.randint(1, 4)
        trainer.say(steps + rng.randint(0, 1))  # it may be anywhere in the step after them
        trainer.hear_until("begins")
        for _ in range(steps):
            assert trainer.hear(), trainer.stderr
        trainer.kill()
        assert trainer.wait() == -signal.SIGKILL
        updates.append(json.loads(saved.read_text())["update"])
        sizes.append(saved.stat().st_size)
    assert updates == sorted(set(updates)), "the cursor strictly increases"
    assert max(sizes) - min(sizes) <= 64
    trainer = trainers.start("train", **arguments)
    trainer.say(STEPS)
    assert trainer.hear_all()[-1] == "done"
    assert trainer.wait() == 0
    assert Ledger(ledger).difference(expected(stream)) is None


# ---- again and again -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_resume_of_a_resume_ten_times(stream: Stream, planned: Planned, seed: int) -> None:
    rng = random.Random(seed)
    pieces, state = Ledger(), None
    sizes, last = set(), (-1, 0, 0)
    stops = [*sorted(rng.sample(range(1, 2 * STEPS), 10)), 2 * STEPS]
    with AppThread(loop=rng.choice(("asyncio", "uvloop")), reads=Reads(seed)) as app:
        for stop in stops:
            dataset = DaemonDataset(app.socket, stream, prefetch_batches=rng.choice((1, 4, 64)))
            if state is not None:
                dataset.load_state_dict(json.loads(state))
            begun = len(planned.starts)
            while len(pieces.entries) < stop:
                for batch in dataset:
                    pieces.record(batch)
                    if len(pieces.entries) == stop:
                        break
            if state is not None:
                told = json.loads(state)
                assert planned.starts[begun] == (told["epoch"], told["step"])
            position = dataset.state_dict()
            place = (position["update"], position["epoch"], position["step"])
            assert place > last, "the cursor strictly increases"
            last, state = place, json.dumps(position)
            sizes.add(len(state))
            dataset.close()
    assert pieces.difference(expected(stream, epochs=2)) is None
    assert max(sizes) - min(sizes) <= 64


def test_every_state_resumes_exactly(tmp_path: Path) -> None:
    folder = write_samples(tmp_path, 23)
    stream = stream_of(folder, Shuffled(batch_size=4, seed=2))
    with AppThread(reads=Reads(3)) as app:
        assert_resumes_exactly(lambda: DaemonDataset(app.socket, stream))


def test_a_state_loads_into_a_session_that_runs(stream: Stream, app: AppThread) -> None:
    truth = expected(stream)
    dataset = DaemonDataset(app.socket, stream, prefetch_batches=16)
    batches = iter(dataset)
    for _ in range(7):
        next(batches)
    state = dataset.state_dict()
    for _ in range(20):
        next(batches)
    for _ in range(2):
        dataset.load_state_dict(state)
        ledger = Ledger()
        for batch in dataset:
            ledger.record(batch)
        assert ledger.entries == truth.entries[7:]
    dataset.close()
    assert len(app.call(app.app.report)["feeds"]) == 0


@pytest.mark.parametrize("done", [0.01, 0.5, 0.99])
def test_reaching_a_position_reads_nothing_before_it(
    stream: Stream, app: AppThread, planned: Planned, done: float
) -> None:
    update = int(10**6 * done) * STEPS + 11
    dataset = DaemonDataset(app.socket, stream, prefetch_batches=1)
    dataset.seek(update=update)
    batch = next(iter(dataset))
    assert batch.meta["global_step"] == update
    assert planned.starts[0] == divmod(update, STEPS)
    assert app.reads.names[: len(batch)] == batch.sample_keys
    dataset.close()
    # The slots of one feed, and not one step more.
    assert len(app.reads.names) <= 4 * 4


def test_skipping_ahead_on_request_is_a_seek_too(stream: Stream, app: AppThread) -> None:
    truth = expected(stream)
    dataset = DaemonDataset(app.socket, stream)
    for batch in dataset:
        if batch.meta["step"] == 9:
            break
    dataset.seek(update=dataset.state_dict()["update"] + 20)
    ledger = Ledger()
    for batch in dataset:
        ledger.record(batch)
    dataset.close()
    assert ledger.entries == truth.entries[30:]


# ---- ranks ---------------------------------------------------------------------------------------


def run_ranks(
    app: AppThread, stream: Stream, world_size: int, steps: int, state: dict[str, Any] | None
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Return the names that all ranks were given in each step, and the state of one of them."""
    ranks = [
        DaemonDataset(app.socket, stream, topology=Topology(rank, world_size))
        for rank in range(world_size)
    ]
    for rank in ranks:
        if state is not None:
            rank.load_state_dict(json.loads(json.dumps(state)))
    passes = [iter(rank) for rank in ranks]
    given = []
    for _ in range(steps):
        batches = [next(batches) for batches in passes]
        assert len({batch.cursor for batch in batches}) == 1, "the cursor is global"
        for batch in batches:
            check(batch)
        given.append([batch.sample_keys for batch in batches])
    states = [rank.state_dict() for rank in ranks]
    assert states == states[:1] * world_size
    for rank in ranks:
        rank.close()
    return given, states[-1]


def test_ranks_are_disjoint_and_complete(stream: Stream, app: AppThread) -> None:
    given, state = run_ranks(app, stream, 2, STEPS, None)
    names = [name for step in given for rank in step for name in rank]
    assert len(names) == len(set(names)) == NUM_SAMPLES
    assert all(len(rank) == 2 for step in given for rank in step)
    assert (state["epoch"], state["step"]) == (1, 0)


def test_the_world_may_change_at_any_state(stream: Stream, app: AppThread) -> None:
    whole, _ = run_ranks(app, stream, 1, STEPS, None)
    seen: list[set[str]] = []
    state = None
    for world_size, steps in ((4, 7), (1, 1), (2, 20), (4, 2), (2, STEPS - 30)):
        given, state = run_ranks(app, stream, world_size, steps, state)
        seen += [{name for rank in step for name in rank} for step in given]
    assert seen == [set(step[0]) for step in whole]


def test_a_tail_is_the_same_step_on_all_ranks(tmp_path: Path, app: AppThread) -> None:
    stream = stream_of(write_samples(tmp_path, 11), Shuffled(global_batch_size=6, seed=1))
    given, _ = run_ranks(app, stream, 3, 2, None)
    assert [[len(rank) for rank in step] for step in given] == [[2, 2, 2], [2, 2, 2]]
    names = [name for step in given for rank in step for name in rank]
    assert len(set(names)) == 11
    assert len(names) == 12, "one filler"
