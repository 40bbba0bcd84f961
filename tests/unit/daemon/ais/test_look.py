"""Looking at a store for those who want to know how it is, and do not wait to read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from headrace_daemon.source.ais import store as store_module
from tests.support.reading_ais import open_store
from tests.support.standin import Hangup, Stall, StandIn

if TYPE_CHECKING:
    import pytest


def look(ais: StandIn, *, times: int = 1, max_age_s: float = 0.0) -> list[str]:
    """Look at a store some times."""

    async def run() -> list[str]:
        async with open_store(ais.endpoint, deadline_s=60) as store:
            return [await store.look(max_age_s) for _ in range(times)]

    return asyncio.run(run())


def test_a_store_that_is_well_has_no_words() -> None:
    with StandIn() as ais:
        assert look(ais) == [""]


def test_a_map_that_is_fresh_is_not_asked_for_again() -> None:
    with StandIn() as ais:
        assert look(ais, times=3, max_age_s=3600) == [""] * 3
        assert len(ais.requests) == 1


def test_a_proxy_that_never_ends_its_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_module, "LOOK_S", 0.1)
    with StandIn() as ais:
        ais.fault(Stall(after_bytes=30), proxy="any", times=None)
        assert look(ais) == [f"proxy {ais.endpoint} did not answer within 0.1 s"]


def test_what_a_proxy_did_instead_of_answering_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOOK_S", 0.3)
    with StandIn() as ais:
        down = ais.fault(Hangup(), proxy="any", times=None)
        (words,) = look(ais)
        assert words == f"proxy {ais.endpoint} closed the connection without an answer"
        down.cancel()
        assert look(ais) == [""]


def test_a_token_that_is_missing_is_told() -> None:
    with StandIn(token="secret") as ais:
        (words,) = look(ais)
    assert "no token was given: set [store] token_file" in words
