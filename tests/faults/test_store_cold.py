"""Buckets of a provider, whose objects are not in the cluster yet; and objects given by name.

The provider takes its time, and its list may come without sizes.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest

from headrace_daemon.errors import ObjectMissingError, StoreUnavailableError
from headrace_daemon.source.ais import lookup, pages
from tests.support.loops import LOOPS, run
from tests.support.reading_ais import listed, open_store, values
from tests.support.sources import selected
from tests.support.standin import BUSY, DIRECT_DENIED, UNAVAILABLE, Reset, Stall, StandIn

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.manifest import Manifest
    from tests.support.loops import Loop

OBJECTS: Final = {f"a/{n:02}": bytes([n]) * (100 + n) for n in range(12)} | {"a/empty": b""}
WARM: Final = ("a/03", "a/07")


def fill(server: StandIn, *, has_sizes: bool = True) -> None:
    remote = server.create_bucket("far", provider="aws", has_sizes=has_sizes)
    server.create_bucket("near", backend_bck=remote)
    for name, data in OBJECTS.items():
        server.put(remote, name, data, cached=name in WARM)


def asked(server: StandIn, method: str) -> list[str]:
    """Return the names of objects that targets were asked for."""
    ports = {target.port for target in server.targets}
    return [
        request.path.partition("/far/")[2] or request.path.partition("/near/")[2]
        for request in server.requests
        if request.port in ports and request.method == method and "/objects/" in request.path
    ]


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("uri", ["s3://far/a/", "ais://near/a/"])
def test_sizes_that_no_list_tells_are_asked_for_and_no_others(
    tmp_path: Path, uri: str, loop: Loop
) -> None:
    async def list_it(server: StandIn) -> Manifest:
        async with open_store(server.endpoint) as store:
            return await store.list_objects(selected(uri), tmp_path)

    with StandIn() as server:
        fill(server, has_sizes=False)
        manifest = run(list_it(server), loop)
        assert sorted(asked(server, "HEAD")) == sorted(set(OBJECTS) - set(WARM))
        assert not asked(server, "GET")
    assert {entry.name: entry.size for entry in map(manifest.__getitem__, range(13))} == {
        name: len(data) for name, data in OBJECTS.items()
    }
    assert manifest.checksums is not None
    assert all(manifest.checksums.tolist())
    assert manifest.versions is not None
    assert all(manifest.versions.tolist())


def test_a_list_with_sizes_is_enough_but_for_what_is_empty(tmp_path: Path) -> None:
    async def list_it(server: StandIn) -> None:
        async with open_store(server.endpoint) as store:
            await store.list_objects(selected("s3://far"), tmp_path)
            await store.list_objects(selected("ais://own"), tmp_path)

    with StandIn() as server:
        fill(server)
        server.create_bucket("own")
        server.put("own", "empty", b"")
        run(list_it(server))
        # Zero is left out of a list, so it is not told from "unknown".  The store's own lists are
        # known to have sizes.
        assert asked(server, "HEAD") == ["a/empty"]


# --- Patience -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("uri", ["s3://far", "ais://near"])
def test_the_store_may_be_silent_while_it_fetches_an_object(
    tmp_path: Path, uri: str, loop: Loop
) -> None:
    async def read(server: StandIn) -> tuple[dict[str, bytes], int]:
        async with open_store(server.endpoint, stall_s=0.1, deadline_s=30) as store:
            manifest = await store.list_objects(selected(uri), tmp_path)
            requests = listed(manifest)
            bucket = selected(uri).bucket
            assert bucket is not None
            await store.reader(bucket).read(requests)
            return values(requests), store.counts.num_retries

    with StandIn(cold_get_s=0.4) as server:
        fill(server)
        assert run(read(server), loop) == (OBJECTS, 0)
        # Nobody asks twice, which would have the provider asked twice.
        assert sorted(asked(server, "GET")) == sorted(OBJECTS)
        assert not [request for request in server.requests if request.range]


def test_the_deadline_ends_what_never_comes(tmp_path: Path) -> None:
    async def read(server: StandIn) -> None:
        async with open_store(server.endpoint, stall_s=0.1, deadline_s=0.3) as store:
            manifest = await store.list_objects(selected("s3://far", names=["a/03"]), tmp_path)
            bucket = selected("s3://far").bucket
            assert bucket is not None
            await store.reader(bucket).read(listed(manifest))

    with StandIn() as server:
        fill(server)
        server.fault(Stall(0, None), method="GET", target="any", times=None)
        with pytest.raises(StoreUnavailableError, match=r"within 0\.3 s"):
            run(read(server))


def test_an_object_that_somebody_else_fetches_is_asked_for_again(tmp_path: Path) -> None:
    async def read(server: StandIn) -> dict[str, bytes]:
        async with open_store(server.endpoint) as store:
            manifest = await store.list_objects(selected("s3://far"), tmp_path)
            requests = listed(manifest)
            bucket = selected("s3://far").bucket
            assert bucket is not None
            await store.reader(bucket).read(requests)
            return values(requests)

    with StandIn() as server:
        fill(server)
        fault = server.fault(BUSY, method="GET", target="any", times=3)
        assert run(read(server)) == OBJECTS
        assert fault.fired == 3


# --- Objects by name ------------------------------------------------------------------------------

NAMES: Final = [f"n/{n:03}" for n in range(100)]


def own(server: StandIn) -> None:
    server.create_bucket("b")
    server.put_many("b", {name: name.encode() * number for number, name in enumerate(NAMES)})


async def look_up(server: StandIn, root: Path, names: list[str], **options: object) -> Manifest:
    async with open_store(server.endpoint, **options) as store:  # type: ignore[arg-type]
        return await store.list_objects(selected("ais://b", names=names), root)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("direct", ["auto", "off"])
def test_objects_by_name_are_asked_for_side_by_side_and_once(
    tmp_path: Path, loop: Loop, direct: str
) -> None:
    with StandIn() as server:
        own(server)
        manifest = run(look_up(server, tmp_path, NAMES[::-1], direct=direct), loop)
        assert sorted(asked_of(server)) == NAMES
        checksums = [server.stored("b", name).checksum.encode() for name in NAMES]
    assert [manifest.name(index) for index in range(100)] == NAMES[::-1]
    assert manifest.sizes.tolist() == [5 * number for number in range(100)][::-1]
    assert manifest.checksums is not None
    assert manifest.checksums.tolist() == checksums[::-1]


def asked_of(server: StandIn) -> list[str]:
    ports = {target.port for target in server.targets}
    return [
        request.path.removeprefix("/v1/objects/b/")
        for request in server.requests
        if request.port in ports and request.method == "HEAD"
    ]


@pytest.mark.parametrize("effect", [UNAVAILABLE, Reset(), BUSY, DIRECT_DENIED], ids=repr)
def test_faults_of_inquiries_are_those_of_reads(tmp_path: Path, effect: object) -> None:
    with StandIn() as server:
        own(server)
        fault = server.fault(effect, method="HEAD", target="any", times=5)  # type: ignore[arg-type]
        manifest = run(look_up(server, tmp_path, NAMES))
        assert fault.fired == 5
    assert manifest.sizes.tolist() == [5 * number for number in range(100)]


def test_a_name_is_missing_only_while_no_target_is(tmp_path: Path) -> None:
    async def ask(server: StandIn) -> None:
        async with open_store(server.endpoint, deadline_s=0.5) as store:
            await store.cluster.current()
            gone = server.owner("b", NAMES[0])
            server.remove_from_map(gone)
            await store.cluster.after()
            await store.list_objects(selected("ais://b", names=NAMES[:1]), tmp_path)

    with StandIn() as server:
        own(server)
        with pytest.raises(ObjectMissingError, match=r"n/nothing is in names= and not in"):
            run(look_up(server, tmp_path, [NAMES[0], "n/nothing"]))
        with pytest.raises(StoreUnavailableError, match="was in the cluster map and is missing"):
            run(ask(server))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_page_tells_of_many_names_at_once(tmp_path: Path, loop: Loop) -> None:
    objects = {f"m/{n:04}": b"x" * n for n in range(600)}
    names = random.Random(1).sample(sorted(objects), 300)
    with StandIn() as server:
        server.create_bucket("b")
        server.put_many("b", objects)
        manifest = run(look_up(server, tmp_path, names), loop)
        checksums = [server.stored("b", name).checksum.encode() for name in names]
        assert not asked_of(server)
        assert len(lists(server)) == 1
    assert [manifest.name(index) for index in range(300)] == names
    assert manifest.sizes.tolist() == [int(name[2:]) for name in names]
    assert manifest.checksums is not None
    assert manifest.checksums.tolist() == checksums


def lists(server: StandIn) -> list[str]:
    return [
        request.target
        for request in server.requests
        if request.path == "/v1/buckets/b" and request.method == "GET"
    ]


def test_no_more_pages_are_read_than_the_names_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NAMES_FOR_A_PAGE", 40)
    monkeypatch.setattr(pages, "PAGE_OBJECTS", 10)
    with StandIn() as server:
        own(server)
        manifest = run(look_up(server, tmp_path, NAMES))
        assert len(lists(server)) == 100 // 40
        assert sorted(asked_of(server)) == NAMES[20:]
        server.forget_requests()
        server.set_rebalancing(True)  # pages may lack something: they are not relied on
        again = run(look_up(server, tmp_path, NAMES))
        assert sorted(asked_of(server)) == NAMES
    assert again.digest == manifest.digest
    assert manifest.sizes.tolist() == [5 * number for number in range(100)]


def test_sizes_of_a_provider_that_a_page_lacks_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NAMES_FOR_A_PAGE", 4)

    async def list_it(server: StandIn) -> Manifest:
        async with open_store(server.endpoint) as store:
            return await store.list_objects(selected("s3://far", names=list(OBJECTS)), tmp_path)

    with StandIn() as server:
        fill(server, has_sizes=False)
        manifest = run(list_it(server))
        assert sorted(asked(server, "HEAD")) == sorted(set(OBJECTS) - set(WARM))
    assert manifest.sizes.tolist() == list(map(len, OBJECTS.values()))
