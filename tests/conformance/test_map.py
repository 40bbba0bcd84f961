"""The cluster map, and whether nodes are ready."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.support.standin import hrw

if TYPE_CHECKING:
    from tests.support.ais import Ais


def test_the_map_names_itself(ais: Ais) -> None:
    smap = ais.smap()
    assert set(smap) == {"pmap", "proxy_si", "tmap", "uuid", "creation_time", "version"}
    assert isinstance(smap["version"], str)
    assert int(smap["version"]) > 0
    assert isinstance(smap["uuid"], str)
    assert smap["uuid"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", smap["creation_time"])


def test_the_map_has_all_nodes_by_their_id(ais: Ais) -> None:
    smap = ais.smap()
    assert len(smap["tmap"]) == 3
    assert list(smap["pmap"].values()) == [smap["proxy_si"]]
    for kind, nodes in (("target", smap["tmap"]), ("proxy", smap["pmap"])):
        assert {name: node["daemon_id"] for name, node in nodes.items()} == {n: n for n in nodes}
        assert {node["daemon_type"] for node in nodes.values()} == {kind}


def test_a_node_tells_its_addresses(ais: Ais) -> None:
    smap = ais.smap()
    assert smap["proxy_si"]["public_net"]["direct_url"] == ais.endpoint
    for node in [*smap["tmap"].values(), smap["proxy_si"]]:
        for name in ("public_net", "intra_control_net", "intra_data_net"):
            net = node[name]
            assert isinstance(net["daemon_port"], str)
            assert net["direct_url"] == f"http://{net['node_ip_addr']}:{net['daemon_port']}"


def test_a_node_has_the_digest_of_its_id(ais: Ais) -> None:
    smap = ais.smap()
    for name, node in {**smap["tmap"], **smap["pmap"]}.items():
        assert node["id_digest"] == hrw.digest(name)


def test_flags_tell_the_primary_and_leave_targets_alone(ais: Ais) -> None:
    smap = ais.smap()
    assert smap["proxy_si"]["flags"] == 2
    assert [target["flags"] for target in smap["tmap"].values()] == [0, 0, 0]


def test_only_proxies_have_a_key(ais: Ais) -> None:
    smap = ais.smap()
    assert isinstance(smap["proxy_si"]["verifying_key"], str)
    assert not any("verifying_key" in target for target in smap["tmap"].values())


def test_a_target_has_the_same_map(ais: Ais) -> None:
    smap = ais.smap()
    for url in ais.targets.values():
        answer = ais.ask("GET", "/v1/daemon?what=smap", at=url)
        assert answer.status == 200
        assert answer.headers.get_content_type() == "application/json"
        assert answer.content == smap


def test_a_ready_node_says_so_without_a_body(ais: Ais) -> None:
    for path in ("/v1/health", "/v1/health?readiness=true"):
        for url in ("", *ais.targets.values()):
            answer = ais.ask("GET", path, at=url)
            assert (answer.status, answer.body) == (200, b"")


def test_a_proxy_tells_how_long_it_has_been_up(ais: Ais) -> None:
    headers = ais.ask("GET", "/v1/health").headers
    assert int(headers["Ais-Cluster-Uptime"]) > 0
    assert int(headers["Ais-Node-Uptime"]) > 0


def test_all_buckets_are_in_one_description(ais: Ais, bucket: str) -> None:
    described = ais.ask("GET", "/v1/daemon?what=bmd").content
    assert set(described) == {"providers", "uuid", "version"}
    assert isinstance(described["version"], str)
    assert described["providers"]["ais"]["@#"][bucket]["provider"] == "ais"


def test_an_unknown_question_about_a_node_is_refused(ais: Ais) -> None:
    for url in ("", *ais.targets.values()):
        answer = ais.ask("GET", "/v1/daemon?what=nonsense", at=url)
        assert answer.status == 400
        assert "nonsense" in answer.error["message"]
