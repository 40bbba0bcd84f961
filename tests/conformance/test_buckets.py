"""Buckets: created, described, listed and destroyed."""

from __future__ import annotations

import json
from http.client import RemoteDisconnected
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.support.ais import bucket_path, object_path

if TYPE_CHECKING:
    from tests.support.ais import Ais

PROPS = {
    *("backend_bck", "write_policy", "provider", "Renamed", "checksum", "extra", "rate_limit"),
    *("ec", "chunks", "mirror", "lru", "access", "features", "bid", "created", "versioning"),
}


def test_a_bucket_lives_from_create_to_destroy(ais: Ais) -> None:
    created = ais.act("POST", "short-lived", "create-bck")
    assert (created.status, created.body) == (200, b"")
    ais.put("short-lived", "o", b"1")
    destroyed = ais.act("DELETE", "short-lived", "destroy-bck")
    assert (destroyed.status, destroyed.body) == (200, b"")
    answer = ais.ask("GET", object_path("short-lived", "o"))
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")


def test_a_bucket_that_comes_again_is_empty(ais: Ais) -> None:
    for _ in range(2):
        ais.act("POST", "returning", "create-bck")
        assert ais.names("returning") == []
        assert ais.put("returning", "o", b"1").headers["Ais-Version"] == "1"
        ais.act("DELETE", "returning", "destroy-bck")


def test_a_bucket_is_created_once(ais: Ais, bucket: str) -> None:
    answer = ais.act("POST", bucket, "create-bck")
    assert (answer.status, answer.tcode) == (409, "ErrBucketAlreadyExists")


@pytest.mark.parametrize("name", ["A", "a.b", "a_b", "-a", "_", "0", "x" * 64])
def test_a_name_may_be_that_of_a_bucket(ais: Ais, name: str) -> None:
    assert ais.act("POST", name, "create-bck").status == 200
    assert ais.act("DELETE", name, "destroy-bck").status == 200


@pytest.mark.parametrize(
    "name",
    ["a b", "é", "a..b", "a%", "a+b", "a$b", "a:b", "a~b", "a@b", "@#", ".a", "..", "x" * 65],
)
def test_a_name_cannot_be_that_of_a_bucket(ais: Ais, name: str) -> None:
    path = quote(name)
    value = {"action": "list", "value": {}}
    answers = [
        ais.act("POST", path, "create-bck"),
        ais.ask("GET", bucket_path(path), body=value),
        ais.ask("HEAD", bucket_path(path)),
        ais.ask("GET", object_path(path, "o")),
        ais.ask("GET", object_path(path, "o"), at=ais.owner_url(name, "o")),
    ]
    for answer in answers:
        assert answer.status == 400
        assert "bucket name" in answer.error["message"]


def test_a_missing_bucket_is_not_destroyed(ais: Ais) -> None:
    answer = ais.act("DELETE", "missing-bucket", "destroy-bck")
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")


def test_head_of_a_bucket_has_its_properties(ais: Ais, bucket: str) -> None:
    answer = ais.ask("HEAD", bucket_path(bucket))
    assert (answer.status, answer.body) == (200, b"")
    props = json.loads(answer.headers["Ais-Bucket-Props"])
    assert set(props) == PROPS
    assert props["provider"] == "ais"
    assert props["checksum"]["type"] == "xxhash2"
    assert props["checksum"]["enable_read_range"] is False
    for number in ("bid", "access", "created", "features"):
        assert int(props[number]) >= 0
        assert isinstance(props[number], str)


def test_the_description_of_all_buckets_has_the_same_properties(ais: Ais, bucket: str) -> None:
    described = ais.ask("GET", "/v1/daemon?what=bmd").content
    head = ais.ask("HEAD", bucket_path(bucket))
    props = json.loads(head.headers["Ais-Bucket-Props"])
    assert described["providers"]["ais"]["@#"][bucket] == props


def test_head_of_a_missing_bucket_has_its_error_in_a_header(ais: Ais) -> None:
    answer = ais.ask("HEAD", bucket_path("missing-bucket"))
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")
    assert answer.body == b""


def test_a_target_does_not_answer_head_of_a_bucket(ais: Ais, bucket: str) -> None:
    for url in ais.targets.values():
        with pytest.raises(RemoteDisconnected):
            ais.wire.ask("HEAD", url + bucket_path(bucket), fresh=True)


@pytest.mark.parametrize("path", ["/v1/buckets", "/v1/buckets?provider=ais"])
def test_all_buckets_are_listed(ais: Ais, bucket: str, path: str) -> None:
    for at in ("", *ais.targets.values()):
        answer = ais.ask("GET", path, at=at, body={"action": "list"})
        assert answer.status == 200
        entry = {"name": bucket, "provider": "ais", "namespace": {"uuid": "", "name": ""}}
        assert entry in answer.content


def test_a_list_of_buckets_may_have_no_value_but_not_an_empty_one(ais: Ais, bucket: str) -> None:
    nothing = ais.ask("GET", "/v1/buckets", body={"action": "list", "value": None})
    assert nothing.status == 200
    answer = ais.ask("GET", "/v1/buckets", body={"action": "list", "value": {}})
    assert answer.status == 400
    assert "is not a bucket" in answer.error["message"]


def test_a_provider_without_a_backend_has_no_list(ais: Ais) -> None:
    answer = ais.ask("GET", "/v1/buckets?provider=aws", body={"action": "list"})
    assert (answer.status, answer.tcode) == (400, "ErrMissingBackend")
