"""Streamed shards, from the archive to the loop: the same samples as by index, at any place."""

from __future__ import annotations

import json
import os
import random
import zlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from headrace import DaemonDataset, Objects, Shards, Skip, Stream, Topology, errors
from headrace.plans import Data, Sequential, ShardShuffled, Shuffled
from headrace.plans.flags import Flag
from headrace.plans.streamed import SAMPLE_BITS, StreamedProgram, sample_index
from tests.support.app import AppThread, Reads
from tests.support.daemon import DaemonProcess
from tests.support.shards import packed, tar_of, zip_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from headrace.plans import Plan
    from tests.support.stores import Store

SIZES: Final = (1, 3, 7, 50, 0, 100, 333)
SMALL: Final = (1, 3, 0, 7, 5)
FIELDS: Final = ("jpg", "cls")
KINDS: Final = ("tar", "tar.gz", "tgz", "tar.lz4", "zip")

Row = tuple[int, int, tuple[str, ...], tuple[Any, ...], tuple[Any, ...], tuple[int, ...]]


def members(shard: int, count: int, *, max_bytes: int = 900) -> list[tuple[str, bytes]]:
    """Return the members of a shard; each sample can be told from all others."""
    found = []
    for number in range(count):
        key = f"{shard}/{number:04}"
        image = zlib.compress(key.encode()) * (number * 37 % max_bytes)
        found += [(f"{key}.jpg", image[:max_bytes]), (f"{key}.cls", key.encode())]
    return found


def shard_of(kind: str, content: list[tuple[str, bytes]]) -> bytes:
    if kind == "zip":
        return zip_of(content)
    return packed(tar_of(content), {"tgz": "tar.gz"}.get(kind, kind))


def write(folder: Path, kind: str, sizes: tuple[int, ...], **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(sizes):
        content = members(shard, count, **options)
        (folder / f"s-{shard}.{kind}").write_bytes(shard_of(kind, content))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards for each kind; ``small`` has few samples."""
    root = tmp_path_factory.mktemp("shards")
    for kind in KINDS:
        write(root / kind, kind, SIZES)
    write(root / "small", "tgz", SMALL)
    return root


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB", reads=Reads(1)) as app:
        yield app
        budget = app.app._budget
        app.wait_until(lambda: not budget.held_bytes and not budget.guaranteed_bytes)


def source(folder: Path | str, **options: Any) -> Shards:  # noqa: ANN401 - those of `Shards`
    return Shards(str(folder), **{"fields": FIELDS, "index": False, **options})


def row(batch: Batch) -> Row:
    return (
        batch.meta["epoch"],
        batch.meta["step"],
        tuple(batch.sample_keys),
        tuple(batch["jpg"]),
        tuple(batch["cls"]),
        tuple(batch.flags.tolist()),
    )


def read(socket: str, stream: Stream, epochs: int = 1, **options: Any) -> list[Row]:  # noqa: ANN401
    dataset = DaemonDataset(socket, stream, **options)
    rows = [row(batch) for _ in range(epochs) for batch in dataset]
    dataset.close()
    return rows


PLANS: Final[dict[str, Sequential | ShardShuffled]] = {
    "sequential": Sequential(batch_size=8),
    "shards": ShardShuffled(batch_size=8, seed=3, window=1),
    "windows": ShardShuffled(batch_size=8, seed=3, window=40, tail="wrap"),
    "drop": ShardShuffled(batch_size=7, seed=4, window=600, tail="drop"),
}


@pytest.fixture(scope="module")
def truth(app: AppThread, data: Path) -> dict[str, list[Row]]:
    """What the same plans make of the indexed shards."""
    indexed = Shards(str(data / "tar"), fields=FIELDS)
    return {name: read(app.socket, Stream(indexed, plan), epochs=2) for name, plan in PLANS.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLANS)
def test_samples_are_those_of_the_index(
    app: AppThread, data: Path, truth: dict[str, list[Row]], kind: str, name: str
) -> None:
    stream = Stream(source(data / kind), PLANS[name])
    assert read(app.socket, stream, epochs=2) == truth[name]


def test_samples_of_a_store_are_those_of_the_index(
    store: Store, truth: dict[str, list[Row]], data: Path
) -> None:
    for kind in ("tar", "tar.gz"):
        store.put({path.name: path.read_bytes() for path in (data / kind).iterdir()})
    plan = ShardShuffled(batch_size=8, seed=3, window=1)
    with store.daemon() as app:
        for suffix in (".tar", ".tar.gz"):
            shards = source(store.uri(), suffix=suffix)
            assert read(app.socket, Stream(shards, plan), epochs=2) == truth["shards"]


def test_a_sample_is_named_by_its_shard_and_its_place_in_it(app: AppThread, data: Path) -> None:
    dataset = DaemonDataset(app.socket, Stream(source(data / "small"), Sequential(batch_size=4)))
    indices = [index for batch in dataset for index in batch.indices.tolist()]
    assert indices == [sample_index(r, n) for r, count in enumerate(SMALL) for n in range(count)]
    assert [entry.name for entry in dataset.manifest] == [f"s-{shard}.tgz" for shard in range(5)]
    with pytest.raises(errors.PlanError, match=r"single samples .* cannot be read"):
        dataset.read([0])
    dataset.close()


# ---- positions -------------------------------------------------------------------------------


def order_of(stream: Stream, num_shards: int) -> list[int]:
    program = stream.served_plan.program(Data(num_shards))
    assert isinstance(program, StreamedProgram)
    order: list[int] = program.shards(0).tolist()
    return order


@pytest.mark.parametrize("window", [1, 5])
def test_any_state_goes_on_and_reads_from_the_shard_where_it_stands(
    app: AppThread, data: Path, window: int
) -> None:
    stream = Stream(
        source(data / "small"),
        ShardShuffled(batch_size=2, seed=1, window=window),
        steps_per_epoch=11,
    )
    first = DaemonDataset(app.socket, stream)
    states, rows = [first.state_dict()], []
    for batch in first:
        rows.append(row(batch))
        states.append(json.loads(json.dumps(first.state_dict())))
    following = row(next(iter(first)))
    first.close()
    assert len({len(json.dumps(state)) for state in states}) < 8, "of constant size"
    for done, state in enumerate(states):
        again = DaemonDataset(app.socket, stream)
        again.load_state_dict(state)
        app.call(app.reads.names.clear)
        rest = [row(batch) for batch in again]
        assert rest == (rows[done:] if done < len(rows) else [following, *rest[1:]])
        child = state["child"]
        if child is not None:
            order = order_of(stream, len(SMALL))
            assert app.reads.names[0] == f"s-{order[child['shard']]}.tgz"
        again.close()


def test_ranks_come_and_go_and_each_entry_comes_once(app: AppThread, data: Path) -> None:
    """2 ranks, then 1, then 2: the batches of a step, put together, are one sequence."""
    steps = 14  # 16 samples: with 2 ranks of 1 sample it begins again in the middle
    plan = ShardShuffled(batch_size=1, seed=2, window=4)
    alone = [
        key for one in read(app.socket, Stream(source(data / "small"), plan)) for key in one[2]
    ]
    stream = Stream(source(data / "small"), plan, steps_per_epoch=steps)
    found: list[tuple[str, int]] = []
    state: dict[str, Any] = {}
    for world_size, count in ((2, 5), (1, 3), (2, 6)):
        parts: list[list[tuple[str, int]]] = []
        for rank in range(world_size):
            dataset = DaemonDataset(app.socket, stream, topology=Topology(rank, world_size))
            if state:
                dataset.load_state_dict(state)
            assert len(dataset) == steps
            batches = [batch for batch, _ in zip(dataset, range(count), strict=False)]
            parts.append([(batch.sample_keys[0], int(batch.flags[0])) for batch in batches])
            after = batches[-1].cursor.to_state()
            dataset.close()
        state = after
        found += [entry for step in zip(*parts, strict=True) for entry in step]
    assert (state["epoch"], state["step"]) == (1, 0)
    assert found == [
        (alone[place % len(alone)], Flag.WRAPPED if place >= len(alone) else 0)
        for place in range(5 * 2 + 3 + 6 * 2)
    ]


def test_workers_deal_the_same_order(
    app: AppThread, data: Path, truth: dict[str, list[Row]]
) -> None:
    dataset = DaemonDataset(app.socket, Stream(source(data / "tar.gz"), PLANS["windows"]))
    loader = dataset.loader(num_workers=2)
    rows = [row(batch) for _ in range(2) for batch in loader]
    assert rows == truth["windows"]
    assert dataset.state_dict()["epoch"] == 2
    dataset.close()


def test_an_epoch_without_a_known_end_has_no_length(app: AppThread, data: Path) -> None:
    plan = Sequential(batch_size=4)
    dataset = DaemonDataset(app.socket, Stream(source(data / "small"), plan))
    asked: list[Callable[[], int]] = [
        lambda: len(dataset),
        lambda: dataset.remaining,
        lambda: len(dataset.loader()),
    ]
    for ask in asked:
        with pytest.raises(TypeError, match=r"no length: its shards are streamed.*steps_per_epoch"):
            ask()
    dataset.seek(epoch=3)
    assert next(iter(dataset)).meta["epoch"] == 3
    with pytest.raises(errors.CursorError, match="seek update=5 is not the start of an epoch"):
        dataset.seek(update=5)
    dataset.close()
    two = DaemonDataset(app.socket, Stream(source(data / "small"), plan), topology=Topology(0, 2))
    with pytest.raises(errors.PlanError, match="world_size=2 needs to know how many steps"):
        next(iter(two))
    two.close()


def test_a_connection_that_breaks_loses_and_repeats_nothing(
    app: AppThread, data: Path, truth: dict[str, list[Row]]
) -> None:
    """The feed is taken up again, with the memory that it had."""
    dataset = DaemonDataset(app.socket, Stream(source(data / "zip"), PLANS["windows"]))
    rows, num_breaks = [], 0
    for batch in dataset:
        rows.append(row(batch))
        if batch.meta["step"] in (0, 20, 50):
            assert dataset._receiver is not None
            channel = dataset._receiver._channel
            if channel is not None:  # it is not connecting again already
                num_breaks += 1
                channel.shutdown()
    assert num_breaks
    assert rows == truth["windows"][: len(rows)]
    assert len(rows) == len(truth["windows"]) // 2
    dataset.close()


def test_a_daemon_that_is_killed_loses_and_repeats_nothing(
    data: Path, truth: dict[str, list[Row]]
) -> None:
    stream = Stream(source(data / "tgz"), PLANS["windows"])
    with DaemonProcess() as daemon:
        dataset = DaemonDataset(daemon.socket, stream)
        rows = []
        for _ in range(2):
            for batch in dataset:
                rows.append(row(batch))
                if batch.meta["global_step"] == 30:
                    daemon.kill()
                    daemon.start()
        dataset.close()
    assert rows == truth["windows"]


# ---- what is wrong with shards ---------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Change what a file has in a way that nobody can see: its time stays."""
    facts = path.stat()
    aside = path.with_name(".aside")
    aside.write_bytes(content)
    os.utime(aside, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    aside.replace(path)  # nobody sees half of it


def damage(folder: Path, how: str) -> None:
    """Damage the shard with 7 samples, or take it away."""
    path = folder / "s-3.tgz"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) * 2 // 3])
    elif how == "crc":
        path.write_bytes(content[:-8] + bytes(4) + content[-4:])
    elif how == "large":
        path.write_bytes(shard_of("tgz", [*members(3, 4), ("3/0004.jpg", bytes(20_000))]))
    elif how == "lacking":
        path.write_bytes(shard_of("tgz", [*members(3, 4), ("3/0004.jpg", b"x"), ("4.jpg", b"y")]))
    elif how == "gone":
        path.unlink()


BAD: Final = {
    "truncated": "shard s-3.tgz, byte .*ends",
    "crc": "shard s-3.tgz, byte .*incorrect data check",
    "large": r"shard s-3.tgz.* member '3/0004.jpg': it has 20000 bytes, max_sample_bytes is 10000",
    "lacking": "sample '3/0004' of shard 's-3.tgz' lacks field 'cls'",
    "gone": "s-3.tgz",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_shard_fails_in_its_place(app: AppThread, tmp_path: Path, how: str) -> None:
    folder = write(tmp_path / how, "tgz", SMALL)
    if how != "gone":
        damage(folder, how)
    stream = Stream(source(folder), Sequential(batch_size=2), max_sample_bytes=10_000)
    if how == "gone":
        assert len(DaemonDataset(app.socket, stream).manifest) == 5, "it is listed"
        damage(folder, how)
    dataset = DaemonDataset(app.socket, stream)
    keys: list[str] = []
    with pytest.raises(errors.FeedError, match=BAD[how]):
        for batch in dataset:
            keys += batch.sample_keys
    whole = [key for shard, count in enumerate(SMALL) for key in _keys(shard, count)]
    assert keys == whole[: len(keys)]
    assert len(keys) >= 4, "those of the shards before"
    dataset.close()


def _keys(shard: int, count: int) -> list[str]:
    return [f"{shard}/{number:04}" for number in range(count)]


@pytest.mark.parametrize("repair", [False, True])
def test_the_rest_of_a_bad_shard_is_left_out(
    app: AppThread, tmp_path: Path, *, repair: bool
) -> None:
    """Also when it is repaired in between: the state says where it broke off."""
    folder = write(tmp_path / "data", "tgz", SMALL)
    good = (folder / "s-3.tgz").read_bytes()
    plan = ShardShuffled(batch_size=3, seed=3, window=6)
    stream = Stream(source(folder), plan, on_bad=Skip(repair=repair))
    assert len(DaemonDataset(app.socket, stream).manifest) == 5, "it is listed"
    rewrite(folder / "s-3.tgz", good[:-8] + bytes(4) + good[-4:])
    dataset = DaemonDataset(app.socket, stream)
    rows, states = [], []
    for batch in dataset:
        rows.append(row(batch))
        states.append(dataset.state_dict())
    keys = sorted(key for one in rows for key in one[2])
    left = len([key for key in keys if key.startswith("3/")])
    assert keys == sorted(
        key
        for shard, count in enumerate(SMALL)
        for key in _keys(shard, count if shard != 3 else left)
    )
    noted = [state for state in states if state["skips"]]
    assert all(state["skips"] == [3 << SAMPLE_BITS | left] for state in noted)
    assert noted
    assert states[-1]["skips"] == ([] if repair else noted[0]["skips"])
    rewrite(folder / "s-3.tgz", good)
    for done, state in enumerate(states[:-1], start=1):
        if state["skips"]:
            dataset.load_state_dict(state)
            assert [row(batch) for batch in dataset] == rows[done:]
    following = [key for batch in dataset for key in batch.sample_keys]
    assert len(following) == (sum(SMALL) if repair else len(keys))
    dataset.close()


def test_a_bad_shard_is_as_long_each_time_that_shards_begin_again(
    app: AppThread, tmp_path: Path
) -> None:
    folder = write(tmp_path / "data", "tgz", SMALL)
    plan = Sequential(batch_size=4)
    stream = Stream(source(folder), plan, on_bad="skip", steps_per_epoch=60)
    assert len(DaemonDataset(app.socket, stream).manifest) == 5, "it is listed"
    good = (folder / "s-3.tgz").read_bytes()
    rewrite(folder / "s-3.tgz", good[:-8] + bytes(4) + good[-4:])
    dataset = DaemonDataset(app.socket, stream, prefetch_batches=1)
    keys: list[str] = []
    for batch in dataset:
        keys += batch.sample_keys
        if batch.meta["step"] == 5:  # it was found damaged long ago
            rewrite(folder / "s-3.tgz", good)
    dataset.close()
    length = keys[1:].index(keys[0]) + 1
    assert length < sum(SMALL)
    assert keys == [keys[place % length] for place in range(240)]


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_a_shard_that_was_changed_is_an_error_also_at_the_same_size(
    app: AppThread, tmp_path: Path, kind: str
) -> None:
    """Of a plain tar nothing else shows it, and a state would go on in another order."""
    folder = write(tmp_path / "data", kind, (4, 4, 4))
    stream = Stream(source(folder), Sequential(batch_size=2))
    dataset = DaemonDataset(app.socket, stream, prefetch_batches=1)
    first = next(iter(dataset))
    state = dataset.state_dict()
    dataset.close()
    path = folder / f"s-2.{kind}"
    changed = path.stat().st_mtime_ns + 1
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(changed, changed))
    dataset = DaemonDataset(app.socket, stream)
    dataset.load_state_dict(state)
    keys = list(first.sample_keys)
    with pytest.raises(errors.FeedError, match=rf"s-2\.{kind}: it was changed .* same size"):
        for batch in dataset:
            keys += batch.sample_keys
    assert keys == [*_keys(0, 4), *_keys(1, 4)]
    dataset.close()


def test_copies_of_shards_have_times_of_their_own(app: AppThread, tmp_path: Path) -> None:
    rows = []
    for number, place in enumerate(("one", "other")):
        folder = write(tmp_path / place, "tgz", SMALL)
        for path in folder.iterdir():
            os.utime(path, (number, number))
        plan = Sequential(batch_size=2)
        rows.append(read(app.socket, Stream(source(folder), plan)))
    assert rows[0] == rows[1]
    objects = Stream(Objects(str(tmp_path / "one")), Sequential(batch_size=2))
    assert len(read_names(app.socket, objects)) == len(SMALL)


def read_names(socket: str, stream: Stream) -> list[str]:
    dataset = DaemonDataset(socket, stream)
    names = [name for batch in dataset for name in batch.sample_keys]
    dataset.close()
    return names


def test_what_breaks_in_a_window_that_was_begun_is_not_left_out(
    app: AppThread, tmp_path: Path
) -> None:
    """Without it others would be in the window, and some of them come twice or never."""
    folder = write(tmp_path / "data", "tgz", SMALL)
    plan = ShardShuffled(batch_size=3, seed=3, window=sum(SMALL))
    stream = Stream(source(folder), plan, on_bad="skip")
    dataset = DaemonDataset(app.socket, stream)
    rows, states = [], []
    for batch in dataset:
        rows.append(row(batch))
        states.append(dataset.state_dict())
    path = folder / "s-3.tgz"
    good = path.read_bytes()
    rewrite(path, good[:-8] + bytes(4) + good[-4:])
    dataset.load_state_dict(states[1])
    words = r"shard s-3.tgz.*it cannot be left out here: 6 samples of its window were given"
    with pytest.raises(errors.FeedError, match=words):
        next(iter(dataset))
    rewrite(path, good)
    assert [row(batch) for batch in dataset] == rows[2:]
    dataset.close()


def test_one_more_bad_shard_than_the_limit_ends_the_stream(app: AppThread, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "tgz", SMALL)
    damage(folder, "truncated")
    stream = Stream(source(folder), Sequential(batch_size=2), on_bad=Skip(limit=0))
    dataset = DaemonDataset(app.socket, stream)
    keys: list[str] = []
    with pytest.raises(errors.FeedError, match=r"leaves out 0 at most.*shard s-3.tgz"):
        for batch in dataset:
            keys += batch.sample_keys
    assert keys[:4] == [*_keys(0, 1), *_keys(1, 3)]
    assert not [key for key in keys if key.startswith("4/")]
    dataset.close()


def test_what_broke_off_is_named_where_no_sample_is_left(app: AppThread, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "tgz", (0, 3, 3))
    for number in (1, 2):
        (folder / f"s-{number}.tgz").write_bytes(b"no gzip")
    stream = Stream(source(folder), Sequential(batch_size=2), on_bad="skip")
    dataset = DaemonDataset(app.socket, stream)
    words = r"no sample is left of the 3 shards .*: 2 broke off before .*; shard s-1.tgz, byte 0"
    with pytest.raises(errors.FeedError, match=words):
        next(iter(dataset))
    dataset.close()


def test_an_epoch_of_which_a_bad_shard_leaves_nothing_is_not_taken_up(
    app: AppThread, tmp_path: Path
) -> None:
    folder = write(tmp_path / "data", "tgz", (4, 5))
    stream = Stream(source(folder), Sequential(batch_size=3), on_bad="skip")
    dataset = DaemonDataset(app.socket, stream)
    state = [batch for batch, _ in zip(dataset, range(2), strict=False)][1].cursor.to_state()
    dataset.close()
    path = folder / "s-1.tgz"
    rewrite(path, b"no gzip".ljust(path.stat().st_size))
    dataset = DaemonDataset(app.socket, stream)
    dataset.load_state_dict(state)
    words = r"no step is left of epoch 0 .*; shard s-1.tgz, byte 0: .*go on with seek\(epoch=1\)"
    with pytest.raises(errors.FeedError, match=words):
        next(iter(dataset))
    dataset.seek(epoch=1)
    assert [key for batch in dataset for key in batch.sample_keys] == _keys(0, 4)
    dataset.close()


def test_several_readers_leave_nothing_out(app: AppThread, data: Path) -> None:
    stream = Stream(
        source(data / "small"), Sequential(batch_size=2), on_bad="skip", steps_per_epoch=3
    )
    dataset = DaemonDataset(app.socket, stream, topology=Topology(0, 2))
    with pytest.raises(errors.PlanError, match=r"on_bad='skip' does not go with .*world_size=2"):
        next(iter(dataset))
    dataset.close()


def test_shards_without_a_sample_are_named(app: AppThread, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "tgz", (0, 0))
    dataset = DaemonDataset(
        app.socket, Stream(source(folder), Sequential(batch_size=2), steps_per_epoch=2)
    )
    with pytest.raises(
        errors.FeedError, match=r"the 2 shards of .* have no sample with any of the"
    ):
        next(iter(dataset))
    dataset.close()


# ---- memory ----------------------------------------------------------------------------------


def test_memory_is_what_there_is_and_never_above_the_budget(tmp_path: Path) -> None:
    large = [(f"{number}.jpg", bytes([number]) * (2 << 20)) for number in range(12)]
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(3):
        (folder / f"s-{shard}.tar.gz").write_bytes(packed(tar_of(large), "tar.gz"))
    shards = Shards(str(folder), fields=["jpg"], suffix=".tar.gz")
    with AppThread(memory="40MiB") as app:
        budget = app.app._budget
        held: list[int] = []
        real = budget.try_hold

        def watched(*arguments: Any) -> bool:  # noqa: ANN401 - those of try_hold
            fits = real(*arguments)
            held.append(budget.held_bytes)
            return fits

        budget.try_hold = watched  # type: ignore[assignment,method-assign]
        dataset = DaemonDataset(app.socket, Stream(shards, Sequential(batch_size=2)))
        values = [value for batch in dataset for value in batch["jpg"]]
        assert values == [data for _ in range(3) for _, data in large]
        assert max(held) <= 40 << 20
        dataset.close()
        # What does not fit is refused with the numbers, in its place.
        dataset = DaemonDataset(
            app.socket, Stream(shards, ShardShuffled(batch_size=2, window=30, seed=1))
        )
        words = r"streams shards.*needs \d+ bytes; the budget is 41943040 bytes.*smaller batch"
        with pytest.raises(errors.BudgetError, match=words):
            next(iter(dataset))
        dataset.close()
        app.wait_until(lambda: not budget.held_bytes and not budget.guaranteed_bytes)


def test_slots_come_before_shards_that_are_read_ahead(tmp_path: Path) -> None:
    """Three shards side by side take up what the slots need, and more than one is not necessary."""
    rng = random.Random(1)
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(3):
        content = [(f"{shard}/{number}.jpg", rng.randbytes(700_000)) for number in range(4)]
        (folder / f"s-{shard}.tgz").write_bytes(shard_of("tgz", content))
    stream = Stream(source(folder, fields=["jpg"]), Sequential(batch_size=2))
    with AppThread(memory="11MiB") as app:
        dataset = DaemonDataset(app.socket, stream)
        keys = [key for batch in dataset for key in batch.sample_keys]
        assert keys == [f"{shard}/{number}" for shard in range(3) for number in range(4)]
        dataset.close()
    # Too little for one shard ends the stream as well, and is not tried for minutes.
    with AppThread(memory="7MiB") as app:
        dataset = DaemonDataset(app.socket, stream)
        with pytest.raises(
            errors.BudgetError, match=r"needs \d+ bytes; the budget is 7340032 bytes"
        ):
            list(dataset)
        dataset.close()


# ---- what is refused before anything is read -------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Shards("a.tar.gz"), r"fields=None does not go with a.tar.gz, which is streamed"),
        (lambda: Shards("a.zip", index=True), "index=True does not go with 'a.zip'"),
        (lambda: source("d", rule="aistore"), "rule='aistore' does not go with d"),
        (lambda: source("d", on_bad_shard="skip"), "on_bad_shard='skip' does not go with d"),
        (lambda: Stream(source("d"), Shuffled(batch_size=1)), "use Sequential or ShardShuffled"),
        (
            lambda: Stream(Objects("d"), Sequential(batch_size=1), steps_per_epoch=3),
            "steps_per_epoch=3 is for shards that are streamed",
        ),
        (
            lambda: Stream(Shards("d"), Sequential(batch_size=1), max_sample_bytes=3),
            "max_sample_bytes=3 is for shards that are streamed",
        ),
        (
            lambda: Stream(source("d"), Sequential(batch_size=1), steps_per_epoch=0),
            "steps_per_epoch=0",
        ),
        (
            lambda: Stream(source("d"), Sequential(batch_size=1, repeats=2)),
            "repeats=2 has to know all samples",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused(make: Any, words: str) -> None:  # noqa: ANN401
    with pytest.raises(errors.PlanError, match=words):
        make()


def test_compressed_names_make_a_source_streamed() -> None:
    streamed = ["a/s-{000..007}.tgz", ["x.tar", "y.tar.lz4"], "ais://b/x.TAR.GZ"]
    for uri in streamed:
        assert Shards(uri, fields=["x"]).is_streamed
    assert Shards("d", fields=["x"], suffix=".zip").is_streamed
    assert not Shards("d").is_streamed
    assert not Shards("d/x.tar").is_streamed
    plain: Plan = Sequential(batch_size=1)
    assert "steps_per_epoch" not in Stream(Shards("d"), plain).plain()
