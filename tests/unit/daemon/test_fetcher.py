"""The fetcher: groups of reads, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.fetch.fetcher import GROUP_BYTES, GROUP_REQUESTS, Fetcher
from headrace_daemon.source.reader import Place, RangeRequest, ReadRequest
from tests.support.loops import run, turns, until
from tests.support.reading import GatedReader, value_of

if TYPE_CHECKING:
    from headrace_daemon.source.reader import Request
    from tests.support.loops import Loop


def requests_of(number: int, size: int = 8) -> list[ReadRequest]:
    return [ReadRequest(f"s{n:03}", memoryview(bytearray(size))) for n in range(number)]


def missing(name: str) -> ObjectMissingError:
    return ObjectMissingError(name, f"{name} is gone")


def test_all_targets_are_filled(loop: Loop) -> None:
    async def main() -> None:
        reader, wanted = GatedReader(), requests_of(2 * GROUP_REQUESTS + 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Fetcher(4).fetch(reader, wanted))
            await until(lambda: len(reader.reads) == 3)
            for read in reversed(reader.reads):
                read.finish()
        for request in wanted:
            assert request.target == value_of(request.name, 8)

    run(main(), loop)


def test_small_objects_travel_in_groups_in_their_order(loop: Loop) -> None:
    async def main() -> None:
        reader, wanted = GatedReader(), requests_of(2 * GROUP_REQUESTS + 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Fetcher(4).fetch(reader, wanted))
            await until(lambda: len(reader.reads) == 3)
            reader.finish_all()
        assert [len(read.names) for read in reader.reads] == [GROUP_REQUESTS, GROUP_REQUESTS, 1]
        assert [name for read in reader.reads for name in read.names] == [
            request.name for request in wanted
        ]

    run(main(), loop)


def test_a_group_is_full_when_its_bytes_are(loop: Loop) -> None:
    async def main() -> None:
        reader, wanted = GatedReader(), requests_of(5, GROUP_BYTES // 2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Fetcher(4).fetch(reader, wanted))
            await until(lambda: len(reader.reads) == 3)
            reader.finish_all()
        assert [len(read.names) for read in reader.reads] == [2, 2, 1]

    run(main(), loop)


def test_the_bytes_of_a_range_count_with_those_that_are_dropped(loop: Loop) -> None:
    async def main() -> None:
        reader, half = GatedReader(), GROUP_BYTES // 2
        first = RangeRequest("s", 0, half, 8 * half, [Place(0, memoryview(bytearray(1)))])
        wanted: list[Request] = [
            first._replace(start=start, stop=start + half) for start in range(0, 5 * half, half)
        ]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Fetcher(4).fetch(reader, wanted))
            await until(lambda: len(reader.reads) == 3)
            for read in reader.reads:
                read.requests = []  # of megabytes of content
            reader.finish_all()
        assert [len(read.names) for read in reader.reads] == [2, 2, 1]

    run(main(), loop)


def test_nothing_to_read_is_done_at_once(loop: Loop) -> None:
    async def main() -> None:
        reader = GatedReader()
        await Fetcher(1).fetch(reader, [])
        assert reader.reads == []

    run(main(), loop)


def test_there_are_never_more_groups_under_way_than_places(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(), Fetcher(3)
        most = 0
        wanted = requests_of(GROUP_REQUESTS * 7)
        cuts = [(0, 1), (1, 5), (5, 7)]
        async with asyncio.TaskGroup() as tasks:
            batches = [
                tasks.create_task(
                    fetcher.fetch(reader, wanted[GROUP_REQUESTS * begin : GROUP_REQUESTS * end])
                )
                for begin, end in cuts
            ]
            while not all(batch.done() for batch in batches):
                await turns(5)
                most = max(most, len(reader.under_way))
                for read in reader.under_way[-1:]:
                    read.finish()
        assert most == 3
        assert len(reader.reads) == 7

    run(main(), loop)


def test_the_batch_that_was_asked_for_first_is_read_first(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(), Fetcher(1)
        wanted = requests_of(4 * GROUP_REQUESTS)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(fetcher.fetch(reader, wanted[: 2 * GROUP_REQUESTS]))
            await turns(3)
            second = tasks.create_task(fetcher.fetch(reader, wanted[2 * GROUP_REQUESTS :]))
            while not (first.done() and second.done()):
                await turns(3)
                reader.finish_all()
        assert [name for read in reader.reads for name in read.names] == [
            request.name for request in wanted
        ]

    run(main(), loop)


def test_the_first_error_wins_and_the_other_groups_are_cancelled(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(), Fetcher(2)
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(outcome(fetcher, reader, 3))
            await until(lambda: len(reader.reads) == 2)
            reader.reads[1].fail(missing("s032"))
        assert str(fetching.result()) == "s032 is gone"
        assert reader.reads[0].is_cancelled
        assert reader.under_way == []
        await assert_all_places_are_free(fetcher, 2)

    run(main(), loop)


def test_the_error_of_a_single_group_comes_as_it_is(loop: Loop) -> None:
    async def main() -> None:
        reader = GatedReader()
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(outcome(Fetcher(2), reader, 1))
            await until(lambda: reader.reads)
            reader.reads[0].fail(missing("s000"))
        assert isinstance(fetching.result(), ObjectMissingError)

    run(main(), loop)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_cancelled_fetch_waits_until_nobody_writes(loop: Loop, groups: int) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(lingers=True), Fetcher(2)
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(
                fetcher.fetch(reader, requests_of(groups * GROUP_REQUESTS))
            )
            await until(lambda: len(reader.reads) == min(groups, 2))
            fetching.cancel()
            await turns(5)
            assert all(read.is_cancelled for read in reader.reads)
            for read in reader.under_way:
                assert not fetching.done()
                read.finish()
                await turns(5)
        assert fetching.cancelled()
        await assert_all_places_are_free(fetcher, 2)

    run(main(), loop)


def test_a_failed_fetch_waits_until_nobody_writes(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(lingers=True), Fetcher(2)
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(outcome(fetcher, reader, 2))
            await until(lambda: len(reader.reads) == 2)
            reader.reads[0].fail(missing("s000"))
            await turns(5)
            assert reader.reads[1].is_cancelled
            assert not fetching.done()
            reader.reads[1].finish()
        assert str(fetching.result()) == "s000 is gone"

    run(main(), loop)


def test_a_fetch_that_is_cancelled_while_it_fails_is_cancelled(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = GatedReader(lingers=True), Fetcher(2)
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(outcome(fetcher, reader, 2))
            await until(lambda: len(reader.reads) == 2)
            reader.reads[0].fail(missing("s000"))
            await turns(5)
            fetching.cancel()
            await turns(5)
            reader.reads[1].finish()
        assert fetching.cancelled()

    run(main(), loop)


async def outcome(fetcher: Fetcher, reader: GatedReader, groups: int) -> Exception | None:
    try:
        await fetcher.fetch(reader, requests_of(groups * GROUP_REQUESTS))
    except ObjectMissingError as error:
        return error
    return None


async def assert_all_places_are_free(fetcher: Fetcher, places: int) -> None:
    """The fetcher is whole again: it reads as many groups side by side as before."""
    reader = GatedReader()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fetcher.fetch(reader, requests_of(places * GROUP_REQUESTS)))
        await until(lambda: len(reader.under_way) == places)
        reader.finish_all()
