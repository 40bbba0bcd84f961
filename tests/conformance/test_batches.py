"""Batches (GetBatch): two requests, one archive, in order, and what becomes of missing entries."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.ais import batch, batch_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.message import Message

    from tests.support.ais import Ais, Answer

NAMES: Final = [f"d/{index:03}" for index in range(30)]
BLOCK: Final = 512


def content(name: str) -> bytes:
    """Return what the object of a name contains."""
    return f"this is {name} ".encode() * 50


def tar(names: list[str]) -> bytes:
    """Return an archive."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            archive.addfile(info, io.BytesIO(content(name)))
    return sink.getvalue()


@pytest.fixture(scope="module")
def filled(ais: Ais, bucket: str) -> str:
    """Return a bucket with `NAMES`, an empty object and a shard."""
    objects = {name: content(name) for name in NAMES}
    ais.put_all(bucket, objects | {"empty": b"", "s.tar": tar(["a/1", "a/2"])})
    return bucket


def fetch(ais: Ais, bucket: str, body: dict[str, Any], **query: str) -> Answer:
    """Return the answer to both requests for a batch."""
    return ais.follow("GET", batch_path(bucket, **query), first_body=body, body=body)


def members(answer: Answer) -> list[tuple[str, bytes]]:
    """Return the members of a streamed batch, whose archive must be closed properly."""
    assert answer.status == 200, answer
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.body[-2 * BLOCK :] == bytes(2 * BLOCK)
    found = []
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:") as archive:
        for member in archive:
            data = archive.extractfile(member)
            assert data is not None
            found.append((member.name, data.read()))
    return found


def own_and_foreign(ais: Ais, bucket: str, pattern: str) -> tuple[str, str]:
    """Return names that the designated target of a batch for `NAMES` by ``coloc`` owns or not."""
    owner = ais.owner(bucket, NAMES[0])
    names = [pattern.format(index) for index in range(100)]
    own = next(name for name in names if ais.owner(bucket, name) == owner)
    return own, next(name for name in names if ais.owner(bucket, name) != owner)


def at_owner(ais: Ais, bucket: str, entries: list[Any], **options: Any) -> Answer:  # noqa: ANN401
    """Return the answer to a batch whose designated target owns the first of `NAMES`."""
    # It owns most of the entries, and so it is chosen.
    mine = [n for n in NAMES if ais.owner(bucket, n) == ais.owner(bucket, NAMES[0])]
    most = (mine * 20)[: len(entries) + 1]
    return fetch(ais, bucket, batch([*most, *entries], **options), coloc="1")


# --- The two requests -----------------------------------------------------------------------------


def test_a_proxy_sends_a_batch_to_a_target(ais: Ais, filled: str) -> None:
    nodes = set()
    for _ in range(40):
        answer = ais.ask("GET", batch_path(filled), body=batch(NAMES))
        assert answer.status == 307
        parts = urlsplit(answer.location)
        path = parts.path.split("/")
        assert path[:5] == ["", "v1", "ml", "moss", filled]
        assert len(path) == 8
        query = parse_qs(parts.query)
        assert set(query) == {"provider", "pid", "utm"}
        nodes.add(answer.node)
    assert nodes == set(ais.targets.values())


def test_a_target_takes_no_batch_from_a_client(ais: Ais, filled: str) -> None:
    for url in ais.targets.values():
        answer = ais.ask("GET", batch_path(filled), at=url, body=batch(NAMES))
        assert answer.status in {400, 401}


def test_the_second_body_must_be_a_batch_too(ais: Ais, filled: str) -> None:
    path = batch_path(filled)
    assert ais.follow("GET", path, first_body=batch(NAMES), body=b"").status == 400
    assert ais.follow("GET", path, first_body=batch(NAMES), body=b"{").status == 400


def test_entries_and_names_are_those_of_the_first_body(ais: Ais, filled: str) -> None:
    first, second = batch(NAMES[:3]), batch(NAMES[5:6], onob=False, coer=False)
    answer = ais.follow("GET", batch_path(filled), first_body=first, body=second)
    assert members(answer) == [(name, content(name)) for name in NAMES[:3]]


def test_the_way_of_sending_is_that_of_the_second_body(ais: Ais, filled: str) -> None:
    first, second = batch(NAMES[:3], strm=False), batch(NAMES[:3], strm=True)
    answer = ais.follow("GET", batch_path(filled), first_body=first, body=second)
    assert len(members(answer)) == 3
    answer = ais.follow("GET", batch_path(filled), first_body=second, body=first)
    assert answer.headers["Content-Type"].startswith("multipart/mixed; boundary=")


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_batch_needs_get(ais: Ais, filled: str, method: str) -> None:
    answer = ais.ask(method, batch_path(filled), body=batch(NAMES))
    assert answer.status == 405
    assert answer.headers.get_content_type() == "text/plain"


def test_a_target_that_owns_most_may_be_asked_for(ais: Ais, filled: str) -> None:
    for name in NAMES[:10]:
        answer = ais.ask("GET", batch_path(filled, coloc="1"), body=batch([name] * 3))
        assert answer.node == ais.owner_url(filled, name)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (batch([]), 400),
        (batch([{"objname": ""}]), 400),
        (batch([*NAMES, "a/../b"]), 400),
        (batch([*NAMES, "a/"]), 400),
        (batch([{"objname": "s.tar", "archpath": "./a"}]), 400),
        (batch([{"objname": "o", "start": 5}]), 400),
        (batch([{"objname": "o", "start": -1, "length": 1}]), 400),
        (batch([{"objname": "o", "opaque": "_-_-"}]), 400),
        (batch([{"objname": "o", "bucket": "missing-bucket"}]), 404),
        (batch([{"objname": "o", "bucket": "b", "provider": "nonsense"}]), 400),
        (batch([{"objname": "o", "uname": "ais/@#/no-slash"}]), 400),
    ],
)
def test_one_bad_entry_spoils_a_batch_at_the_proxy(
    ais: Ais, filled: str, body: bytes | dict[str, Any], status: int
) -> None:
    assert ais.ask("GET", batch_path(filled), body=body).status == status


def test_a_batch_of_a_missing_bucket_is_refused(ais: Ais) -> None:
    answer = ais.ask("GET", batch_path("missing-bucket"), body=batch(NAMES))
    assert (answer.status, answer.tcode) == (404, "ErrBckNotFound")


# --- What comes -----------------------------------------------------------------------------------


def test_members_come_in_the_order_of_the_entries(ais: Ais, filled: str) -> None:
    names = [*NAMES[::-1], NAMES[3], NAMES[3], "empty", NAMES[0]]
    answer = fetch(ais, filled, batch(names))
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert "Content-Length" not in answer.headers
    assert not [name for name in answer.headers if name.lower().startswith("ais-")]
    assert members(answer) == [(n, content(n) if n != "empty" else b"") for n in names]


def test_names_begin_with_the_bucket_unless_it_is_left_out(ais: Ais, filled: str) -> None:
    named = members(fetch(ais, filled, batch(NAMES[:9], onob=False)))
    assert [name for name, _ in named] == [f"{filled}/{name}" for name in NAMES[:9]]


def test_an_entry_may_name_its_bucket(ais: Ais, filled: str, new_bucket: Callable[[], str]) -> None:
    other = new_bucket()
    ais.put(other, "o", b"other")
    entries = [{"objname": NAMES[0]}, {"objname": "o", "bucket": other, "provider": "ais"}]
    found = members(fetch(ais, filled, batch(entries, onob=False)))
    assert found == [(f"{filled}/{NAMES[0]}", content(NAMES[0])), (f"{other}/o", b"other")]


def test_an_entry_may_be_a_file_in_an_archive(ais: Ais, filled: str) -> None:
    entries = [{"objname": "s.tar", "archpath": path} for path in ("a/2", "a/1")]
    for _ in range(6):  # at the owner of the shard, and elsewhere
        found = members(fetch(ais, filled, batch(entries)))
        assert found == [("s.tar/a/2", content("a/2")), ("s.tar/a/1", content("a/1"))]


@pytest.mark.parametrize(
    ("start", "length", "part"),
    [(0, 0, slice(None)), (0, 5, slice(5)), (3, 4, slice(3, 7)), (7, -1, slice(7, None))],
)
def test_an_entry_may_be_a_range(
    ais: Ais, filled: str, start: int, length: int, part: slice
) -> None:
    entries = [{"objname": name, "start": start, "length": length} for name in NAMES[:9]]
    entries.append({"objname": "s.tar", "archpath": "a/1", "start": start, "length": length})
    found = members(fetch(ais, filled, batch(entries)))
    expected = [*NAMES[:9], "a/1"]
    assert [data for _, data in found] == [content(name)[part] for name in expected]


def test_a_batch_as_a_whole_has_two_parts(ais: Ais, filled: str) -> None:
    opaque = base64.b64encode(b"\xff\xfe??").decode()
    entries = [{"objname": NAMES[0], "opaque": opaque}, *({"objname": n} for n in NAMES[1:6])]
    answer = fetch(ais, filled, batch(entries, strm=False))
    assert answer.status == 200
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + answer.body)
    metadata, archive = message.iter_parts()
    assert metadata["Content-Disposition"].params["name"] == "metadata"
    assert archive["Content-Disposition"].params["name"] == "archive"
    told = json.loads(payload(metadata))
    assert set(told) == {"uuid", "out"}
    assert [out["objname"] for out in told["out"]] == NAMES[:6]
    assert [int(out["size"]) for out in told["out"]] == [len(content(n)) for n in NAMES[:6]]
    assert told["out"][0]["opaque"] == opaque
    with tarfile.open(fileobj=io.BytesIO(payload(archive)), mode="r:") as tarred:
        assert tarred.getnames() == NAMES[:6]


def payload(part: Message) -> bytes:
    """Return what is in a part."""
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize(
    ("mime", "kind"),
    [
        (".tgz", "application/gzip"),
        (".zip", "application/zip"),
        (".tar.lz4", "application/x-lz4"),
        ("", "application/x-tar"),
    ],
)
def test_the_kind_of_archive_may_be_chosen(ais: Ais, filled: str, mime: str, kind: str) -> None:
    answer = fetch(ais, filled, batch(NAMES, mime=mime))
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)


# --- What is missing ------------------------------------------------------------------------------


def test_a_missing_entry_is_an_empty_member_in_its_place(ais: Ais, filled: str) -> None:
    for name in own_and_foreign(ais, filled, "missing/{}"):
        for only_names, prefix in ((True, ""), (False, f"{filled}/")):
            found = members(at_owner(ais, filled, [name, NAMES[1]], onob=only_names))
            assert found[-2:] == [
                (f"__404__/{prefix}{name}", b""),
                (f"{prefix}{NAMES[1]}", content(NAMES[1])),
            ]


def test_a_file_that_is_not_in_an_archive_is_missing(ais: Ais, filled: str) -> None:
    entry = {"objname": "s.tar", "archpath": "missing"}
    for _ in range(6):
        (name, data), last = members(fetch(ais, filled, batch([entry, NAMES[0]])))
        assert (name, data) == ("__404__/s.tar/missing", b"")
        assert last == (NAMES[0], content(NAMES[0]))


def test_eight_missing_entries_are_forgiven_and_not_nine(ais: Ais, filled: str) -> None:
    names = [*(f"missing/{index}" for index in range(8)), NAMES[0]]
    assert len(members(fetch(ais, filled, batch(names)))) == 9
    names.insert(0, "missing/more")
    names += NAMES[1:5]
    assert len(members(fetch(ais, filled, batch(names)))) < len(names)
    answer = fetch(ais, filled, batch(names, strm=False))
    assert answer.status == 400
    assert "exceeded soft-errors limit: 9 (max: 8)" in answer.error["message"]


def test_the_first_own_missing_entry_ends_a_batch_that_does_not_go_on(
    ais: Ais, filled: str
) -> None:
    own, _ = own_and_foreign(ais, filled, "missing/{}")
    streamed = members(at_owner(ais, filled, [own, NAMES[1]], coer=False))
    # It looks like a whole batch, and is shorter.
    assert len(streamed) == 3
    assert not [name for name, _ in streamed if name.startswith("__404__")]
    answer = at_owner(ais, filled, [own, NAMES[1]], coer=False, strm=False)
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")


def test_an_entry_missing_at_a_peer_is_a_member_even_if_it_must_not(ais: Ais, filled: str) -> None:
    _, foreign = own_and_foreign(ais, filled, "missing/{}")
    found = members(at_owner(ais, filled, [foreign, NAMES[1]], coer=False))
    assert found[-2:] == [(f"__404__/{foreign}", b""), (NAMES[1], content(NAMES[1]))]


@pytest.mark.parametrize("coer", [True, False])
def test_a_range_behind_the_end_ends_a_batch(ais: Ais, filled: str, coer: bool) -> None:
    entry = {"objname": NAMES[0], "start": 0, "length": len(content(NAMES[0])) + 1}
    assert len(members(at_owner(ais, filled, [entry, NAMES[1]], coer=coer))) == 3
    answer = at_owner(ais, filled, [entry, NAMES[1]], coer=coer, strm=False)
    assert (answer.status, answer.tcode) == (400, "ErrRangeNotSatisfiable")


def test_a_batch_that_nobody_fetches_does_no_harm(ais: Ais, filled: str) -> None:
    for _ in range(20):
        assert ais.ask("GET", batch_path(filled), body=batch(NAMES)).status == 307
    assert len(members(fetch(ais, filled, batch(NAMES)))) == len(NAMES)
