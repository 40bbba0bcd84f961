"""Batches under faults and with dead targets.  What a batch looks like is in the contract."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.support.standin import (
    TOO_MANY_REQUESTS,
    CutBatch,
    Delay,
    ShortBatch,
    StallBatch,
    StandIn,
    Target,
    Timing,
    WholeMember,
)
from tests.support.standin.asking import Answer, Client, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [f"o/{index:03}" for index in range(40)]
MOSS = "/v1/ml/moss/b"


def content(name: str) -> bytes:
    return f"this is {name}".encode() * 40


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(timing=Timing(peer_s=0.001, tail_s=0.0)) as ais:
        ais.create_bucket("b")
        ais.put_many("b", {name: content(name) for name in NAMES})
        yield ais


def request(names: list[str], **more: object) -> bytes:
    entries = [{"objname": name} for name in names]
    return json.dumps({"in": entries, "coer": True, "onob": True, "strm": True, **more}).encode()


def admitted(ais: StandIn, body: bytes, target: Target | None = None) -> tuple[Target, str]:
    """Return the designated target and the path at it; keep asking until it is `target`."""
    for _ in range(200):
        answer = ask(ais.proxies[0].port, MOSS, body=body)
        assert answer.status == 307, answer
        location = answer.headers["location"]
        designated = next(one for one in ais.targets if location.startswith(one.url))
        if target in {None, designated}:
            return designated, location.removeprefix(designated.url)
    raise AssertionError(f"{target} is never the designated target")


def batch(ais: StandIn, body: bytes, target: Target | None = None) -> Answer:
    designated, path = admitted(ais, body, target)
    return ask(designated.port, path, body=body)


def members(answer: Answer) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:") as tar:
        found = tar.getmembers()
        for member in found:
            if not member.name.startswith("__404__/"):
                data = tar.extractfile(member)
                assert data is not None
                assert data.read() == content(member.name)
    return [member.name for member in found]


@pytest.mark.parametrize("after_members", [0, 1, 39])
def test_a_short_batch_looks_whole(ais: StandIn, after_members: int) -> None:
    fault = ais.fault(ShortBatch(after_members))
    answer = batch(ais, request(NAMES))
    assert (answer.status, answer.ending) == (200, "complete")
    assert answer.body.endswith(bytes(1024))
    assert members(answer) == NAMES[:after_members]
    assert fault.fired == 1
    assert members(batch(ais, request(NAMES))) == NAMES


def test_a_cut_batch_ends_within_the_data_of_a_member(ais: StandIn) -> None:
    ais.fault(CutBatch(after_members=3))
    answer = batch(ais, request(NAMES))
    assert (answer.status, answer.ending) == (200, "short")
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r|") as tar:
        for name in NAMES[:3]:
            member = tar.next()
            assert member is not None
            assert member.name == name
    half = len(content(NAMES[3])) // 2
    assert answer.body.endswith(content(NAMES[3])[:half])


def test_a_late_batch_is_whole(ais: StandIn) -> None:
    fault = ais.fault(StallBatch(before_member=5, seconds=0.001))
    assert members(batch(ais, request(NAMES))) == NAMES
    assert fault.fired == 1


def test_a_stalled_batch_has_sent_what_comes_before(ais: StandIn) -> None:
    ais.fault(StallBatch(before_member=2))
    body = request(NAMES)
    designated, path = admitted(ais, body)
    with Client(designated.port) as client:
        client.send(path, body=body)
        received = b""
        while NAMES[1].encode() not in received:
            received += client.sock.recv(1 << 16)
        assert NAMES[2].encode() not in received
    assert not ais.requests[-1].is_done


def test_a_ranged_entry_may_come_as_a_whole(ais: StandIn) -> None:
    entries = [{"objname": name, "start": 1, "length": 3} for name in NAMES[:3]]
    ais.fault(WholeMember(1))
    answer = batch(ais, request([], **{"in": entries}))
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:") as tar:
        sizes = [member.size for member in tar]
    assert sizes == [3, len(content(NAMES[1])), 3]


def test_the_admission_of_a_batch_may_be_refused(ais: StandIn) -> None:
    ais.fault(TOO_MANY_REQUESTS, proxy="any", path="/v1/ml/moss*")
    assert ask(ais.proxies[0].port, MOSS, body=request(NAMES)).status == 429
    assert members(batch(ais, request(NAMES))) == NAMES


def test_the_dead_target_ends_a_batch_at_its_first_entry(ais: StandIn) -> None:
    dead, alive, _ = ais.targets
    first = next(i for i, name in enumerate(NAMES) if ais.owner("b", name) is dead)
    body = request(NAMES)
    designated, path = admitted(ais, body, alive)
    dead.stop()
    answer = ask(designated.port, path, body=body)
    assert (answer.status, answer.ending) == (200, "complete")
    assert members(answer) == NAMES[:first]


def test_a_dead_designated_target_is_an_error_of_the_proxy(ais: StandIn) -> None:
    for target in ais.targets:
        target.stop()
    answer = ask(ais.proxies[0].port, MOSS, body=request(NAMES))
    assert answer.status == 400
    assert "connection refused" in json.loads(answer.body)["message"]


def test_entries_of_a_target_that_left_the_map_are_missing(ais: StandIn) -> None:
    gone = ais.targets[0]
    lost = [name for name in NAMES if ais.owner("b", name) is gone][:3]
    kept = [name for name in NAMES if ais.owner("b", name) is not gone]
    gone.stop()
    ais.remove_from_map(gone)
    answer = batch(ais, request([*lost, *kept]))
    assert members(answer) == [*(f"__404__/{name}" for name in lost), *kept]


def test_a_target_that_came_back_waits_for_each_entry_of_its_peers(ais: StandIn) -> None:
    target = ais.targets[0]
    own = [name for name in NAMES if ais.owner("b", name) is target]
    peers = [name for name in NAMES if ais.owner("b", name) is not target]
    target.stop()
    target.start()
    # It fetches five entries itself, and gives up at the sixth.
    assert members(batch(ais, request([*peers[:5], *own]), target)) == [*peers[:5], *own]
    assert members(batch(ais, request([*peers[:6], *own]), target)) == peers[:5]
    target.lost_peers = False
    assert members(batch(ais, request(NAMES), target)) == NAMES


def test_an_unfetched_batch_does_no_harm(ais: StandIn) -> None:
    for _ in range(5):
        admitted(ais, request(NAMES))
    ais.fault(Delay(0.001))
    assert members(batch(ais, request(NAMES))) == NAMES
