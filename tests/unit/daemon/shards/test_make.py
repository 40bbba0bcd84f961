"""Indices of many shards: made side by side, stored at once, and not made twice."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import ObjectMissingError, ShardCorruptError
from headrace_daemon.source.local import LocalReader
from headrace_daemon.source.shards.index import ShardIndex
from headrace_daemon.source.shards.indexstore import IndexStore, Shard
from headrace_daemon.source.shards.make import index_shards
from tests.support.loops import run
from tests.support.reading_ais import bucket, open_store
from tests.support.shards import MemoryReader, by_tarfile, header, padded, pax, tar_of
from tests.support.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from headrace_daemon.errors import ObjectError
    from headrace_daemon.source.reader import RangeRequest
    from tests.support.loops import Loop


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def shards(count: int = 5) -> dict[str, bytes]:
    return {
        f"{number}.tar": tar_of([(f"{number}-{one}.x", b"d" * 100) for one in range(number)])
        for number in range(count)
    }


def test_every_shard_is_indexed_once_and_found_again(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    async def case() -> None:
        reader, store = MemoryReader(shards()), IndexStore(tmp_path)
        told: list[tuple[int, int, int]] = []

        def progress(done: int, total: int, members: int) -> None:
            told.append((done, total, members))

        for _ in range(2):
            made = await index_shards(
                reader.all(), reader, store, executor=executor, progress=progress, width=2
            )
            assert [len(index) for index in made if isinstance(index, ShardIndex)] == [
                0,
                1,
                2,
                3,
                4,
            ]
            assert [(done, total) for done, total, _ in told] == [(done, 5) for done in range(1, 6)]
            assert told[-1] == (5, 5, 10)
            told.clear()
            assert len(reader.requests) == 5
        last = made[4]
        assert isinstance(last, ShardIndex)
        assert last.all_names() == ["4-0.x", "4-1.x", "4-2.x", "4-3.x"]
        assert await index_shards([], reader, store, executor=executor) == []
        with pytest.raises(ValueError, match="width=0"):
            await index_shards(reader.all(), reader, store, executor=executor, width=0)

    run(case(), loop)


def test_a_bad_shard_ends_all_or_has_its_error_in_its_place(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    async def case() -> None:
        reader, store = MemoryReader(shards()), IndexStore(tmp_path)
        reader.shards["2.tar"] = reader.shards["2.tar"][:1300]
        with pytest.raises(ShardCorruptError, match=r"shard 2\.tar, byte 1024") as caught:
            await index_shards(reader.all(), reader, store, executor=executor, width=1)
        assert caught.value.what == "2.tar"
        # What was done before is not done again.
        assert [request.name for request in reader.requests] == ["0.tar", "1.tar", "2.tar"]
        made = await index_shards(
            reader.all(), reader, store, executor=executor, width=3, on_bad="skip"
        )
        assert [type(one) for one in made] == [
            ShardIndex,
            ShardIndex,
            ShardCorruptError,
            ShardIndex,
            ShardIndex,
        ]
        assert len(reader.requests) == 6

    run(case(), loop)
    assert len(list(tmp_path.rglob("*.idx"))) == 4


def test_a_shard_that_could_be_another_one_is_indexed_each_time(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    """Of the same name and size, where the store says neither checksum nor version."""

    async def case() -> None:
        store = IndexStore(tmp_path)
        for first, second in ((10, 600), (600, 10)):
            data = tar_of([("a.x", b"d" * first), ("b.x", b"d" * second)])
            reader = MemoryReader({"s.tar": data})
            shard = Shard.of_object("ais://b", "s.tar", len(data), b"", b"")
            (index,) = await index_shards([shard], reader, store, executor=executor)
            assert isinstance(index, ShardIndex)
            assert index.sizes.tolist() == [first, second]

    run(case(), loop)
    assert not list(tmp_path.rglob("*.idx"))


class Gone(MemoryReader):
    async def read(self, requests: Sequence[RangeRequest]) -> None:
        if requests[0].name == "1.tar":
            raise ObjectMissingError("1.tar", "1.tar is not there")
        await super().read(requests)


def test_a_shard_that_cannot_be_read_is_a_bad_one(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    async def case() -> None:
        reader = Gone(shards(3))
        shared = IndexStore(tmp_path)
        with pytest.raises(ObjectMissingError):
            await index_shards(reader.all(), reader, shared, executor=executor)
        made = await index_shards(reader.all(), reader, shared, executor=executor, on_bad="skip")
        assert isinstance(made[1], ObjectMissingError)

    run(case(), loop)


@dataclass
class Hanging(MemoryReader):
    """Stops at the third shard; says so."""

    hangs: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        if requests[0].name == "2.tar":
            self.hangs.set()
            await asyncio.Event().wait()
        await super().read(requests)


def test_what_was_finished_before_a_cancellation_is_kept(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    async def case() -> None:
        hanging, store = Hanging(shards()), IndexStore(tmp_path)
        async with asyncio.TaskGroup() as group:
            work = group.create_task(
                index_shards(hanging.all(), hanging, store, executor=executor, width=1),
                name="index",
            )
            await hanging.hangs.wait()
            work.cancel()
        reader = MemoryReader(shards())
        made = await index_shards(reader.all(), reader, store, executor=executor, width=1)
        assert [len(index) for index in made if isinstance(index, ShardIndex)] == [0, 1, 2, 3, 4]
        assert [request.name for request in reader.requests] == ["2.tar", "3.tar", "4.tar"]

    run(case(), loop)


def test_a_header_that_is_larger_than_a_read_is_read(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    async def case() -> None:
        large = {"SCHILY.xattr.user.note": "n" * (1 << 19), "path": "named.x"}
        data = pax(large) + header(b"a", 3) + padded(b"abc") + bytes(1024)
        reader = MemoryReader({"s.tar": data})
        made = await index_shards(reader.all(), reader, IndexStore(tmp_path), executor=executor)
        (index,) = made
        assert isinstance(index, ShardIndex)
        assert index.all_names() == ["named.x"]
        assert reader.num_bytes <= len(data)

    run(case(), loop)


LARGE = tar_of((f"{number}.jpg", bytes([number]) * 70_000) for number in range(50))


def placed(made: Sequence[ShardIndex | ObjectError]) -> list[list[tuple[str, int, int]]]:
    """Return name, place and size of each member of each shard."""
    return [
        list(zip(one.all_names(), one.starts.tolist(), one.sizes.tolist(), strict=True))
        for one in made
        if isinstance(one, ShardIndex)
    ]


def test_shards_of_a_folder_and_of_a_store_are_indexed_alike(
    tmp_path: Path, executor: ThreadPoolExecutor, loop: Loop
) -> None:
    objects = {**shards(3), "large.tar": LARGE}
    for name, data in objects.items():
        (tmp_path / name).write_bytes(data)
    files = [Shard.of_file(name, tmp_path / name) for name in objects]
    local = LocalReader(str(tmp_path), executor)
    expected = [by_tarfile(data) for data in objects.values()]

    async def case(server: StandIn) -> None:
        store = IndexStore(tmp_path / "state")
        assert placed(await index_shards(files, local, store, executor=executor)) == expected
        async with open_store(server.endpoint) as ais:
            reader = ais.reader(bucket("ais://b"))
            stored = [
                Shard.of_object("ais://b", name, len(data), b"", b"1")
                for name, data in objects.items()
            ]
            assert placed(await index_shards(stored, reader, store, executor=executor)) == expected

    with StandIn() as server:
        server.create_bucket("b")
        server.put_many("b", objects)
        run(case(server), loop)
        ranges = [request.range for request in server.requests if "large.tar" in request.path]
    # Each header is asked for once, and no data but what the first read brings.
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", text or "") for text in ranges]
    num_bytes = sum(int(found[2]) + 1 - int(found[1]) for found in asked if found)
    assert len(ranges) == len([found for found in asked if found])
    assert num_bytes <= (64 << 10) + 51 * 1024
