"""Waiting for what no event tells of: the state of another process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from headrace.client import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S: Final = 20.0
"""Far more than anything here takes: it turns a hang into a failure."""


def wait_until(is_so: Callable[[], object]) -> None:
    """Ask again and again, with growing pauses, up to a deadline."""
    retry = Retry(DEADLINE_S, threading.Event().wait)
    while not is_so():
        assert retry.pause(), "it did not come to pass"
