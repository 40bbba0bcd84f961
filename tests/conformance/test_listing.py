"""Lists of objects: pages and tokens, in JSON and in msgpack, and what they say of an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest
import xxhash

from tests.support.ais import bucket_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.ais import Ais

OBJECTS: Final = {
    "a/1": b"one",
    "a/10": b"ten",
    "a/2": b"",
    "a": b"a file and no folder",
    "ab": b"x",
    "B": b"capital",
    "b/c/d": b"deep",
    "z": b"last of ASCII",
    "~z": b"tilde",
    "é": b"two bytes",
    "\uffee": b"three bytes",
    "🙂": b"four bytes",
}
"""An object ``a`` and others below ``a/`` only live together at different targets or disks."""
NAMES: Final = sorted(set(OBJECTS) - {"a"}, key=str.encode)
PROPS: Final = "name,size,checksum,version"
"""What the daemon asks for."""


@pytest.fixture(scope="module")
def filled(ais: Ais, bucket: str) -> str:
    """Return a bucket with `NAMES`."""
    ais.put_all(bucket, {name: OBJECTS[name] for name in NAMES})
    return bucket


def packed(ais: Ais, bucket: str, **value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return a page that was asked for in msgpack."""
    answer = ais.ask(
        "GET",
        bucket_path(bucket),
        headers={"Accept": "application/msgpack"},
        body={"action": "list", "value": value},
    )
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == "application/msgpack"
    page: dict[str, Any] = msgpack.unpackb(answer.body)
    return page


def pages(ais: Ais, bucket: str, **value: Any) -> list[list[str]]:  # noqa: ANN401 - JSON
    """Return the names on every page of a list."""
    found = []
    uuid = token = ""
    while True:
        page = ais.page(bucket, uuid=uuid, continuation_token=token, **value).content
        found.append([entry["name"] for entry in page["entries"] or []])
        uuid, token = page["uuid"], page["continuation_token"]
        if not token:
            return found


# --- The form -------------------------------------------------------------------------------------


def test_a_page_in_json(ais: Ais, filled: str) -> None:
    answer = ais.page(filled)
    assert answer.status == 200
    assert answer.headers.get_content_type() == "application/json"
    page = answer.content
    assert set(page) == {"uuid", "continuation_token", "entries", "flags"}
    assert page["uuid"]
    assert (page["continuation_token"], page["flags"]) == ("", 0)
    assert page["entries"][:3] == [
        {"name": "B", "size": "7", "flags": 64},
        {"name": "a/1", "size": "3", "flags": 64},
        {"name": "a/10", "size": "3", "flags": 64},
    ]


def test_a_page_in_msgpack(ais: Ais, filled: str) -> None:
    page = packed(ais, filled, props=PROPS, flags="0", pagesize=0, continuation_token="", uuid="")
    assert set(page) == {"UUID", "ContinuationToken", "Entries", "Flags"}
    assert page["UUID"]
    assert (page["ContinuationToken"], page["Flags"]) == ("", 0)
    assert page["Entries"] == [
        {"n": name, "cs": xxhash.xxh64_hexdigest(data), "v": "1", "f": 64}
        | ({"s": len(data)} if data else {})
        for name, data in ((name, OBJECTS[name]) for name in NAMES)
    ]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html", ""])
def test_json_is_what_comes_without_a_wish(ais: Ais, filled: str, accept: str) -> None:
    message = {"action": "list", "value": {}}
    answer = ais.ask("GET", bucket_path(filled), headers={"Accept": accept}, body=message)
    assert answer.headers.get_content_type() == "application/json"


def test_both_forms_say_the_same(ais: Ais, filled: str) -> None:
    long = {"n": "name", "cs": "checksum", "v": "version", "s": "size", "f": "flags"}
    long |= {"a": "atime", "t": "location", "c": "copies", "m": "custom-md"}
    props = "name,size,checksum,version,location,copies,custom,atime"
    written = ais.page(filled, props=props).content["entries"]
    for entry in written:
        if "size" in entry:
            entry["size"] = int(entry["size"])
    entries = packed(ais, filled, props=props)["Entries"]
    assert [{long[key]: value for key, value in entry.items()} for entry in entries] == written


def test_an_empty_bucket_has_an_empty_page(ais: Ais, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    page = ais.page(bucket).content
    assert (page["entries"], page["continuation_token"]) == (None, "")
    page = packed(ais, bucket)
    assert (page["Entries"], page["ContinuationToken"]) == ([], "")


def test_a_missing_bucket_has_no_list(ais: Ais) -> None:
    answer = ais.page("missing-bucket")
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")


def test_an_error_is_json_for_who_wants_msgpack(ais: Ais) -> None:
    answer = ais.ask(
        "GET",
        bucket_path("missing-bucket"),
        headers={"Accept": "application/msgpack"},
        body={"action": "list", "value": {}},
    )
    assert answer.headers.get_content_type() == "application/json"
    assert answer.tcode == "ErrBckNotFound"


def test_a_target_does_not_list(ais: Ais, filled: str) -> None:
    for url in ais.targets.values():
        answer = ais.act("GET", filled, "list", at=url, value={})
        assert answer.status == 400
        assert "invalid UUID" in answer.error["message"]


# --- Pages ----------------------------------------------------------------------------------------


def test_names_come_in_the_order_of_their_bytes(ais: Ais, filled: str) -> None:
    assert ais.names(filled) == NAMES
    assert [name for page in pages(ais, filled, pagesize=3) for name in page] == NAMES


@pytest.mark.parametrize("size", [1, 2, 4, 10])
def test_pages_are_full_until_the_last(ais: Ais, filled: str, size: int) -> None:
    found = pages(ais, filled, pagesize=size)
    assert [name for page in found for name in page] == NAMES
    assert {len(page) for page in found[:-1]} == {size}


def test_a_full_last_page_is_followed_by_an_empty_one(ais: Ais, filled: str) -> None:
    assert pages(ais, filled, pagesize=len(NAMES)) == [NAMES, []]
    assert pages(ais, filled, pagesize=len(NAMES) + 1) == [NAMES]


def test_the_token_is_the_last_name(ais: Ais, filled: str) -> None:
    page = ais.page(filled, pagesize=2).content
    assert page["continuation_token"] == page["entries"][-1]["name"] == NAMES[1]
    following = ais.page(
        filled, pagesize=2, uuid=page["uuid"], continuation_token=page["continuation_token"]
    ).content
    assert following["uuid"] == page["uuid"]
    assert [entry["name"] for entry in following["entries"]] == NAMES[2:4]


def test_a_list_goes_on_from_any_name_without_its_uuid(ais: Ais, filled: str) -> None:
    assert ais.names(filled, continuation_token=NAMES[3]) == NAMES[4:]
    assert ais.names(filled, continuation_token="a/1x") == NAMES[3:]
    assert ais.names(filled, continuation_token=NAMES[-1]) == []


def test_a_page_can_be_asked_for_again(ais: Ais, filled: str) -> None:
    first = ais.page(filled, pagesize=3).content
    for _ in range(3):
        again = ais.page(filled, pagesize=3, uuid=first["uuid"], continuation_token=NAMES[2])
        assert [entry["name"] for entry in again.content["entries"]] == NAMES[3:6]


@pytest.mark.parametrize("uuid", ["abcdefghi", "aBc-eF_hi", "0123456789", "x" * 28])
def test_a_list_goes_on_with_any_uuid(ais: Ais, filled: str, uuid: str) -> None:
    page = ais.page(filled, uuid=uuid, continuation_token=NAMES[3]).content
    assert page["uuid"] == uuid
    assert [entry["name"] for entry in page["entries"]] == NAMES[4:]


def test_a_list_that_has_ended_goes_on_with_its_uuid(ais: Ais, filled: str) -> None:
    uuid = ais.page(filled).content["uuid"]
    assert ais.names(filled, uuid=uuid, continuation_token=NAMES[3]) == NAMES[4:]


@pytest.mark.parametrize(
    "uuid", ["x", "12345678", "-bcdefghi", "bcdefghi-", "bcd efghi", "bcd/efghi"]
)
def test_what_cannot_be_a_uuid_is_refused(ais: Ais, filled: str, uuid: str) -> None:
    answer = ais.page(filled, uuid=uuid, continuation_token=NAMES[0])
    assert answer.status == 400
    assert f'invalid UUID "{uuid}"' in answer.error["message"]


def test_a_list_may_start_after_a_name(ais: Ais, filled: str) -> None:
    assert ais.names(filled, start_after="a/10") == NAMES[3:]
    assert ais.names(filled, start_after="a/1x") == NAMES[3:]
    found = pages(ais, filled, start_after="a/10", pagesize=2)
    assert [name for page in found for name in page] == NAMES[3:]


@pytest.mark.parametrize("prefix", ["a/", "a/1", "ab", "b/", "b/c/", "b/c/d", "é", "c", "a//", "/"])
def test_a_prefix_is_the_beginning_of_a_name(ais: Ais, filled: str, prefix: str) -> None:
    expected = [name for name in NAMES if name.startswith(prefix)]
    assert ais.names(filled, prefix=prefix) == expected
    found = pages(ais, filled, prefix=prefix, pagesize=1)
    assert [name for page in found for name in page] == expected


def test_a_folder_hides_what_begins_with_its_name(ais: Ais, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    inside = sorted(f"a/b/{index}" for index in range(40))
    beside = sorted(f"a/bc{index}" for index in range(40))
    ais.put_all(bucket, dict.fromkeys([*inside, *beside], b"1"))
    # Every disk has the folder.
    assert ais.names(bucket, prefix="a/b") == inside
    assert pages(ais, bucket, prefix="a/b", pagesize=50) == [inside]
    # So does a folder that is empty by now.
    for name in inside:
        ais.delete(bucket, name)
    assert ais.names(bucket, prefix="a/b") == []
    # What is safe is to ask for the folder that it all lies in, and where to begin.
    assert ais.names(bucket, prefix="a/", start_after="a/b") == beside
    assert ais.names(bucket, prefix="a/bc") == beside


@pytest.mark.parametrize("prefix", ["..", "../a", "a/../b", ".", "a/."])
def test_a_prefix_with_dots_is_refused(ais: Ais, filled: str, prefix: str) -> None:
    answer = ais.page(filled, prefix=prefix)
    assert (answer.status, answer.tcode) == (400, "errInvalidPath")


def test_what_was_deleted_or_put_is_seen_by_the_next_list(ais: Ais, filled: str) -> None:
    ais.put(filled, "new", b"1")
    assert "new" in ais.names(filled)
    ais.delete(filled, "new")
    assert ais.names(filled) == NAMES


# --- What is asked for ----------------------------------------------------------------------------


def entry(ais: Ais, bucket: str, name: str, **value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return what a list says of one object."""
    found = ais.page(bucket, prefix=name, **value).content["entries"]
    assert found[0]["name"] == name
    return dict(found[0])


@pytest.mark.parametrize("props", ["", "name,size", "size", "size,name", "name, size"])
def test_name_and_size_are_what_comes_without_a_wish(ais: Ais, filled: str, props: str) -> None:
    assert entry(ais, filled, "b/c/d", props=props) == {"name": "b/c/d", "size": "4", "flags": 64}


def test_names_alone_may_be_asked_for(ais: Ais, filled: str) -> None:
    assert entry(ais, filled, "b/c/d", props="name") == {"name": "b/c/d", "flags": 64}


def test_an_empty_object_has_no_size(ais: Ais, filled: str) -> None:
    assert entry(ais, filled, "a/2") == {"name": "a/2", "flags": 64}


@pytest.mark.parametrize("word", ["nonsense", "etag", "status", "ec"])
def test_an_unknown_word_is_no_wish(ais: Ais, filled: str, word: str) -> None:
    found = entry(ais, filled, "b/c/d", props=f"name,size,{word}")
    assert found == {"name": "b/c/d", "size": "4", "flags": 64}


def test_a_list_says_where_an_object_is(ais: Ais, filled: str) -> None:
    for name in NAMES:
        told = entry(ais, filled, name, props="name,location")["location"]
        assert told.startswith(f"t[{ais.owner(filled, name)}]:mp[")


def test_a_list_says_what_get_says(ais: Ais, filled: str) -> None:
    for name in NAMES:
        told = entry(ais, filled, name, props=PROPS)
        headers = ais.get(filled, name).headers
        assert told["checksum"] == headers["Ais-Checksum-Value"]
        assert told["version"] == headers["Ais-Version"]
        assert told.get("size", "0") == headers["Content-Length"]


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"flags": 0},
        {"flags": ""},
        {"flags": "x"},
        {"pagesize": "3"},
        {"prefix": 1},
        {"nonsense": 1},
    ],
)
def test_a_message_that_is_not_understood_is_refused(
    ais: Ais, filled: str, value: dict[str, Any]
) -> None:
    answer = ais.page(filled, **value)
    assert answer.status == 400
    # What is quoted there may not be UTF-8.
    assert b"failed to unmarshal" in answer.body


def test_a_list_without_a_value_is_one_of_buckets(ais: Ais, filled: str) -> None:
    for message in ({"action": "list"}, {"action": "list", "value": None}):
        answer = ais.ask("GET", bucket_path(filled), body=message)
        assert answer.status == 400
        assert "bad list-buckets request" in answer.error["message"]


def test_a_list_needs_get(ais: Ais, filled: str) -> None:
    assert ais.act("POST", filled, "list", value={}).status == 400


def test_a_body_that_is_no_json_is_refused(ais: Ais, filled: str) -> None:
    answer = ais.ask("GET", bucket_path(filled), body=b"{")
    assert answer.status == 400
    assert "failed to unmarshal" in answer.error["message"]
