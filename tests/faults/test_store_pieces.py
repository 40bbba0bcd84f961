"""Large objects, which come as ranges side by side, from a store where anything may go wrong."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest

from headrace_daemon.errors import ObjectChangedError, ObjectMissingError
from headrace_daemon.source.ais import pieces
from headrace_daemon.source.ais.lean import lane
from headrace_daemon.source.reader import ReadRequest
from tests.support.hardships import WAYS
from tests.support.loops import LOOPS, run, turns, until
from tests.support.reading_ais import bucket, listed, open_store, values, wanted
from tests.support.sources import selected
from tests.support.standin import (
    UNAVAILABLE,
    Change,
    Corrupt,
    Cut,
    Delay,
    Reset,
    StandIn,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace_daemon.source.ais.store import AisStore
    from tests.support.loops import Loop
    from tests.support.standin import Effect

PIECE: Final = 10_000
LARGE: Final = 10 * PIECE - 7
OBJECTS: Final = {"large": os.urandom(LARGE), "small": os.urandom(PIECE - 1), "é +%": b"1" * PIECE}


@pytest.fixture(autouse=True)
def large_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LARGE_BYTES", PIECE)
    monkeypatch.setattr(pieces, "MIN_BYTES", PIECE)
    monkeypatch.setattr(pieces, "MAX_BYTES", PIECE)
    monkeypatch.setattr(lane, "PIPELINED_BYTES", PIECE)  # each has a connection, as large ones have


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(num_proxies=2) as ais:
        ais.create_bucket("b")
        ais.put_many("b", OBJECTS)
        yield ais


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    return WAYS[str(request.param)]


async def read(ais: StandIn, way: dict[str, str], *names: str, uri: str = "ais://b") -> AisStore:
    """Read objects, compare them, and return the store for its counts."""
    async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
        requests = wanted(OBJECTS, names or None)
        await store.reader(bucket(uri)).read(requests)
        found = values(requests)
        assert found == {name: OBJECTS[name] for name in found}
        return store


def ranges(ais: StandIn, name: str = "large") -> list[tuple[int, int] | None]:
    """Return first and last byte of what targets were asked for of an object; None: all of it."""
    ports = {target.port for target in ais.targets}
    return [
        (int(found[1]), int(found[2]))
        if (found := re.fullmatch(r"bytes=(\d+)-(\d+)", request.range))
        else None
        for request in ais.requests
        if request.port in ports and request.method == "GET" and request.path.endswith(f"/{name}")
    ]


def spans(ais: StandIn, name: str = "large") -> list[tuple[int, int]]:
    """Return the ranges that were asked for, in their order in the object."""
    found = [one for one in ranges(ais, name) if one is not None]
    assert len(found) == len(ranges(ais, name))
    return sorted(found)


@pytest.mark.parametrize("loop", LOOPS)
def test_each_byte_is_asked_for_once(ais: StandIn, way: dict[str, str], loop: Loop) -> None:
    store = run(read(ais, way), loop)
    asked = spans(ais)
    assert len(asked) == 10
    assert asked[0][0] == 0
    assert asked[-1][1] == LARGE - 1
    assert all(last + 1 == first for (_, last), (first, _) in pairwise(asked))
    assert ranges(ais, "small") == [None]
    assert ranges(ais, "é +%") == [(0, PIECE - 1)]
    # An object is counted as one, however many ranges it came in.
    assert sum(counts.num_reads for counts in store.counts.nodes.values()) == 3
    assert sum(counts.num_bytes for counts in store.counts.nodes.values()) == sum(
        map(len, OBJECTS.values())
    )


@pytest.mark.parametrize(
    ("size", "num_pieces", "largest"),
    [
        (8 << 20, 4, 2 << 20),
        ((8 << 20) + 1, 5, 2 << 20),
        (64 << 20, 8, 8 << 20),
        (1000 << 20, 125, 8 << 20),
    ],
)
def test_pieces_are_of_two_to_eight_mebibytes(
    monkeypatch: pytest.MonkeyPatch, size: int, num_pieces: int, largest: int
) -> None:
    monkeypatch.undo()
    memory = mmap.mmap(-1, size)  # nothing is written to it, so there is none
    request = ReadRequest("x", memoryview(memory))
    with pieces.Pieces(bucket("ais://b"), request) as parts:
        assert len(parts.pieces) == num_pieces
        assert max(piece.size for piece in parts.pieces) == largest
    request.target.release()
    memory.close()


def test_no_more_than_some_are_under_way_at_a_time(ais: StandIn, way: dict[str, str]) -> None:
    async def main() -> int:
        gate = ais.fault(Delay(None), target="any", path="b/large", times=None)
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            target = memoryview(bytearray(LARGE))
            reading = asyncio.get_running_loop().create_task(
                store.reader(bucket("ais://b")).read([ReadRequest("large", target)]), name="read"
            )
            await until(lambda: gate.fired == pieces.WIDTH)
            await turns(20)
            fired = gate.fired
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            # Nothing is written any more, and nobody holds a part of the memory.
            target.release()
            return fired

    assert run(main()) == pieces.WIDTH


def test_where_many_large_objects_are_read_most_come_as_a_whole(
    ais: StandIn, way: dict[str, str]
) -> None:
    objects = {f"l{number}": os.urandom(3 * PIECE) for number in range(pieces.AT_ONCE + 3)}
    ais.put_many("b", objects)

    async def main() -> dict[str, bytes]:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            reader = store.reader(bucket("ais://b"))
            for _ in range(2):
                requests = wanted(objects)
                await reader.read(requests)
            return values(requests)

    assert run(main()) == objects
    whole = [name for name in objects if None in ranges(ais, name)]
    assert len(whole) == 3
    assert sum(len(ranges(ais, name)) for name in objects) == 2 * (3 * pieces.AT_ONCE + 3)


@pytest.mark.parametrize(
    "effect", [UNAVAILABLE, Reset(), Reset("middle"), Cut(0), Cut("last"), Status(500)], ids=repr
)
def test_a_piece_that_breaks_off_is_continued(
    ais: StandIn, way: dict[str, str], effect: Effect
) -> None:
    fault = ais.fault(effect, target="any", path="b/large", times=4)
    run(read(ais, way, "large"))
    assert fault.fired == 4
    asked = spans(ais)
    # Asked again, from where it broke off; never all of it.
    assert {start // PIECE for start, _ in asked} == set(range(10))
    assert all(last - first < PIECE for first, last in asked)


@pytest.mark.parametrize("loop", LOOPS)
def test_bytes_without_the_checksum_of_the_whole_are_read_again(
    ais: StandIn, way: dict[str, str], loop: Loop
) -> None:
    ais.fault(Corrupt(), target="any", path="b/large", times=1)
    store = run(read(ais, way, "large"), loop)
    assert "without the checksum" in store.counts.last_fault
    assert ranges(ais).count(None) == 1


def changing(ais: StandIn, effect: Effect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an object change when about half of its pieces have arrived, one after the other."""
    monkeypatch.setattr(pieces, "WIDTH", 1)
    # The seed decides which range meets it: neither the first one nor the last.
    ais.fault(effect, target="any", path="b/large", times=1, rate=0.3, seed=4)


NEW: Final = os.urandom(LARGE)


def test_no_object_is_made_of_two(
    ais: StandIn, way: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changing(ais, Change(NEW), monkeypatch)

    async def main() -> dict[str, bytes]:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            requests = wanted(OBJECTS, ["large"])
            await store.reader(bucket("ais://b")).read(requests)
            return values(requests)

    assert run(main()) == {"large": NEW}
    asked = ranges(ais)
    assert 1 < len(asked) < 11
    assert asked[-1] is None, "all of it, as a whole"


@pytest.mark.parametrize(
    ("data", "told"), [(NEW, "has checksum"), (NEW[: LARGE // 2], "has checksum")]
)
def test_a_change_after_the_listing_is_noticed_by_the_first_range(
    ais: StandIn,
    way: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    told: str,
) -> None:
    changing(ais, Change(data), monkeypatch)

    async def main() -> None:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            manifest = await store.list_objects(selected("ais://b/large"), tmp_path)
            await store.reader(bucket("ais://b")).read(listed(manifest))

    with pytest.raises(ObjectChangedError, match=told):
        run(main())
    assert None not in ranges(ais)


@pytest.mark.parametrize("size", [PIECE, LARGE - 1, LARGE + 1])
def test_another_size_is_found_out_also_where_nothing_else_is_known(
    ais: StandIn, way: dict[str, str], size: int
) -> None:
    ais.put("b", "large", os.urandom(size))
    with pytest.raises(ObjectChangedError, match=f"has {size} bytes"):
        run(read(ais, way, "large"))


def test_a_large_object_that_is_gone_is_named(ais: StandIn, way: dict[str, str]) -> None:
    ais.delete("b", "large")
    with pytest.raises(ObjectMissingError, match="object ais://b/large is in the manifest but"):
        run(read(ais, way))


def test_a_large_object_that_cannot_be_read_is_left_out_alone_where_that_is_allowed(
    ais: StandIn, way: dict[str, str]
) -> None:
    ais.delete("b", "large")
    told: list[str] = []

    async def main() -> dict[str, bytes]:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            requests = [
                request._replace(on_bad=lambda error: told.append(error.what))
                for request in wanted(OBJECTS)
            ]
            await store.reader(bucket("ais://b")).read(requests)
            return values(requests)

    found = run(main())
    assert told == ["object ais://b/large"]
    assert {name: data for name, data in OBJECTS.items() if found[name] == data}.keys() == {
        "small",
        "é +%",
    }


def test_large_objects_of_a_provider_come_as_a_whole(ais: StandIn) -> None:
    remote = ais.create_bucket("far", provider="aws")
    ais.create_bucket("near", backend_bck=remote)
    for name, data in OBJECTS.items():
        ais.put(remote, name, data, cached=False)
    for uri in ("s3://far", "ais://near"):
        run(read(ais, {}, uri=uri))
    assert ranges(ais) == [None, None]


def test_where_targets_serve_nobody_directly_pieces_come_by_the_proxy(ais: StandIn) -> None:
    ais.set_denies_direct(True)
    store = run(read(ais, {}, "large"))
    assert not store.cluster.serves_direct
    assert {start for start, _ in spans(ais)} == {PIECE * number for number in range(10)}
