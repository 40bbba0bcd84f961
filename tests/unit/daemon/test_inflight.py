"""Reads under way: the same bytes are asked for once, and everybody has them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import ObjectMissingError, SourceError
from headrace_daemon.fetch.fetcher import Fetcher
from headrace_daemon.source.reader import Place, RangeRequest, ReadRequest
from tests.support.loops import run, turns, until
from tests.support.reading import GatedReader, value_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from headrace_daemon.source.reader import Request
    from tests.support.loops import Loop

SIZE = 8


class Shared(GatedReader):
    """Reads of one place, so that they may be shared."""

    location = "here"


def requests(*names: str, version: bytes = b"") -> list[ReadRequest]:
    return [ReadRequest(name, memoryview(bytearray(SIZE)), version=version) for name in names]


def ranges(*spans: tuple[int, int], name: str = "a", dropped: int = 0) -> list[Request]:
    """Return requests for ranges of an object of 64 bytes, with two places in each."""
    return [
        RangeRequest(
            name,
            start,
            stop,
            64,
            [
                Place(start, memoryview(bytearray(2))),
                Place(start + 2 + dropped, memoryview(bytearray(stop - start - 2 - dropped))),
            ],
        )
        for start, stop in spans
    ]


def is_filled(wanted: list[Request]) -> bool:
    content = value_of("a", 64)
    return all(
        bytes(place.target) == content[place.start : place.start + len(place.target)]
        for request in wanted
        if isinstance(request, RangeRequest)
        for place in request.places
    )


def is_right(wanted: list[ReadRequest]) -> bool:
    return all(bytes(one.target) == value_of(one.name, SIZE) for one in wanted)


def is_untouched(wanted: list[ReadRequest]) -> bool:
    return all(bytes(one.target) == bytes(SIZE) for one in wanted)


def missing(name: str) -> ObjectMissingError:
    return ObjectMissingError(name, f"{name} is gone")


async def outcome(fetching: Coroutine[None, None, None]) -> str:
    try:
        await fetching
    except SourceError as error:
        return str(error)
    return ""


def test_feeds_that_want_the_same_read_it_once(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        first, second, third = requests("a", "b"), requests("b", "c"), requests("a", "c")
        async with asyncio.TaskGroup() as tasks:
            for wanted in (first, second, third):
                tasks.create_task(fetcher.fetch(reader, wanted))
            await turns(5)
            assert [read.names for read in reader.reads] == [["a", "b"], ["c"]]
            reader.finish_all()
        assert is_right(first)
        assert is_right(second)
        assert is_right(third)
        assert fetcher.inflight.num_shared == 3

    run(main(), loop)


def test_a_sample_that_stands_twice_in_a_batch_is_read_once(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(1)
        wanted = requests("a", "b", "a", "a")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetcher.fetch(reader, wanted))
            await turns(5)
            assert [read.names for read in reader.reads] == [["a", "b"]]
            reader.finish_all()
        assert is_right(wanted)

    run(main(), loop)


@pytest.mark.parametrize("what", ["another place", "another size", "another version", "later"])
def test_what_is_not_the_same_is_not_shared(loop: Loop, what: str) -> None:
    async def main() -> None:
        reader, other, fetcher = Shared(), Shared(), Fetcher(8)
        first, second = requests("a"), requests("a")
        if what == "another place":
            other.location = "there"
        if what == "another size":
            second = [ReadRequest("a", memoryview(bytearray(SIZE + 1)))]
        if what == "another version":
            second = requests("a", version=b"2")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetcher.fetch(reader, first))
            await turns(5)
            if what == "later":
                reader.finish_all()
                await turns(5)
            tasks.create_task(fetcher.fetch(other, second))
            await turns(5)
            assert len(reader.reads) == len(other.reads) == 1
            reader.finish_all()
            other.finish_all()
        assert fetcher.inflight.num_shared == 0

    run(main(), loop)


def test_ranges_are_shared_where_the_same_of_them_is_kept(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        first = ranges((0, 20), (20, 40))
        second = ranges((20, 40), (20, 41))
        third = [*ranges((0, 20), (20, 40), dropped=3), *ranges((0, 20))]
        async with asyncio.TaskGroup() as tasks:
            for wanted in (first, second, third):
                tasks.create_task(fetcher.fetch(reader, wanted))
            await turns(5)
            asked = [len(read.requests) for read in reader.reads]
            assert asked == [2, 1, 2], "one of the second and one of the third follow"
            reader.finish_all()
        assert is_filled([*first, *second, *third])
        assert fetcher.inflight.num_shared == 2

    run(main(), loop)


def test_ranges_of_other_objects_are_not_shared(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        (one,) = ranges((0, 20))
        assert isinstance(one, RangeRequest)
        others: list[Request] = [
            one._replace(object_bytes=65),
            one._replace(checksum=b"1"),
            one._replace(version=b"1"),
            one._replace(name="b"),
            ReadRequest("a", memoryview(bytearray(64))),
        ]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetcher.fetch(reader, [one, *others]))
            await turns(5)
            assert [len(read.requests) for read in reader.reads] == [6]
            reader.finish_all()

    run(main(), loop)


def test_a_follower_that_is_cancelled_is_not_written_to(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        first, second, third = requests("a"), requests("a"), requests("a")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetcher.fetch(reader, first))
            following = tasks.create_task(fetcher.fetch(reader, second))
            tasks.create_task(fetcher.fetch(reader, third))
            await turns(5)
            following.cancel()
            await turns(5)
            assert following.cancelled()
            reader.finish_all()
        assert is_right(first)
        assert is_right(third)
        assert is_untouched(second)

    run(main(), loop)


def test_when_the_leader_is_cancelled_the_next_one_leads(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        first, second, third = requests("a"), requests("a"), requests("a")
        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(fetcher.fetch(reader, first))
            tasks.create_task(fetcher.fetch(reader, second))
            tasks.create_task(fetcher.fetch(reader, third))
            await turns(5)
            leading.cancel()
            await until(lambda: len(reader.reads) == 2)
            reader.finish_all()
        assert is_untouched(first)
        assert is_right(second)
        assert is_right(third)
        assert fetcher.inflight.num_shared == 1

    run(main(), loop)


def test_a_failure_of_the_leader_is_not_taken_over_but_tried(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(outcome(fetcher.fetch(reader, requests("bad", "good"))))
            wanted = requests("good")
            following = tasks.create_task(outcome(fetcher.fetch(reader, wanted)))
            doomed = tasks.create_task(outcome(fetcher.fetch(reader, requests("bad"))))
            await turns(5)
            reader.reads[0].fail(missing("bad"))
            await until(lambda: len(reader.reads) == 3)
            # At the same time, not one after the other: each may take as long as the deadline.
            assert sorted(read.names for read in reader.under_way) == [["bad"], ["good"]]
            for read in reader.under_way:
                if read.names == ["good"]:
                    read.finish()
                else:
                    read.fail(missing("bad"))
        assert leading.result() == doomed.result() == "bad is gone"
        assert following.result() == ""
        assert is_right(wanted)

    run(main(), loop)


def test_a_follower_takes_no_place_while_it_waits(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(2)
        async with asyncio.TaskGroup() as tasks:
            for names in (["a"], ["a"], ["a"], ["b"]):
                tasks.create_task(fetcher.fetch(reader, requests(*names)))
            await turns(8)
            assert [read.names for read in reader.under_way] == [["a"], ["b"]]
            reader.finish_all()

    run(main(), loop)


def test_a_leader_that_follows_too_leaves_nothing_when_its_read_fails(loop: Loop) -> None:
    async def main() -> None:
        reader, fetcher = Shared(), Fetcher(8)
        first, second = requests("a"), requests("a", "b")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fetcher.fetch(reader, first))
            await turns(3)
            failing = tasks.create_task(outcome(fetcher.fetch(reader, second)))
            await turns(5)
            reader.reads[1].fail(missing("b"))
            await turns(5)
            assert failing.result() == "b is gone"
            reader.reads[0].finish()
        assert is_right(first)
        assert is_untouched(second), "its memory may be somebody else's by now"

    run(main(), loop)
