"""Samples of shards to the trainer: one ledger, wherever the shards are and however it is run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch.utils.data
from aistore.pytorch import AISShardReader
from aistore.sdk import Client
from webdataset.tariterators import group_by_keys, tar_file_expander

from headrace import DaemonDataset, MultiShard, Objects, Shards, Skip, Stream, Topology
from headrace.errors import FeedError
from headrace.plans import (
    ByteBudget,
    Chain,
    Every,
    Interleaved,
    Limits,
    Link,
    MultiScale,
    Scales,
    Sequential,
    ShardShuffled,
    Shuffled,
    VariableBatch,
)
from headrace.plans.flags import Flag
from headrace.testing import Ledger, assert_resumes_exactly, ledger_of
from tests.support.app import AppThread, Reads
from tests.support.files import content
from tests.support.rows import SCALES
from tests.support.shardset import FIELDS, SMALL, shard_set, stream_of
from tests.support.standin import StandIn
from tests.support.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.plans import Plan

WHOLE = shard_set()
FEW = shard_set(SMALL, max_bytes=300, seed=1)

PLANS: dict[str, Plan] = {
    "sequential": Sequential(batch_size=100),
    "shuffled": Shuffled(batch_size=64, seed=5),
    "torch": Shuffled(batch_size=64, seed=5, order="torch"),
    "shards": ShardShuffled(batch_size=50, window=300, seed=3),
    "budget": ByteBudget(max_bytes=30_000, seed=2),
    "multiscale": MultiScale(batch_size=48, scales=Scales.one(224, 192), seed=1),
    "vbs": VariableBatch(batch_size=48, scales=SCALES, seed=1),
}


class Place(NamedTuple):
    """Where shards are, and a daemon that reads them."""

    app: AppThread
    uri: str
    other: str
    """One object for each sample, in a place of its own."""

    server: Any = None
    """The cluster, if there is one."""

    def stream(self, plan: Plan, **options: Any) -> Stream:  # noqa: ANN401 - of Shards
        return stream_of(f"{self.uri}/whole/", plan, **options)

    def few(self, plan: Plan, **options: Any) -> Stream:  # noqa: ANN401 - of Shards
        return stream_of(f"{self.uri}/few/", plan, **options)

    @contextmanager
    def dataset(self, stream: Stream, **options: Any) -> Iterator[DaemonDataset]:  # noqa: ANN401
        dataset = DaemonDataset(self.app.socket, stream, **options)
        try:
            yield dataset
        finally:
            dataset.close()


OBJECTS = {f"{number:03}": content(f"{number:03}", number * 3) for number in range(40)}


@pytest.fixture(scope="module", params=["folder", "standin", "real"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """Return a place with both sets of shards, and a daemon."""
    if request.param == "folder":
        folder = tmp_path_factory.mktemp("shards")
        WHOLE.write(folder / "whole")
        FEW.write(folder / "few")
        (folder / "other").mkdir()
        for name, value in OBJECTS.items():
            (folder / "other" / name).write_bytes(value)
        with AppThread() as app:
            yield Place(app, str(folder), str(folder / "other"))
        return
    server = StandIn() if request.param == "standin" else request.getfixturevalue("cluster")
    with server if request.param == "standin" else contextlib.nullcontext():
        store = Store(server)
        store.put({f"whole/{name}": data for name, data in WHOLE.shards().items()})
        store.put({f"few/{name}": data for name, data in FEW.shards().items()})
        other = store.another_bucket(OBJECTS)
        with store.daemon() as app:
            yield Place(app, f"ais://{store.bucket}", f"ais://{other}", server)


# ---- one ledger ----------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_place_has_the_ledger_of_the_content(place: Place, plan: Plan) -> None:
    with place.dataset(place.stream(plan)) as dataset:
        expected = WHOLE.expected(plan)
        assert len(dataset) == len(expected.entries)
        assert ledger_of(dataset).difference(expected) is None


@pytest.mark.parametrize("kind", ["chain", "interleaved"])
def test_shards_and_objects_are_parts_of_one_stream(place: Place, kind: str) -> None:
    other = Objects(place.other)
    plan: Plan
    if kind == "chain":
        parts: dict[str, Any] = {
            "s": ShardShuffled(batch_size=8, seed=1),
            "o": Link(Shuffled(batch_size=5), other),
        }
        plan = Chain(plans=parts, mode="interleave")
    else:
        plan = Interleaved(
            train=Shuffled(batch_size=8, seed=1),
            extras={"o": Every(Sequential(batch_size=7), updates=4, source=other)},
            limits=Limits(epochs=1),
        )
    with place.dataset(place.few(plan)) as dataset:
        length = len(dataset)
        batches = list(dataset)
        assert len(batches) == length
    shards = [batch for batch in batches if batch.meta["stream"] != "o"]
    objects = [batch for batch in batches if batch.meta["stream"] == "o"]
    assert sorted(FEW.check(shards)) == list(range(FEW.length))
    found = [sample for batch in objects for sample in batch]
    assert len(found) >= 40
    assert dict(found) == OBJECTS
    assert {batch.fields for batch in shards} == {FIELDS}
    assert {batch.fields for batch in objects} == {("data",)}


def test_what_a_dataset_says_of_itself_is_so(place: Place) -> None:
    with place.dataset(place.stream(Sequential(batch_size=100))) as dataset:
        assert len(dataset) == dataset.remaining == 25
        rows = [0, 1, 8, 11, 700, 2493, -1]
        sizes, keys = WHOLE.sizes, WHOLE.keys
        assert len(dataset.manifest) == WHOLE.length
        assert [tuple(dataset.manifest[row]) for row in rows] == [
            (keys[row], sizes[row]) for row in rows
        ]
        wanted = [2493, 8, 8, 0]
        assert dataset.read(wanted) == [(keys[row], WHOLE.values(row)) for row in wanted]
        batches = iter(dataset)
        batch = next(batches)
        assert batch["jpg"] == [WHOLE.values(row)["jpg"] for row in range(100)]
        assert batch["cls"][8] is None
        assert batch["cls"][:3] == [b"0", b"1", b"2"]
        assert batch["seg.png"][:3] == [b"", b"m", b"mm"]
        assert dataset.remaining == 24
        dataset.seek(sample=2400)
        assert WHOLE.check(dataset) == list(range(2400, 2494))


def test_what_is_missing_may_be_empty(place: Place) -> None:
    with place.dataset(place.few(Sequential(batch_size=99), missing="empty")) as dataset:
        (batch,) = dataset
    assert batch["cls"][8] == b""
    assert None not in batch["cls"]


def test_a_state_goes_on_at_each_batch(place: Place) -> None:
    def make() -> DaemonDataset:
        return DaemonDataset(place.app.socket, place.few(Shuffled(batch_size=9, seed=7)))

    assert_resumes_exactly(make, epochs=2)


def test_ranks_come_and_go(place: Place) -> None:
    """4 -> 2 -> 3 ranks: the global order goes on, and nobody's samples are lost."""
    plan = Shuffled(global_batch_size=12, seed=9)
    state: dict[str, Any] | None = None
    found: list[int] = []
    for world_size, steps in ((4, 1), (2, 2), (3, 99)):
        parts: list[list[list[int]]] = []
        states = []
        for rank in range(world_size):
            topology = Topology(rank, world_size)
            with place.dataset(place.few(plan), topology=topology) as dataset:
                if state is not None:
                    dataset.load_state_dict(state)
                own = []
                for number, batch in enumerate(dataset, 1):
                    rows = FEW.check([batch])
                    # The last step has a filler, since three ranks share eight samples.
                    is_own = (batch.flags & Flag.PADDING) == 0
                    own.append([row for row, counts in zip(rows, is_own, strict=True) if counts])
                    if number == steps:
                        break
                parts.append(own)
                states.append(json.loads(json.dumps(dataset.state_dict())))
        assert states.count(states[0]) == world_size
        state = states[0]
        for step in zip(*parts, strict=True):
            found += [row for own in step for row in own]
    truth = [row for entry in FEW.expected(plan).entries for row in entry.ids]
    assert sorted(found) == sorted(truth) == list(range(FEW.length))
    assert [sorted(found[at : at + 12]) for at in range(0, len(found), 12)] == [
        sorted(truth[at : at + 12]) for at in range(0, len(truth), 12)
    ]


def test_joined_streams_have_each_sample_once_on_any_ranks(place: Place) -> None:
    source = MultiShard(
        image=Shards(f"{place.uri}/whole/", fields=["jpg"]),
        label=Shards(f"{place.uri}/whole/", fields=["cls", "seg.png"], missing="none"),
    )
    stream = Stream(source, Shuffled(global_batch_size=60, seed=1))
    found = []
    for rank in range(2):
        with place.dataset(stream, topology=Topology(rank, 2)) as dataset:
            for batch in dataset:
                assert batch.fields == ("image", "label.cls", "label.seg.png")
                for row, image, label in zip(
                    batch.indices.tolist(), batch["image"], batch["label.cls"], strict=True
                ):
                    values = WHOLE.values(row)
                    assert (image, label) == (values["jpg"], values["cls"])
                    found.append(row)
    assert sorted(found) == list(range(WHOLE.length))


def test_samples_are_those_of_the_native_readers(place: Place) -> None:
    """Of `tarfile` and WebDataset, and of AIStore's own reader where there is a real cluster.

    That one has no folders in keys and only the last part of a field, as ``rule="aistore"``.
    """
    with place.dataset(place.few(Sequential(batch_size=99))) as dataset:
        (batch,) = dataset
    ours = [
        (key, {field: value for field, value in sample.items() if value is not None})
        for key, sample in batch
    ]
    shards = [data for _, data in sorted(FEW.shards().items())]
    members = []
    for data in shards:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for one in archive:
                file = archive.extractfile(one)
                assert file is not None
                members.append((one.name, file.read()))
    assert [
        (f"{key}.{field}", value) for key, sample in ours for field, value in sample.items()
    ] == members
    opened = ({"url": str(at), "stream": io.BytesIO(data)} for at, data in enumerate(shards))
    assert [
        (one["__key__"], {name: value for name, value in one.items() if name[0] != "_"})
        for one in group_by_keys(tar_file_expander(opened))
        if len(one) > 2  # an empty shard has a sample without a field there
    ] == ours
    if not place.uri.startswith("ais://") or isinstance(place.server, StandIn):
        return
    bucket = Client(place.server.endpoint).bucket(place.uri.removeprefix("ais://"))
    reader = AISShardReader(bucket, prefix_map={bucket: "few/"})
    with place.dataset(
        place.few(Sequential(batch_size=99), rule="aistore", missing="empty")
    ) as dataset:
        (batch,) = dataset
    assert batch.fields == ("cls", "jpg", "png")
    empty = dict.fromkeys(batch.fields, b"")
    # Fields that no sample had so far are not there yet.
    assert [(key, {**empty, **sample}) for key, sample in reader] == list(batch)


# ---- workers -------------------------------------------------------------------------------------


def test_many_workers_share_one_shard(tmp_path: Path) -> None:
    """E5: 16 parts of a pass over a single shard: everybody gets data."""
    one = shard_set((160,), max_bytes=100)
    one.write(tmp_path)
    with AppThread() as app:
        stream = stream_of(f"{tmp_path}/s-000.tar", Shuffled(batch_size=5, seed=2))
        found: dict[int, list[int]] = {}

        def work(rank: int) -> None:
            dataset = DaemonDataset(app.socket, stream, topology=Topology(rank, 16))
            found[rank] = one.check(dataset)
            dataset.close()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(16))
    assert {len(rows) for rows in found.values()} == {10}
    assert sorted(row for rows in found.values() for row in rows) == list(range(160))


def test_workers_of_a_loader_have_the_order_of_the_plan(tmp_path: Path) -> None:
    FEW.write(tmp_path)
    plan = Shuffled(batch_size=5, seed=2)
    expected = FEW.expected(plan)
    with AppThread() as app:
        dataset = DaemonDataset(app.socket, stream_of(str(tmp_path), plan))
        plain = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
        assert ledger_of(plain).difference(expected) is None
        dataset.close()
        dataset = DaemonDataset(app.socket, stream_of(str(tmp_path), plan))
        loader = dataset.loader(num_workers=2)
        batches = iter(loader)
        ledger = Ledger()
        for _ in range(3):
            ledger.record(next(batches))
        state = dataset.state_dict()
        del batches
        dataset.close()
        again = DaemonDataset(app.socket, stream_of(str(tmp_path), plan))
        again.load_state_dict(state)
        for batch in again.loader(num_workers=1):
            ledger.record(batch)
        again.close()
    assert ledger.difference(expected) is None


def test_a_transform_sees_fields_and_a_single_one_called_data_is_still_one(tmp_path: Path) -> None:
    FEW.write(tmp_path)
    stream = stream_of(str(tmp_path), Sequential(batch_size=4), fields=["cls", "jpg"])
    with AppThread() as app:
        dataset = DaemonDataset(
            app.socket, stream, transform=lambda sample: (sample["__key__"], sample["cls"])
        )
        first = next(iter(dataset))
        dataset.close()
    assert list(first[0]) == FEW.keys[:4]
    assert list(first[1]) == [b"0", b"1", b"2", b"3"]


# ---- holes ---------------------------------------------------------------------------------------


def holes_of(dataset: DaemonDataset) -> list[int]:
    """Return the samples that a pass leaves out; fail if another one has not its own bytes."""
    found = []
    for batch in dataset:
        for row, flags, (_, sample) in zip(
            batch.indices.tolist(), batch.flags.tolist(), batch, strict=True
        ):
            if flags & Flag.HOLE:
                assert set(sample.values()) == {None}
                found.append(row)
            else:
                assert sample == FEW.values(row)
    return sorted(found)


@pytest.mark.parametrize("kind", ["folder", "standin"])
@pytest.mark.parametrize("how", ["gone", "changed", "shorter"])
def test_samples_of_a_shard_that_is_bad_meanwhile_are_holes(
    tmp_path: Path, kind: str, how: str
) -> None:
    """Deleted or changed after it was indexed: exactly its samples, with a state that loads."""
    name, bad = "s-004.tar", list(range(11, 24))
    data = FEW.shards()[name]
    other = {"gone": None, "changed": bytes(len(data)), "shorter": data[:-512]}[how]
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            FEW.write(tmp_path)
            app = stack.enter_context(AppThread())
            uri = str(tmp_path)
        else:
            server = stack.enter_context(StandIn())
            store = Store(server)
            store.put(FEW.shards())
            app = stack.enter_context(store.daemon())
            uri = store.uri()
        plan = Shuffled(batch_size=6, seed=4)
        stream = stream_of(uri, plan)
        first = DaemonDataset(app.socket, stream)
        assert holes_of(first) == []
        first.close()
        if kind == "folder":
            path = tmp_path / name
            stamp = path.stat().st_mtime_ns
            path.unlink()
            if other is not None:
                path.write_bytes(other)
                # As close as the clock of a file system may be.
                os.utime(path, ns=(stamp + 1, stamp + 1))
        elif other is None:
            server.delete(store.bucket, name)
        else:
            store.put({name: other})
        strict = DaemonDataset(app.socket, stream)
        with pytest.raises(FeedError, match=name):
            list(strict)
        strict.close()
        skip = Stream(stream.source, plan, on_bad="skip")
        dataset = DaemonDataset(app.socket, skip)
        assert holes_of(dataset) == bad
        state = json.loads(json.dumps(dataset.state_dict()))
        assert state["skips"] == bad
        dataset.close()
        again = DaemonDataset(app.socket, skip)
        again.load_state_dict(state)
        assert holes_of(again) == bad
        again.close()
        few = DaemonDataset(app.socket, Stream(stream.source, plan, on_bad=Skip(limit=12)))
        with pytest.raises(FeedError, match="13 samples cannot be read, and on_bad leaves out 12"):
            list(few)
        few.close()


# ---- D1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 4, 64])
@pytest.mark.parametrize("max_in_flight", [1, 8, 64])
def test_neither_depth_nor_width_changes_anything(
    tmp_path: Path, prefetch: int, max_in_flight: int
) -> None:
    FEW.write(tmp_path)
    plan = ShardShuffled(batch_size=4, window=9, seed=3)
    expected = FEW.expected(plan, epochs=2)
    with AppThread(max_in_flight=max_in_flight, reads=Reads(seed=prefetch)) as app:
        dataset = DaemonDataset(
            app.socket, stream_of(str(tmp_path), plan), prefetch_batches=prefetch
        )
        ledger = Ledger()
        for _ in range(2):
            for batch in dataset:
                ledger.record(batch)
        dataset.close()
    assert ledger.difference(expected) is None
