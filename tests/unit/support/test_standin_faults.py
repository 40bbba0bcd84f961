"""Faults: what each effect does on the wire, which requests meet it, how often, and the log."""

from __future__ import annotations

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import xxhash

from tests.support.standin import (
    BUSY,
    DIRECT_DENIED,
    LIST_FAILED,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    Change,
    Corrupt,
    Crash,
    Cut,
    Delay,
    DropIdle,
    Effect,
    Hangup,
    Redirect,
    Reset,
    Slow,
    Stall,
    StandIn,
    Status,
    Target,
    WrongLength,
    WrongRange,
)
from tests.support.standin.asking import Client, ask, refuses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.standin.effects import Position

DATA = bytes(range(256)) * 400
PATH = "/v1/objects/b/d/x"


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn() as ais:
        ais.create_bucket("b")
        ais.put("b", "d/x", DATA)
        yield ais


@pytest.fixture
def owner(ais: StandIn) -> Target:
    return ais.owner("b", "d/x")


# --- Effects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "effect",
    [Delay(0.001), Stall(5000, 0.001), Stall("first", 0.001), Stall("last", 0.001), Slow(1e8)],
)
def test_what_is_only_slow_arrives_whole(ais: StandIn, owner: Target, effect: Effect) -> None:
    fault = ais.fault(effect)
    assert ask(owner.port, PATH).body == DATA
    assert fault.fired == 1


@pytest.mark.parametrize(("after_bytes", "sent"), [(5000, 5000), ("middle", 51_200), ("first", 0)])
def test_a_stalled_answer_stops_exactly_where_it_was_told_to(
    ais: StandIn, owner: Target, after_bytes: Position, sent: int
) -> None:
    ais.fault(Stall(after_bytes))
    with Client(owner.port) as client:
        client.send(PATH)
        received = b""
        while len(received) - received.find(b"\r\n\r\n") - 4 < sent or not received:
            received += client.sock.recv(1 << 16)
        assert received.partition(b"\r\n\r\n")[2] == DATA[:sent]
        ais.wait_until(lambda: ais.requests[0].sent_bytes == sent)
        client.sock.settimeout(0.02)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        assert not ais.requests[0].is_done


@pytest.mark.parametrize(
    ("effect", "sent", "ending"),
    [
        (Cut(5000), 5000, "short"),
        (Cut("first"), 0, "short"),
        (Cut("last"), len(DATA) - 1, "short"),
        (Reset(5000), 5000, "reset"),
        (Reset(), 0, "reset"),
        (Hangup(), 0, "closed"),
        (Crash(5000), 5000, "reset"),
        (Crash(), 0, "reset"),
    ],
)
def test_a_broken_answer_breaks_off_exactly_where_it_was_told_to(
    ais: StandIn, owner: Target, effect: Effect, sent: int, ending: str
) -> None:
    ais.fault(effect)
    answer = ask(owner.port, PATH)
    assert answer.ending == ending
    assert answer.body == DATA[:sent]
    (request,) = ais.requests
    assert (request.sent_bytes, request.is_done) == (sent, False)
    if isinstance(effect, Crash):
        assert refuses(owner.port)
        owner.start()
    assert ask(owner.port, PATH).body == DATA


@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_was_to_stay_open(ais: StandIn, owner: Target, reset: bool) -> None:
    ais.fault(DropIdle(reset))
    with Client(owner.port) as client:
        answer = client.ask(PATH)
        assert answer.ending == "complete"
        assert "connection" not in answer.headers
        client.wait_closed()


@pytest.mark.parametrize("status", [403, 404, 409, 410, 429, 500, 503, 507])
def test_an_error_has_the_form_of_all_errors(ais: StandIn, owner: Target, status: int) -> None:
    ais.fault(Status(status, "so it is", "ErrScripted"))
    answer = ask(owner.port, PATH)
    assert answer.status == status
    error = json.loads(answer.body)
    assert (error["status"], error["tcode"]) == (status, "ErrScripted")
    assert (error["message"], error["node"]) == ("so it is", owner.name)
    assert "retry-after" not in answer.headers


def test_an_error_for_head_is_a_header(ais: StandIn, owner: Target) -> None:
    ais.fault(BUSY)
    answer = ask(owner.port, PATH, "HEAD")
    assert (answer.status, answer.body) == (409, b"")
    assert json.loads(answer.headers["hdr-error"])["tcode"] == "ErrBusy"


def test_a_node_that_is_unavailable_says_nothing_more(ais: StandIn, owner: Target) -> None:
    ais.fault(UNAVAILABLE)
    answer = ask(owner.port, PATH)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (503, b"", "0")


def test_after_an_error_the_connection_goes_on(ais: StandIn, owner: Target) -> None:
    ais.fault(TOO_MANY_REQUESTS)
    with Client(owner.port) as client:
        assert client.ask(PATH).status == 429
        assert client.ask(PATH).body == DATA


@pytest.mark.parametrize(
    ("at_byte", "index"), [("first", 0), ("middle", len(DATA) // 2), ("last", -1), (77, 77)]
)
def test_only_the_checksum_shows_a_corrupt_byte(
    ais: StandIn, owner: Target, at_byte: Position, index: int
) -> None:
    ais.fault(Corrupt(at_byte))
    answer = ask(owner.port, PATH)
    assert (answer.status, answer.ending, len(answer.body)) == (200, "complete", len(DATA))
    expected = bytearray(DATA)
    expected[index] ^= 0xFF
    assert answer.body == expected
    assert answer.headers["ais-checksum-value"] == xxhash.xxh64_hexdigest(DATA)


@pytest.mark.parametrize(("keep_version", "version"), [(False, "2"), (True, "1")])
def test_an_object_may_change_between_two_ranges(
    ais: StandIn, owner: Target, keep_version: bool, version: str
) -> None:
    first = ask(owner.port, PATH, headers={"Range": "bytes=0-9"})
    ais.fault(Change(b"something else", keep_version))
    second = ask(owner.port, PATH, headers={"Range": "bytes=10-19"})
    assert (first.headers["ais-version"], second.headers["ais-version"]) == ("1", version)
    assert first.headers["ais-checksum-value"] != second.headers["ais-checksum-value"]
    assert second.body == b"else"
    assert ask(owner.port, PATH).body == b"something else"


@pytest.mark.parametrize(("by", "ending"), [(-1, "complete"), (1, "short")])
def test_an_answer_may_say_another_length(
    ais: StandIn, owner: Target, by: int, ending: str
) -> None:
    ais.fault(WrongLength(by))
    ais.fault(DropIdle())
    answer = ask(owner.port, PATH)
    assert answer.headers["content-length"] == str(len(DATA) + by)
    assert (answer.status, answer.ending) == (200, ending)
    assert answer.body == DATA[: len(DATA) + by]


@pytest.mark.parametrize(
    ("asked", "told", "body"),
    [
        ({}, f"bytes 1-{len(DATA)}/{len(DATA) + 1}", DATA[1:] + DATA[:1]),
        ({"Range": "bytes=10-13"}, f"bytes 11-14/{len(DATA) + 1}", DATA[11:14] + DATA[10:11]),
    ],
)
def test_an_answer_may_be_of_another_range(
    ais: StandIn, owner: Target, asked: dict[str, str], told: str, body: bytes
) -> None:
    ais.fault(WrongRange())
    answer = ask(owner.port, PATH, headers=asked)
    assert (answer.status, answer.headers["content-range"]) == (206, told)
    assert answer.body == body
    assert answer.headers["ais-checksum-value"] == xxhash.xxh64_hexdigest(DATA)


def test_a_node_may_send_a_client_elsewhere(ais: StandIn, owner: Target) -> None:
    ais.fault(Redirect())
    answer = ask(owner.port, f"{PATH}?provider=ais")
    assert (answer.status, answer.headers["location"]) == (307, f"{owner.url}{PATH}?provider=ais")
    ais.fault(Redirect("http://127.0.0.1:1", status=301))
    answer = ask(owner.port, PATH)
    assert (answer.status, answer.headers["location"]) == (301, f"http://127.0.0.1:1{PATH}")


def test_a_refusal_may_say_when_to_come_back(ais: StandIn, owner: Target) -> None:
    ais.fault(Status(429, retry_after="3"))
    assert ask(owner.port, PATH).headers["retry-after"] == "3"


def test_several_effects_befall_one_request(ais: StandIn, owner: Target) -> None:
    faults = [ais.fault(Corrupt("first")), ais.fault(Stall(50, 0.001)), ais.fault(Cut(100))]
    answer = ask(owner.port, PATH)
    assert (answer.ending, answer.body) == ("short", b"\xff" + DATA[1:100])
    assert [fault.fired for fault in faults] == [1, 1, 1]


# --- Which requests -------------------------------------------------------------------------------


def test_without_a_node_the_one_that_answers_meets_the_fault(ais: StandIn, owner: Target) -> None:
    proxy = ais.proxies[0]
    objects = ais.fault(BUSY, path="b/*")
    lists = ais.fault(LIST_FAILED, path="/v1/buckets/*")
    assert ask(proxy.port, PATH).status == 301
    assert ask(owner.port, PATH).status == 409
    answer = ask(proxy.port, "/v1/buckets/b")
    assert (answer.status, json.loads(answer.body)["tcode"]) == (400, "ErrFailedTo")
    assert [firing.node for firing in objects.log + lists.log] == [owner.id, proxy.id]


def test_a_fault_may_be_for_one_node(ais: StandIn, owner: Target) -> None:
    other = next(target for target in ais.targets if target is not owner)
    ais.fault(UNAVAILABLE, target=owner, times=None)
    ais.fault(TOO_MANY_REQUESTS, proxy="any", times=None)
    assert ask(owner.port, PATH).status == 503
    assert ask(other.port, PATH).status == 404
    assert ask(ais.proxies[0].port, PATH).status == 429


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("b/d/x", [503, 404]),
        ("b/d/*", [503, 503]),
        ("b/*/[y]", [200, 503]),
        ("/v1/objects/b/d/x", [503, 404]),
        (re.compile("d/[xz]"), [503, 404]),
        ("d/x", [200, 404]),
    ],
)
def test_a_fault_may_be_for_some_paths(
    ais: StandIn, owner: Target, path: str | re.Pattern[str], expected: list[int]
) -> None:
    ais.fault(UNAVAILABLE, path=path, times=None)
    assert [ask(owner.port, f"/v1/objects/b/d/{name}").status for name in "xy"] == expected


def test_a_path_is_matched_when_it_is_decoded(ais: StandIn, owner: Target) -> None:
    ais.fault(UNAVAILABLE, path="b/a b/*")
    assert ask(owner.port, "/v1/objects/b/a%20b%2Fc").status == 503


def test_a_fault_may_be_for_one_method(ais: StandIn, owner: Target) -> None:
    ais.fault(UNAVAILABLE, method="HEAD")
    assert ask(owner.port, PATH).status == 200
    assert ask(owner.port, PATH, "HEAD").status == 503


def test_a_fault_may_be_for_direct_requests_only(ais: StandIn, owner: Target) -> None:
    ais.fault(DIRECT_DENIED, direct=True, times=None)
    assert ask(owner.port, PATH).status == 403
    location = ask(ais.proxies[0].port, PATH).headers["location"]
    assert ask(owner.port, location.removeprefix(owner.url)).body == DATA


def test_a_fault_may_be_for_reused_connections_only(ais: StandIn, owner: Target) -> None:
    fault = ais.fault(Reset(), reused=True)
    assert ask(owner.port, PATH).status == 200
    with Client(owner.port) as client:
        assert client.ask(PATH).status == 200
        assert client.ask(PATH).ending == "reset"
    assert fault.fired == 1


# --- How often ------------------------------------------------------------------------------------


def statuses(port: int, number: int, path: str = PATH) -> list[int]:
    return [ask(port, path).status for _ in range(number)]


def test_a_fault_fires_once_unless_it_is_told_otherwise(ais: StandIn, owner: Target) -> None:
    ais.fault(BUSY)
    assert statuses(owner.port, 3) == [409, 200, 200]
    fault = ais.fault(BUSY, times=2)
    assert statuses(owner.port, 3) == [409, 409, 200]
    assert (fault.fired, fault.is_spent) == (2, True)


def test_a_fault_without_end_fires_until_it_is_cancelled(ais: StandIn, owner: Target) -> None:
    fault = ais.fault(BUSY, times=None)
    assert statuses(owner.port, 5) == [409] * 5
    fault.cancel()
    assert statuses(owner.port, 2) == [200] * 2
    assert fault.fired == 5


def test_a_fault_fires_exactly_as_often_among_concurrent_requests(
    ais: StandIn, owner: Target
) -> None:
    fault = ais.fault(BUSY, times=7)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: ask(owner.port, PATH).status, range(40)))
    assert sorted(got) == [200] * 33 + [409] * 7
    failed = {request.number for request in ais.requests if request.status == 409}
    assert {firing.request for firing in fault.log} == failed


def test_a_firing_names_node_request_and_time(ais: StandIn, owner: Target) -> None:
    fault = ais.fault(BUSY)
    ask(owner.port, PATH)
    (firing,) = fault.log
    (request,) = ais.requests
    assert (firing.node, firing.request, firing.path) == (owner.id, request.number, PATH)
    assert firing.time_s >= request.time_s


def fates(ais: StandIn, port: int, order: list[int], seed: int) -> dict[int, int]:
    fault = ais.fault(UNAVAILABLE, times=None, rate=0.3, seed=seed)
    got = {number: ask(port, f"/v1/objects/b/no/{number}").status for number in order}
    fault.cancel()
    return got


def test_with_a_rate_the_same_request_has_the_same_fate(ais: StandIn, owner: Target) -> None:
    order = list(range(200))
    first = fates(ais, owner.port, order, seed=3)
    assert fates(ais, owner.port, order[::-1], seed=3) == first
    assert fates(ais, owner.port, order, seed=4) != first
    share = sum(status == 503 for status in first.values()) / len(first)
    assert 0.2 < share < 0.4


def test_with_a_rate_another_try_has_another_fate(ais: StandIn, owner: Target) -> None:
    ais.fault(UNAVAILABLE, times=None, rate=0.5, seed=1)
    assert set(statuses(owner.port, 40)) == {200, 503}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"times": 0}, "times is 0"), ({"rate": 1.5}, r"rate is 1\.5"), ({"rate": -1}, "rate is -1")],
)
def test_a_fault_that_makes_no_sense_is_refused(
    ais: StandIn, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ais.fault(BUSY, **wrong)


def test_a_rate_of_bytes_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes_per_s is 0"):
        Slow(0)


def test_a_client_that_goes_away_harms_nobody(ais: StandIn, owner: Target) -> None:
    ais.fault(Delay(None))
    with Client(owner.port) as client:
        client.send(PATH)
        ais.wait_until(lambda: len(ais.requests) == 1)
        client.sock.shutdown(socket.SHUT_RDWR)
    assert ask(owner.port, PATH).body == DATA
