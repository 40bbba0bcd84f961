"""The summary: one line that says how the store is."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_daemon.observe.summary import summarize

STORE: dict[str, Any] = {
    "endpoints": ["http://p:1"],
    "trouble": "",
    "map_version": 7,
    "num_targets": 3,
    "missing": [],
}


@pytest.mark.parametrize(
    ("changes", "trouble", "words"),
    [
        ({"endpoints": []}, "", "no store configured"),
        ({"map_version": None, "num_targets": None}, "", "the store was not asked yet"),
        ({}, "", "the store is up: 3 targets"),
        ({"num_targets": 1}, "", "the store is up: 1 target"),
        ({"num_targets": 2, "missing": ["t1"]}, "", "the store has 2 targets, missing: t1"),
        ({"trouble": "proxy p refused"}, "", "the store does not answer: proxy p refused"),
        ({"map_version": None}, "no token", "the store does not answer: no token"),
        ({"missing": ["t1"]}, "no token", "the store does not answer: no token"),
    ],
)
def test_the_worst_that_is_known_of_the_store_is_told(
    changes: dict[str, Any], trouble: str, words: str
) -> None:
    report = {"feeds": [], "connections": 0, "store": {**STORE, **changes}}
    summary = summarize(report, store_trouble=trouble)
    assert summary == f"serving 0 feeds, 0 connections; {words}"


def test_one_is_singular() -> None:
    report = {"feeds": [{}], "connections": 1, "store": STORE}
    assert summarize(report, store_trouble="").startswith("serving 1 feed, 1 connection; ")
