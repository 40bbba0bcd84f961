"""Objects from a cluster to the trainer, on a stand-in and on a real one: as the SDK has them."""

from __future__ import annotations

import os
import random
import re
import threading
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from headrace import DaemonDataset, Objects, Stream, errors
from headrace.plans import Sequential, Shuffled
from headrace.testing import Ledger, ledger_of
from headrace_daemon.errors import ObjectChangedError
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais import pieces
from headrace_daemon.source.store import ManifestStore
from tests.support.app import AppThread
from tests.support.commands import headrace_here
from tests.support.files import content
from tests.support.hardships import WAYS
from tests.support.loops import run
from tests.support.reading_ais import bucket, listed, open_store
from tests.support.sources import selected
from tests.support.spans import Span
from tests.support.standin import Delay, StandIn
from tests.support.stores import Store

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Cluster
    from tests.support.trainers import Trainers


def contents(dataset: DaemonDataset) -> dict[str, bytes]:
    return {name: value for batch in dataset for name, value in batch}


_SIZES: Final = {f"d{number % 3}/{number:03}": number * 37 for number in range(100)}
OBJECTS: Final = {name: content(name, size) for name, size in _SIZES.items()}
ODD: Final = {
    "plain": b"1",
    "with space": b"2",
    "50%": b"3",
    "%41": b"4",
    "%2F": b"5",
    "a+b&c=d?e#f": b"6",
    'q"\\|<>': b"7",
    "é/ü/日本語/🙂": b"8",
    "x" * 255: b"9",
    "d/" + "y" * 1000: b"10",
    "empty": b"",
    "p/.hidden": b"12",
    "~tilde": b"13",
}


@pytest.mark.parametrize("reader", ["auto", "aiohttp"])
def test_names_and_bytes_equal_those_of_the_sdk(store: Store, reader: str) -> None:
    store.put(OBJECTS | ODD)
    with store.daemon(reader=reader) as app:
        for prefix in ("", "d1/", "é/", "50%"):
            dataset = DaemonDataset(app.socket, store.stream(prefix))
            read = contents(dataset)
            assert read == store.as_the_sdk_has_it(prefix)
            assert [dataset.manifest[index].name for index in range(len(dataset.manifest))] == (
                sorted(read, key=str.encode)
            )
            dataset.close()
        assert len(read) == 1
        report = app.call(app.app.report)["store"]
        used, unused = ("lean_reads", "aiohttp_reads")[:: 1 if reader == "auto" else -1]
        assert report[used] >= len(OBJECTS | ODD)
        assert report[unused] == 0


@pytest.mark.parametrize("way", WAYS)
def test_ranges_of_objects_are_what_was_stored_there(
    store: Store, tmp_path: Path, way: str
) -> None:
    shard = content("shard", 1_000_000)
    store.put({"d/é 50%": shard, "short": shard[:11]})
    parts = [(first + 512, first + 10_512) for first in range(0, 900_000, 10_752)]
    spans = [Span.of(shard, start, start + 10_000) for start in range(0, 990_000, 15_000)]
    spans += [
        Span.of(shard, 512, 900_000, [part for part in parts if part[1] <= 900_000]),
        Span.of(shard, 0, 1_000_000, [(1, 2), (700_000, 999_999)]),
        Span.of(shard, 999_999, 1_000_000),
    ]

    async def main() -> int:
        async with open_store(store.endpoint, **WAYS[way]) as ais:  # type: ignore[arg-type]
            found = listed(await ais.list_objects(selected(store.uri()), tmp_path))
            known = next(request for request in found if request.name == "d/é 50%")
            reader = ais.reader(bucket(store.uri()))
            await reader.read(
                [span.request(known.name, known.checksum, known.version) for span in spans]
            )
            for span in spans:
                span.check()
            # Clipped, and behind the end: it is shorter than somebody believes.
            for start in (5, 500):
                with pytest.raises(ObjectChangedError, match="it has 11 bytes at"):
                    await reader.read([Span.of(shard, start, start + 100).request("short")])
            return sum(counts.num_ranges for counts in ais.counts.nodes.values())

    assert run(main()) == len(spans)


def test_ranges_that_have_checksums_of_their_own_are_no_changed_objects(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the pieces of large objects, or what is asked for again after a break."""
    monkeypatch.setattr(pieces, "LARGE_BYTES", 100_000)
    name, shard = f"sums-{os.getpid()}", content("shard", 200_000)
    cluster.create_bucket(name, {"checksum": {"type": "xxhash2", "enable_read_range": True}})
    cluster.put_many(name, [("o", shard)])
    spans = [Span.of(shard, 10, 70_000, [(20, 60_000)]), Span.of(shard, 5, 150_000)]

    async def main() -> None:
        async with open_store(cluster.endpoint) as ais:
            (known,) = listed(await ais.list_objects(selected(f"ais://{name}"), tmp_path))
            ranges = [span.request("o", known.checksum, known.version) for span in spans]
            reader = ais.reader(bucket(f"ais://{name}"))
            await reader.read([known, *ranges])
            assert bytes(known.target) == shard
            for span in spans:
                span.check()
            with pytest.raises(ObjectChangedError, match="has version"):
                await reader.read([spans[0].request("o", known.checksum, b"7")])
            assert not ais.counts.num_retries

    run(main())


def test_a_prefix_is_the_beginning_of_names_also_beside_a_folder(store: Store) -> None:
    """The store itself lists only what is in the folder, if a disk has one of that name."""
    objects = {f"a/{number}": b"1" for number in range(40)}  # on every disk
    objects |= {f"ab{number}": b"22" for number in range(20)} | {"a-old/x": b"3"}
    store.put(objects | {"b": b"4", "A": b"5"})
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, store.stream("a"))
        assert contents(dataset) == objects
        dataset.close()


def test_a_name_that_no_list_shows_is_refused(store: Store) -> None:
    store.put({"d/" + "y" * 300: b"1", "d/1": b"2", "e/1": b"3"})
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, store.stream("d/"))
        with pytest.raises(errors.FeedError, match=r"name 'd/yyy.* more than 255 bytes"):
            next(iter(dataset))
        dataset.close()
        dataset = DaemonDataset(app.socket, store.stream("e/"))
        assert contents(dataset) == {"e/1": b"3"}
        dataset.close()


def test_by_way_of_the_proxy_they_are_the_same(store: Store) -> None:
    store.put(OBJECTS | ODD)
    with store.daemon(direct="off") as app:
        dataset = DaemonDataset(app.socket, store.stream())
        assert contents(dataset) == OBJECTS | ODD
        dataset.close()
        report = app.call(app.app.report)["store"]
        assert report["way"] == "by proxy"
        # And some of the next epoch, which is read ahead.
        assert report["targets"]["by proxy"]["reads"] >= len(OBJECTS | ODD)
        assert len(report["targets"]) == 1


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ais://{bucket}", "bucket ais://{bucket} has no object: a stream needs at least one"),
        ("ais://{bucket}/none/", "has no object whose name begins with 'none/'"),
        ("ais://no-such-bucket", "bucket ais://no-such-bucket does not exist"),
        ("ais://{bucket}/a/../b", "invalid prefix"),
        ("s3://no-such-bucket", "s3://no-such-bucket"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(store: Store, uri: str, told: str) -> None:
    if "none" in uri:
        store.put({"a": b"1"})
    stream = Stream(Objects(uri.format(bucket=store.bucket)), Sequential(batch_size=1))
    with store.daemon() as app:
        for ask in (lambda dataset: next(iter(dataset)), len):
            dataset = DaemonDataset(app.socket, stream)
            with pytest.raises(errors.FeedError) as raised:
                ask(dataset)
            assert told.format(bucket=store.bucket) in str(raised.value)
            dataset.close()


def test_every_epoch_has_the_ledger_of_the_same_files_in_a_folder(
    store: Store, tmp_path: Path
) -> None:
    store.put(OBJECTS)
    for name, data in OBJECTS.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    folder = Stream(Objects(str(tmp_path / "data")), store.stream().plan)
    with store.daemon() as app:
        there = DaemonDataset(app.socket, store.stream())
        here = DaemonDataset(app.socket, folder)
        for _ in range(2):
            assert ledger_of(there).difference(ledger_of(here)) is None
        there.close()
        here.close()


def test_a_state_continues_in_another_daemon_of_the_same_bucket(store: Store) -> None:
    store.put(OBJECTS)
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, store.stream())
        whole = ledger_of(dataset)
        dataset.seek(epoch=0)
        ledger = Ledger()
        batches = iter(dataset)
        for _ in range(5):
            ledger.record(next(batches))
        state = dataset.state_dict()
        dataset.close()
    with store.daemon() as app:  # has an empty state folder: it lists anew, to the same digest
        dataset = DaemonDataset(app.socket, store.stream())
        dataset.load_state_dict(state)
        for batch in dataset:
            ledger.record(batch)
        dataset.close()
    assert ledger.difference(whole) is None


def test_an_object_that_changed_ends_the_stream_with_its_name(store: Store) -> None:
    store.put(OBJECTS)
    changed = "d1/001"
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, Stream(Objects(store.uri()), Sequential(batch_size=1)))
        length = len(dataset)
        store.put({changed: bytes(len(OBJECTS[changed]))})
        received = []
        with pytest.raises(errors.FeedError) as raised:
            for batch in dataset:
                received += batch.sample_keys
        assert received == sorted(OBJECTS)[: sorted(OBJECTS).index(changed)]
        assert f"object ais://{store.bucket}/{changed} has checksum" in str(raised.value)
        assert raised.value.fault == "data"
        assert dataset.state_dict()["step"] == len(received) < length
        dataset.close()


def test_two_feeds_of_one_stream_share_what_they_read_at_the_same_time(store: Store) -> None:
    store.put(OBJECTS)
    with store.daemon() as app:
        datasets = [DaemonDataset(app.socket, store.stream()) for _ in range(2)]
        results: list[dict[str, bytes]] = []
        threads = [
            threading.Thread(target=lambda one=one: results.append(contents(one)))
            for one in datasets
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for dataset in datasets:
            dataset.close()
        assert results == [OBJECTS, OBJECTS]
        report = app.call(app.app.report)
        reads = sum(target["reads"] for target in report["store"]["targets"].values())
        assert reads + report["reads"]["shared"] >= 2 * len(OBJECTS)
        assert report["reads"]["shared"] > 0


def test_random_delays_change_nothing() -> None:
    with StandIn() as server:
        store = Store(server)
        store.put(OBJECTS)
        with store.daemon() as app:
            dataset = DaemonDataset(app.socket, store.stream())
            truth = ledger_of(dataset)
            dataset.close()
        for seed in range(3):
            rng = random.Random(seed)
            for name in rng.sample(sorted(OBJECTS), 40):
                server.fault(Delay(rng.random() * 0.03), target="any", path=f"*/{name}")
            with store.daemon() as app:
                dataset = DaemonDataset(app.socket, store.stream(), prefetch_batches=64)
                assert ledger_of(dataset).difference(truth) is None
                dataset.close()


def test_a_trainer_that_is_killed_resumes_on_a_cluster(
    store: Store, trainers: Trainers, tmp_path: Path
) -> None:
    store.put(OBJECTS)
    stream = store.stream()
    options = {
        "stream": msgspec.to_builtins(stream),
        "ledger": str(tmp_path / "ledger.jsonl"),
        "state": str(tmp_path / "state.json"),
        "epochs": 2,
        "waits": True,
    }
    with store.daemon() as app:
        first = trainers.start("train", socket=app.socket, **options)
        first.say(9)
        assert first.hear_until("step 0 7")
        first.kill()
        second = trainers.start("train", socket=app.socket, **options)
        second.say(100)
        assert second.hear_all()[-1] == "done"
        dataset = DaemonDataset(app.socket, stream)
        whole = Ledger()
        for _ in range(2):
            for batch in dataset:
                whole.record(batch)
        dataset.close()
    assert Ledger(tmp_path / "ledger.jsonl").difference(whole) is None


# ---- what operators see --------------------------------------------------------------------------


def config(store: Store, folder: Path, prefix: str = "") -> Path:
    path = folder / "headrace.toml"
    path.write_text(
        f'[store]\nendpoints = ["{store.endpoint}"]\n[daemon]\nstate_dir = "{folder}/state"\n'
        f'[streams.train]\nsource = {{ type = "Objects", uri = "{store.uri(prefix)}" }}\n'
        'plan = { type = "Sequential", batch_size = 10 }\n'
    )
    return path


def test_check_shows_the_store_and_its_streams(store: Store, tmp_path: Path) -> None:
    store.put(OBJECTS)
    done = headrace_here("check", config(store, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"at {store.endpoint}, cluster" in done.stdout
    assert "proxies: 1, targets: 3" in done.stdout
    assert done.stdout.count(" ms\n") == 3
    assert "100 samples" in done.stdout


def test_index_says_what_is_new_in_a_bucket(store: Store, tmp_path: Path) -> None:
    store.put(OBJECTS)
    path = config(store, tmp_path)
    assert "listed ais://" in headrace_here("index", "--config", path, "--stream", "train").stdout
    store.put({"d1/001": b"changed", "new": b"1"})
    store.client.bucket(store.bucket).object("d1/004").delete()
    kept = headrace_here("index", "--config", path, "--stream", "train").stdout
    assert "kept ais://" in kept
    lines = headrace_here("index", "--config", path, "--stream", "train", "--refresh").stdout
    assert "added    1: new" in lines
    assert "removed  1: d1/004" in lines
    assert "changed  1: d1/001" in lines
    assert "a target may be missing: 'headrace check CONFIG'" in lines
    (old, new) = sorted(
        ManifestStore(tmp_path / "state").folder.iterdir(), key=lambda path: path.stat().st_mtime
    )
    assert old.name != new.name


def test_status_shows_the_store(store: Store) -> None:
    store.put(OBJECTS)
    with store.daemon() as app:
        before = headrace_here("status", "--socket", app.socket).stdout
        assert f"store    {store.endpoint}, not asked for anything yet" in before
        dataset = DaemonDataset(app.socket, store.stream())
        assert contents(dataset) == OBJECTS
        after = headrace_here("status", "--socket", app.socket).stdout
        assert "3 targets, reads direct, 0 retries" in after
        assert re.search(r"1\d\d reads by the lean reader, 0 by aiohttp \(.* = 'auto'\)", after)
        assert after.count(" objects, ") == 3
        dataset.close()


def test_status_shows_a_store_that_does_not_answer() -> None:
    nobody = StoreSettings(endpoints=("http://127.0.0.1:1",), deadline_s=0.2)
    with AppThread().configure(store=nobody) as app:
        dataset = DaemonDataset(app.socket, Stream(Objects("ais://b"), Shuffled(batch_size=1)))
        with pytest.raises(errors.FeedError, match="the cluster map: proxy http:"):
            next(iter(dataset))
        lines = headrace_here("status", "--socket", app.socket).stdout.splitlines()
        assert "store    http://127.0.0.1:1, has not answered yet" in lines
        assert any("does not answer: proxy http://127.0.0.1:1 cannot be" in line for line in lines)
        dataset.close()
