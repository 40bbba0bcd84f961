"""Indices of shards: as they were found, in files that show when they are damaged."""

from __future__ import annotations

import io
import os
import struct
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import StateFolderError
from headrace_daemon.source.shards.index import DamagedIndexError, ShardIndex
from headrace_daemon.source.shards.indexstore import KEPT_S, IndexStore, Shard
from headrace_daemon.source.shards.policy import ShardPolicy
from headrace_daemon.source.shards.walk import TarWalker
from tests.support.shards import tar_of

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
DATA = tar_of([("a/ü.jpg", b"x" * 700), ("a/ü.cls", b""), ("b.jpg", b"y")])
SHARD = Shard.of_object("ais://b", "s.tar", len(DATA), b"xxhash2:1", b"1")


def index_of(data: bytes) -> ShardIndex:
    walker = TarWalker("s.tar", len(data))
    walker.feed(0, data)
    return ShardIndex.of(walker.take(), len(data))


def saved(index: ShardIndex) -> bytes:
    file = io.BytesIO()
    index.save(file, KEY)
    return file.getvalue()


def told(index: ShardIndex) -> list[tuple[str, int, int]]:
    return list(zip(index.all_names(), index.starts.tolist(), index.sizes.tolist(), strict=True))


EXPECTED = [("a/ü.jpg", 512, 700), ("a/ü.cls", 2048, 0), ("b.jpg", 2560, 1)]


def test_an_index_has_names_places_and_sizes_also_from_its_file() -> None:
    index = index_of(DATA)
    again = ShardIndex.load(saved(index), KEY, len(DATA))
    for one in (index, again):
        assert told(one) == EXPECTED
        assert len(one) == 3
        assert one.shard_bytes == len(DATA)
        with pytest.raises(ValueError, match="read-only"):
            one.sizes[0] = 1
    empty = index_of(bytes(1024))
    assert told(ShardIndex.load(saved(empty), KEY, 1024)) == []


def test_every_byte_of_a_file_counts() -> None:
    good = saved(index_of(DATA))
    for at in range(len(good)):
        bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(DamagedIndexError):
            ShardIndex.load(bad, KEY, len(DATA))
        with pytest.raises(DamagedIndexError):
            ShardIndex.load(good[:at], KEY, len(DATA))
    with pytest.raises(DamagedIndexError):
        ShardIndex.load(good + b"\0", KEY, len(DATA))
    with pytest.raises(DamagedIndexError, match="of another shard"):
        ShardIndex.load(good, KEY[::-1], len(DATA))
    with pytest.raises(DamagedIndexError, match="of another shard"):
        ShardIndex.load(good, KEY, len(DATA) + 1)


def signed(index: ShardIndex, **columns: np.ndarray) -> bytes:
    """Return a file with other columns, and the right checksum."""
    facts = {name: getattr(index, name) for name in ("names", "ends", "starts", "sizes")}
    return saved(ShardIndex(index.shard_bytes, **{**facts, **columns}))


def test_a_file_with_the_right_checksum_is_checked_as_well() -> None:
    index = index_of(DATA)
    names = index.names.copy()
    names[-1] = 0xFF
    for columns, words in (
        ({"sizes": np.array([700, -1, 1])}, "beyond the end"),
        ({"sizes": np.array([700, 0, 1 << 62])}, "beyond the end"),
        ({"starts": np.array([512, 2048, 1 << 63], np.uint64)}, "beyond the end"),
        ({"ends": np.array([8, 8, 21], np.uint64)}, "one after the other"),
        ({"ends": np.array([0, 8, 21], np.uint64)}, "one after the other"),
        ({"ends": np.array([8, 16, 20], np.uint64)}, "one after the other"),
        ({"ends": np.array([3, 16, 21], np.uint64)}, "not UTF-8"),
        ({"names": names}, "not UTF-8"),
    ):
        with pytest.raises(DamagedIndexError, match=words):
            ShardIndex.load(signed(index, **columns), KEY, len(DATA))


@given(st.integers(0, 2**32))
def test_mutated_files_are_damaged_and_nothing_else(seed: int) -> None:
    rng = Random(seed)
    good = saved(index_of(DATA))
    bad = bytearray(good)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(bad))
        change = rng.randrange(4)
        if change == 0:
            bad[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**32, 2**63, 2**64 - 1]))
        elif change == 1:
            del bad[at:]
            bad += b"\0"
        elif change == 2:
            bad[at:at] = bad[: rng.randrange(64)]
        else:
            bad[at] ^= rng.randrange(1, 256)
    if bytes(bad) == good:
        return
    with pytest.raises(DamagedIndexError):
        ShardIndex.load(bytes(bad), KEY, len(DATA))


def test_a_store_finds_what_it_kept_and_makes_damaged_files_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = IndexStore(tmp_path)
    assert store.load(SHARD) is None
    store.keep(SHARD, index_of(DATA))
    found = IndexStore(tmp_path).load(SHARD)  # as another process would
    assert found is not None
    assert told(found) == EXPECTED
    (file,) = tmp_path.rglob("*.idx")
    file.write_bytes(file.read_bytes()[:-1])
    assert store.load(SHARD) is None
    assert "index damaged shard=s.tar" in caplog.text
    store.keep(SHARD, index_of(DATA))
    assert store.load(SHARD) is not None
    assert [path.name for path in tmp_path.rglob(".writing-*")] == []


def test_other_content_and_other_policies_have_other_indices(tmp_path: Path) -> None:
    store = IndexStore(tmp_path)
    store.keep(SHARD, index_of(DATA))
    size = len(DATA)
    same = Shard.of_object("ais://b", "s.tar", size, b"xxhash2:1", b"2")
    assert store.load(same) is not None  # stored again, with the same bytes
    for other in (
        Shard.of_object("ais://b", "s.tar", size, b"xxhash2:2", b"1"),
        Shard.of_object("ais://b", "t.tar", size, b"xxhash2:1", b"1"),
        Shard.of_object("ais://c", "s.tar", size, b"xxhash2:1", b"1"),
        Shard.of_object("ais://b", "s.tar", size + 1, b"xxhash2:1", b"1"),
        Shard.of_object("ais://b", "s.tar", size, b"", b"1"),
    ):
        assert store.load(other) is None
    assert IndexStore(tmp_path, ShardPolicy(links="error")).load(SHARD) is None
    versions = [Shard.of_object("ais://b", "s.tar", size, b"", version) for version in (b"1", b"2")]
    assert versions[0].identity != versions[1].identity


def test_a_file_is_another_shard_when_it_was_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(DATA)
    first = Shard.of_file("a.tar", path)
    assert Shard.of_file("a.tar", path) == first
    assert (first.name, first.size) == ("a.tar", len(DATA))
    os.utime(path, ns=(0, 1))
    second = Shard.of_file("a.tar", path)
    (tmp_path / "b.tar").write_bytes(DATA)
    os.utime(tmp_path / "b.tar", ns=(0, 1))
    (tmp_path / "b.tar").rename(path)
    third = Shard.of_file("a.tar", path)
    assert len({first.identity, second.identity, third.identity}) == 3


def test_what_nobody_asks_for_is_removed_and_nothing_else(tmp_path: Path) -> None:
    now = [1e9]
    store = IndexStore(tmp_path, clock=lambda: now[0])
    other = Shard.of_object("ais://b", "t.tar", len(DATA), b"xxhash2:2", b"1")
    for shard in (SHARD, other):
        store.keep(shard, index_of(DATA))
    files = sorted(tmp_path.rglob("*.idx"))
    foreign = [files[0].parent / "notes.txt", store.folder / "left.idx"]
    left = files[0].parent / ".writing-abc"
    for path in (*foreign, left):
        path.write_bytes(b"")
    for path in (*files, *foreign, left):
        os.utime(path, (now[0], now[0]))
    assert store.sweep() == 0
    now[0] += KEPT_S - 100
    assert store.load(SHARD) is not None  # which makes it young
    assert store.sweep() == 1  # what was begun and never finished
    now[0] += 200
    assert store.sweep() == 1
    assert store.load(SHARD) is not None
    assert store.load(other) is None
    assert all(path.exists() for path in foreign)
    assert IndexStore(tmp_path / "none").sweep() == 0


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "shards").write_bytes(b"")
    store = IndexStore(tmp_path)
    with pytest.raises(StateFolderError, match=r"index of shard s\.tar cannot be kept in .*shards"):
        store.keep(SHARD, index_of(DATA))
    with pytest.raises(StateFolderError, match=r"cannot be read from .*\.idx: .*state_dir") as read:
        store.load(SHARD)
    assert "room" not in str(read.value)
