"""Logs: one line per event on standard error, a stable event word first, then ``key=value``.

ERROR: somebody must act.  WARNING: degraded, goes on.  INFO: start, stop, open, close.  DEBUG:
sessions and every message received.  Payload bytes and tokens are never logged.
"""

from __future__ import annotations

import logging
import time
from typing import Final

# What clients send is quoted in places: it must not look like a line of ours, nor move a cursor.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the base
        """Return the line of a record; a traceback follows it as it is."""
        record.message = record.message.translate(_CONTROLS)
        return super().formatMessage(record)


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
