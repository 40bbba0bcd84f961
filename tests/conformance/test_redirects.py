"""A proxy sends clients to the target that owns the object; whoever knows the rule goes at once."""

from __future__ import annotations

import random
from http.client import HTTPException
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.support.ais import object_path

if TYPE_CHECKING:
    from tests.support.ais import Ais

LETTERS: Final = "abcXYZ019 .-_/%?#+&=\"'\\:;,@!$*()[]{}|<>^`~éüßøñ日本語中文🙂"
"""Of these, names are made at random."""


@pytest.fixture(scope="module")
def name(ais: Ais, bucket: str) -> str:
    """Return the name of an object that is there."""
    ais.put(bucket, "d/o", b"content")
    return "d/o"


def random_names(number: int) -> list[str]:
    """Return legal names, the same every time."""
    chance = random.Random(1)
    names: set[str] = set()
    while len(names) < number:
        name = "".join(chance.choices(LETTERS, k=chance.randint(1, 40)))
        elements = name.split("/")
        if not (name.endswith("/") or name.startswith("~/") or {".", ".."} & set(elements)):
            names.add(name)
    return sorted(names)


@pytest.mark.parametrize(
    ("method", "status"),
    [("GET", 301), ("HEAD", 307), ("PUT", 307), ("DELETE", 307), ("PATCH", 307)],
)
def test_a_proxy_redirects(ais: Ais, bucket: str, name: str, method: str, status: int) -> None:
    answer = ais.ask(method, object_path(bucket, name, provider="ais"))
    assert answer.status == status
    assert answer.location.startswith(
        f"{ais.owner_url(bucket, name)}{object_path(bucket, name)}?provider=ais&"
    )
    query = parse_qs(urlsplit(answer.location).query, strict_parsing=True)
    assert set(query) == {"provider", "pid", "utm"}
    assert query["pid"] == [ais.smap()["proxy_si"]["daemon_id"]]
    assert len(query["utm"][0]) == 12
    assert int(query["utm"][0], 36) > 0


def test_the_redirect_of_get_has_a_short_page(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.ask("GET", object_path(bucket, name))
    assert answer.headers.get_content_type() == "text/html"
    assert b"Moved Permanently" in answer.body
    assert b"content" not in answer.body
    assert int(answer.headers["Content-Length"]) == len(answer.body) < 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_redirects_have_no_body(ais: Ais, bucket: str, name: str, method: str) -> None:
    answer = ais.ask(method, object_path(bucket, name))
    assert answer.body == b""
    assert answer.headers["Content-Length"] == "0"


def test_a_redirect_keeps_what_was_asked(ais: Ais, bucket: str, name: str) -> None:
    query = {"provider": "ais", "archpath": "a b/é+&=%.jpg", "unknown": ""}
    location = ais.ask("GET", object_path(bucket, name, **query)).location
    kept = parse_qs(urlsplit(location).query, keep_blank_values=True)
    assert {key: kept[key] for key in query} == {key: [value] for key, value in query.items()}


def test_a_redirect_leads_to_the_object(ais: Ais, bucket: str, name: str) -> None:
    assert ais.follow("GET", object_path(bucket, name)).body == b"content"
    assert ais.follow("HEAD", object_path(bucket, name)).headers["Content-Length"] == "7"


def test_a_proxy_does_not_know_whether_the_object_is_there(ais: Ais, bucket: str) -> None:
    assert ais.ask("GET", object_path(bucket, "missing")).status == 301
    answer = ais.follow("GET", object_path(bucket, "missing"))
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")


def test_the_owner_is_the_one_with_the_highest_random_weight(ais: Ais, bucket: str) -> None:
    targets = set()
    for name in random_names(300):
        answer = ais.ask("GET", object_path(bucket, name))
        assert answer.status == 301, name
        assert answer.node == ais.owner_url(bucket, name), name
        assert unquote(urlsplit(answer.location).path) == f"/v1/objects/{bucket}/{name}"
        targets.add(answer.node)
    assert len(targets) == 3


def test_a_target_serves_what_it_owns_without_any_query(ais: Ais, bucket: str, name: str) -> None:
    at = ais.owner_url(bucket, name)
    assert ais.ask("GET", object_path(bucket, name), at=at).body == b"content"
    assert ais.ask("HEAD", object_path(bucket, name), at=at).status == 200


def test_a_target_serves_with_a_made_up_redirect(ais: Ais, bucket: str, name: str) -> None:
    assert ais.get(bucket, name, pid="nobody", utm="000000000000").body == b"content"


def test_an_unknown_token_or_header_makes_no_difference(ais: Ais, bucket: str, name: str) -> None:
    headers = {"Authorization": "Bearer nonsense", "Ais-Nonsense": "1"}
    assert ais.get(bucket, name, headers).body == b"content"
    assert ais.ask("GET", object_path(bucket, name), headers=headers).status == 301


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_target_does_not_have_the_object(
    ais: Ais, bucket: str, name: str, method: str
) -> None:
    owner = ais.owner(bucket, name)
    for target, url in ais.targets.items():
        if target != owner:
            answer = ais.ask(method, object_path(bucket, name), at=url)
            assert (answer.status, answer.tcode) == (404, "ErrNotFound")
            message = f"t[{target}]: ais://{bucket}/{name} does not exist"
            assert answer.error["message"] == message


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_a_target_takes_changes_from_the_proxy_only(
    ais: Ais, bucket: str, name: str, method: str
) -> None:
    answer = ais.ask(method, object_path(bucket, name), at=ais.owner_url(bucket, name))
    assert answer.status == 400
    assert f"{method}(obj) is expected to be redirected" in answer.error["message"]
    assert ais.get(bucket, name).body == b"content"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_a_proxy_knows_which_buckets_there_are(ais: Ais, method: str) -> None:
    answer = ais.ask(method, object_path("missing-bucket", "o"))
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")
    assert answer.error["message"] == 'bucket "ais://missing-bucket" does not exist'


@pytest.mark.parametrize(("method", "status"), [("GET", 400), ("HEAD", 404)])
def test_a_target_tells_of_a_missing_bucket_in_its_own_way(
    ais: Ais, method: str, status: int
) -> None:
    for url in ais.targets.values():
        answer = ais.ask(method, object_path("missing-bucket", "o"), at=url)
        assert (answer.status, answer.tcode) == (status, "ErrBckNotFound")


def test_a_provider_that_does_not_exist_is_refused(ais: Ais, bucket: str, name: str) -> None:
    for url in ("", ais.owner_url(bucket, name)):
        answer = ais.ask("GET", object_path(bucket, name, provider="nonsense"), at=url)
        assert (answer.status, answer.tcode) == (400, "ErrInvalidBackendProvider")


def test_a_provider_without_a_backend_is_refused(ais: Ais, bucket: str, name: str) -> None:
    answer = ais.ask("GET", object_path(bucket, name, provider="aws"))
    assert (answer.status, answer.tcode) == (404, "ErrFailedTo")
    assert "backend is missing in the cluster configuration" in answer.error["message"]


@pytest.mark.parametrize(("number", "status"), [(99, 200), (101, 400)])
def test_too_many_parameters_are_refused(
    ais: Ais, bucket: str, name: str, number: int, status: int
) -> None:
    query = {f"q{index}": "1" for index in range(number)}
    path = object_path(bucket, name, **query)
    assert ais.ask("GET", path, at=ais.owner_url(bucket, name)).status == status


def test_the_last_of_two_equal_parameters_counts(ais: Ais, bucket: str, name: str) -> None:
    path = object_path(bucket, name)
    for at, status in (("", 301), (ais.owner_url(bucket, name), 200)):
        good = ais.ask("GET", f"{path}?provider=nonsense&provider=ais", at=at)
        bad = ais.ask("GET", f"{path}?provider=ais&provider=nonsense", at=at)
        assert (good.status, bad.status) == (status, 400)


def test_a_path_without_an_object_is_refused(ais: Ais, bucket: str) -> None:
    for path in (f"/v1/objects/{bucket}", f"/v1/objects/{bucket}/", "/v1/objects"):
        answer = ais.ask("GET", path)
        assert answer.status == 400
        assert "too short" in answer.error["message"]


def test_an_unknown_path_is_refused(ais: Ais) -> None:
    answer = ais.ask("GET", "/v1/nonsense")
    assert answer.status == 400
    assert "invalid request URI" in answer.error["message"]


def test_a_large_body_at_the_proxy_breaks_the_pipe(ais: Ais, bucket: str, name: str) -> None:
    content = bytes(32 << 20)
    with pytest.raises((HTTPException, ConnectionError)):
        ais.wire.ask("PUT", ais.endpoint + object_path(bucket, name), body=content, fresh=True)
    assert ais.get(bucket, name).body == b"content"
