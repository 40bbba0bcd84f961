"""The rule that picks the wire of an exchange, and what forces it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from headrace.buckets import Bucket
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.client import AisClient
from headrace_daemon.source.ais.clustermap import Node
from headrace_daemon.source.ais.counts import Counts
from headrace_daemon.source.ais.faults import Kind
from headrace_daemon.source.ais.httpwire import HttpWire
from headrace_daemon.source.ais.lean.wire import LeanWire
from headrace_daemon.source.ais.targets import Targets
from headrace_daemon.source.ais.transfer import Transfer
from headrace_daemon.source.ais.wires import Wires
from headrace_daemon.source.reader import ReadRequest
from tests.support.loops import run
from tests.support.raw_target import Link, answer, raw_target
from tests.support.reading_ais import target_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from headrace_daemon.source.ais.wires import Choice

BUCKET: Final = Bucket.parse("ais://b")
BODY: Final = b"body"
CHUNKED: Final = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n" + BODY + b"\r\n0\r\n\r\n"
)


@asynccontextmanager
async def open_wires(choice: Choice) -> AsyncIterator[tuple[Wires, Counts]]:
    settings, counts, targets = StoreSettings(endpoints=("http://p:1",)), Counts(), Targets()
    async with (
        AisClient(Access(settings, {}), deadline_s=5.0) as client,
        LeanWire(counts, targets, stall_s=5.0, deadline_s=5.0) as lean,
    ):
        http = HttpWire(BUCKET, client, counts, targets, stall_s=5.0)
        yield Wires(BUCKET, http, lean, choice), counts


def transfer() -> Transfer:
    return Transfer(BUCKET, ReadRequest("x", memoryview(bytearray(len(BODY)))))


def num_reads(counts: Counts) -> tuple[int, int]:
    """Return the objects that came by the lean wire, and by aiohttp."""
    of = counts.nodes.values()
    num_lean = sum(node.num_lean for node in of)
    return num_lean, sum(node.num_reads for node in of) - num_lean


@pytest.mark.parametrize(
    ("choice", "data", "reads"),
    [
        ("auto", answer(BODY), (1, 0)),
        ("lean", answer(BODY), (1, 0)),
        ("aiohttp", answer(BODY), (0, 1)),
        ("auto", CHUNKED, (0, 1)),
        ("aiohttp", CHUNKED, (0, 1)),
    ],
)
def test_plain_answers_take_the_lean_wire(
    choice: Choice, data: bytes, reads: tuple[int, int]
) -> None:
    async def script(link: Link) -> None:
        while True:
            await link.request()
            await link.say(data)

    async def main() -> None:
        async with raw_target(script) as target, open_wires(choice) as (wires, counts):
            found = transfer()
            assert await wires.from_target(found, target.node) is None
            assert bytes(target_of(found.request)) == BODY
            assert num_reads(counts) == reads

    run(main())


def test_what_cannot_take_the_lean_wire_is_an_error_if_it_has_to() -> None:
    async def script(link: Link) -> None:
        await link.request()
        await link.say(CHUNKED)
        await link.gone()

    async def main() -> None:
        async with raw_target(script) as target, open_wires("lean") as (wires, counts):
            for node, told in (
                (target.node, "without saying how long its answer is"),
                (Node("t", "https://t:1"), "is not reached over plain HTTP"),
            ):
                fault = await wires.from_target(transfer(), node)
                assert fault is not None
                assert fault.kind is Kind.FINAL
                assert told in fault.words
                assert "[store] reader is 'lean': set 'auto'" in fault.words
            assert num_reads(counts) == (0, 0)

    run(main())


@pytest.mark.parametrize(
    ("choice", "url", "is_lean"),
    [
        ("auto", "http://t:1", True),
        ("auto", "https://t:1", False),
        ("auto", "http://é:1", False),
        ("lean", "https://t:1", False),
        ("aiohttp", "http://t:1", False),
    ],
)
def test_the_rule(choice: Choice, url: str, is_lean: bool) -> None:
    async def main() -> None:
        async with open_wires(choice) as (wires, _):
            assert wires.are_lean([Node("t", url)]) is is_lean
            assert wires.are_lean([Node("s", "http://s:1"), Node("t", url)]) is is_lean

    run(main())
