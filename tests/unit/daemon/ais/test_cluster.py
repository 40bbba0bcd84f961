"""The cluster: which targets are missed, and how old a map may be."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from headrace.buckets import Bucket
from headrace_daemon.errors import StoreUnavailableError
from headrace_daemon.source.ais.client import Answer
from headrace_daemon.source.ais.cluster import FRESH_S, STALE_S, Cluster
from headrace_daemon.source.ais.clustermap import ClusterMap, Node
from headrace_daemon.source.ais.faults import Fault, Kind
from tests.support.loops import run, until
from tests.support.reading_ais import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

BUCKET = Bucket.parse("ais://b")


class FakeClient:
    """Answers with a map of some version, and counts."""

    proxy = "http://p:1"

    class access:  # noqa: N801 - stands for an object
        origin = "a test"

    def __init__(self) -> None:
        self.num_asked = 0
        self.body: bytes | None = None
        self.learned: Sequence[str] = ()

    async def ask(self, path: str, what: str) -> Answer | Fault:
        self.num_asked += 1
        await asyncio.sleep(0)
        if self.body is None:
            return Fault(Kind.FINAL, "answered 400", "proxy p")
        return Answer({}, self.body)

    def learn(self, proxies: Sequence[str]) -> None:
        self.learned = proxies


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def of(version: int, *targets: str, leaving: str = "", uuid: str = "u") -> ClusterMap:
    nodes = [Node(name, f"http://{name}", is_leaving=name == leaving) for name in targets]
    return ClusterMap(
        version, uuid, [(node, hash(node.id) % 2**64) for node in nodes], ["http://p"]
    )


def cluster() -> tuple[Cluster, FakeClient, Clock]:
    client, clock = FakeClient(), Clock()
    return Cluster(client, direct=True, clock=clock), client, clock  # type: ignore[arg-type]


def missing(cluster: Cluster) -> list[str]:
    return [node.id for node in cluster.missing]


def test_a_target_that_is_gone_is_missed_until_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, _, _ = cluster()
    with caplog.at_level(logging.INFO):
        one.take(of(1, "a", "b", "c"))
        assert missing(one) == []
        one.take(of(2, "a", "c"))
        one.take(of(3, "a", "c", "d"))
        assert missing(one) == ["b"]
        assert "t[b] (http://b) was in the cluster map and is missing now" in one.explain_missing()
        one.take(of(4, "a", "b", "c", "d"))
        assert missing(one) == []
    words = [record.getMessage() for record in caplog.records]
    assert words == [
        "target missing from the cluster map target=t[b] (http://b) version=2",
        "target is back target=t[b] (http://b)",
    ]


def test_a_target_that_left_in_order_is_not_missed() -> None:
    one, _, _ = cluster()
    one.take(of(1, "a", "b"))
    one.take(of(2, "a", "b", leaving="b"))
    one.take(of(3, "a"))
    assert missing(one) == []
    one.take(of(4, "a", "b"))
    one.take(of(5, "a"))
    assert missing(one) == ["b"], "the second time without a word"


def test_another_cluster_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    one, _, _ = cluster()
    one.take(of(9, "a", "b"))
    one.take(of(1, "x", uuid="v"))
    assert missing(one) == []
    assert "another cluster answers" in caplog.text


def test_the_map_of_a_proxy_that_lags_behind_is_not_taken() -> None:
    one, _, _ = cluster()
    one.take(of(2, "a", "b"))
    one.take(of(1, "a"))
    assert missing(one) == []
    assert one.map is not None
    assert one.map.version == 2


def test_a_map_is_asked_for_once_for_all_who_need_it_now() -> None:
    async def main() -> None:
        one, client, clock = cluster()
        client.body = BODY
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(one.current())
        assert client.num_asked == 1
        clock.now += FRESH_S
        await one.refresh()
        assert client.num_asked == 1
        clock.now += FRESH_S
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(one.refresh())
        assert client.num_asked == 2
        await one.current()
        assert client.num_asked == 2
        assert client.learned == ("http://p:1",)

    run(main())


def test_what_decides_about_a_denial_is_a_map_that_was_asked_for_after_it() -> None:
    async def main() -> None:
        one, client, clock = cluster()
        client.body = BODY
        await one.current()
        clock.now += 0.001
        await one.after()
        assert client.num_asked == 2

    run(main())


def test_reads_by_a_stale_map_go_on_while_a_new_one_is_asked_for() -> None:
    async def main() -> None:
        one, client, clock = cluster()
        client.body = BODY
        await one.current()
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(one.keep_fresh())
            assert one.owners(BUCKET, ["x"])
            clock.now += STALE_S + 1
            assert one.owners(BUCKET, ["x"]), "by the old one"
            await until(lambda: client.num_asked == 2)
            client.body = None
            clock.now += STALE_S + 1
            assert one.owners(BUCKET, ["x"])
            await until(lambda: client.num_asked == 3)
            assert one.owners(BUCKET, ["x"]), "a failure changes nothing"
            keeping.cancel()

    run(main())


@pytest.mark.parametrize("body", [None, b"", b"<html>", b"{}", b'{"tmap": {}, "version": "x"}'])
def test_what_is_no_map_is_said(body: bytes | None) -> None:
    async def main() -> None:
        one, client, _ = cluster()
        client.body = body
        await one.current()

    with pytest.raises(StoreUnavailableError) as raised:
        run(main())
    assert "http://p:1 does not answer as an AIStore proxy does" in str(raised.value)


def test_direct_reads_end_when_they_are_denied(caplog: pytest.LogCaptureFixture) -> None:
    one, _, _ = cluster()
    assert one.owners(BUCKET, ["x"]) is None, "no map yet"
    one.take(of(1, "a"))
    assert [node.id for node in one.owners(BUCKET, ["x"]) or ()] == ["a"]
    fault = Fault(Kind.DENIED, "answered 403", "target a")
    one.deny_direct(fault)
    one.deny_direct(fault)
    assert one.owners(BUCKET, ["x"]) is None
    assert caplog.text.count("reading through the proxy from now on") == 1


def test_without_an_endpoint_the_next_step_is_named() -> None:
    from headrace_daemon.errors import SettingsError

    async def main() -> None:
        async with open_store() as store:
            await store.cluster.current()

    with pytest.raises(SettingsError, match=r"set \[store\] endpoints .* or \$AIS_ENDPOINT"):
        run(main())


BODY = (
    b'{"tmap": {"a": {"daemon_id": "a", "public_net": {"direct_url": "http://a:1"}}}, "pmap": {},'
    b' "proxy_si": {"daemon_id": "p", "public_net": {"direct_url": "http://p:1"}},'
    b' "version": "3", "uuid": "u"}'
)
