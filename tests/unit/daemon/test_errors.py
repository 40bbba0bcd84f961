"""Errors on the wire: whose fault, what scope, and never too long."""

from __future__ import annotations

import pytest

from headrace import errors as shared
from headrace_daemon.errors import (
    ObjectChangedError,
    ObjectMissingError,
    SourceMissingError,
    TrustError,
    to_message,
)


@pytest.mark.parametrize(
    ("error", "code", "fault", "retryable"),
    [
        (shared.PlanError("x"), "plan", "client", False),
        (shared.CursorError("x"), "cursor", "client", False),
        (shared.ManifestMismatchError("x"), "manifest", "client", False),
        (shared.TopologyError("x"), "topology", "client", False),
        (TrustError("x"), "trust", "client", False),
        (SourceMissingError("/data", "x"), "source", "data", False),
        (ObjectMissingError("/data/a", "x"), "source", "data", False),
        (ObjectChangedError("/data/a", "x"), "source", "data", False),
        (shared.BudgetError("x"), "budget", "client", True),
        (
            shared.FeedError("x", code="busy", fault="client", retryable=True),
            "busy",
            "client",
            True,
        ),
        (shared.FeedError("x", code="internal"), "internal", "daemon", False),
        (shared.HeadraceError("x"), "internal", "daemon", False),
    ],
)
def test_an_error_says_whose_fault_it_is_and_whether_to_try_again(
    error: shared.HeadraceError, code: str, fault: str, retryable: bool
) -> None:
    message = to_message(error, scope="request", request=7)
    assert (message.code, message.fault, message.retryable) == (code, fault, retryable)
    assert (message.message, message.scope, message.request) == ("x", "request", 7)


def test_a_message_that_quotes_a_megabyte_is_cut() -> None:
    message = to_message(shared.PlanError("x" * 1_000_000), scope="feed")
    assert message.message.startswith("xxxx")
    assert message.message.endswith("…")
    assert len(message.message) <= 2001
