"""The roots of a source: each request goes to the reader of its own, however deep it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from headrace_daemon.source.reader import Place, RangeRequest, ReadRequest
from headrace_daemon.source.roots import Roots
from tests.support.loops import run
from tests.support.reading import ReadyReader, value_of

if TYPE_CHECKING:
    from headrace_daemon.source.reader import Reader, Request


def whole(name: str) -> ReadRequest:
    return ReadRequest(name, memoryview(bytearray(3)), b"sum", b"7")


def part(name: str) -> RangeRequest:
    target = memoryview(bytearray(2))
    return RangeRequest(name, 4, 6, 9, (Place(4, target),), b"sum", b"7")


def test_requests_go_to_their_readers_in_their_order_with_the_names_that_these_know() -> None:
    readers = {label: cast("Reader", ReadyReader()) for label in ("a", "b", "c@1", "d")}
    inner = Roots({"a": readers["c@1"], "x": readers["d"]})
    roots = Roots({"a": readers["a"], "b": readers["b"], "image": inner})
    asked: list[Request] = [
        whole("image/x/p/1.tar"),
        part("a/1.tar"),
        part("image/a/2.tar"),
        whole("b/a/3.tar"),
        part("a/2/a"),
        part("image/x/4.tar"),
    ]
    divided = roots.divide(asked)
    found = [
        (label, [request.name for request in requests])
        for reader, requests in divided
        for label, known in readers.items()
        if known is reader
    ]
    assert found == [
        ("d", ["p/1.tar", "4.tar"]),
        ("c@1", ["2.tar"]),
        ("a", ["1.tar", "2/a"]),
        ("b", ["a/3.tar"]),
    ]
    # All else is as it was asked for, and goes where the asker wants it.
    by_name = {request.name: request for _, own in divided for request in own}
    assert by_name["1.tar"]._replace(name="a/1.tar") == asked[1]
    assert by_name["p/1.tar"]._replace(name="image/x/p/1.tar") == asked[0]
    assert roots.divide([]) == []


def test_a_read_fills_what_was_asked_of_each_root() -> None:
    roots = Roots({label: cast("Reader", ReadyReader()) for label in ("a", "b")})
    asked = [whole("b/1"), whole("a/2"), whole("b/3")]
    run(roots.read(asked))
    assert [bytes(one.target) for one in asked] == [value_of(name, 3) for name in "123"]


def test_a_root_that_nobody_knows_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Roots({}).divide([whole("a/1")])
