"""Ranges of objects, from a store where anything may go wrong: the right bytes, or why not.

Each fault has an object of its own, so that all of them happen to one read.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Final

import pytest

from headrace_daemon.errors import (
    ObjectChangedError,
    ObjectCorruptError,
    ObjectError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
    StoreAccessError,
    StoreFullError,
    StoreUnavailableError,
)
from headrace_daemon.source.ais import pieces, ranges
from headrace_daemon.source.ais.lean import lane
from headrace_daemon.source.ais.objectread import MAX_CORRUPT, MAX_WRONG
from tests.support.hardships import PASSING, WAYS
from tests.support.loops import LOOPS, run, until
from tests.support.raw import OK, raw_store, whole
from tests.support.reading_ais import bucket, listed, open_store
from tests.support.sources import selected
from tests.support.spans import EDGE, Span
from tests.support.standin import (
    DIRECT_DENIED,
    TOO_MANY_REQUESTS,
    Change,
    Corrupt,
    Cut,
    Hangup,
    Reset,
    Stall,
    StandIn,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from headrace_daemon.source.ais.store import AisStore
    from headrace_daemon.source.reader import RangeRequest, Request
    from tests.support.loops import Loop
    from tests.support.raw import Sent
    from tests.support.standin import Effect
    from tests.support.standin.effects import Position

SIZE: Final = 100_000
CONTENT: Final = os.urandom(SIZE)
EFFECTS: Final = {
    what: effect
    for what, effect in PASSING.items()
    # The bytes of a range have no checksum; and who denies direct reads denies all of them.
    if not isinstance(effect, Corrupt) and effect is not DIRECT_DENIED
}


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(num_proxies=2) as ais:
        ais.create_bucket("b")
        yield ais


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, str]:
    return WAYS[str(request.param)]


def some() -> list[Span]:
    """Return what is asked for: a sample, neighbours with gaps, large ones, the last byte."""
    return [
        Span.of(CONTENT, 512, 10_752),
        Span.of(CONTENT, 20_000, 31_000, [(20_512, 25_000), (25_000, 25_000), (25_600, 31_000)]),
        Span.of(CONTENT, 31_000, 99_000, [(31_001, 80_000), (90_000, 98_000)]),
        Span.of(CONTENT, SIZE - 1, SIZE),
    ]


class Asked:
    """Ranges of objects that are asked for."""

    def __init__(self, spans: Mapping[str, Sequence[Span]]) -> None:
        self.spans = spans
        self.requests: list[Request] = [
            span.request(name) for name, some in spans.items() for span in some
        ]

    async def read(self, store: AisStore, uri: str = "ais://b") -> None:
        await store.reader(bucket(uri)).read(self.requests)

    def check(self) -> None:
        for spans in self.spans.values():
            for span in spans:
                span.check()


async def read(ais: StandIn, way: dict[str, str], asked: Asked, **options: object) -> AisStore:
    """Read ranges, compare them, and return the store for its counts."""
    async with open_store(*ais.endpoints, **{**way, **options}) as store:  # type: ignore[arg-type]
        await asked.read(store)
        asked.check()
        return store


def gets(ais: StandIn, name: str) -> list[tuple[str, int]]:
    """Return what targets were asked for of an object, and how many bytes they sent."""
    ports = {target.port for target in ais.targets}
    return [
        (request.range, request.sent_bytes)
        for request in ais.requests
        if request.port in ports and request.method == "GET" and request.path.endswith(f"/{name}")
    ]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_store_is_asked_for_the_ranges_and_nothing_else(
    ais: StandIn, way: dict[str, str], loop: Loop
) -> None:
    names = [f"d/{number}" for number in range(9)]
    ais.put_many("b", dict.fromkeys(names, CONTENT))
    store = run(read(ais, way, Asked({name: some() for name in names})), loop)
    due = [(f"bytes={span.asked}", span.stop - span.start) for span in some()]
    for name in names:
        assert sorted(gets(ais, name)) == sorted(due)
    report = store.report()
    assert sum(target["reads"] for target in report["targets"].values()) == 9 * len(due)
    assert sum(target["ranges"] for target in report["targets"].values()) == 9 * len(due)
    assert sum(target["bytes"] for target in report["targets"].values()) == 9 * sum(
        num_bytes for _, num_bytes in due
    )
    assert store.counts.num_retries == 0


def test_whole_objects_and_ranges_stand_side_by_side(
    ais: StandIn, way: dict[str, str], tmp_path: Path
) -> None:
    ais.put_many("b", {"a": CONTENT, "b": b"bb", "empty": b""})

    async def main() -> dict[str, int]:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            wholes = listed(await store.list_objects(selected("ais://b"), tmp_path))
            asked = some()
            requests: list[Request] = []
            for request in wholes:
                requests.append(request)
                if request.name == "a":
                    requests += [
                        span.request("a", request.checksum, request.version) for span in asked
                    ]
            await store.reader(bucket("ais://b")).read(requests)
            assert [bytes(request.target) for request in wholes] == [CONTENT, b"bb", b""]
            for span in asked:
                span.check()
            counts = store.counts.nodes.values()
            return {
                "reads": sum(node.num_reads for node in counts),
                "ranges": sum(node.num_ranges for node in counts),
            }

    assert run(main()) == {"reads": 3 + len(some()), "ranges": len(some())}


# ---- what passes ---------------------------------------------------------------------------------


def test_faults_that_pass_change_nothing(ais: StandIn, way: dict[str, str]) -> None:
    ais.put_many("b", dict.fromkeys(EFFECTS, CONTENT))
    faults = {
        what: ais.fault(effect, target="any", path=f"b/{what}", times=2)
        for what, effect in EFFECTS.items()
    }
    run(read(ais, way, Asked({what: some() for what in EFFECTS}), stall_s=0.2))
    for what, fault in faults.items():
        assert fault.fired == 2
        asked = [range_ for range_, _ in gets(ais, what)]
        assert len(some()) <= len(asked) <= len(some()) + 6, what
        assert "" not in asked, "never all of the object"


def test_faults_of_many_requests_change_nothing(ais: StandIn, way: dict[str, str]) -> None:
    """But what the store denies three times is missing, as documented."""
    ais.put_many("b", dict.fromkeys(EFFECTS, CONTENT))
    faults = [
        ais.fault(effect, target="any", path=f"b/{what}", times=4, rate=0.4, seed=number)
        for number, (what, effect) in enumerate(EFFECTS.items())
    ]
    asked = Asked({what: some() for what in EFFECTS})
    left_out: list[ObjectError] = []
    bad: set[str] = set()

    def note(error: ObjectError) -> None:
        assert isinstance(error, ObjectMissingError)
        left_out.append(error)
        bad.add(error.what.rpartition("/")[2])

    asked.requests = [request._replace(on_bad=note) for request in asked.requests]

    async def main() -> None:
        async with open_store(*ais.endpoints, **way, stall_s=0.2) as store:  # type: ignore[arg-type]
            await asked.read(store)

    run(main())
    assert sum(fault.fired for fault in faults) > 4
    assert bad <= {"404 once", "410 once"}
    for what, spans in asked.spans.items():
        for span in spans:
            if what not in bad:
                span.check()


@pytest.mark.parametrize("effect", [Cut(30_000), Stall(30_000), Reset(30_000)], ids=str)
def test_what_has_arrived_is_not_asked_for_again(
    ais: StandIn, way: dict[str, str], effect: Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a place and in a gap; received straight into places, or copied."""
    for direct_bytes in (0, 1 << 20) if isinstance(effect, Cut) else (0,):
        monkeypatch.setattr(ranges, "DIRECT_BYTES", direct_bytes)
        ais.put("b", "o", CONTENT)
        ais.forget_requests()
        ais.fault(effect, target="any", path="b/o", times=2)
        span = Span.of(CONTENT, 1_000, 91_000, [(2_000, 40_000), (70_000, 90_000)])
        run(read(ais, way, Asked({"o": [span]}), stall_s=0.2))
        asked = gets(ais, "o")
        matches = [re.fullmatch(r"bytes=(\d+)-90999", range_) for range_, _ in asked]
        starts = [int(match[1]) for match in matches if match is not None]
        assert len(starts) == len(asked) == 3
        if not isinstance(effect, Reset):  # which may take back what was on its way
            assert starts == [1_000, 31_000, 61_000]
            assert sum(num_bytes for _, num_bytes in asked) == 90_000
        assert starts[0] < starts[1] <= starts[2]


def test_where_targets_serve_nobody_directly_ranges_come_by_the_proxy(ais: StandIn) -> None:
    ais.put("b", "o", CONTENT)
    ais.set_denies_direct(True)
    store = run(read(ais, {}, Asked({"o": some()})))
    assert not store.cluster.serves_direct


# ---- what does not pass --------------------------------------------------------------------------

_STAYING: Final[dict[str, tuple[Effect, type[SourceError], str]]] = {
    "404": (Status(404, "no", "ErrNotFound"), ObjectMissingError, "not in the store any more"),
    "410": (Status(410), ObjectMissingError, "answered 410"),
    "501": (Status(501, "no ETL", "ErrUnsupp"), ObjectUnreadableError, "501 (ErrUnsupp: no ETL)"),
    "507": (Status(507, "out of space"), StoreFullError, "507 (out of space)"),
    "400": (Status(400, "bad request"), ObjectUnreadableError, "400 (bad request)"),
    "416": (Status(416), ObjectChangedError, "it has 0 bytes at"),
    "403": (Status(403, "no permission"), StoreAccessError, "may not be read"),
    "503": (Status(503), StoreUnavailableError, "tried"),
    "429": (TOO_MANY_REQUESTS, StoreUnavailableError, "429"),
    "hangup": (Hangup(), StoreUnavailableError, "closed the connection without an answer"),
    "cut": (Cut("first"), StoreUnavailableError, "broke off in the middle"),
    "stall": (Stall("middle"), StoreUnavailableError, "did not send anything for too long"),
}


def test_a_fault_that_stays_is_an_error_that_names_the_range(
    ais: StandIn, way: dict[str, str]
) -> None:
    staying = dict(_STAYING)
    if way != WAYS["proxy"]:
        del staying["403"]  # who denies one direct read denies all
    ais.put_many("b", dict.fromkeys(staying, CONTENT))
    for what, (effect, _, _) in staying.items():
        ais.fault(effect, target="any", path=f"b/{what}", times=None)

    async def fail(store: AisStore, what: str) -> SourceError:
        span = Span.of(CONTENT, 10, 20_000, [(15, 16_000)])
        with pytest.raises(SourceError) as raised:
            await store.reader(bucket("ais://b")).read([span.request(what)])
        return raised.value

    async def main() -> dict[str, SourceError]:
        options = {"deadline_s": 0.8, "stall_s": 0.1}
        async with open_store(*ais.endpoints, **way, **options) as store:  # type: ignore[arg-type]
            async with asyncio.TaskGroup() as tasks:
                failing = {what: tasks.create_task(fail(store, what)) for what in staying}
            return {what: task.result() for what, task in failing.items()}

    for what, error in run(main()).items():
        _, kind, told = _STAYING[what]
        assert type(error) is kind
        assert f"bytes 10-19999 of object ais://b/{what}" in str(error)
        assert told in str(error)
        assert len(gets(ais, what)) <= 12, "bounded"


_PARTIAL: Final = b"HTTP/1.1 206 Partial Content\r\n"
_NO: Final = b"HTTP/1.1 416 No\r\n"
_ANSWERS: Final[dict[str, tuple[Sent, str]]] = {
    "the whole object": (whole(b"x" * 100), "answered 200 with no range instead of bytes=20-29"),
    "another range": (
        whole(b"x" * 10, "Content-Range: bytes 21-30/100", first=_PARTIAL),
        "answered 206 with bytes 21-30/100 instead of bytes=20-29",
    ),
    "a shorter range": (
        whole(b"x" * 9, "Content-Range: bytes 20-28/100", first=_PARTIAL),
        "answered 206 with bytes 20-28/100 instead of bytes=20-29",
    ),
    "another length": (
        whole(b"x" * 11, "Content-Range: bytes 20-29/100", first=_PARTIAL),
        "sends 11 bytes instead of bytes=20-29",
    ),
    "no range": (whole(b"x" * 10, first=_PARTIAL), "answered 206 with no range"),
    "no such range": (whole(b"no", first=_NO), "answered 416 (no)"),
    "a clipped range": (
        whole(b"x" * 5, "Content-Range: bytes 20-24/25", first=_PARTIAL),
        "it has 25 bytes at ",
    ),
    "no such range, and why": (
        whole(b"", "Content-Range: bytes */7", first=_NO),
        "it has 7 bytes at ",
    ),
    "a whole object of another size": (whole(b"x" * 99), "it has 99 bytes at "),
    "too many bytes": (
        _PARTIAL + b"Content-Range: bytes 20-29/100\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"b\r\n0123456789a\r\n0\r\n\r\n",
        "sent more than 10 bytes",
    ),
    "too few bytes": (
        _PARTIAL + b"Content-Range: bytes 20-29/100\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "sent 0 of 10 bytes",
    ),
    "the whole without end": (
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + bytes(4096) + b"\r\n"),
        "answered 200 with no range instead of bytes=20-29",
    ),
}


def test_an_answer_that_is_not_the_range_is_an_error_in_words(way: dict[str, str]) -> None:
    async def fail(what: str) -> str:
        # What could be of a moment is asked for until then; the others end long before.
        deadline_s = 0.8 if what in ("too many bytes", "too few bytes") else 20.0
        async with (
            raw_store(_ANSWERS[what][0]) as raw,
            open_store(raw.url, **way, deadline_s=deadline_s) as store,  # type: ignore[arg-type]
        ):
            span = Span.of(bytes(100), 20, 30, [(22, 25), (27, 30)])
            with pytest.raises(SourceError) as raised:
                await store.reader(bucket("ais://b")).read([span.request("o")])
            is_changed = "it has" in _ANSWERS[what][1]
            assert isinstance(raised.value, ObjectChangedError) is is_changed
            if "instead" in _ANSWERS[what][1]:
                assert isinstance(raised.value, ObjectUnreadableError)
                assert span.is_untouched()
                asked = [head for head in raw.heads if "Range: bytes=20-29" in head]
                # One that does not say how long it is is asked for again, by the other wire.
                assert MAX_WRONG <= len(asked) <= 2 * MAX_WRONG
                assert "end" in what or len(asked) == MAX_WRONG
            return str(raised.value)

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            failing = {what: tasks.create_task(fail(what)) for what in _ANSWERS}
        for what, task in failing.items():
            told = _ANSWERS[what][1]
            assert told in task.result()
            assert "bytes 20-29 of object ais://b/o" in task.result()

    run(main())


def test_an_object_that_cannot_be_read_is_left_out_with_all_its_ranges(
    ais: StandIn, way: dict[str, str]
) -> None:
    ais.put_many("b", {"a": CONTENT, "z": CONTENT})
    told: list[str] = []
    asked = Asked({"a": some(), "gone": some(), "z": some()})
    asked.requests = [
        request._replace(on_bad=lambda error: told.append(error.what)) for request in asked.requests
    ]

    async def main() -> None:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            await asked.read(store)

    run(main())
    due = [f"bytes {span.asked} of object ais://b/gone" for span in some()]
    assert sorted(told) == sorted(due)
    for name in ("a", "z"):
        for span in asked.spans[name]:
            span.check()
    assert all(span.is_untouched() for span in asked.spans["gone"])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_cancelled_read_stops_writing(ais: StandIn, way: dict[str, str], loop: Loop) -> None:
    ais.put("b", "o", CONTENT)
    ais.fault(Stall("middle"), target="any", times=None)

    async def main() -> None:
        async with open_store(*ais.endpoints, **way, stall_s=60.0) as store:  # type: ignore[arg-type]
            asked = Asked({"o": some()})
            memories = [span.memory for span in asked.spans["o"]]
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(asked.read(store))
                await until(lambda: any(set(memory) != {EDGE} for memory in memories))
                reading.cancel()
            for request in asked.requests:
                for place in getattr(request, "places", ()):
                    place.target.release()
            for memory in memories:
                memory.append(0)  # BufferError while anybody has a view of it

    run(main(), loop)


# ---- changed objects -----------------------------------------------------------------------------

NEW: Final = os.urandom(SIZE)
SEED: Final = 5
"""Decides which piece meets a change: neither the first one nor the last."""


async def list_and_read(ais: StandIn, way: dict[str, str], tmp_path: Path, change: Effect) -> None:
    """List, read a range, change the object, and read another range."""
    async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
        (known,) = listed(await store.list_objects(selected("ais://b"), tmp_path))
        first, *others = some()
        reader = store.reader(bucket("ais://b"))
        await reader.read([first.request("o", known.checksum, known.version)])
        first.check()
        ais.fault(change, target="any", path="b/o", times=1)
        await reader.read([span.request("o", known.checksum, known.version) for span in others])
        for span in others:
            span.check()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Change(NEW), "has checksum"),
        (Change(NEW, keep_version=True), "has checksum"),
        (Change(NEW[:50_000]), "has"),
        (Change(b"short"), "has 5 bytes"),
    ],
    ids=["other bytes", "under the same version", "shorter", "ends before the range"],
)
def test_an_object_that_changes_between_two_ranges_is_noticed(
    ais: StandIn, way: dict[str, str], tmp_path: Path, change: Effect, told: str
) -> None:
    ais.put("b", "o", CONTENT)
    with pytest.raises(ObjectChangedError) as raised:
        run(list_and_read(ais, way, tmp_path, change))
    text = str(raised.value)
    assert re.search(r"bytes \d+-\d+ of object ais://b/o: it", text)
    assert told in text
    assert "index SOURCE --refresh" in text


def test_the_same_bytes_stored_again_are_no_change(
    ais: StandIn, way: dict[str, str], tmp_path: Path
) -> None:
    ais.put("b", "o", CONTENT)
    run(list_and_read(ais, way, tmp_path, Change(CONTENT)))


def test_no_range_is_made_of_two_objects(ais: StandIn, way: dict[str, str]) -> None:
    """Also where nothing is known of the object but its size."""
    ais.put("b", "o", CONTENT)
    ais.fault(Cut("middle"), target="any", path="b/o", times=1)
    direct = None if way == WAYS["proxy"] else False
    ais.fault(Change(NEW), target="any", path="b/o", times=1, direct=direct, reused=None)
    span = Span.of(CONTENT, 0, 90_000, [(10, 80_000)])

    async def main() -> None:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            await store.reader(bucket("ais://b")).read([span.request("o")])

    run(main())
    assert span.memory[1:-1] in (NEW[10:80_000], CONTENT[10:80_000]), "all of one version"


# ---- a range that is the whole object ------------------------------------------------------------


def test_a_range_that_is_the_whole_object_is_verified(ais: StandIn, way: dict[str, str]) -> None:
    names = ["first", "middle", "last", "broken"]
    ais.put_many("b", dict.fromkeys(names, CONTENT))
    places: tuple[Position, ...] = ("first", "middle", "last")
    for place in places:
        ais.fault(Corrupt(place), target="any", path=f"b/{place}", times=1)
    ais.fault(Cut("middle"), target="any", path="b/broken", times=1)
    parts = [(600, 40_000), (51_000, SIZE - 7)]  # the flipped bytes lie in gaps
    store = run(read(ais, way, Asked({n: [Span.of(CONTENT, 0, SIZE, parts)] for n in names})))
    assert store.counts.num_retries == 4
    for name in names:
        asked = [range_ for range_, _ in gets(ais, name)]
        assert asked == (["", ""] if name != "broken" else ["", f"bytes={SIZE // 2}-{SIZE - 1}"])
    ais.fault(Corrupt("first"), target="any", path="b/first", times=None)
    with pytest.raises(ObjectCorruptError, match=f"arrived {MAX_CORRUPT} times"):
        run(read(ais, way, Asked({"first": [Span.of(CONTENT, 0, SIZE, parts)]})))


# ---- large ranges --------------------------------------------------------------------------------


def test_a_large_range_comes_in_pieces_each_byte_once(
    ais: StandIn, way: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LARGE_BYTES", "MIN_BYTES", "MAX_BYTES"):
        monkeypatch.setattr(pieces, name, 10_000)
    monkeypatch.setattr(lane, "PIPELINED_BYTES", 10_000)
    ais.put_many("b", {"o": CONTENT, "p": CONTENT})
    parts = [(1_500, 1_500), (1_500, 9_000), (9_000, 33_000), (70_000, 90_999)]
    spans = [Span.of(CONTENT, 1_000, 91_000, parts), Span.of(CONTENT, 5, 6)]
    store = run(read(ais, way, Asked({"o": spans})))
    due = [f"bytes={start}-{start + 9_999}" for start in range(1_000, 91_000, 10_000)]
    assert sorted(range_ for range_, _ in gets(ais, "o")) == sorted([*due, "bytes=5-5"])
    counts = store.counts.nodes.values()
    assert sum(node.num_ranges for node in counts) == sum(node.num_reads for node in counts) == 2
    assert sum(node.num_bytes for node in counts) == 90_001
    # Broken off, and continued where it was.
    ais.fault(Cut(3_000), target="any", path="b/p", times=5)
    span = Span.of(CONTENT, 1_000, 91_000, parts)
    run(read(ais, way, Asked({"p": [span]})))
    assert sum(num_bytes for _, num_bytes in gets(ais, "p")) == 90_000
    # The whole object is read as a whole, whatever its size: so that it can be verified.
    ais.forget_requests()
    run(read(ais, way, Asked({"p": [Span.of(CONTENT, 0, SIZE, parts)]})))
    assert gets(ais, "p") == [("", SIZE)]


def test_a_large_range_of_an_object_that_changes_is_of_one_object(
    ais: StandIn, way: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LARGE_BYTES", "MIN_BYTES", "MAX_BYTES"):
        monkeypatch.setattr(pieces, name, 10_000)
    monkeypatch.setattr(pieces, "WIDTH", 1)
    ais.put("b", "o", CONTENT)
    ais.fault(Change(NEW), target="any", path="b/o", times=1, rate=0.3, seed=SEED)
    span = Span.of(CONTENT, 1_000, 91_000, [(2_000, 90_000)])

    async def main() -> RangeRequest:
        async with open_store(*ais.endpoints, **way) as store:  # type: ignore[arg-type]
            request = span.request("o")
            await store.reader(bucket("ais://b")).read([request])
            return request

    run(main())
    assert span.memory[1:-1] == NEW[2_000:90_000]
    assert gets(ais, "o")[-1] == ("bytes=1000-90999", 90_000)


# ---- objects of a provider -----------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["s3://far", "ais://near"])
def test_ranges_of_cold_objects_are_waited_for(uri: str) -> None:
    with StandIn(cold_get_s=0.4) as ais:
        remote = ais.create_bucket("far", provider="aws")
        ais.create_bucket("near", backend_bck=remote)
        ais.put(remote, "o", CONTENT, cached=False)
        asked = Asked({"o": some()})

        async def main() -> int:
            async with open_store(ais.endpoint, stall_s=0.1, deadline_s=30.0) as store:
                await asked.read(store, uri)
                return store.counts.num_retries

        run(main())
        asked.check()
