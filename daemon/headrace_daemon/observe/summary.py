"""The summary: how a daemon is, in one line for people who look at a service."""

from __future__ import annotations

from typing import Any


def summarize(report: dict[str, Any], *, store_trouble: str) -> str:
    """Return one line about a daemon that serves.

    Args:
        report: What ``headrace status --json`` prints.
        store_trouble: Why the store does not answer, in words; empty if it does or is not asked.
    """
    feeds, connections = len(report["feeds"]), report["connections"]
    return (
        f"serving {_count(feeds, 'feed')}, {_count(connections, 'connection')}; "
        f"{_of_store(report['store'], store_trouble)}"
    )


def _of_store(store: dict[str, Any], trouble: str) -> str:
    if not store["endpoints"]:
        return "no store configured"
    trouble = trouble or store["trouble"]
    if trouble:
        return f"the store does not answer: {trouble}"
    if store["map_version"] is None:
        return "the store was not asked yet"
    targets = _count(store["num_targets"], "target")
    if store["missing"]:
        return f"the store has {targets}, missing: {', '.join(store['missing'])}"
    return f"the store is up: {targets}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
