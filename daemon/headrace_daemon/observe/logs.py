"""Logs: one line per event on standard error, a stable event word first, then ``key=value``.

ERROR: somebody must act.  WARNING: degraded, goes on.  INFO: start, stop, open, close.  DEBUG:
sessions and every message received.  Payload bytes and tokens are never logged.
"""

from __future__ import annotations

import logging
import time


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def configure(level: str) -> None:
    """Send the daemon's log to standard error.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("headrace_daemon")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
