"""Shards that are damaged, hostile, or change while somebody looks; and kills on the way."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace import DaemonDataset, MultiShard, Shards, Stream
from headrace.errors import FeedError
from headrace.plans import (
    ByteBudget,
    Every,
    Interleaved,
    Limits,
    Sequential,
    ShardShuffled,
    Shuffled,
    VariableBatch,
)
from headrace.testing import Ledger, assert_resumes_exactly, ledger_of
from headrace_daemon.settings import TrustSettings
from tests.support.app import AppThread
from tests.support.commands import headrace_here
from tests.support.daemon import DaemonProcess
from tests.support.files import content, files_of_at_most
from tests.support.rows import SCALES
from tests.support.shards import END, header, member, pax, tar_of
from tests.support.shardset import SMALL, shard_set, stream_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.plans import Plan
    from tests.support.trainers import Trainers

FEW = shard_set(SMALL, max_bytes=300, seed=1)

GOOD = tar_of([("x.jpg", b"1"), ("y.jpg", b"22")])

BAD: dict[str, tuple[bytes, str]] = {
    "truncated": (GOOD[:1300], "byte 1024"),
    "cut-in-a-header": (GOOD[:1100], "byte 1024"),
    "garbage": (os.urandom(2048), "byte 0"),
    "damaged-header": (GOOD[:1030] + b"?" + GOOD[1031:], "byte 1024"),
    "empty": (b"", "byte 0"),
    "gzip": (gzip.compress(GOOD), "byte 0"),
    "dots": (member(b"../x.jpg") + END, "'../x.jpg'"),
    "absolute": (member(b"/etc/x.jpg") + END, "'/etc/x.jpg'"),
    "huge": (header(b"x.jpg", 10 << 30) + bytes(1024), "10737418240"),
    "negative": (header(b"x.jpg", b"-0000000001\0") + bytes(1024), "byte 0"),
    "sparse": (member(b"x.jpg", kind=b"S") + END, "sparse"),
    "not-utf-8": (member(b"\xff\xfe.jpg") + END, "UTF-8"),
    "pax-lies": (pax({"size": "99999999"}) + member(b"x.jpg") + END, "byte"),
}
"""Shards, and words of what is said of each."""

FINE: dict[str, tuple[bytes, int]] = {
    "empty-tar": (END, 0),
    "pax-names": (
        tar_of([(f"{'p' * 200}/{n}.jpg", b"p") for n in range(2)], tarfile.PAX_FORMAT),
        2,
    ),
    "gnu-names": (
        tar_of([(f"{'g' * 200}/{n}.jpg", b"g") for n in range(2)], tarfile.GNU_FORMAT),
        2,
    ),
    "interleaved": (tar_of([(f"{key}.jpg", b"i") for key in ("i", "j", "i", "j")]), 4),
    "garbage-behind": (GOOD + os.urandom(700), 2),
    "links": (member(b"l.jpg") + member(b"m.jpg", b"", kind=b"2") + END, 1),
}
"""Shards, and how many samples they have."""


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread() as app:
        yield app


def write(folder: Path, shards: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in shards.items():
        (folder / f"{name}.tar").write_bytes(data)
    return folder


@contextlib.contextmanager
def opened(app: AppThread, stream: Stream) -> Iterator[DaemonDataset]:
    dataset = DaemonDataset(app.socket, stream)
    try:
        yield dataset
    finally:
        dataset.close()


# ---- F3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_a_bad_shard_refuses_its_source_with_name_and_place(
    app: AppThread, tmp_path: Path, name: str
) -> None:
    data, words = BAD[name]
    folder = write(tmp_path / "d", {"a": GOOD, name: data, "z": GOOD})
    with opened(app, stream_of(str(folder), Sequential(batch_size=2))) as dataset:
        with pytest.raises(FeedError) as refused:
            len(dataset)
        assert f"shard {name}.tar" in str(refused.value)
        assert words in str(refused.value)
        assert refused.value.fault == "data"
        # Mended, it is taken without more ado.
        (folder / f"{name}.tar").write_bytes(GOOD)
        assert len(dataset) == 3


def test_bad_shards_are_skipped_one_by_one(
    app: AppThread, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All samples of the others, none of theirs, and a word of each."""
    shards = {name: data for name, (data, _) in BAD.items()} | {"a": GOOD, "z": GOOD}
    shards |= {name: data for name, (data, _) in FINE.items()}
    folder = write(tmp_path / "d", shards)
    caplog.set_level(logging.INFO, "headrace")
    stream = stream_of(str(folder), Sequential(batch_size=3), on_bad_shard="skip")
    with opened(app, stream) as dataset:
        samples = [sample for batch in dataset for sample in batch]
        assert len(samples) == len(dataset.manifest) == 4 + sum(n for _, n in FINE.values())
        keys = [key for key, _ in samples]
        assert keys[:2] == ["x", "y"] == keys[-2:]
        assert {value["jpg"] for _, value in samples} == {b"1", b"22", b"p", b"g", b"i", b"x"}
    told = [one.message for one in caplog.records if one.name == "headrace.receiver"]
    for name in BAD:
        assert sum(f"shard left out: shard {name}.tar" in text for text in told) == 1
    assert any(text.endswith(f"({len(BAD)} so far)") for text in told)


def test_a_member_that_comes_twice_is_refused_whatever_is_skipped(
    app: AppThread, tmp_path: Path
) -> None:
    """The archive is fine, and which of the two is meant is not known."""
    folder = write(tmp_path / "d", {"a": tar_of([("x.jpg", b"1"), ("x.jpg", b"2")])})
    stream = stream_of(str(folder), Sequential(batch_size=2), on_bad_shard="skip")
    with opened(app, stream) as dataset, pytest.raises(FeedError, match=r"x\.jpg.*a\.tar"):
        len(dataset)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_file_that_cannot_be_looked_at(app: AppThread, tmp_path: Path, policy: Any) -> None:  # noqa: ANN401
    """A link to nothing is no file; one that vanishes after the listing is a bad shard."""
    folder = write(tmp_path / "d", {"a": GOOD})
    (folder / "b.tar").symlink_to("nowhere")
    (folder / "c.tar").symlink_to("a.tar")
    (folder / "d.tar").mkdir()
    os.mkfifo(folder / "e.tar")
    stream = stream_of(str(folder), Sequential(batch_size=2), on_bad_shard=policy)
    with opened(app, stream) as dataset:
        assert len(dataset) == 2
    for name, words in (
        ("b", "and not there"),
        ("d", "write a '/' behind a folder"),
        ("e", "no file"),
    ):
        uris = [str(folder / "a.tar"), str(folder / f"{name}.tar")]
        stream = Stream(Shards(uris, on_bad_shard=policy), Sequential(batch_size=2))
        with opened(app, stream) as dataset, pytest.raises(FeedError, match=words):
            len(dataset)


# ---- names ---------------------------------------------------------------------------------------

ODD = ["a\nb", "ü/日本", "100%", "a?b#c", " ", "'\"\\", "x" * 60, "%41", "a:b", "{0..3}", "~", "-"]


@pytest.mark.parametrize("kind", ["folder", "standin"])
def test_shards_and_samples_may_have_any_name(tmp_path: Path, kind: str) -> None:
    from tests.support.standin import StandIn
    from tests.support.stores import Store

    shards = {
        f"{odd}.tar": tar_of([(f"{odd}/{row}{name}.jpg", b"%d" % row) for row in range(2)])
        for odd in ODD
        for name in ["é\n%?"]
    }
    with contextlib.ExitStack() as stack:
        if kind == "folder":
            uri = str(tmp_path / "x.tar") + "/"
            for name, data in shards.items():
                path = tmp_path / "x.tar" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            app = stack.enter_context(AppThread())
        else:
            store = Store(stack.enter_context(StandIn()))
            store.put(shards)
            app, uri = stack.enter_context(store.daemon()), store.uri()
        streams: Any = {"a\nb": Shards(uri), "é": Shards(uri)}
        sources: list[Shards | MultiShard] = [Shards(uri), MultiShard(**streams)]
        for source in sources:
            with opened(app, Stream(source, Shuffled(batch_size=5, seed=1))) as dataset:
                found = {key: sample for batch in dataset for key, sample in batch}
            assert set(found) == {f"{odd}/{row}é\n%?" for odd in ODD for row in range(2)}
            for key, sample in found.items():
                assert set(sample.values()) == {key[-5:-4].encode()}


# ---- change --------------------------------------------------------------------------------------


def test_a_shard_that_is_replaced_at_the_same_size_is_noticed_and_indexed_anew(
    app: AppThread, tmp_path: Path
) -> None:
    """Also where its members are elsewhere: nobody gets bytes of another sample."""
    old = tar_of([("a.jpg", b"1" * 600), ("b.jpg", b"2" * 10)])
    new = tar_of([("a.jpg", b"3" * 10), ("b.jpg", b"4" * 600)])
    assert len(old) == len(new)
    folder = write(tmp_path / "d", {"s": old})
    stream = stream_of(str(folder), Sequential(batch_size=1))
    with opened(app, stream) as dataset:
        assert [batch["jpg"][0][:1] for batch in dataset] == [b"1", b"2"]
    stamp = (folder / "s.tar").stat().st_mtime_ns
    (folder / "s.tar").write_bytes(new)
    os.utime(folder / "s.tar", ns=(stamp + 1, stamp + 1))
    with opened(app, stream) as dataset:
        with pytest.raises(FeedError, match="was changed after the listing, at the same size"):
            list(dataset)
        state = str(app.folder / "state")
        refreshed = headrace_here(
            "index", str(folder), "--shards", "--state-dir", state, "--refresh"
        )
        assert refreshed.returncode == 0
    # As the stream has it, which has an option that the command has not.
    other = Stream(Shards(str(folder)), Sequential(batch_size=1))
    with opened(app, other) as dataset:
        assert [batch["jpg"][0][:1] for batch in dataset] == [b"3", b"4"]


def test_a_shard_that_is_touched_is_the_same_after_a_refresh(
    app: AppThread, tmp_path: Path
) -> None:
    """One digest, so that states go on, with the new time."""
    folder = write(tmp_path / "d", {"s": GOOD})
    stream = Stream(Shards(str(folder)), Sequential(batch_size=1))
    with opened(app, stream) as dataset:
        batches = iter(dataset)
        next(batches)
        state = dataset.state_dict()
    os.utime(folder / "s.tar", ns=(1, 1))
    with (
        opened(app, stream) as dataset,
        pytest.raises(FeedError, match="changed after the listing"),
    ):
        list(dataset)
    at = str(app.folder / "state")
    told = headrace_here("index", str(folder), "--shards", "--state-dir", at, "--refresh")
    assert "changed  0" in told.stdout
    with opened(app, stream) as dataset:
        dataset.load_state_dict(state)
        (batch,) = dataset
        assert batch["jpg"] == [b"22"]


def test_copies_of_the_same_shards_are_served_side_by_side(app: AppThread, tmp_path: Path) -> None:
    """They have one manifest, and each its own times."""
    streams = []
    for place, stamp in (("one", 10**9), ("two", 2 * 10**9)):
        folder = write(tmp_path / place, {"s": GOOD})
        os.utime(folder / "s.tar", ns=(stamp, stamp))
        streams.append(Stream(Shards(str(folder)), Sequential(batch_size=2)))
    for _ in range(2):
        states = []
        for stream in streams:
            with opened(app, stream) as dataset:
                (batch,) = dataset
                assert batch["jpg"] == [b"1", b"22"]
                states.append(dataset.state_dict()["manifest"])
        assert states[0] == states[1]


def test_two_daemons_index_one_source_at_the_same_time(tmp_path: Path) -> None:
    FEW.write(tmp_path / "d")
    stream = stream_of(str(tmp_path / "d"), Shuffled(batch_size=5, seed=1))
    expected = FEW.expected(stream.plan)  # type: ignore[arg-type]
    state = str(tmp_path / "state")
    with AppThread(state_dir=state) as one, AppThread(state_dir=state) as other:
        found: list[str | None] = []

        def run(app: AppThread) -> None:
            with opened(app, stream) as dataset:
                found.append(ledger_of(dataset).difference(expected))

        threads = [threading.Thread(target=run, args=(app,)) for app in (one, other) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [None] * 4
    assert not list((tmp_path / "state").rglob(".writing-*"))


# ---- the state folder ----------------------------------------------------------------------------


def test_a_full_state_folder_is_named_and_may_be_mended(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", {f"{n}": GOOD for n in range(3)})
    stream = stream_of(str(folder), Sequential(batch_size=2))
    with AppThread() as app, opened(app, stream) as dataset:
        with files_of_at_most(100), pytest.raises(FeedError) as refused:
            len(dataset)
        assert str(app.folder / "state") in str(refused.value)
        assert "make room there, or set [daemon] state_dir" in str(refused.value)
        assert len(dataset) == 3
        assert not list((app.folder / "state").rglob(".writing-*"))


# ---- trust ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "source", "is_allowed"),
    [
        (("{d}/in",), "Shards('{d}/in/s.tar')", True),
        (("{d}/in",), "Shards('{d}/in/{{0..1}}.tar')", True),
        (("{d}/in",), "Shards('{d}/in/')", True),
        (("{d}/in/s.tar",), "Shards('{d}/in/s.tar')", True),
        (("{d}/in/s.tar",), "Shards('{d}/in/t.tar')", False),
        (("{d}/in/s.tar",), "Shards(['{d}/in/s.tar', '{d}/in/t.tar'])", False),
        (("{d}/in",), "Shards('{d}/out/s.tar')", False),
        (("{d}/in",), "Shards('{d}/in/../out/s.tar')", False),
        (("{d}/in",), "Shards('{d}/link/s.tar')", True),
        (("{d}/in",), "Shards('{d}/in.tar')", False),
        (("{d}/in",), "Shards(['{d}/in/s.tar', '{d}/out/s.tar'])", False),
        (("ais://b/x",), "Shards('ais://b/x/s.tar')", True),
        (("ais://b/x",), "Shards('ais://b/xy/s.tar')", False),
        (("ais://b/x",), "Shards('ais://b/s.tar')", False),
        (("ais://b/x",), "Shards('ais://b/x/', names=['x/y/s.tar'])", True),
        (("{d}/in",), "MultiShard(a=Shards('{d}/in/s.tar'), b=Shards('{d}/in/'))", True),
        (("{d}/in",), "MultiShard(a=Shards('{d}/in/s.tar'), b=Shards('{d}/out/'))", False),
    ],
)
def test_a_client_reads_shards_that_it_may_read(
    tmp_path: Path, entries: tuple[str, ...], source: str, is_allowed: bool
) -> None:
    from headrace_daemon.feed.streams import is_allowed as allows

    for name in ("in", "out"):
        write(tmp_path / name, {"s": GOOD})
    (tmp_path / "link").symlink_to("in")
    made: Shards | MultiShard = eval(source.format(d=tmp_path))
    allowed = [entry.format(d=tmp_path) for entry in entries]
    assert all(allows(one, allowed) for one in made.selections) == is_allowed


def test_a_joined_stream_is_refused_by_the_part_that_is_not_trusted(tmp_path: Path) -> None:
    write(tmp_path / "in", {"s": GOOD})
    write(tmp_path / "out", {"s": GOOD})
    trust = TrustSettings(allow_sources=(str(tmp_path / "in"),))
    source = MultiShard(a=Shards(f"{tmp_path}/in/s.tar"), b=Shards(f"{tmp_path}/out/s.tar"))
    with AppThread().configure(trust=trust) as app:
        with (
            opened(app, Stream(source, Sequential(batch_size=1))) as dataset,
            pytest.raises(FeedError, match=f"source {tmp_path}/out is not below"),
        ):
            len(dataset)
        with opened(app, Stream(source.streams["a"], Sequential(batch_size=1))) as dataset:
            assert len(dataset) == 2


# ---- R1 ------------------------------------------------------------------------------------------

JOINED = "joined"

ROWS: dict[str, Plan] = {
    "sequential": Sequential(batch_size=9),
    "shards": ShardShuffled(batch_size=9, window=13, seed=1),
    "budget": ByteBudget(max_bytes=1000, seed=1),
    "vbs": VariableBatch(batch_size=8, scales=SCALES, seed=1),
    "interleaved": Interleaved(
        train=Shuffled(batch_size=9, seed=1),
        extras={"val": Every(Sequential(batch_size=20), updates=3)},
        limits=Limits(epochs=2),
    ),
    JOINED: Shuffled(batch_size=9, seed=1),
}


def source_of(folder: Path, row: str) -> Shards | MultiShard:
    whole = Shards(str(folder), missing="none")
    if row != JOINED:
        return whole
    return MultiShard(a=Shards(f"{folder}/", fields=["jpg"]), b=whole)


@pytest.mark.parametrize("row", ROWS)
def test_a_trainer_may_die_after_any_batch(app: AppThread, tmp_path: Path, row: str) -> None:
    FEW.write(tmp_path / "d")
    stream = Stream(source_of(tmp_path / "d", row), ROWS[row])
    assert_resumes_exactly(
        lambda: DaemonDataset(app.socket, stream), epochs=1 if row == "interleaved" else 2
    )


def test_daemon_and_trainer_may_be_killed_together(tmp_path: Path, trainers: Trainers) -> None:
    """What dies by itself is in the rows above, and in `test_kills`."""
    names = [f"n{number:03}" for number in range(60)]
    shards = {
        f"{at}": tar_of(
            [(f"{n}.data", content(n, 7 * row)) for row, n in enumerate(names[at : at + 20])]
        )
        for at in (0, 20, 40)
    }
    folder = write(tmp_path / "d", shards)
    stream = Stream(Shards(str(folder)), Shuffled(batch_size=6, seed=3))
    options: dict[str, Any] = {
        "stream": msgspec.to_builtins(stream),
        "ledger": str(tmp_path / "ledger.jsonl"),
        "state": str(tmp_path / "state.json"),
        "epochs": 2,
        "waits": True,
    }
    with DaemonProcess() as daemon:
        trainer = trainers.start("train", socket=daemon.socket, **options)
        trainer.say(1)
        trainer.hear_until("step 0 0")
        trainer.say(7)
        trainer.hear_until("step 0 7")
        trainer.kill()
        daemon.kill()
        daemon.start()
        again = trainers.start("train", socket=daemon.socket, **options)
        again.say(100)
        assert again.hear_all()[-1] == "done"
        dataset = DaemonDataset(daemon.socket, stream)
        whole = Ledger()
        for _ in range(2):
            for batch in dataset:
                whole.record(batch)
        dataset.close()
    assert Ledger(tmp_path / "ledger.jsonl").difference(whole) is None
