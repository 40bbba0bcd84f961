"""Shards that are streamed: the members of a tar.gz, tar.lz4, zip or tar, and what breaks them."""

from __future__ import annotations

import builtins
import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import (
    ExtraMissingError,
    ShardCorruptError,
    ShardError,
    ShardRefusedError,
    to_message,
)
from headrace_daemon.source.shards import stream as streams
from headrace_daemon.source.shards.archives import kind_of, stream_members
from headrace_daemon.source.shards.policy import ShardPolicy
from headrace_daemon.source.shards.stream import STEP_BYTES, TarStream
from headrace_daemon.source.shards.zips import ZipWalker
from tests.support.loops import run
from tests.support.shards import (
    END,
    MemoryReader,
    header,
    member,
    packed,
    streamed,
    tar_of,
    zip_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace_daemon.source.reader import RangeRequest
    from headrace_daemon.source.shards.indexstore import Shard
    from tests.support.loops import Loop

KINDS = ("tar", "tar.gz", "tar.lz4")
MEMBERS = st.lists(
    st.tuples(
        st.text("abcü", min_size=1, max_size=9).map(lambda name: f"d/{name}.x"),
        st.binary(max_size=3000) | st.integers(0, 40_000).map(bytes),
    ),
    max_size=8,
)


def shard_of(members: list[tuple[str, bytes]], kind: str) -> bytes:
    return zip_of(members) if kind == "zip" else packed(tar_of(members), kind)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@given(MEMBERS, st.sampled_from([*KINDS, "zip"]), st.integers(1, 9000))
def test_members_come_whole_and_in_order_however_the_bytes_arrive(
    members: list[tuple[str, bytes]], kind: str, piece: int
) -> None:
    assert streamed(shard_of(members, kind), kind, piece=piece) == (members, None)


def test_shards_of_several_frames_are_one() -> None:
    members = [(f"{number}.x", bytes([number]) * 2000) for number in range(9)]
    tar = tar_of(members)
    for kind in KINDS[1:]:
        frames = b"".join(packed(tar[at : at + 700], kind) for at in range(0, len(tar), 700))
        assert streamed(frames, kind, piece=100) == (members, None)
    zeros = gzip.compress(tar) + bytes(100_000)
    assert streamed(zeros, "tar.gz") == (members, None)


def test_the_kind_is_told_by_the_end_of_the_name() -> None:
    names = {"a.tar": "tar", "a.b.tgz": "tar.gz", "a.TAR.GZ": "tar.gz", "a.tar.lz4": "tar.lz4"}
    assert {name: kind_of(name) for name in names} == names
    assert kind_of("d/a.zip") == "zip"
    with pytest.raises(ShardRefusedError, match="its name says not what it is"):
        kind_of("a.tar.zst")


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_broken_tail_is_an_error_behind_what_came_before(kind: str) -> None:
    members = [("a.x", b"a" * 1000), ("b.x", bytes(range(256)) * 20)]
    data = packed(tar_of(members), kind)
    for bad in (data[:-4], data[:-1], data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]):
        found, error = streamed(bad, kind)
        # The package for LZ4 gives nothing of a piece that it stumbles over.
        assert found == members or (kind == "tar.lz4" and len(bad) == len(data) and not found)
        assert isinstance(error, ShardCorruptError)
    for bad in (data[: len(data) // 2], data + b"junk"):
        found, error = streamed(bad, kind)
        assert members[: len(found)] == found
        assert isinstance(error, ShardCorruptError)
    assert isinstance(streamed(b"", kind)[1], ShardCorruptError)


def test_a_tar_that_ends_early_inside_is_an_error() -> None:
    tar = member(b"a.x", b"a" * 100) + member(b"b.x", b"b" * 3000)[:2000]
    for kind in KINDS:
        found, error = streamed(packed(tar, kind), kind)
        assert found == [("a.x", b"a" * 100)]
        assert isinstance(error, ShardCorruptError)
        assert error.member == "b.x"


def test_a_member_above_the_limit_is_refused_before_it_is_inflated() -> None:
    tar = tar_of([("a.x", b"a" * 100), ("b.x", bytes(3 << 20)), ("c.x", b"c")])
    for kind in KINDS:
        found, error = streamed(packed(tar, kind), kind, max_member_bytes=2 << 20)
        assert found == [("a.x", b"a" * 100)]
        assert isinstance(error, ShardRefusedError)
        assert "3145728 bytes, max_sample_bytes is 2097152" in str(error)
    with pytest.raises(ShardRefusedError, match="max_sample_bytes is 10"):
        walk_zip(zip_of([("a.x", b"a" * 100)]), 10)


def test_a_bomb_is_refused_by_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_BYTES", 1 << 20)
    # Zeros behind the end are no members, but they would be inflated.
    bomb = gzip.compress(member(b"a.x") + END + bytes(8 << 20))
    found, error = streamed(bomb, "tar.gz")
    assert found == [("a.x", b"x")]
    assert isinstance(error, ShardRefusedError)
    assert f"{len(bomb)} bytes were inflated to more than" in str(error)


def test_a_step_gives_no_more_than_its_share() -> None:
    data = gzip.compress(tar_of([(f"{number}.x", bytes(5000)) for number in range(500)]))
    stream = TarStream("s.tar.gz", "tar.gz", max_member_bytes=5000)
    stream.feed(data)
    stream.finish()
    counts = []
    while not stream.is_over:
        counts.append(sum(len(one.data) for one in stream.step()))
    assert sum(counts) == 500 * 5000
    assert max(counts) <= STEP_BYTES + 5000


def test_lz4_is_an_extra_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:  # noqa: ANN401
        if name.startswith("lz4"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ExtraMissingError, match=r"pip install 'headrace\[lz4\]'") as caught:
        TarStream("s.tar.lz4", "tar.lz4", max_member_bytes=1)
    assert to_message(caught.value, scope="feed").fault == "daemon"


def walk_zip(data: bytes, limit: int = 1 << 20, **facts: Any) -> ZipWalker:  # noqa: ANN401
    walker = ZipWalker("s.zip", len(data), max_member_bytes=limit, policy=ShardPolicy(**facts))
    while (wanted := walker.wanted) is not None:
        walker.feed(data[wanted.start : wanted.stop])
        walker.find()
    return walker


def test_a_zip_is_indexed_by_its_end_alone() -> None:
    members = [(f"{number:05d}.x", bytes([number % 256]) * 3000) for number in range(3000)]
    data = zip_of(members, is_deflated=False)
    walker = ZipWalker("s.zip", len(data), max_member_bytes=3000)
    num_bytes = num_reads = 0
    while (wanted := walker.wanted) is not None:
        walker.feed(data[wanted.start : wanted.stop])
        walker.find()
        num_bytes += wanted.stop - wanted.start
        num_reads += 1
    assert [(one.name, one.size) for one in walker.members] == [
        (name, len(content)) for name, content in members
    ]
    assert num_reads == 2
    assert num_bytes < 0.03 * len(data)
    # Each member is had by a range that has little else.
    assert all(one.stop - one.start < 3000 + 100 for one in walker.members)
    assert streamed(data, "zip") == (members, None)


def test_a_zip_with_too_many_entries_is_refused_before_they_are_read() -> None:
    data = zip_of([(f"{number}.x", b"x") for number in range(5)])
    assert len(walk_zip(data, max_members=5).members) == 5
    end = data.rindex(b"PK\x05\x06")
    # Whatever its end says of their number.
    lies = data[: end + 8] + struct.pack("<HH", 1, 1) + data[end + 12 :]
    with (
        mock.patch.object(zipfile, "ZipInfo", side_effect=AssertionError("it was read")),
        pytest.raises(ShardRefusedError, match="has 5 entries, the limit is 4: cut it"),
    ):
        walk_zip(lies, max_members=4)


class ForgetfulReader(MemoryReader):
    """Keeps nothing of what it was asked for."""

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        await super().read(requests)
        self.requests.clear()


def test_all_that_a_zip_takes_up_is_held_before() -> None:
    """Each peak of memory, as Python counts it, is within what was said before it."""
    data = zip_of([(f"{number:040}.x", b"x" * 10) for number in range(4000)])
    reader = ForgetfulReader({"s.zip": data})
    (shard,) = reader.all()
    held, over = [0], []

    def measure() -> None:
        over.append(tracemalloc.get_traced_memory()[1] - held[-1])
        tracemalloc.reset_peak()

    async def hold(num_bytes: int) -> None:
        measure()
        held.append(num_bytes)

    async def case() -> int:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(tracemalloc.start).result()
            members = stream_members(
                shard, reader, executor=executor, max_member_bytes=100, hold=hold
            )
            count = len([None async for _ in members])
            measure()
            return count

    try:
        assert run(case()) == 4000
    finally:
        tracemalloc.stop()
    assert len(over) == len(held) > 5
    assert max(over) < 300_000  # of threads, and of the loop, which debugs


def test_folders_and_links_of_a_zip_are_no_members() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.mkdir("d")
        archive.writestr("d/a.x", b"a")
        link = zipfile.ZipInfo("l.x")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, b"d/a.x")
    data = target.getvalue()
    assert streamed(data, "zip") == ([("d/a.x", b"a")], None)
    with pytest.raises(ShardRefusedError, match=r"'l\.x': it is a symbolic link"):
        walk_zip(data, links="error")
    assert walk_zip(zip_of([])).members == []


def test_a_zip_that_is_damaged_or_deceives_is_refused() -> None:
    data = zip_of([("a.x", b"a" * 100), ("b.x", b"b" * 100)], is_deflated=False)
    central = data.index(b"PK\x01\x02")

    def altered(at: int, value: bytes) -> bytes:
        return data[:at] + value + data[at + len(value) :]

    for bad, kind, words in (
        (b"", ShardCorruptError, "is empty"),
        (data[:-5], ShardCorruptError, "no zip"),
        (b"x" * 100, ShardCorruptError, "no zip"),
        (altered(central, b"PX"), ShardCorruptError, "damaged"),
        (altered(central + 8, b"\1"), ShardRefusedError, "encrypted"),
        (altered(central + 10, b"\x0c"), ShardRefusedError, "packed in another way"),
        (altered(central + 20, struct.pack("<I", 5000)), ShardCorruptError, "overlaps"),
        (altered(central + 24, struct.pack("<I", 99)), ShardCorruptError, "said to become 99"),
        (altered(data.rindex(b"PK\x01\x02") + 42, bytes(4)), ShardCorruptError, "the same place"),
        (altered(central + 46, b"\0"), ShardCorruptError, "name is empty"),
        (zip_of([("../a.x", b"")]), ShardRefusedError, "leads upwards"),
    ):
        with pytest.raises(kind, match=words):
            walk_zip(bad)


def test_a_member_of_a_zip_that_is_damaged_is_an_error() -> None:
    for is_deflated in (True, False):
        members = [("a.x", b"a" * 100), ("b.x", b"bc" * 100)]
        data = bytearray(zip_of(members, is_deflated=is_deflated))
        data[data.index(b"b.x") + 5] ^= 1
        found, error = streamed(bytes(data), "zip")
        assert found == members[:1]
        assert isinstance(error, ShardCorruptError)
        assert error.member == "b.x"
    # More is inflated than the directory says.
    data = bytearray(zip_of(members))
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<I", 50)
    data[central + 16 : central + 20] = struct.pack("<I", zlib.crc32(b"a" * 50))
    assert "does not inflate to the 50 bytes" in str(streamed(bytes(data), "zip")[1])


@pytest.mark.parametrize("kind", [*KINDS, "zip"])
def test_members_of_a_stored_shard_are_streamed_by_ranges(kind: str, loop: Loop) -> None:
    members = [(f"{number}.x", bytes([number]) * 90_000) for number in range(40)]
    name = f"s.{kind}"
    reader = MemoryReader({name: shard_of(members, kind)})
    (shard,) = reader.all()

    async def case() -> list[tuple[str, bytes]]:
        with ThreadPoolExecutor(1) as executor:
            return [
                (one.name, bytes(one.data))
                async for one in stream_members(
                    shard, reader, executor=executor, max_member_bytes=90_000
                )
            ]

    assert run(case(), loop) == members
    size = len(reader.shards[name])
    assert size * 0.99 <= reader.num_bytes <= size + (66 << 10)
    # Those of a zip are unpacked 1 MiB at a time; its directory comes first.
    assert len(reader.requests) == {"tar": 4, "tar.gz": 1, "tar.lz4": 1, "zip": 5}[kind]


def test_what_precedes_the_damage_is_streamed(loop: Loop) -> None:
    members = [("a.x", b"a" * 100), ("b.x", b"b" * 100)]
    zipped = bytearray(zip_of(members, is_deflated=False))
    zipped[zipped.index(b"b" * 100)] ^= 1
    reader = MemoryReader(
        {
            "s.tar": tar_of(members)[:1024] + b"!" * 512,
            "s.tgz": gzip.compress(tar_of(members))[:-3],
            "s.zip": bytes(zipped),
        }
    )

    async def case(shard: Shard) -> list[str]:
        found = []
        with ThreadPoolExecutor(1) as executor, pytest.raises(ShardError, match=shard.name):
            async for one in stream_members(
                shard, reader, executor=executor, max_member_bytes=1000
            ):
                found.append(one.name)  # noqa: PERF401 - what came before the error counts
        return found

    assert [run(case(shard), loop) for shard in reader.all()] == [["a.x"], ["a.x", "b.x"], ["a.x"]]


def test_other_forms_of_tar_are_streamed_as_well() -> None:
    long = "d" * 300 + ".x"
    tar = tar_of([(long, b"1"), ("b.x", b"2")], tarfile.GNU_FORMAT)
    assert streamed(packed(tar, "tar.gz"), "tar.gz") == ([(long, b"1"), ("b.x", b"2")], None)
    assert streamed(header(b"/a.x") + END, "tar")[1] is not None
