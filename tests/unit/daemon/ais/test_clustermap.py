"""The cluster map: parsed as it comes, and owners that equal those of AIStore."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from aistore.sdk.types import Smap
from hypothesis import given
from hypothesis import strategies as st

from headrace.buckets import Bucket
from headrace_daemon.source.ais.clustermap import ClusterMap, Node, parse, weights

DIGESTS = {
    "t1": 14214570646889990061,
    "t2": 17780131176456335389,
    "t3": 7900451649967436292,
}


def snode(name: str, kind: str = "target", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    net = {"node_ip_addr": "10.0.0.1", "daemon_port": "1", "direct_url": f"http://{name}:1"}
    nets = {"public_net": net, "intra_control_net": net, "intra_data_net": net}
    plain = {"daemon_id": name, "daemon_type": kind, "id_digest": DIGESTS.get(name, 7), "flags": 0}
    return plain | nets | changes


def smap(*targets: dict[str, Any]) -> bytes:
    proxies = {name: snode(name, "proxy") for name in ("p1", "p2")}
    return json.dumps(
        {
            "tmap": {target["daemon_id"]: target for target in targets},
            "pmap": proxies,
            "proxy_si": proxies["p2"],
            "version": "12",
            "uuid": "abc",
            "creation_time": "2026-11-20 22:48:05",
        }
    ).encode()


THREE = parse(smap(*map(snode, ("t2", "t1", "t3"))))


def test_the_hash_has_the_published_values() -> None:
    values = np.array([0, 4573842], dtype=np.uint64)
    assert weights(values).tolist() == [1905207664160064169, 5026071747115404967]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("ais://bck", "obj"),
        ("ais://train", "shard-000000.tar"),
        ("aws://imgs", "a/b.jpg"),
    ],
)
def test_objects_have_the_published_owners(uri: str, name: str) -> None:
    assert [node.id for node in THREE.owners(Bucket.parse(uri), [name])] == ["t3"]


@given(
    names=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=40),
    bucket=st.sampled_from(["ais://b", "s3://b", "ais://@#ns/b", "ais://@uuid#ns/b"]),
)
def test_owners_equal_those_of_the_sdk(names: list[str], bucket: str) -> None:
    names = [name for name in names if not any("\ud800" <= char <= "\udfff" for char in name)]
    theirs = Smap.model_validate_json(smap(*map(snode, DIGESTS)))
    parsed = Bucket.parse(bucket)
    root = f"{parsed.provider}/{parsed.namespace}/{parsed.name}/"
    expected = [theirs.get_target_for_object(root + name).daemon_id for name in names]
    assert [node.id for node in THREE.owners(parsed, names)] == expected


def test_a_target_that_is_leaving_owns_nothing_and_is_still_there() -> None:
    current = parse(smap(snode("t1", flags=4), snode("t2", flags=8), snode("t3", flags=3)))
    assert {node.id for node in current.owners(Bucket.parse("ais://b"), ["x", "y", "z"])} == {"t3"}
    assert {name: node.is_leaving for name, node in current.targets.items()} == {
        "t1": True,
        "t2": True,
        "t3": False,
    }


def test_without_targets_nobody_owns_anything() -> None:
    assert parse(smap()).owners(Bucket.parse("ais://b"), ["x"]) == []
    assert (
        ClusterMap(1, "", [(Node("t", "", is_leaving=True), 1)], []).owners(
            Bucket.parse("ais://b"), ["x"]
        )
        == []
    )


def test_a_map_has_its_version_and_its_proxies_the_primary_first() -> None:
    assert (THREE.version, THREE.uuid) == (12, "abc")
    assert THREE.proxies == ("http://p2:1", "http://p1:1")
    assert THREE.targets["t1"] == Node("t1", "http://t1:1")


def test_a_map_without_digests_has_them_from_the_ids() -> None:
    plain = [snode(name) for name in DIGESTS]
    for target in plain:
        del target["id_digest"]
    current = parse(smap(*plain))
    bucket, names = Bucket.parse("ais://b"), [f"{number}" for number in range(100)]
    assert current.owners(bucket, names) == THREE.owners(bucket, names)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (smap(snode("t1", id_digest=-1)), "digest"),
        (smap(snode("t1", id_digest=2**64)), "digest"),
        (smap(snode("t1", public_net={"direct_url": ""})), "t1 has address ''"),
        (smap(snode("t1", public_net={"direct_url": "http://h:x"})), "t1 has address 'http://h:x'"),
        (smap(snode("t1", public_net={"direct_url": "ftp://h:1"})), "t1 has address 'ftp://h:1'"),
        (smap(snode("t1", public_net={"direct_url": "http:///x"})), "t1 has address 'http:///x'"),
        (smap(snode("t1", public_net={"direct_url": "http://u:p@h:1"})), "t1 has address"),
        (b'{"x": ' + b"[" * 100_000, "recursion"),
        (b'{"tmap": {"t": {"daemon_id": "\xff"}}}', "utf-8"),
    ],
    ids=range(9),
)
def test_a_map_that_cannot_be_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(body)
