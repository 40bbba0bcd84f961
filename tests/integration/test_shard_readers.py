"""The drop-in readers of shards: items through a daemon, positions between them, and workers."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any, Final

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from headrace import DaemonDataset, MultiShard, Shards, Stream, Topology, plans
from headrace.compat.aistore import AISMultiShardStream, AISShardReader
from headrace.errors import CursorError, DaemonUnavailableError, FeedError
from headrace.passes import FeedPass
from tests.support.app import AppThread
from tests.support.posing import posing_as_worker
from tests.support.shards import tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES: Final = (5, 0, 1, 9, 3, 7, 2)
KEYS: Final = [f"{shard}-{number}" for shard, size in enumerate(SIZES) for number in range(size)]


def shard(number: int, size: int) -> bytes:
    """Return a tar with samples that say which one they are; some lack a field."""
    members = []
    for one in range(size):
        key = f"{number}-{one}"
        members.append((f"{key}.txt", f"text of {key}".encode()))
        if one % 2:
            members.append((f"{key}.cls", str(one).encode()))
    return tar_of(members)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for number, size in enumerate(SIZES):
        (root / f"t-{number:03}").write_bytes(shard(number, size))
    return root


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB") as app:
        yield app


def keys_of(batches: Any) -> list[str]:  # noqa: ANN401 - of a loader
    return [key for batch in batches for key, _ in batch]


def test_items_are_those_of_the_originals_with_the_same_fields_everywhere(
    app: AppThread, folder: Path
) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    items = list(reader)
    assert [key for key, _ in items] == KEYS
    assert len(reader) == len(KEYS)
    for key, fields in items:
        number = key.partition("-")[2]
        label = number.encode() if int(number) % 2 else b""
        assert fields == {"cls": label, "txt": f"text of {key}".encode()}
    # torch's own collation needs that.
    (batch, *_) = DataLoader(reader, batch_size=7)
    assert sorted(batch[1]) == ["cls", "txt"]
    reader.close()


def test_a_state_is_a_position_between_any_two_items(app: AppThread, folder: Path) -> None:
    def make() -> AISShardReader:
        return AISShardReader(folder, socket=app.socket, samples_per_step=4)

    reader = make()
    states = [json.dumps(reader.state_dict())]
    for _ in reader:
        states.append(json.dumps(reader.state_dict()))  # noqa: PERF401 - a state after each item
    again = make()
    for taken, state in enumerate(states):
        again.load_state_dict(json.loads(state))
        assert again.state_dict() == json.loads(state)
        rest = [key for key, _ in again]
        assert rest == (KEYS[taken:] or KEYS)  # behind the last item stands the next epoch
        assert [key for key, _ in again] == KEYS
    iterator = iter(again)
    next(iterator)
    assert [key for key, _ in again] == KEYS, "a pass that was left is abandoned"
    reader.close()
    again.close()


def fail_to_begin(reader: AISShardReader, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Load a state from within a batch, and begin a pass in vain; return the state."""

    def refuse(*_: Any) -> None:  # noqa: ANN401
        raise DaemonUnavailableError("the daemon is away")

    state = {**reader.state_dict(), "taken": 3}
    reader.load_state_dict(state)
    with monkeypatch.context() as patch:
        patch.setattr(FeedPass, "_begin", refuse)
        with pytest.raises(DaemonUnavailableError):
            list(reader)
    return state


def test_a_pass_that_fails_to_begin_leaves_a_state_as_it_was(
    app: AppThread, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    state = fail_to_begin(reader, monkeypatch)
    assert reader.state_dict() == state
    assert [key for key, _ in reader] == KEYS[3:]
    assert [key for key, _ in reader] == KEYS
    reader.close()


def test_a_worker_whose_pass_fails_to_begin_leaves_nothing_out_of_the_next_epoch(
    app: AppThread, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    with posing_as_worker(0, 1, reader):
        state = fail_to_begin(reader, monkeypatch)
        assert reader.state_dict() == state
        assert [key for key, _ in reader] == KEYS
        assert reader.state_dict()["epoch"] == state["epoch"] + 1
    reader.close()


def test_a_daemon_dataset_delivers_the_same_and_takes_over(app: AppThread, folder: Path) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    dataset = DaemonDataset(app.socket, reader.stream)
    batches = list(dataset)
    assert keys_of(batches) == KEYS
    reader.load_state_dict(dataset.state_dict(after=batches[1]))
    assert [key for key, _ in reader] == KEYS[8:]
    named = dataset.read([3, 0])
    assert [key for key, _ in named] == [KEYS[3], KEYS[0]]
    assert named[0][1] == {"cls": b"3", "txt": b"text of 0-3"}
    reader.close()
    dataset.close()


def test_ranks_share_the_items(app: AppThread, folder: Path) -> None:
    readers = [
        AISShardReader(folder, socket=app.socket, samples_per_step=3, topology=Topology(rank, 2))
        for rank in range(2)
    ]
    shares = [[key for key, _ in reader] for reader in readers]
    assert [len(share) for share in shares] == [len(reader) for reader in readers] == [14, 14]
    assert sorted({*shares[0], *shares[1]}) == sorted(KEYS)
    first = iter(readers[0])
    next(first)
    alone = AISShardReader(folder, socket=app.socket, samples_per_step=3)
    with pytest.raises(CursorError, match="by world size 2, and this run has 1"):
        alone.load_state_dict(readers[0].state_dict())
    for reader in (*readers, alone):
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2, 9])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_each_worker_has_whole_shards_and_each_sample_comes_once(
    app: AppThread, folder: Path, num_workers: int
) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    loader = DataLoader(reader, batch_size=2, num_workers=num_workers, collate_fn=list)
    for _ in range(2):
        batches = list(loader)
        assert sorted(keys_of(batches)) == sorted(KEYS)
        owners = [{int(key.partition("-")[0]) % num_workers for key, _ in one} for one in batches]
        assert {len(own) for own in owners} == {1}
    with pytest.raises(FeedError, match=r"state_dict\(\) is not known in the main process"):
        reader.state_dict()
    joined = AISMultiShardStream([str(folder), str(folder)], socket=app.socket)
    others: DataLoader[Any] = DataLoader(
        joined, batch_size=2, num_workers=num_workers, collate_fn=list
    )
    pairs = [pair for batch in others for pair in batch]
    assert sorted(pairs) == sorted(joined)
    assert len(pairs) == len(joined) == len(KEYS) + sum(size // 2 for size in SIZES)
    assert all(first == second for first, second in pairs)
    reader.close()
    joined.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata uses it
def test_a_stateful_loader_continues_each_worker_within_its_share(
    app: AppThread, folder: Path
) -> None:
    def make() -> tuple[AISShardReader, StatefulDataLoader[Any]]:
        reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
        return reader, StatefulDataLoader(reader, batch_size=2, num_workers=2, collate_fn=list)

    reader, loader = make()
    whole = list(loader)
    assert sorted(keys_of(whole)) == sorted(KEYS)
    # One of the workers has come to its end before the last state.
    for taken in (3, len(whole) - 1):
        iterator = iter(loader)
        head = [next(iterator) for _ in range(taken)]
        state = loader.state_dict()
        del iterator
        other, fresh = make()
        fresh.load_state_dict(state)
        assert head + list(fresh) == whole
        assert list(fresh) == whole
        other.close()
    reader.close()


def test_states_are_of_the_whole_or_of_one_worker(app: AppThread, folder: Path) -> None:
    reader = AISShardReader(folder, socket=app.socket, samples_per_step=4)
    with posing_as_worker(1, 2, reader):
        own = reader.state_dict()
    with pytest.raises(CursorError, match="this is the state of DataLoader worker 1 of 2"):
        reader.load_state_dict(own)
    with (
        posing_as_worker(0, 2, reader),
        pytest.raises(CursorError, match="belongs to DataLoader worker 1 of 2, this is worker 0"),
    ):
        reader.load_state_dict(own)
    reader.load_state_dict(reader.state_dict())
    with (
        posing_as_worker(0, 2, reader),
        pytest.raises(FeedError, match="does not continue in DataLoader workers"),
    ):
        list(iter(reader))
    reader.close()


def test_a_bad_shard_raises_what_the_original_raises(app: AppThread, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(shard(0, 3))
    (tmp_path / "notes.txt").write_bytes(b"these are no samples")
    reader = AISShardReader(tmp_path, socket=app.socket)
    for look in (list, len):
        with pytest.raises(tarfile.TarError, match=r"shard notes\.txt, byte 0: .*tar"):
            look(reader)
    with pytest.raises(FeedError, match=r"notes\.txt"):
        reader.state_dict()
    reader.close()


def test_empty_places_are_passed_over_only_where_others_are_not(
    app: AppThread, folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    some = AISShardReader([empty, folder], {folder: ["t-000", "t-9", "t-002"]}, socket=app.socket)
    assert [key for key, _ in some] == [key for key in KEYS if key[0] in "02"]
    none = AISShardReader(empty, socket=app.socket)
    assert (list(none), len(none)) == ([], 0)
    missing = AISShardReader([tmp_path / "nowhere", folder], socket=app.socket)
    with pytest.raises(FeedError, match="nowhere does not exist"):
        list(missing)
    plan = plans.Sequential(batch_size=1)
    for source in (Shards(str(empty)), MultiShard(streams={"a": Shards(str(empty))})):
        with pytest.raises(
            FeedError, match=r"empty has no file whose name ends with \.tar"
        ) as told:
            list(DaemonDataset(app.socket, Stream(source, plan)))
        assert told.value.code == "empty"
    mistaken = AISShardReader(folder, socket=app.socket, fields=["text"])
    with pytest.raises(FeedError, match="has field 'text'"):
        list(mistaken)
    for reader in (some, none, missing, mistaken):
        reader.close()
