"""What is asked of the store for samples of shards: by its own log, nothing twice or in vain."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import subprocess
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest

from headrace import DaemonDataset, MultiShard, Shards, Stream
from headrace.plans import Interleaved, Limits, Sequential, ShardShuffled, Shuffled
from headrace_daemon.source.shards.ranges import GAP_BYTES, RANGE_BYTES
from tests.support.commands import DEADLINE_S, HEADRACE, environment, headrace_here
from tests.support.shards import tar_of
from tests.support.shardset import SMALL, payload, shard_set, stream_of
from tests.support.standin import Stall, StandIn
from tests.support.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.app import AppThread


FEW = shard_set(SMALL, max_bytes=300, seed=1)

KIB = 1024
NUM_LARGE, LARGE_BYTES = 12, 64 * KIB
LARGE = {
    f"large-{shard}.tar": tar_of(
        [
            (f"{n:03}.bin", payload(n, LARGE_BYTES))
            for n in range(shard * 12, shard * 12 + NUM_LARGE)
        ]
    )
    for shard in range(4)
}
"""48 samples of 64 KiB."""


class Asked(NamedTuple):
    """A range of an object that was asked for."""

    name: str
    start: int
    stop: int


@pytest.fixture
def store() -> Iterator[Store]:
    with StandIn() as server:
        yield Store(server)


def asked(store: Store) -> list[Asked]:
    """Return what was asked for since the last time; fail if something was not sent."""
    assert isinstance(store.server, StandIn)
    found = []
    for request in store.server.requests:
        if not request.path.startswith("/v1/objects/") or request.method != "GET":
            continue
        name = request.path.removeprefix(f"/v1/objects/{store.bucket}/")
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range)
        if span is None:
            found.append(Asked(name, 0, request.sent_bytes))
        else:
            found.append(Asked(name, int(span[1]), int(span[2]) + 1))
    store.server.forget_requests()
    return found


def num_bytes(ranges: list[Asked]) -> int:
    return sum(one.stop - one.start for one in ranges)


def disjoint(ranges: list[Asked]) -> bool:
    """Return whether no byte was asked for twice."""
    ordered = sorted(ranges)
    return all(
        one.name != following.name or one.stop <= following.start
        for one, following in pairwise(ordered)
    )


def open_one(app: AppThread, stream: Stream) -> DaemonDataset:
    return DaemonDataset(app.socket, stream, prefetch_batches=1)


# ---- the index -----------------------------------------------------------------------------------


def test_an_index_reads_headers_only_and_those_once(store: Store, tmp_path: Path) -> None:
    # The first 64 KiB of a shard are read to see how its members are, so it is not a small one.
    huge = {"huge.tar": tar_of([(f"h{n:03}.bin", bytes(LARGE_BYTES)) for n in range(160)])}
    store.put(huge)
    with store.daemon() as app:
        dataset = open_one(app, stream_of(store.uri(), Sequential(batch_size=1)))
        assert len(dataset) == 160
        dataset.close()
    ranges = asked(store)
    assert disjoint(ranges)
    assert num_bytes(ranges) < 0.02 * len(huge["huge.tar"])
    store.server.delete(store.bucket, "huge.tar")  # type: ignore[union-attr]
    store.put(LARGE)
    state = tmp_path / "state"
    stream = stream_of(store.uri(), Shuffled(batch_size=4, seed=1))
    with store.daemon_at(state) as app:
        dataset = open_one(app, stream)
        assert len(dataset) == 12
        first = asked(store)
        assert disjoint(first)
        assert {one.name for one in first} == set(LARGE)
        dataset.close()
        # Others of the same daemon ask for nothing.
        for options in ({}, {"fields": ["bin"]}):
            dataset = open_one(app, stream_of(store.uri(), stream.plan, **options))  # type: ignore[arg-type]
            assert len(dataset) == 12
            dataset.close()
        joined = MultiShard(a=Shards(store.uri()), b=Shards(store.uri()))
        dataset = open_one(app, Stream(joined, Sequential(batch_size=48)))
        assert len(dataset) == 1
        dataset.close()
        assert asked(store) == []
    with store.daemon_at(state) as app:
        dataset = open_one(app, stream)
        assert len(dataset) == 12
        dataset.close()
    done = index(store, state)
    assert done.startswith("kept")
    assert asked(store) == []


def config(store: Store, state: Path) -> Path:
    path = state.parent / "headrace.toml"
    path.write_text(
        f'[store]\nendpoints = ["{store.endpoint}"]\n[daemon]\nstate_dir = "{state}"\n'
        "[streams.train]\n"
        f'source = {{ type = "Shards", uri = "{store.uri()}", missing = "none" }}\n'
        'plan = { type = "Sequential", batch_size = 10 }\n'
    )
    return path


def index(store: Store, state: Path, *arguments: str) -> str:
    path = config(store, state)
    done = headrace_here(*(arguments or ("index",)), "--config", path, "--stream", "train")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_refresh_reads_the_headers_of_what_is_new(store: Store, tmp_path: Path) -> None:
    state = tmp_path / "state"
    names = sorted(LARGE)
    store.put({name: LARGE[name] for name in names[:2]})
    assert "24 samples in 2 shards" in index(store, state)
    assert {one.name for one in asked(store)} == set(names[:2])
    store.put({names[2]: LARGE[names[2]]})
    told = index(store, state, "index", "--refresh")
    assert "36 samples in 3 shards" in told
    assert f"added    1: {names[2]}" in told
    assert {one.name for one in asked(store)} == {names[2]}
    # The same bytes stored again are the same shard; others are another one.
    store.put({names[0]: LARGE[names[0]], names[1]: LARGE[names[3]]})
    told = index(store, state, "index", "--refresh")
    assert f"changed  1: {names[1]}" in told
    assert {one.name for one in asked(store)} == {names[1]}


def test_check_and_plan_use_what_was_indexed(store: Store, tmp_path: Path) -> None:
    state = tmp_path / "state"
    store.put(LARGE)
    index(store, state)
    asked(store)
    before = sorted(path.name for path in state.rglob("*"))
    done = headrace_here("check", state.parent / "headrace.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "48 samples" in done.stdout
    assert "data   48 samples, 3.1 MB" in index(store, state, "plan")
    assert asked(store) == []
    assert sorted(path.name for path in state.rglob("*")) == before


# ---- a pass --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [Shuffled(batch_size=4, seed=1), ShardShuffled(batch_size=4, window=20, seed=1)],
    ids=["shuffled", "shards"],
)
def test_a_pass_asks_for_each_sample_once_and_for_little_else(
    store: Store, plan: Shuffled | ShardShuffled
) -> None:
    store.put(LARGE)
    ranges = asked_in_a_pass(store, plan)
    assert disjoint(ranges)
    extra = num_bytes(ranges) - 48 * LARGE_BYTES
    assert 0 <= extra <= 48 * GAP_BYTES


def asked_in_a_pass(store: Store, plan: Shuffled | ShardShuffled | Sequential) -> list[Asked]:
    """Return what one pass asks for; nothing is read ahead of the next one."""
    once = Interleaved(train=plan, limits=Limits(epochs=1))
    with store.daemon() as app:
        dataset = open_one(app, stream_of(store.uri(), once))
        length = len(dataset)
        asked(store)
        assert len(list(dataset)) == length
        dataset.close()
    return asked(store)


def test_in_the_order_of_the_shards_each_comes_once_in_long_ranges(store: Store) -> None:
    store.put(LARGE)
    ranges = asked_in_a_pass(store, Sequential(batch_size=12))
    assert Counter(one.name for one in ranges) == dict.fromkeys(LARGE, 1), "one for a batch"
    for one in ranges:
        assert (one.start, one.stop) == (512, 512 + 11 * (512 + LARGE_BYTES) + LARGE_BYTES)
        assert one.stop - one.start <= RANGE_BYTES


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_continuation_reads_nothing_that_was_before(
    store: Store, tmp_path: Path, is_restarted: bool
) -> None:
    """At half: neither headers, nor anything before the cursor, also in another daemon."""
    store.put(FEW.shards())
    plan = Sequential(batch_size=4)
    stream = stream_of(store.uri(), plan)
    state_dir = tmp_path / "state"
    with store.daemon_at(state_dir) as app:
        dataset = open_one(app, stream)
        batches = iter(dataset)
        for _ in range(6):
            next(batches)
        state = dataset.state_dict()
        dataset.close()
        if not is_restarted:
            go_on(store, app, stream, state)
    if is_restarted:
        with store.daemon_at(state_dir) as app:
            go_on(store, app, stream, state)


def go_on(store: Store, app: AppThread, stream: Stream, state: dict[str, object]) -> None:
    asked(store)
    dataset = open_one(app, stream)
    dataset.load_state_dict(state)
    batch = next(iter(dataset))
    rows = batch.indices.tolist()
    assert FEW.check([batch]) == [24, 25, 26, 27]
    length = 512 * 6 * 44
    dataset.close()
    ranges = asked(store)
    assert disjoint(ranges)
    # Samples of the first of these batches on, in the last shard; it begins with sample 24.
    assert {one.name for one in ranges} == {"s-005.tar"}
    assert rows[0] == FEW.bounds[5]
    assert num_bytes(ranges) < length


# ---- what people see -----------------------------------------------------------------------------


def test_an_interrupted_index_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    """On a terminal there is a bar; Ctrl-C loses nothing that was indexed."""
    shards = FEW.shards()
    store.put(shards)
    assert isinstance(store.server, StandIn)
    stalled = "s-004.tar"
    fault = store.server.fault(Stall(0), target="any", path=f"{store.bucket}/{stalled}", times=None)
    config(store, tmp_path / "state")
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    command = [*HEADRACE, "index", "--config", str(tmp_path / "headrace.toml"), "--stream", "train"]
    env = environment(TERM="xterm", COLUMNS="200")
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=env) as process:
        os.close(theirs)
        # What is asked of the same target may stand behind the one that stalls.
        seen = read_until(ours, rb"[1-5] of 6 shards indexed")
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
        seen += read_until(ours, None)
    os.close(ours)
    assert "━".encode() in seen, "a bar"
    assert b"shards that were indexed are kept: run it again, and it goes on there" in seen
    assert b"Traceback" not in seen
    fault.cancel()
    asked(store)
    kept = len(list((tmp_path / "state").rglob("*.idx")))
    told = index(store, tmp_path / "state")
    assert told.startswith("listed")
    again = {one.name for one in asked(store)}
    assert stalled in again
    assert len(again) == len(shards) - kept < len(shards)
    assert not list((tmp_path / "state").rglob(".writing-*"))


def read_until(terminal: int, words: bytes | None) -> bytes:
    """Return what is shown up to some words, or up to the end."""
    seen = b""
    while words is None or not re.search(words, seen):
        ready, _, _ = select.select([terminal], [], [], DEADLINE_S)
        assert ready, f"{words!r} was not shown, but {seen!r}"
        try:
            seen += os.read(terminal, 1 << 16)
        except OSError:  # all writers are gone
            assert words is None, f"{words!r} was not shown, but {seen!r}"
            return seen
    return seen


def test_a_trainer_that_waits_hears_how_far_it_is(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Not of each shard, where there are many."""
    caplog.set_level(logging.INFO, "headrace")
    one = tar_of([("a.jpg", b"1")])
    store.put({f"{number:04}.tar": one for number in range(299)} | {"bad.tar": b"x" * 700})
    stream = stream_of(store.uri(), Sequential(batch_size=300), on_bad_shard="skip")
    with store.daemon() as app:
        dataset = open_one(app, stream)
        next(iter(dataset))
        dataset.close()
    told = [record.message for record in caplog.records if record.name.startswith("headrace.")]
    far = [text for text in told if "shards indexed" in text]
    assert any("150 of 300 shards indexed, " in text for text in far)
    assert "300 of 300 shards indexed, 299 members" in far[-1]
    assert len(far) == 100
    (left_out,) = (text for text in told if "left out" in text)
    assert left_out.startswith("shard left out: shard bad.tar, byte 0")
    (logged,) = (
        record.message
        for record in caplog.records
        if record.name.startswith("headrace_daemon") and "left out" in record.message
    )
    assert f"source={store.uri()}" in logged
