"""F1, F4: whatever a store does to a read, the bytes are right, or an error says what is wrong."""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from headrace_daemon.errors import (
    ObjectChangedError,
    ObjectCorruptError,
    ObjectError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
    SourceMissingError,
    StoreAccessError,
    StoreFullError,
    StoreUnavailableError,
)
from headrace_daemon.source.ais.objectread import MAX_CORRUPT
from headrace_daemon.source.ais.reader import WIDTH
from tests.support.hardships import WAYS
from tests.support.loops import LOOPS, run, until
from tests.support.reading_ais import bucket, listed, open_store, values, wanted
from tests.support.sources import selected
from tests.support.standin import (
    TOO_MANY_REQUESTS,
    Change,
    Corrupt,
    Crash,
    Cut,
    Delay,
    DropIdle,
    Hangup,
    Reset,
    Slow,
    Stall,
    StandIn,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from headrace_daemon.source.ais.store import AisStore
    from headrace_daemon.source.reader import ReadRequest
    from tests.support.loops import Loop
    from tests.support.standin import Effect

SIZE: Final = 100_000
NAMES: Final = tuple(f"d{number % 3}/{number:03}" for number in range(20))
OBJECTS: Final = {name: os.urandom(SIZE) for name in NAMES} | {"empty": b"", "é %/a+b": b"x"}
ONE: Final = NAMES[7]


class Ais(StandIn):
    """A stand-in that is read one of the ways."""

    way = "lean"


@pytest.fixture(params=["lean", "aiohttp"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ais(way: str) -> Iterator[Ais]:
    with Ais(num_proxies=2) as ais:
        ais.way = way
        ais.create_bucket("b")
        ais.put_many("b", OBJECTS)
        yield ais


def open_way(ais: Ais, **options: object) -> AbstractAsyncContextManager[AisStore]:
    return open_store(*ais.endpoints, **{**WAYS[ais.way], **options})  # type: ignore[arg-type]


async def read_all(ais: Ais, **options: object) -> AisStore:
    """Read everything, compare it, and return the store for its counts."""
    async with open_way(ais, **options) as store:
        requests = wanted(OBJECTS)
        await store.reader(bucket("ais://b")).read(requests)
        assert values(requests) == OBJECTS
        return store


async def read_one(ais: Ais, name: str = ONE, **options: object) -> AisStore:
    async with open_way(ais, **options) as store:
        requests = wanted(OBJECTS, [name])
        await store.reader(bucket("ais://b")).read(requests)
        assert values(requests) == {name: OBJECTS[name]}
        return store


def gets(ais: StandIn, name: str = ONE) -> list[str]:
    """Return the ranges that were asked of targets for an object; "" for the whole."""
    ports = {target.port for target in ais.targets}
    return [
        request.range
        for request in ais.requests
        if request.port in ports and request.method == "GET" and request.path.endswith(f"/{name}")
    ]


@pytest.mark.parametrize("loop", LOOPS)
def test_every_object_comes_from_its_owner_in_one_exchange(ais: Ais, loop: Loop) -> None:
    store = run(read_all(ais), loop)
    asked = [request for request in ais.requests if "/objects/" in request.path]
    assert len(asked) == len(OBJECTS)
    assert all(request.status == 200 for request in asked)
    for target in ais.targets:  # connections are kept: as many as are read side by side at most
        used = {request.connection for request in asked if request.port == target.port}
        assert len(used) <= WIDTH
    report = store.report()
    told = (report["lean_reads"], report["aiohttp_reads"])
    assert told == ((len(OBJECTS), 0) if ais.way == "lean" else (0, len(OBJECTS)))


@pytest.mark.parametrize("way", ["proxy"])
@pytest.mark.parametrize("loop", LOOPS)
def test_by_way_of_a_proxy_it_takes_two(ais: Ais, loop: Loop) -> None:
    store = run(read_all(ais), loop)
    assert store.report()["aiohttp_reads"] == len(OBJECTS)
    asked = [request.status for request in ais.requests if "/objects/" in request.path]
    assert sorted(asked) == [200] * len(OBJECTS) + [301] * len(OBJECTS)


# ---- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_slow_drip_ends_with_the_deadline(ais: Ais) -> None:
    ais.fault(Slow(1_000.0), target="any", path=f"b/{ONE}", times=None)
    with pytest.raises(StoreUnavailableError) as raised:
        run(read_one(ais, deadline_s=0.5))
    assert f"object ais://b/{ONE} cannot be read" in str(raised.value)
    assert "within 0.5 s ([store] deadline_s)" in str(raised.value)
    assert len(gets(ais)) == 1, "it had all the time that there was"


@pytest.mark.parametrize("effect", [Cut(30_000), Stall(30_000), Reset(30_000)], ids=str)
def test_what_has_arrived_is_not_asked_for_again(ais: Ais, effect: Effect) -> None:
    ais.fault(effect, target="any", path=f"b/{ONE}", times=2)
    run(read_one(ais, stall_s=0.2))
    whole, *rest = gets(ais)
    assert whole == ""
    matches = [re.fullmatch(r"bytes=(\d+)-", asked) for asked in rest]
    starts = [int(match[1]) for match in matches if match is not None]
    if not isinstance(effect, Reset):  # which may take back what was on its way
        assert starts == [30_000, 60_000]
        parts = [request for request in ais.requests if request.status in (200, 206)]
        assert sum(part.sent_bytes for part in parts if part.path.endswith(ONE)) == SIZE
    assert 0 < starts[0] <= starts[-1] < SIZE


def test_the_rest_of_another_object_is_not_taken(ais: Ais) -> None:
    new = os.urandom(SIZE)
    ais.fault(Cut("middle"), target="any", path=f"b/{ONE}", times=1)
    ais.fault(Change(new), target="any", path=f"b/{ONE}", times=1, direct=False)

    async def main() -> dict[str, bytes]:
        async with open_way(ais) as store:
            requests = wanted(OBJECTS, [ONE])
            await store.reader(bucket("ais://b")).read(requests)
            return values(requests)

    assert run(main()) == {ONE: new}, "all of one version, none of the other"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [429, 503])
def test_who_is_told_when_to_come_again_does_not_come_before(ais: Ais, status: int) -> None:
    ais.fault(Status(status, retry_after="1"), target="any", path=f"b/{ONE}", times=1)
    store = run(read_one(ais))
    first, second = (
        request.time_s
        for request in ais.requests
        if request.path.endswith(ONE) and request.status in (status, 200)
    )
    assert second - first >= 1.0
    assert store.counts.num_retries == 1
    assert store.targets.report()["trips"] == 0


def test_a_wait_that_is_asked_for_ends_with_the_deadline(ais: Ais) -> None:
    ais.fault(Status(429, retry_after="60"), target="any", path=f"b/{ONE}", times=None)
    with pytest.raises(StoreUnavailableError, match=r"429.*tried once within 0\.3 s"):
        run(read_one(ais, deadline_s=0.3))


def test_a_kept_connection_that_the_store_dropped_costs_no_retry(ais: Ais) -> None:
    ais.fault(DropIdle(reset=True), target="any", path="b/*", times=10)
    store = run(read_all(ais))
    assert store.counts.num_retries <= 10


def test_connections_that_are_closed_after_each_answer_are_no_trouble(way: str) -> None:
    with Ais(idle_s=0.0) as ais:
        ais.way = way
        ais.create_bucket("b")
        ais.put_many("b", OBJECTS)
        store = run(read_all(ais))
        if way == "lean":
            # None, unless a connection is closed twice before its first answer begins.
            assert store.counts.num_retries <= 2


# ---- what may be left out ------------------------------------------------------------------------


def test_objects_that_cannot_be_read_may_be_left_out(ais: Ais) -> None:
    """All others come, once; what is wrong with the store itself is never left out."""
    gone, corrupt, changed = NAMES[3], NAMES[11], NAMES[17]
    ais.fault(
        Status(404, "does not exist", "ErrNotFound"), target="any", path=f"b/{gone}", times=None
    )
    ais.fault(Corrupt("middle"), target="any", path=f"b/{corrupt}", times=None)
    found: dict[str, ObjectError] = {}

    def requests() -> list[ReadRequest]:
        return [
            request._replace(
                on_bad=partial(found.__setitem__, request.name),
                version=b"77" if request.name == changed else b"",
            )
            for request in wanted(OBJECTS)
        ]

    async def main() -> None:
        async with open_way(ais) as store:
            asked = requests()
            await store.reader(bucket("ais://b")).read(asked)
            here = {name: value for name, value in values(asked).items() if name not in found}
            assert here == {n: v for n, v in OBJECTS.items() if n not in (gone, corrupt, changed)}
        assert {name: type(error) for name, error in found.items()} == {
            gone: ObjectMissingError,
            corrupt: ObjectCorruptError,
            changed: ObjectChangedError,
        }
        for name in set(NAMES) - {gone, corrupt}:
            asked_for = [one for one in ais.requests if one.path.endswith(f"/b/{name}")]
            # On the lean wire one that stood behind the changed object is asked for once more: a
            # body that nobody wants ends its connection.
            assert len(asked_for) in (1, 2), name

    run(main())
    found.clear()
    ais.fault(Hangup(), target="any", times=None)
    ais.fault(Hangup(), proxy="any", times=None)

    async def main_down() -> None:
        async with open_way(ais, deadline_s=0.3) as store:
            with pytest.raises(SourceError):
                await store.reader(bucket("ais://b")).read(requests())

    run(main_down())
    assert found == {}


# ---- what does not pass --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "kind", "told"),
    [
        (Status(404, "ais://b/x does not exist", "ErrNotFound"), ObjectMissingError, "not in the"),
        (Status(410), ObjectMissingError, "answered 410"),
        (Status(501, "no ETL", "ErrUnsupp"), ObjectUnreadableError, "501 (ErrUnsupp: no ETL)"),
        (Status(507, "out of space"), StoreFullError, "507 (out of space): make room"),
        (Status(400, "bad request"), ObjectUnreadableError, "400 (bad request)"),
        (Status(403, "no permission"), StoreAccessError, "may not be read"),
        (Status(503), StoreUnavailableError, "tried"),
        (TOO_MANY_REQUESTS, StoreUnavailableError, "429"),
        (Status(416), StoreUnavailableError, "416"),
        (Hangup(), StoreUnavailableError, "closed the connection without an answer"),
        (Cut("first"), StoreUnavailableError, "broke off in the middle"),
        (Stall("middle"), StoreUnavailableError, "did not send anything for too long"),
        (Corrupt(), ObjectCorruptError, f"arrived {MAX_CORRUPT} times"),
    ],
    ids=str,
)
def test_a_fault_that_stays_is_an_error_that_names_it(
    ais: Ais, effect: Effect, kind: type[SourceError], told: str
) -> None:
    ais.fault(effect, target="any", path=f"b/{ONE}", times=None)
    with pytest.raises(kind) as raised:
        patience_s = 0.6 if kind is StoreUnavailableError else 10.0
        run(read_one(ais, deadline_s=patience_s, stall_s=0.1))
    text = str(raised.value)
    assert f"object ais://b/{ONE}" in text
    assert told in text
    assert any(target.id in text or str(target.port) in text for target in ais.targets)
    num_asked = len(gets(ais))
    assert num_asked <= 12, "bounded"


def test_a_bucket_that_is_gone_is_an_error_that_names_it(ais: Ais) -> None:
    async def main() -> None:
        async with open_way(ais) as store:
            await store.reader(bucket("ais://nope")).read(wanted(OBJECTS, [ONE]))

    with pytest.raises(SourceMissingError, match="bucket ais://nope does not exist"):
        run(main())


def test_one_bad_object_fails_its_group_and_nothing_writes_any_more(ais: Ais) -> None:
    ais.fault(Status(501), target="any", path=f"b/{ONE}", times=None)
    with pytest.raises(ObjectUnreadableError):
        run(read_all(ais))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_read_stops_writing(ais: Ais, loop: Loop) -> None:
    ais.fault(Stall("middle"), target="any", times=None)

    async def main() -> None:
        async with open_way(ais, stall_s=60.0) as store:
            requests = wanted(OBJECTS, NAMES)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(store.reader(bucket("ais://b")).read(requests))
                await until(lambda: any(any(request.target) for request in requests))
                reading.cancel()
            for request in requests:
                request.target[:] = bytes(SIZE)
                request.target.release()

    run(main(), loop)


# ---- changed objects -----------------------------------------------------------------------------


async def list_and_read(ais: Ais, tmp_path: Path, change: Effect | None = None) -> None:
    async with open_way(ais) as store:
        manifest = await store.list_objects(selected("ais://b"), tmp_path)
        requests = listed(manifest)
        if change is not None:
            ais.fault(change, target="any", path=f"b/{ONE}", times=1)
        await store.reader(bucket("ais://b")).read(requests)
        assert values(requests) == {name: OBJECTS[name] for name in sorted(OBJECTS)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Change(b"short"), "has 5 bytes"),
        (Change(bytes(SIZE)), "has checksum"),
        (Change(bytes(SIZE), keep_version=True), "has checksum"),
    ],
    ids=["another size", "other bytes", "other bytes under the same version"],
)
def test_an_object_that_changed_after_the_listing_is_noticed(
    ais: Ais, tmp_path: Path, change: Effect, told: str
) -> None:
    with pytest.raises(ObjectChangedError) as raised:
        run(list_and_read(ais, tmp_path, change))
    assert f"object ais://b/{ONE}" in str(raised.value)
    assert told in str(raised.value)
    assert "index SOURCE --refresh" in str(raised.value)


def test_the_same_bytes_stored_again_are_no_change(ais: Ais, tmp_path: Path) -> None:
    run(list_and_read(ais, tmp_path, Change(OBJECTS[ONE])))


# ---- nodes ---------------------------------------------------------------------------------------


def test_a_target_that_is_away_for_a_moment_is_waited_for(ais: Ais) -> None:
    ais.fault(Crash("middle"), target="any", path=f"b/{ONE}", times=1)
    owner = ais.owner("b", ONE)
    brought_back = ais.fault(Delay(0.0), proxy="any", path="/v1/daemon*", times=None)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read_all(ais))
            await until(lambda: brought_back.fired == 2)  # the map was asked for anew
            await asyncio.to_thread(owner.start)
            await reading

    run(main())
    assert ais.requests


def test_an_object_of_a_target_that_left_the_map_is_not_called_missing(ais: Ais) -> None:
    owner = ais.owner("b", ONE)

    async def main() -> None:
        async with open_way(ais, deadline_s=1.0) as store:
            await store.cluster.current()
            owner.stop()
            ais.remove_from_map(owner)
            await store.reader(bucket("ais://b")).read(wanted(OBJECTS, [ONE]))

    with pytest.raises(StoreUnavailableError) as raised:
        run(main())
    assert f"object ais://b/{ONE}" in str(raised.value)
    assert "bring it back" in str(raised.value)
    assert owner.id in str(raised.value)


def test_an_object_of_a_target_that_comes_back_is_read(ais: Ais) -> None:
    owner = ais.owner("b", ONE)

    async def main() -> None:
        async with open_way(ais) as store:
            await store.cluster.current()
            owner.stop()
            ais.remove_from_map(owner)
            requests = wanted(OBJECTS, [ONE])
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(store.reader(bucket("ais://b")).read(requests))
                await until(lambda: store.cluster.missing)

                def back() -> None:
                    owner.start()
                    ais.return_to_map(owner)

                await asyncio.to_thread(back)
                await reading
            assert values(requests) == {ONE: OBJECTS[ONE]}

    run(main())


def test_a_new_target_takes_over_without_a_word(ais: Ais) -> None:
    async def main() -> None:
        async with open_way(ais) as store:
            await store.cluster.current()
            ais.add_target()
            ais.rebalance()
            requests = wanted(OBJECTS)
            await store.reader(bucket("ais://b")).read(requests)
            assert values(requests) == OBJECTS

    run(main())


def test_another_proxy_answers_when_the_first_is_down(ais: Ais) -> None:
    ais.proxies[0].stop()
    run(read_all(ais))
    ais.way = "proxy"
    run(read_all(ais))


def test_a_store_that_is_down_is_an_error_within_the_deadline(ais: Ais) -> None:
    for node in (*ais.proxies, *ais.targets):
        node.stop()
    with pytest.raises(StoreUnavailableError) as raised:
        run(read_all(ais, deadline_s=0.5))
    assert "[store] deadline_s" in str(raised.value)
    assert ais.endpoint in str(raised.value)


# ---- rights --------------------------------------------------------------------------------------


def test_a_token_goes_to_proxies_only_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text('{"token": "old"}\n')
    with Ais(token="old") as ais:
        ais.create_bucket("b")
        ais.put_many("b", OBJECTS)

        async def main() -> None:
            async with open_way(ais, token_file=str(path)) as store:
                reader = store.reader(bucket("ais://b"))
                first = wanted(OBJECTS, NAMES[:5])
                await reader.read(first)
                assert not store.cluster.serves_direct, "the targets do not serve clients"
                ais.set_token("new")
                path.write_text("new")
                second = wanted(OBJECTS, NAMES[5:])
                await reader.read(second)
                assert values(first) | values(second) == {name: OBJECTS[name] for name in NAMES}
                ais.set_token("newest")
                with pytest.raises(StoreAccessError) as raised:
                    await reader.read(wanted(OBJECTS, [ONE]))
                assert str(path) in str(raised.value)
                assert "old" not in str(raised.value)

        run(main())
