"""The stand-in's own life: threads, ports, the map, and the record.  The contract has the wire."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.standin import (
    DECOMMISSION,
    MAINTENANCE,
    Bucket,
    Delay,
    Stall,
    StandIn,
    Target,
)
from tests.support.standin.asking import Answer, Client, ask, refuses

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [f"d{index % 5}/{index:03}" for index in range(60)]


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn(num_proxies=2) as ais:
        ais.create_bucket("b")
        ais.put_many("b", {name: f"this is {name}".encode() for name in NAMES})
        yield ais


def listed(ais: StandIn, bucket: str = "b", proxy: int = 0, **value: str) -> Answer:
    message = json.dumps({"action": "list", "value": {"props": "name", **value}}).encode()
    return ask(ais.proxies[proxy].port, f"/v1/buckets/{bucket}", body=message)


def names(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [entry["name"] for entry in json.loads(answer.body)["entries"] or []]


def smap(ais: StandIn) -> dict[str, Any]:
    content = json.loads(ask(ais.proxies[0].port, "/v1/daemon?what=smap").body)
    assert isinstance(content, dict)
    return content


def direct(target: Target, name: str, bucket: str = "b") -> Answer:
    return ask(target.port, f"/v1/objects/{bucket}/{name}")


# --- Life -----------------------------------------------------------------------------------------


def test_nothing_is_left_after_exit() -> None:
    threads = set(threading.enumerate())
    files = psutil.Process().num_fds()
    clients = []
    with StandIn(num_targets=2) as ais:
        ais.create_bucket("b")
        ais.put("b", "x", bytes(100))
        owner = ais.owner("b", "x")
        never = ais.fault(Stall(after_bytes=10), times=2)
        for _ in range(2):
            clients.append(Client(owner.port))
            clients[-1].send("/v1/objects/b/x")
        ais.wait_until(lambda: never.fired == 2)
        clients.append(Client(ais.proxies[0].port))
        assert clients[-1].ask("/v1/health").status == 200
        ports = [node.port for node in (*ais.proxies, *ais.targets)]
    assert set(threading.enumerate()) == threads
    assert all(refuses(port) for port in ports)
    for client in clients:
        client.wait_closed()
        client.close()
    assert psutil.Process().num_fds() == files


def test_nothing_is_left_after_a_failed_test() -> None:
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), StandIn() as ais:
        port = ais.proxies[0].port
        raise ZeroDivisionError
    assert set(threading.enumerate()) == threads
    assert refuses(port)


def test_two_of_them_know_nothing_of_each_other(ais: StandIn) -> None:
    with StandIn() as other:
        other.create_bucket("b")
        assert names(listed(other)) == []
        assert other.uuid != ais.uuid
        assert {node.id for node in other.targets}.isdisjoint(node.id for node in ais.targets)


def test_a_cluster_needs_a_proxy_and_a_target() -> None:
    with pytest.raises(ValueError, match="at least 1 of each"):
        StandIn(num_targets=0)


def test_it_may_be_used_from_many_threads(ais: StandIn) -> None:
    def work(number: int) -> None:
        for index in range(20):
            ais.put("b", f"t/{number}/{index}", b"x")
            assert direct(ais.owner("b", f"t/{number}/{index}"), f"t/{number}/{index}").body == b"x"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(names(listed(ais, prefix="t/"))) == 80


# --- Nodes and the map ----------------------------------------------------------------------------


def test_a_dead_target_stays_in_the_map_and_a_list_fails(ais: StandIn) -> None:
    target = ais.targets[0]
    before = smap(ais)
    target.stop()
    assert not target.is_up
    assert refuses(target.port)
    assert smap(ais) == before
    answer = listed(ais)
    assert answer.status == 400
    error = json.loads(answer.body)
    assert error["tcode"] == "ErrFailedTo"
    assert "connection refused" in error["message"]


def test_a_dead_target_resets_the_connections_that_it_has(ais: StandIn) -> None:
    target = ais.targets[0]
    with Client(target.port) as client:
        assert client.ask("/v1/health").status == 200
        target.stop()
        client.wait_closed()


def test_a_target_comes_back_with_its_port_and_its_objects(ais: StandIn) -> None:
    target = ais.targets[1]
    own = [name for name in NAMES if ais.owner("b", name) is target]
    port, version = target.port, smap(ais)["version"]
    target.stop()
    target.start()
    assert target.is_up
    assert target.port == port
    assert smap(ais)["version"] == version
    assert [direct(target, name).status for name in own] == [200] * len(own)
    assert names(listed(ais)) == sorted(NAMES)


def test_without_a_target_in_the_map_lists_are_short_and_its_objects_missing(ais: StandIn) -> None:
    target = ais.targets[0]
    gone = [name for name in NAMES if ais.owner("b", name) is target]
    version = int(smap(ais)["version"])
    target.stop()
    ais.remove_from_map(target)
    present = smap(ais)
    assert int(present["version"]) == version + 1
    assert target.id not in present["tmap"]
    assert names(listed(ais)) == sorted(set(NAMES) - set(gone))
    assert direct(ais.owner("b", gone[0]), gone[0]).status == 404

    target.start()
    ais.return_to_map(target)
    assert int(smap(ais)["version"]) == version + 2
    assert names(listed(ais)) == sorted(NAMES)
    assert direct(target, gone[0]).status == 200


def test_objects_move_to_a_new_target_only_with_a_rebalance(ais: StandIn) -> None:
    version = int(smap(ais)["version"])
    new = ais.add_target()
    assert int(smap(ais)["version"]) == version + 1
    moved = [name for name in NAMES if ais.owner("b", name) is new]
    assert moved, "no owner has changed"
    assert direct(new, moved[0]).status == 404
    # What is not in its place is not listed, unless bit 1 asks for it.
    assert names(listed(ais)) == sorted(set(NAMES) - set(moved))
    assert names(listed(ais, flags="2")) == sorted(NAMES)
    ais.rebalance()
    assert [direct(new, name).status for name in moved] == [200] * len(moved)
    assert names(listed(ais)) == sorted(NAMES)


def test_while_a_rebalance_runs_a_target_asks_its_neighbours(ais: StandIn) -> None:
    new = ais.add_target()
    name = next(name for name in NAMES if ais.owner("b", name) is new)
    ais.set_rebalancing(True)
    assert json.loads(listed(ais).body)["flags"] == 1
    assert direct(new, name).status == 200
    ais.set_rebalancing(False)
    assert json.loads(listed(ais).body)["flags"] == 0


@pytest.mark.parametrize(("flag", "bits"), [(MAINTENANCE, 4), (DECOMMISSION, 8)])
def test_a_target_that_is_leaving_owns_nothing(ais: StandIn, flag: int, bits: int) -> None:
    target = ais.targets[2]
    own = next(name for name in NAMES if ais.owner("b", name) is target)
    ais.set_flags(target, flag)
    assert smap(ais)["tmap"][target.id]["flags"] == bits
    assert ais.owner("b", own) is not target
    location = ask(ais.proxies[0].port, f"/v1/objects/b/{own}").headers["location"]
    assert not location.startswith(target.url)


def test_targets_may_refuse_what_has_not_come_by_a_proxy(ais: StandIn) -> None:
    owner = ais.owner("b", NAMES[0])
    ais.set_denies_direct(True)
    assert direct(owner, NAMES[0]).status == 403
    location = ask(ais.proxies[0].port, f"/v1/objects/b/{NAMES[0]}").headers["location"]
    assert ask(owner.port, location.removeprefix(owner.url)).status == 200
    ais.set_denies_direct(False)
    assert direct(owner, NAMES[0]).status == 200


def test_another_uuid_makes_it_another_cluster(ais: StandIn) -> None:
    before = smap(ais)["uuid"]
    ais.renew_uuid()
    assert smap(ais)["uuid"] == ais.uuid != before


def test_a_second_proxy_serves_when_the_first_is_dead(ais: StandIn) -> None:
    first, second = ais.proxies
    assert [*smap(ais)["pmap"]] == [first.id, second.id]
    first.stop()
    assert refuses(first.port)
    assert names(listed(ais, proxy=1)) == sorted(NAMES)
    ais.remove_from_map(first)
    content = json.loads(ask(second.port, "/v1/daemon?what=smap").body)
    assert content["proxy_si"]["daemon_id"] == second.id
    with pytest.raises(ValueError, match="last proxy"):
        ais.remove_from_map(second)


def test_a_node_that_starts_is_not_ready(ais: StandIn) -> None:
    proxy = ais.proxies[0]
    ais.set_starting(proxy, True)
    assert ask(proxy.port, "/v1/health?readiness=true").status == 503
    assert ask(proxy.port, "/v1/health").status == 200
    ais.set_starting(proxy, False)
    assert ask(proxy.port, "/v1/health?readiness=true").status == 200


def test_with_a_token_only_proxies_are_asked_and_only_with_it() -> None:
    with StandIn(token="secret") as ais:
        ais.create_bucket("b")
        ais.put("b", "x", b"data")
        port, owner = ais.proxies[0].port, ais.owner("b", "x")
        assert ask(port, "/v1/objects/b/x").status == 401
        assert ask(port, "/v1/objects/b/x", headers={"Authorization": "Bearer no"}).status == 401
        with_token = {"Authorization": "Bearer secret"}
        redirect = ask(port, "/v1/objects/b/x", headers=with_token)
        assert redirect.status == 301
        redirected = redirect.headers["location"].removeprefix(owner.url)
        assert ask(owner.port, redirected).body == b"data"
        refused = direct(owner, "x")
        assert refused.status == 403
        assert json.loads(refused.body)["message"] == "direct target access denied"
        ais.set_token("renewed")
        assert ask(port, "/v1/objects/b/x", headers=with_token).status == 401


# --- Objects --------------------------------------------------------------------------------------


def test_an_object_is_at_its_owner_and_nowhere_else(ais: StandIn) -> None:
    for name in NAMES[:10]:
        owner = ais.owner("b", name)
        found = [target for target in ais.targets if direct(target, name).status == 200]
        assert found == [owner]


def test_a_bucket_with_a_backend_has_its_objects_where_the_backend_says(ais: StandIn) -> None:
    remote = ais.create_bucket("far", provider="aws")
    ais.create_bucket("near", backend_bck=remote)
    for name in NAMES:
        ais.put("near", name, b"data")
    assert all(ais.owner("near", name) is ais.owner(remote, name) for name in NAMES)
    by_its_own_name = [ais.owner(Bucket("near-not"), name) for name in NAMES]
    assert by_its_own_name != [ais.owner("near", name) for name in NAMES]
    owner = ais.owner("near", NAMES[0])
    assert direct(owner, NAMES[0], "near").body == b"data"
    assert names(listed(ais, "near")) == sorted(NAMES)


def test_an_object_that_is_not_cached_comes_from_the_backend_and_then_is(ais: StandIn) -> None:
    remote = ais.create_bucket("far", provider="aws")
    ais.put(remote, "x", b"data", cached=False)
    assert names(listed(ais, "far?provider=aws")) == ["x"]
    assert names(listed(ais, "far?provider=aws", flags="1")) == []
    assert direct(ais.owner(remote, "x"), "x?provider=aws", "far").body == b"data"
    assert names(listed(ais, "far?provider=aws", flags="1")) == ["x"]


def test_what_the_backend_sends_takes_its_time_only_once() -> None:
    with StandIn(num_targets=1, cold_get_s=1000.0) as ais:
        remote = ais.create_bucket("far", provider="aws")
        ais.put(remote, "x", b"data", cached=False)
        target = ais.targets[0]
        with Client(target.port) as client:
            client.send("/v1/objects/far/x?provider=aws")
            ais.wait_until(lambda: len(ais.requests) == 1)
            client.sock.settimeout(0.02)
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
        # Whoever comes later gets the copy that is kept.
        assert direct(target, "x?provider=aws", "far").body == b"data"


def test_an_object_may_have_metadata_of_its_own(ais: StandIn) -> None:
    ais.put("b", "x", b"data", custom={"source": "web", "k": "v"})
    assert direct(ais.owner("b", "x"), "x").headers["ais-custom-md"] == "k=v"  # the last of two
    (entry,) = json.loads(listed(ais, prefix="x", props="name,custom").body)["entries"]
    assert entry["custom-md"] == "[source:web k:v]"


def test_an_unreadable_archive_ends_the_list_of_archives_on_its_target(ais: StandIn) -> None:
    target = ais.targets[0]
    shards = [f"s/{index:03}.tar" for index in range(40)]
    empty = bytes(1024)
    ais.put_many("b", dict.fromkeys(shards, empty))
    own = [name for name in shards if ais.owner("b", name) is target]
    ais.put("b", own[1], b"this is no archive" * 100)
    assert names(listed(ais, prefix="s/")) == shards
    assert names(listed(ais, prefix="s/", flags="8")) == sorted(set(shards) - set(own[2:]))


def test_a_change_keeps_the_version_only_if_it_is_told_to(ais: StandIn) -> None:
    first = ais.stored("b", NAMES[0])
    ais.change("b", NAMES[0], b"second")
    second = ais.stored("b", NAMES[0])
    ais.change("b", NAMES[0], b"third", keep_version=True)
    third = ais.stored("b", NAMES[0])
    assert (first.version, second.version, third.version) == ("1", "2", "2")
    assert len({first.checksum, second.checksum, third.checksum}) == 3
    ais.delete("b", NAMES[0])
    for missing in (ais.stored, ais.delete):
        with pytest.raises(KeyError, match=NAMES[0]):
            missing("b", NAMES[0])
    assert ais.put("b", NAMES[0], b"again") == "1"


# --- The record -----------------------------------------------------------------------------------


def test_every_request_is_recorded_with_what_became_of_it(ais: StandIn) -> None:
    owner = ais.owner("b", NAMES[0])
    with Client(owner.port) as client:
        client.ask(f"/v1/objects/b/{NAMES[0]}?x=%20y", headers={"Range": "bytes=2-4"})
        client.ask("/v1/objects/b/not%2Fthere", "HEAD")
    listed(ais)
    first, second, third = ais.requests
    assert (first.node, first.port, first.method) == (owner.id, owner.port, "GET")
    assert first.target == f"/v1/objects/b/{NAMES[0]}?x=%20y"
    assert (first.query, first.range) == ({"x": " y"}, "bytes=2-4")
    assert (first.status, first.sent_bytes, first.is_done) == (206, 3, True)
    assert (second.method, second.path) == ("HEAD", "/v1/objects/b/not/there")
    assert (second.status, second.sent_bytes) == (404, 0)
    assert first.connection == second.connection != third.connection
    assert json.loads(third.body)["action"] == "list"
    assert [request.number for request in ais.requests] == [0, 1, 2]
    assert first.time_s <= second.time_s <= third.time_s

    ais.forget_requests()
    assert ais.requests == []
    listed(ais)
    assert [request.number for request in ais.requests] == [3]


def test_a_request_that_waits_for_its_answer_is_recorded_already(ais: StandIn) -> None:
    ais.fault(Delay(None))
    with Client(ais.owner("b", "x").port) as client:
        client.send("/v1/objects/b/x")
        ais.wait_until(lambda: len(ais.requests) == 1)
        (request,) = ais.requests
        assert (request.status, request.is_done) == (0, False)


def test_waiting_for_what_does_not_happen_ends(ais: StandIn) -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.01 s"):
        ais.wait_until(lambda: bool(ais.requests), deadline_s=0.01)


def test_idle_connections_are_closed_after_a_while() -> None:
    with StandIn(idle_s=0.01) as ais, Client(ais.proxies[0].port) as client:
        assert client.ask("/v1/health").status == 200
        client.wait_closed()


def test_without_idle_time_each_answer_is_the_last_and_does_not_say_so() -> None:
    with StandIn(idle_s=0) as ais, Client(ais.proxies[0].port) as client:
        answer = client.ask("/v1/health")
        assert answer.status == 200
        assert "connection" not in answer.headers
        client.wait_closed()


def test_a_range_of_nothing_ends_the_connection(ais: StandIn) -> None:
    # So does a real target, which then keeps the object locked: the contract does not try it there.
    name = NAMES[0]
    port = ais.owner("b", name).port
    answer = ask(port, f"/v1/objects/b/{name}", headers={"Range": "bytes="})
    assert answer.ending == "closed"


def test_latency_delays_targets_and_changes_no_answer(ais: StandIn) -> None:
    ais.set_latency(0.001)
    name = NAMES[0]
    assert direct(ais.owner("b", name), name).body == f"this is {name}".encode()
