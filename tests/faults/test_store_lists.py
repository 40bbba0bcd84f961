"""Listings: names and sizes as the store has them, whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from headrace.manifest import Manifest
from headrace_daemon.errors import (
    ObjectUnreadableError,
    SourceError,
    SourceMissingError,
    StoreUnavailableError,
)
from headrace_daemon.source.ais import pages as module
from headrace_daemon.source.ais.client import Answer
from headrace_daemon.source.writer import ManifestWriter
from tests.support.loops import LOOPS, run, turns, until
from tests.support.reading_ais import open_store
from tests.support.sources import selected
from tests.support.standin import (
    LIST_FAILED,
    UNAVAILABLE,
    Cut,
    Delay,
    Hangup,
    Reset,
    Stall,
    StandIn,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.selections import Selection
    from headrace_daemon.source.ais.faults import Fault
    from headrace_daemon.source.ais.store import AisStore
    from tests.support.loops import Loop
    from tests.support.standin import Effect

NUM: Final = 2500
PAGE: Final = 1000
OBJECTS: Final = {f"a/{number:04}.bin": bytes(number % 7) for number in range(NUM)}


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(num_proxies=2) as ais:
        ais.create_bucket("b")
        ais.put_many("b", OBJECTS)
        yield ais


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_OBJECTS", PAGE)


async def list_it(
    ais: StandIn, root: Path, source: Selection | None = None, deadline_s: float = 10.0
) -> Manifest:
    async with open_store(*ais.endpoints, deadline_s=deadline_s) as store:
        return await store.list_objects(source or selected("ais://b"), root)


def entries(manifest: Manifest) -> dict[str, int]:
    return {manifest[index].name: manifest[index].size for index in range(len(manifest))}


def sizes(objects: dict[str, bytes]) -> dict[str, int]:
    return {name: len(objects[name]) for name in sorted(objects, key=str.encode)}


def lists(ais: StandIn) -> int:
    return sum(
        request.method == "GET" and request.path.startswith("/v1/buckets/")
        for request in ais.requests
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_a_bucket_becomes_a_manifest_page_by_page(ais: StandIn, tmp_path: Path, loop: Loop) -> None:
    told: list[int] = []

    async def main() -> Manifest:
        async with open_store(ais.endpoint) as store:
            return await store.list_objects(selected("ais://b"), tmp_path, told.append)

    manifest = run(main(), loop)
    assert list(entries(manifest).items()) == list(sizes(OBJECTS).items())
    assert told == [1000, 2000, 2500]
    assert manifest.checksums is not None
    assert manifest.versions is not None
    for index, name in enumerate(sorted(OBJECTS)):
        stored = ais.stored("b", name)
        assert manifest.checksums[index].decode() == stored.checksum
        assert manifest.versions[index].decode() == stored.version
    assert os.listdir(tmp_path) == [manifest.digest]


@pytest.mark.parametrize(
    "prefix",
    [
        "a/000",
        "a/00",
        "a/1",
        "a/2499",
        "a/2499.bin",
        "a",
        "ab",
        "a-",
        "b/c",
        "b/cd",
        "~",
        "é",
        "é/",
        "日",
    ],
)
def test_a_prefix_is_the_beginning_of_names_whatever_folders_there_are(
    ais: StandIn, tmp_path: Path, prefix: str
) -> None:
    """The store itself lists of `b/c` only what is below `b/c/`, and of `a` what is below `a/`."""
    more = ["ab", "a-old/1", "a1", "b/c/1", "b/cd", "b/c1/2", "b/d", "~x", "~", "é/1", "éa", "日本"]
    objects = OBJECTS | dict.fromkeys(more, b"12")
    ais.put_many("b", dict.fromkeys(more, b"12"))
    expected = {name: data for name, data in objects.items() if name.startswith(prefix)}
    source = selected(f"ais://b/{prefix}")
    ais.forget_requests()
    assert entries(run(list_it(ais, tmp_path, source))) == sizes(expected)


def test_a_list_ends_where_the_prefix_does(ais: StandIn, tmp_path: Path) -> None:
    ais.forget_requests()
    assert len(run(list_it(ais, tmp_path, selected("ais://b/a/000")))) == 10
    assert lists(ais) == 3, "the long names, a page, and one that has nothing more"
    ais.forget_requests()
    assert len(run(list_it(ais, tmp_path, selected("ais://b/a/24")))) == 100
    assert lists(ais) == 2, "it begins where the prefix does"


LONG: Final = "a/" + "y" * 300


@pytest.mark.parametrize("prefix", ["", "a/", "a/y", "a"])
def test_a_long_name_that_makes_a_list_short_is_named(
    ais: StandIn, tmp_path: Path, prefix: str
) -> None:
    ais.put("b", LONG, b"1")
    with pytest.raises(ObjectUnreadableError) as raised:
        run(list_it(ais, tmp_path, selected(f"ais://b/{prefix}")))
    assert "bucket ais://b cannot be listed as a whole: the name 'a/yyy" in str(raised.value)
    assert "has an element of more than 255 bytes" in str(raised.value)
    assert "rename it" in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_long_name_that_does_no_harm_is_none_of_our_business(
    ais: StandIn, tmp_path: Path
) -> None:
    ais.put("b", LONG, b"1")
    ais.put_many("b", {"c/1": b"1", "c/2": b"1"})
    assert len(run(list_it(ais, tmp_path, selected("ais://b/c/")))) == 2
    assert len(run(list_it(ais, tmp_path, selected("ais://b/a/", suffix=(".bin",))))) == NUM
    ais.create_bucket("few")
    ais.put_many("few", {LONG: b"1", "b": b"2"})
    assert set(entries(run(list_it(ais, tmp_path, selected("ais://few"))))) == {LONG, "b"}


def test_the_digest_follows_the_content_and_not_the_version(ais: StandIn, tmp_path: Path) -> None:
    before = run(list_it(ais, tmp_path))
    assert before.versions is not None
    ais.put("b", "a/0003.bin", OBJECTS["a/0003.bin"])
    again = run(list_it(ais, tmp_path))
    assert again.digest == before.digest
    assert again.versions is not None
    assert [int(version) for version in again.versions[2:5]] == [1, 2, 1], "the newest ones"
    ais.put("b", "a/0003.bin", b"xyz")
    assert run(list_it(ais, tmp_path)).digest != before.digest


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (selected("ais://b/a/000"), [f"a/{number:04}.bin" for number in range(10)]),
        (selected("ais://b/a/", suffix=("9.bin",)), [n for n in OBJECTS if n.endswith("9.bin")]),
        (selected("ais://b", recursive=False), ["top"]),
        (selected("ais://b/a/", recursive=False), list(OBJECTS)),
        (selected("ais://b/é %"), ['é %/+?#&"x']),
    ],
    ids=str,
)
def test_a_source_takes_what_it_says(
    ais: StandIn, tmp_path: Path, source: Selection, names: list[str]
) -> None:
    ais.put_many("b", {"top": b"1", 'é %/+?#&"x': b"22"})
    assert list(entries(run(list_it(ais, tmp_path, source)))) == names


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (selected("ais://empty"), "bucket ais://empty has no object: a stream needs at least one"),
        (selected("ais://b/zz"), "bucket ais://b has no object whose name begins with 'zz'"),
        (selected("ais://b", suffix=".jpg"), "whose name ends with .jpg"),
        (selected("ais://b", recursive=False), "has no '/' after the prefix"),
        (selected("ais://nope"), "bucket ais://nope does not exist"),
        (selected("s3://nope"), "bucket s3://nope"),
        (selected("ais://b/x/../y"), "invalid prefix"),
    ],
    ids=str,
)
def test_what_has_no_objects_is_said(
    ais: StandIn, tmp_path: Path, source: Selection, told: str
) -> None:
    ais.create_bucket("empty")
    with pytest.raises(SourceError) as raised:
        run(list_it(ais, tmp_path, source))
    assert told in str(raised.value)
    assert os.listdir(tmp_path) == [], "nothing is left behind"


_PASSING: Final[dict[str, Effect]] = {
    "late": Delay(0.05),
    "closed": Hangup(),
    "reset": Reset(),
    "cut in the middle": Cut("middle"),
    "cut at the last byte": Cut("last"),
    "a target is down": LIST_FAILED,
    "503": Status(503),
    "503 without a body": UNAVAILABLE,
    "500": Status(500),
    "429": Status(429),
    "the listing is forgotten": Status(400, "invalid UUID", "ErrInvalidUUID"),
}


@pytest.mark.parametrize("what", _PASSING)
def test_a_fault_in_any_page_changes_nothing(ais: StandIn, tmp_path: Path, what: str) -> None:
    truth = run(list_it(ais, tmp_path)).digest
    for page in range(3):
        ais.forget_requests()
        seen = 0

        async def main(page: int = page) -> Manifest:
            async with open_store(*ais.endpoints) as store:

                def progress(found: int) -> None:
                    nonlocal seen
                    seen += 1
                    if seen == page:
                        ais.fault(_PASSING[what], proxy="any", path="/v1/buckets/*", times=1)

                if page == 0 and what != "the listing is forgotten":
                    ais.fault(_PASSING[what], proxy="any", path="/v1/buckets/*", times=1)
                return await store.list_objects(selected("ais://b"), tmp_path, progress)

        assert run(main()).digest == truth
        # A page is asked for again, of a proxy that may not know the listing; not all pages are.
        # One list more is that of long names.
        assert lists(ais) <= 6


@pytest.mark.parametrize("step", ["append", "finish"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_listing_that_is_cancelled_while_a_thread_writes_leaves_nothing_half_done(
    ais: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop, step: str
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    whole = getattr(ManifestWriter, step)

    def held(self: ManifestWriter, *rows: object) -> object:
        entered.set()
        assert go_on.wait(timeout=30)
        return whole(self, *rows)

    monkeypatch.setattr(ManifestWriter, step, held)

    async def main() -> None:
        async with open_store(ais.endpoint) as store, asyncio.TaskGroup() as tasks:
            listing = tasks.create_task(store.list_objects(selected("ais://b"), tmp_path))
            await until(entered.is_set)
            listing.cancel()
            await turns(10)
            assert not listing.done(), "the thread is in the middle of its files"
            go_on.set()

    run(main(), loop)
    monkeypatch.undo()
    left = os.listdir(tmp_path)
    assert len(left) == (step == "finish")
    for digest in left:
        assert len(Manifest.load(tmp_path, digest)) == NUM


def test_a_target_that_died_makes_no_short_list(ais: StandIn, tmp_path: Path) -> None:
    truth = run(list_it(ais, tmp_path))
    dead = ais.targets[1]

    async def main() -> Manifest:
        async with open_store(ais.endpoint) as store:
            await store.cluster.current()
            dead.stop()
            ais.remove_from_map(dead)
            async with asyncio.TaskGroup() as tasks:
                listing = tasks.create_task(store.list_objects(selected("ais://b"), tmp_path))
                await until(lambda: store.cluster.missing)

                def back() -> None:
                    dead.start()
                    ais.return_to_map(dead)

                await asyncio.to_thread(back)
            return listing.result()

    assert run(main()).digest == truth.digest


def test_a_target_that_leaves_during_a_listing_makes_no_short_list(
    ais: StandIn, tmp_path: Path
) -> None:
    dead = ais.targets[1]

    async def main() -> None:
        async with open_store(ais.endpoint, deadline_s=1.0) as store:

            def progress(found: int) -> None:
                if found == PAGE and dead.is_up:
                    dead.stop()
                    ais.remove_from_map(dead)

            await store.list_objects(selected("ais://b"), tmp_path, progress)

    with pytest.raises(StoreUnavailableError) as raised:
        run(main())
    assert "ais://b/ cannot be listed as a whole" in str(raised.value)
    assert dead.id in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_a_target_that_left_in_order_is_not_missed(ais: StandIn, tmp_path: Path) -> None:
    from tests.support.standin import MAINTENANCE

    async def main() -> Manifest:
        async with open_store(ais.endpoint) as store:
            await store.cluster.current()
            ais.set_flags(ais.targets[0], MAINTENANCE)
            ais.rebalance()
            await store.cluster.after()
            ais.remove_from_map(ais.targets[0])
            return await store.list_objects(selected("ais://b"), tmp_path)

    assert entries(run(main())) == sizes(OBJECTS)


def test_a_list_that_may_lack_objects_is_waited_for(ais: StandIn, tmp_path: Path) -> None:
    ais.set_rebalancing(True)
    with pytest.raises(StoreUnavailableError, match="may lack objects"):
        run(list_it(ais, tmp_path, deadline_s=0.3))
    ais.set_rebalancing(False)
    assert len(run(list_it(ais, tmp_path))) == NUM


def test_a_store_that_stalls_is_an_error_within_the_deadline(
    ais: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_daemon.source.ais.client.PAGE_STALL_S", 0.1)
    ais.fault(Stall("middle"), proxy="any", path="/v1/buckets/*", times=None)
    with pytest.raises(StoreUnavailableError) as raised:
        run(list_it(ais, tmp_path, deadline_s=0.5))
    assert "the list of ais://b/" in str(raised.value)
    assert "did not send anything for too long" in str(raised.value)


def invent_pages(
    store: AisStore, page: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the cluster answer with these pages, and truly to all else, long names too."""
    ask = store.client.ask

    async def answer(path: str, *others: Any, **options: Any) -> Answer | Fault:  # noqa: ANN401
        body = options.get("body")
        if body is None or body["value"]["prefix"] == ".x":
            return await ask(path, *others, **options)
        return Answer({}, page())

    monkeypatch.setattr(store.client, "ask", answer)


def entry(**fields: object) -> bytes:
    return msgspec.msgpack.encode({"UUID": "u", "Entries": [{"n": "a/1", "s": 1, **fields}]})


_NOT_UTF8: Final = b"\x82\xa4UUID\xa1u\xa7Entries\x91\x82\xa1n\xa3a\xff\xfe\xa1s\x01"
_DEEP: Final = b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>", "is no page"),
        (b"", "is no page"),
        (_NOT_UTF8, "is no page ('utf-8' codec can't decode"),
        (_DEEP, "is no page (maximum recursion depth exceeded"),
        (b"\x81\xa7Entries\xdd\xff\xff\xff\xff", "is no page (Input data was truncated)"),
        (entry(s=-1), "is no page (Expected `int` >= 0"),
        (entry(s=2**53), "is no page (Expected `int` <= 9007199254740991"),
        (entry(s=2**64 - 1), "is no page (Expected `int` <= 9007199254740991"),
        (entry(s=1.5), "is no page (Expected `int`, got `float`"),
        (entry(n=""), "is no page (Expected `str` of length >= 1"),
        (entry(cs="a" * 129), "is no page (Expected `str` of length <= 128"),
        (entry(v="1" * 1025), "is no page (Expected `str` of length <= 1024"),
        (entry(n="b/1"), "lists 'b/1' in ais://b/a/, which does not begin with 'a/'"),
    ],
    ids=range(13),
)
def test_what_is_no_page_is_refused_at_once(
    ais: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, told: str
) -> None:
    pages = 0

    def page() -> bytes:
        nonlocal pages
        pages += 1
        return body

    async def main() -> None:
        async with open_store(ais.endpoint) as store:
            invent_pages(store, page, monkeypatch)
            await store.list_objects(selected("ais://b/a/"), tmp_path)

    with pytest.raises(ObjectUnreadableError) as raised:
        run(main())
    assert told in str(raised.value)
    assert pages == 1
    assert os.listdir(tmp_path) == []


def test_a_listing_that_goes_round_in_circles_ends(
    ais: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = itertools.cycle(["a/1", "a/2", "a/3"])

    def page() -> bytes:
        token = next(tokens)
        return msgspec.msgpack.encode(
            {"UUID": "u", "ContinuationToken": token, "Entries": [{"n": token, "s": 1}]}
        )

    async def main() -> None:
        async with open_store(ais.endpoint) as store:
            invent_pages(store, page, monkeypatch)
            await store.list_objects(selected("ais://b"), tmp_path)

    with pytest.raises(ObjectUnreadableError, match="comes back to 'a/1'"):
        run(main())
    assert os.listdir(tmp_path) == []


def test_an_endpoint_that_is_no_store_is_said(tmp_path: Path) -> None:
    with StandIn() as ais:
        # A target answers the map too, so ask something that nobody has.
        ais.fault(Status(200, is_empty=True), proxy="any", path="/v1/daemon*", times=None)
        with pytest.raises(StoreUnavailableError, match="does not answer as an AIStore proxy does"):
            run(list_it(ais, tmp_path))


def test_a_bucket_is_missing_only_once(ais: StandIn, tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError):
        run(list_it(ais, tmp_path, selected("ais://nope")))
    assert sum(request.path.startswith("/v1/buckets/") for request in ais.requests) == 1
