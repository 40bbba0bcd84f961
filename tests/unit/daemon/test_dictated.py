"""Dictation: what a client says is kept up to a limit, in the size in which it came."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import msgspec
import pytest

from headrace.errors import FeedError
from headrace.protocol import messages as m
from headrace_daemon.feed import dictated
from headrace_daemon.feed.dictated import Dictation
from tests.support.talking import sessions


def said(*steps: int, **fields: Any) -> m.Indices:  # noqa: ANN401 - of a dictation
    batches = (
        m.Dictation(**{"epoch": 0, "step": step, "global_step": step, "ids": bytes(8), **fields})
        for step in steps
    )
    return m.Indices(batches=tuple(batches))


LARGE: list[dict[str, Any]] = [
    {"ids": bytes(800), "cursor": {}},
    {"flags": bytes(800), "cursor": {}},
    {"meta": {"height": "2" * 800}, "cursor": {}},
    {"stream": "s" * 800, "cursor": {}},
    {"cursor": {"child": "c" * 800}},
]


@pytest.mark.parametrize("fields", LARGE)
def test_all_that_a_batch_has_counts(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(dictated, "MAX_BYTES", 2000)
    dictation = Dictation()
    dictation.take_in(said(0, 1, **fields))
    dictation.take_in(said(2, **fields))
    with pytest.raises(FeedError, match="the client dictates too far ahead"):
        asyncio.run(dictation.next())


def test_what_is_planned_counts_until_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictated, "MAX_BATCHES", 3)

    async def main() -> None:
        dictation = Dictation()
        for step in range(3):
            dictation.take_in(said(step, cursor={}))
        for step in range(3, 9):
            found = await dictation.next()
            assert found is not None
            assert found.step == step - 3
            dictation.sent()
            dictation.take_in(said(step, cursor={}))
        assert await dictation.next() is not None
        dictation.take_in(said(9, cursor={}))
        with pytest.raises(FeedError):
            await dictation.next()

    asyncio.run(main())


def test_nothing_comes_through_after_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come without what was said before it."""
    monkeypatch.setattr(dictated, "MAX_BATCHES", 3)

    async def main() -> None:
        dictation = Dictation()
        dictation.take_in(said(0, 1, 2, 3, cursor={}))
        dictation.take_in(said(4, cursor={}))
        with pytest.raises(FeedError):
            await dictation.next()

    asyncio.run(main())


def test_what_is_nested_takes_no_more_than_what_came() -> None:
    wire = msgspec.msgpack.encode(said(0, cursor={"child": [[]] * 100_000}))
    dictation = Dictation()
    tracemalloc.start()
    try:
        dictation.take_in(msgspec.msgpack.decode(wire, type=m.Indices))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * len(wire) < 300_000


def test_what_is_dictated_without_a_feed_is_dropped() -> None:
    async def main() -> None:
        async with sessions() as here:
            client = await here.greeted()
            await client.send(said(0, cursor={}))
            await client.nothing()
            assert here.sessions[0]._dictation.num_bytes == 0

    asyncio.run(main())
