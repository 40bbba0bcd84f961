"""What a store may do to a read, and the ways in which reads come: for all tests of reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .standin import (
    BUSY,
    DIRECT_DENIED,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    Corrupt,
    Cut,
    Delay,
    Hangup,
    Reset,
    Slow,
    Stall,
    Status,
)

if TYPE_CHECKING:
    from .standin import Effect

WAYS: Final[dict[str, dict[str, str]]] = {
    "lean": {},
    "aiohttp": {"reader": "aiohttp"},
    "proxy": {"direct": "off"},
}
"""How objects come, and the settings that make them come that way."""

PASSING: Final[dict[str, Effect]] = {
    "slow": Slow(2_000_000.0),
    "late": Delay(0.05),
    "no answer": Delay(None),
    "stall at the first byte": Stall("first"),
    "stall in the middle": Stall("middle"),
    "stall at the last byte": Stall("last"),
    "cut at the first byte": Cut("first"),
    "cut in the middle": Cut("middle"),
    "cut at the last byte": Cut("last"),
    "reset before the answer": Reset(),
    "reset at the first byte": Reset("first"),
    "reset in the middle": Reset("middle"),
    "reset at the last byte": Reset("last"),
    "closed without an answer": Hangup(),
    "429": TOO_MANY_REQUESTS,
    "500": Status(500),
    "502": Status(502),
    "503": Status(503),
    "503 without a body": UNAVAILABLE,
    "504": Status(504),
    "409": BUSY,
    "404 once": Status(404, "ais://b/x does not exist", "ErrNotFound"),
    "410 once": Status(410),
    "a node behind it is down": Status(400, "dial tcp: connection refused", "ErrFailedTo"),
    "direct reads denied": DIRECT_DENIED,
    "a flipped byte at the start": Corrupt("first"),
    "a flipped byte in the middle": Corrupt("middle"),
    "a flipped byte at the end": Corrupt("last"),
}
"""Faults that are over when they have happened."""
