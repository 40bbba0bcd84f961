"""Names of objects: what is part of them, what is refused, and how they travel."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import pytest

from tests.support.ais import object_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.ais import Ais

LEGAL: Final = [
    "o",
    "a/b/c.tar",
    "with space",
    " leading and trailing ",
    "100%",
    "%41",
    "%2F",
    "a%2fb",
    "?q=1",
    "#fragment",
    "a+b",
    "a&b=c;d",
    'quote"s',
    "it's",
    "back\\slash",
    "semi;colon,comma",
    "(brackets)[of]{all}<kinds>",
    "tilde~at@colon:dollar$",
    "star*bang!pipe|caret^tick`",
    "ünïcödé/日本語/🙂",
    "a/.hidden",
    "a/..b",
    "a/b..",
    "...",
    "~",
    "~a/b",
    "a/~/b",
    "-",
    "a" * 255,
    "/".join(["x" * 255] * 4),  # of 1,023 bytes
]
"""Names that AIStore takes and keeps as they are."""

UNCLEAN: Final = {
    "/leading": "leading",
    "//two": "two",
    "p//q": "p/q",
    "r///s//t": "r/s/t",
}
"""Names that it takes, and what a list shows instead."""

REFUSED: Final = [
    ".",
    "..",
    "./a",
    "../a",
    "a/.",
    "a/..",
    "a/./b",
    "a/../b",
    "a/",
    "a//",
    "/",
    "~/a",
]


def content(name: str) -> bytes:
    """Return what the object of a name contains."""
    return b"this is " + name.encode()


@pytest.fixture(scope="module")
def filled(ais: Ais, bucket: str) -> str:
    """Return a bucket that has all names, each put through the proxy."""
    for name in [*LEGAL, *UNCLEAN]:
        ais.put(bucket, name, content(name))
    return bucket


@pytest.mark.parametrize("name", [*LEGAL, *UNCLEAN])
def test_a_name_is_kept_as_it_is(ais: Ais, filled: str, name: str) -> None:
    path = object_path(filled, name)
    redirect = ais.ask("GET", path)
    assert redirect.status == 301
    assert redirect.node == ais.owner_url(filled, name)
    for answer in (ais.get(filled, name), ais.follow("GET", path)):
        assert (answer.status, answer.body) == (200, content(name))
    head = ais.head(filled, name)
    # HTTP takes the blanks from the ends of a header.
    assert head.headers["Ais-Name"].encode("latin-1") == name.strip().encode()
    assert head.headers["Content-Length"] == str(len(content(name)))


@pytest.mark.parametrize("name", LEGAL)
def test_a_list_shows_the_name(ais: Ais, filled: str, name: str) -> None:
    listed = ais.names(filled, prefix=name)
    assert listed[0] == name
    assert all(other in LEGAL for other in listed)


def test_a_list_shows_a_cleaned_path_if_it_has_the_same_owner(
    ais: Ais, new_bucket: Callable[[], str]
) -> None:
    bucket = new_bucket()
    cleaned = {f"{index}//o": f"{index}/o" for index in range(60)}
    ais.put_all(bucket, {name: content(name) for name in cleaned})
    listed = set(ais.names(bucket))
    has_owner = {
        c for name, c in cleaned.items() if ais.owner(bucket, name) == ais.owner(bucket, c)
    }
    # On its disk it may have another place, by chance.
    assert listed
    assert listed <= has_owner < set(cleaned.values())
    for name, shown in cleaned.items():
        if shown in listed:
            assert ais.get(bucket, shown).body == content(name)  # it is the same file
        elif shown not in has_owner:
            assert ais.get(bucket, shown).status == 404
    # They are not in their place, as far as AIStore can see; bit 1 asks for those too.
    entries = ais.page(bucket, flags="2").content["entries"]
    flags = {entry["name"]: int(entry["flags"]) for entry in entries}
    assert sorted(flags) == sorted(cleaned.values())
    for name, bits in flags.items():
        assert bits in ({64, 66} if name in has_owner else {65})


@pytest.mark.parametrize(("name", "shown"), UNCLEAN.items())
def test_a_list_does_not_show_a_path_that_is_not_clean(
    ais: Ais, filled: str, name: str, shown: str
) -> None:
    assert name not in ais.names(filled, flags="2")
    assert shown in ais.names(filled, flags="2")
    assert ais.names(filled, prefix=name) == []


def test_all_of_a_path_may_be_escaped(ais: Ais, filled: str) -> None:
    everything = "".join(f"%{byte:02X}" for byte in b"a/b/c.tar")
    at = ais.owner_url(filled, "a/b/c.tar")
    answer = ais.ask("GET", f"/v1/objects/{filled}/{everything}", at=at)
    assert answer.body == content("a/b/c.tar")
    followed = ais.follow("GET", f"/v1/objects/{filled}/{everything}")
    assert followed.body == content("a/b/c.tar")


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_proxy_refuses_a_name(ais: Ais, filled: str, name: str, method: str) -> None:
    answer = ais.ask(method, object_path(filled, name))
    assert (answer.status, answer.tcode) == (400, "errInvalidPath")


@pytest.mark.parametrize("name", REFUSED)
def test_a_proxy_redirects_head_of_any_name(ais: Ais, filled: str, name: str) -> None:
    assert ais.ask("HEAD", object_path(filled, name)).status == 307


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_target_refuses_a_name(ais: Ais, filled: str, name: str, method: str) -> None:
    answer = ais.ask(method, object_path(filled, name), at=ais.owner_url(filled, name))
    if method == "HEAD" and name.endswith("/"):
        assert (answer.status, answer.tcode) == (404, "ErrNotFound")
    else:
        assert (answer.status, answer.tcode) == (400, "errInvalidPath")


def test_dots_count_when_they_are_escaped(ais: Ais, filled: str) -> None:
    answer = ais.ask("GET", f"/v1/objects/{filled}/a/%2E%2E/b")
    assert (answer.status, answer.tcode) == (400, "errInvalidPath")


@pytest.mark.parametrize(("name", "written"), [("a\nb", "a b"), ("a\rb", "a b"), ("a\tb", "a\tb")])
def test_a_control_character_does_not_survive_a_redirect(
    ais: Ais, bucket: str, name: str, written: str
) -> None:
    answer = ais.ask("GET", object_path(bucket, name))
    assert answer.status == 301
    assert answer.location.startswith(f"{answer.node}/v1/objects/{bucket}/{written}?")


def test_a_long_name_is_put_and_read_like_any_other(ais: Ais, bucket: str) -> None:
    for name in ("k" * 256, "d/" + "l" * 1_198, "é" * 128, "/".join(["x" * 250] * 20)):
        ais.put(bucket, name, content(name))
        assert ais.get(bucket, name).body == content(name)
        assert ais.follow("GET", object_path(bucket, name)).body == content(name)
        assert ais.head(bucket, name).headers["Content-Length"] == str(len(content(name)))


def test_a_folder_with_a_long_name_cannot_be_stored(ais: Ais, bucket: str) -> None:
    name = "f" * 256 + "/o"
    answer = ais.follow("PUT", object_path(bucket, name), body=b"1")
    assert (answer.status, answer.tcode) == (500, "PathError")
    assert ais.get(bucket, name).status == 404


@pytest.fixture(scope="module")
def with_long_names(ais: Ais, new_bucket: Callable[[], str]) -> str:
    """Return a bucket with 20 ordinary names and two long ones, one of them in a folder."""
    bucket = new_bucket()
    for name in [f"{letter}/{index}" for letter in "az" for index in range(10)]:
        ais.put(bucket, name, b"1")
    ais.put(bucket, "m" * 256, b"1")
    ais.put(bucket, "n/" + "n" * 256, b"1")
    return bucket


def test_a_long_name_is_in_a_list_of_one_page(ais: Ais, with_long_names: str) -> None:
    names = ais.names(with_long_names)
    assert names[10:12] == ["m" * 256, "n/" + "n" * 256]
    assert (len(names), sorted(names)) == (22, names)


@pytest.mark.parametrize("prefix", ["m", "m" * 256, "n/", "n/n"])
def test_a_long_name_is_not_in_a_list_with_its_prefix(
    ais: Ais, with_long_names: str, prefix: str
) -> None:
    assert ais.names(with_long_names, prefix=prefix) == []


def test_a_long_name_is_lost_between_pages(ais: Ais, with_long_names: str) -> None:
    first = ais.page(with_long_names, pagesize=5).content
    listed = [entry["name"] for entry in first["entries"]]
    while first["continuation_token"]:
        first = ais.page(
            with_long_names,
            pagesize=5,
            uuid=first["uuid"],
            continuation_token=first["continuation_token"],
        ).content
        listed += [entry["name"] for entry in first["entries"] or []]
    assert listed == [f"{letter}/{index}" for letter in "az" for index in range(10)]


def test_a_long_name_ends_a_page_too_early(ais: Ais, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    long = "m" * 256
    owner = ais.owner(bucket, long)
    names = (f"a/{index}" for index in itertools.count())
    own = list(itertools.islice((n for n in names if ais.owner(bucket, n) == owner), 12))
    for name in (*own, long):
        ais.put(bucket, name, b"1")
    first = ais.page(bucket, pagesize=5).content
    assert [entry["name"] for entry in first["entries"]] == [*sorted(own)[:4], long]
    # What lies between them does not come any more.
    assert first["continuation_token"] == long
    assert ais.names(bucket, continuation_token=long, uuid=first["uuid"]) == []


def test_long_names_have_a_prefix_of_their_own(ais: Ais, with_long_names: str) -> None:
    assert ais.names(with_long_names, prefix=".x") == ["m" * 256, "n/" + "n" * 256]


def test_the_older_head_tells_the_name_of_the_file_of_a_long_name(
    ais: Ais, with_long_names: str
) -> None:
    told = ais.head(with_long_names, "m" * 256).headers["Ais-Name"]
    assert told.startswith(".x")
    assert len(told) == 66


def test_quoting_leaves_nothing_out() -> None:
    # What the tests above rely on.
    assert quote("/a//b c%é") == "/a//b%20c%25%C3%A9"
