"""Every plan through a daemon: batch for batch what the engine says, from any position."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from headrace import DaemonDataset, Objects, Stream, Topology
from headrace.errors import NoStepError, PlanError
from headrace.plans import (
    ByteBudget,
    Chain,
    Every,
    Interleaved,
    Limits,
    Link,
    Sequential,
    Shuffled,
    VariableBatch,
    VideoVariable,
)
from headrace.plans.data import Data
from headrace.plans.engine import BoundPlan, Flag, is_finished, next_batches, settle
from headrace_daemon.source.local import list_folder
from tests.support.app import AppThread
from tests.support.commands import headrace
from tests.support.daemon import DaemonProcess
from tests.support.files import check, content
from tests.support.rows import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from headrace.manifest import Manifest
    from headrace.plans import Cursor
    from headrace.plans.engine import PlannedBatch

ROWS = {row.name: row for row in rows()}
EPOCHS = 2
SIZES = (7, 0, 29, 12, 50, 3, 30, 21, 9, 16, 0, 25, 5, 18, 28, 11, 2, 13, 24, 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("samples"), SIZES)


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB") as app:
        yield app


def write(folder: Path, sizes: tuple[int, ...]) -> Path:
    for number, size in enumerate(sizes):
        name = f"s{number:03}"
        (folder / name).write_bytes(content(name, size))
    return folder


def manifests_of(stream: Stream) -> dict[str, Manifest]:
    return {name: list_folder(source.selections[0]) for name, source in stream.sources.items()}


def bound_of(stream: Stream) -> BoundPlan:
    data = {
        name: Data(len(manifest), manifest.digest, {"sizes": manifest.sizes})
        for name, manifest in manifests_of(stream).items()
    }
    main = data.pop("")
    return BoundPlan.to(
        stream.served_plan,
        Data(main.length, main.digest, main.columns, parts=data) if data else main,
    )


def planned(
    bound: BoundPlan, topology: Topology, cursor: Cursor | None = None
) -> list[PlannedBatch]:
    """Return what the engine says up to the end of some epochs, or of a run that ends."""
    cursor = settle(bound, cursor or bound.start(), topology.world_size)
    found: list[PlannedBatch] = []
    while cursor.epoch < EPOCHS and not is_finished(bound, cursor):
        found += next_batches(bound, cursor, topology, max_batches=50)
        cursor = found[-1].after
    return [batch for batch in found if batch.epoch < EPOCHS]


def told(batch: PlannedBatch) -> tuple[Any, ...]:
    ids, flags = batch.indices.tolist(), batch.flags.tolist()
    return batch.epoch, batch.step, batch.global_step, batch.stream, ids, flags, batch.told


def got(batch: Batch) -> tuple[Any, ...]:
    check(batch)
    meta = dict(batch.meta)
    names = ("epoch", "step", "global_step", "stream")
    place = tuple(meta.pop(name) for name in names)
    meta.pop("role")
    return *place, batch.indices.tolist(), batch.flags.tolist(), meta


def received(dataset: DaemonDataset) -> list[Batch]:
    """Return the batches of some epochs, or of a run that ends, one pass after the other."""
    batches: list[Batch] = []
    for _ in range(EPOCHS):
        found = list(dataset)
        batches += [batch for batch in found if batch.meta["epoch"] < EPOCHS]
        if not found or batches[-1].cursor.epoch >= EPOCHS:
            break
    return batches


@pytest.mark.parametrize("name", ROWS)
def test_a_plan_is_served_batch_for_batch_and_continues_anywhere(
    app: AppThread, folder: Path, name: str
) -> None:
    row = ROWS[name]
    stream = Stream(Objects(str(folder)), row.plan)
    world_size = 2 * row.node_blocks
    topology = Topology(world_size - 1, world_size)
    if "length" in str(getattr(row.plan, "column", "")):
        with pytest.raises(
            PlanError, match=r"column='length' is not in the data, which has: sizes"
        ):
            list(DaemonDataset(app.socket, stream, topology=topology))
        return
    bound = bound_of(stream)
    try:
        truth = [told(batch) for batch in planned(bound, topology)]
    except NoStepError:
        with pytest.raises(PlanError, match="no step"):
            list(DaemonDataset(app.socket, stream, topology=topology))
        return
    dataset = DaemonDataset(app.socket, stream, topology=topology, prefetch_batches=3)
    length = len(dataset)
    batches = received(dataset)
    assert [got(batch) for batch in batches] == truth
    assert length == sum(place[0] == 0 for place in truth)
    dataset.close()
    for at in {1, len(batches) // 2, len(batches) - 1}:
        state = json.loads(json.dumps(dataset.state_dict(after=batches[at - 1])))
        other = DaemonDataset(app.socket, stream, topology=topology)
        other.load_state_dict(state)
        assert other.remaining == sum(place[0] == state["epoch"] for place in truth[at:])
        assert [got(batch) for batch in received(other)][: len(truth) - at] == truth[at:]
        other.close()


@pytest.mark.parametrize(
    "plan",
    [
        ByteBudget(max_bytes=60),
        ByteBudget(max_bytes=60, tail="wrap"),
        VariableBatch(batch_size=2),
        VideoVariable(batch_size=2, random_clips=True),
    ],
    ids=repr,
)
def test_all_ranks_have_the_same_steps_and_sizes(
    app: AppThread, folder: Path, plan: ByteBudget | VariableBatch | VideoVariable
) -> None:
    """E8."""
    stream = Stream(Objects(str(folder)), plan)
    for world_size in (2, 3):
        ranks = []
        for rank in range(world_size):
            dataset = DaemonDataset(app.socket, stream, topology=Topology(rank, world_size))
            ranks.append(list(dataset) + list(dataset))
            dataset.close()
        for step in zip(*ranks, strict=True):
            places = {(batch.meta["epoch"], batch.meta["step"]) for batch in step}
            sizes = {
                tuple(batch.meta.get(name) for name in ("height", "width", "frames", "clips"))
                for batch in step
            }
            assert len(places) == len(sizes) == 1
            if not isinstance(plan, ByteBudget):
                assert len({len(batch) for batch in step}) == 1
        for epoch in range(2):
            ids = [
                index
                for batches in ranks
                for batch in batches
                if batch.meta["epoch"] == epoch
                for index, flag in zip(batch.indices.tolist(), batch.flags.tolist(), strict=True)
                if not flag & Flag.PADDING
            ]
            assert sorted(ids) == list(range(len(SIZES)))


def test_epochs_without_a_step_are_passed_over(app: AppThread, tmp_path: Path) -> None:
    """Packed anew in each epoch, samples make enough batches for all ranks in some only."""
    sizes = (60, 60, 30, 30, 30, 40, 10, 50, 20)
    plan = ByteBudget(max_bytes=100, drop_last=True, tail="drop")
    stream, topology = Stream(Objects(str(write(tmp_path, sizes))), plan), Topology(3, 4)
    bound = bound_of(stream)
    assert [bound.program.steps(epoch, 4) for epoch in range(6)] == [1, 0, 0, 1, 0, 1]

    def epochs(batches: Iterable[Batch]) -> list[int]:
        return [batch.meta["epoch"] for batch in batches]

    dataset = DaemonDataset(app.socket, stream, topology=topology)
    assert [epochs(dataset) for _ in range(3)] == [[0], [3], [5]]
    dataset.seek(epoch=1)
    assert (len(dataset), epochs(dataset)) == (1, [3])
    loader = dataset.loader(2)
    assert [epochs(loader) for _ in range(2)] == [[5], [6]]
    dataset.close()


# ---- one pass that ends --------------------------------------------------------------------------


def interleaved(folder: Path, *, epochs: int = 2) -> Stream:
    plan = Interleaved(
        train=Shuffled(batch_size=4, seed=3),
        extras={"val": Every(Sequential(batch_size=8), epochs=1)},
        limits=Limits(epochs=epochs),
    )
    return Stream(Objects(str(folder)), plan)


def streams_of(batches: list[Batch]) -> str:
    return "".join(batch.meta["stream"][0] for batch in batches)


def test_a_run_ends_once_and_is_empty_afterwards(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, interleaved(folder))
    assert len(dataset) == dataset.remaining == 16
    assert streams_of(list(dataset)) == "tttttvvvtttttvvv"
    assert (len(dataset), dataset.remaining) == (16, 0)
    assert list(dataset) == list(dataset) == []
    state = dataset.state_dict()
    again = DaemonDataset(app.socket, interleaved(folder))
    again.load_state_dict(state)
    assert (list(again), again.remaining, len(again)) == ([], 0, 16)
    longer = DaemonDataset(app.socket, interleaved(folder, epochs=3))
    longer.load_state_dict(state)
    assert streams_of(list(longer)) == "tttttvvv"


def test_a_run_that_is_left_goes_on_where_it_was_left(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, interleaved(folder))
    for batch in dataset:
        if batch.meta["step"] == 6:
            break
    assert streams_of(list(dataset)) == "vtttttvvv"


def test_a_run_can_begin_at_any_epoch_of_its_main_plan(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(app.socket, interleaved(folder))
    dataset.seek(epoch=1)
    batches = list(dataset)
    assert streams_of(batches) == "tttttvvv"
    assert [batch.meta["part_epoch"] for batch in batches] == [1] * 8
    dataset.seek(epoch=7)
    assert list(dataset) == []


def test_extras_are_told_from_the_main_plan(app: AppThread, folder: Path) -> None:
    roles = {
        batch.meta["stream"]: batch.meta["role"]
        for batch in DaemonDataset(app.socket, interleaved(folder))
    }
    assert roles == {"train": "main", "val": "extra"}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_a_run_and_end_it_together(
    app: AppThread, folder: Path, workers: int
) -> None:
    dataset = DaemonDataset(app.socket, interleaved(folder))
    loader = dataset.loader(workers, persistent_workers=True)
    assert streams_of(list(loader)) == "tttttvvvtttttvvv"
    assert list(loader) == []
    dataset.seek(epoch=0)
    batches = iter(loader)
    assert streams_of([next(batches) for _ in range(7)]) == "tttttvv"
    del batches
    rest = list(loader)
    assert streams_of(rest) == "vtttttvvv"
    dataset.load_state_dict(dataset.state_dict(after=rest[-2]))
    assert streams_of(list(loader)) == "v", "one worker has nothing"


# ---- sources of their own ------------------------------------------------------------------------


def two_sources(folder: Path, other: Path) -> Stream:
    plan = Interleaved(
        train=Chain(
            plans={
                "a": Shuffled(batch_size=4),
                "b": Link(ByteBudget(max_bytes=60), Objects(str(other))),
            }
        ),
        extras={"val": Every(VariableBatch(batch_size=2), epochs=1, source=Objects(str(other)))},
        limits=Limits(epochs=2),
    )
    return Stream(Objects(str(folder)), plan)


def test_parts_have_sources_of_their_own(app: AppThread, folder: Path, tmp_path: Path) -> None:
    stream = two_sources(folder, write(tmp_path, (60, 10, 20)))
    bound = bound_of(stream)
    truth = [told(batch) for batch in planned(bound, Topology())]
    dataset = DaemonDataset(app.socket, stream)
    batches = list(dataset)
    assert [got(batch) for batch in batches] == truth
    indices: dict[str, set[int]] = {}
    for batch in batches:
        indices.setdefault(batch.meta["stream"], set()).update(batch.indices.tolist())
    assert indices == {"a": set(range(20)), "b": {0, 1, 2}, "val": {0, 1, 2}}
    assert batches[0].cursor.manifest == bound.manifest


def test_a_state_goes_on_with_the_data_that_it_was_made_for(folder: Path, tmp_path: Path) -> None:
    """Also where one of several sources was listed anew since."""
    other = tmp_path / "other"
    other.mkdir()
    stream = two_sources(folder, write(other, (60, 10, 20)))
    state_dir = tmp_path / "state"
    with DaemonProcess("--state-dir", str(state_dir)) as daemon:
        dataset = DaemonDataset(daemon.socket, stream)
        batches = list(dataset)
        state = dataset.state_dict(after=batches[4])
        dataset.close()
        write(other, (60, 10, 20, 30))
        assert headrace("index", other, "--state-dir", state_dir, "--refresh").returncode == 0
        anew = DaemonDataset(daemon.socket, stream)
        assert len(list(anew)) > len(batches)
        anew.close()
        again = DaemonDataset(daemon.socket, stream)
        again.load_state_dict(state)
        assert [got(batch) for batch in again] == [got(batch) for batch in batches[5:]]
        again.close()


# ---- functions of their own ----------------------------------------------------------------------


def test_parts_have_functions_of_their_own(app: AppThread, folder: Path) -> None:
    dataset = DaemonDataset(
        app.socket,
        interleaved(folder),
        transform={"train": lambda sample: len(sample["data"])},
        collate_fn={"train": sum, "val": len},
    )
    values = list(dataset)
    train, val = values[:5], values[5:8]
    assert sum(train) == sum(SIZES)
    assert val == [8, 8, 4]
    whole = DaemonDataset(app.socket, interleaved(folder), collate_fn={"val": len})
    kinds = [type(value).__name__ for value in whole]
    assert kinds == (["Batch"] * 5 + ["int"] * 3) * 2


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"transform": {"val": 3}}, r"transform\['val'\]=3 cannot be called"),
        ({"collate_fn": {"test": len}}, r"collate_fn\['test'\].* its parts: train, val"),
    ],
)
def test_functions_of_parts_that_do_not_exist_are_refused(
    folder: Path, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        DaemonDataset("/s", interleaved(folder), **option)
