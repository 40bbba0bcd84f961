"""Faults of the store: what an answer, or the lack of one, says and what can be done about it.

The store answers errors in JSON with the Go type of the error (``tcode``) and a message.  What did
not get a status of its own comes as 400, so the words decide as much as the number.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .targets import Gate

_MAX_MESSAGE_CHARS: Final = 300
"""Of what the store says, kept for people."""


class Kind(Enum):
    """What a fault means for who asked."""

    NODE = auto()
    """A node is down, restarts, or its connection broke: another node or another time will do."""

    BUSY = auto()
    """The store asks for patience: throttling, or a conflict that passes."""

    MISSING = auto()
    """There is no such object, as far as the node knows that was asked."""

    NO_BUCKET = auto()
    """There is no such bucket, as far as the node knows that was asked."""

    DENIED = auto()
    """Permission is missing, or a target does not serve clients directly."""

    UNAUTHORIZED = auto()
    """The token is missing, invalid or expired."""

    BARRED = auto()
    """The target failed so often that it was not asked (`targets.py`)."""

    FULL = auto()
    """The store has no room to fetch what is asked for: somebody has to make some."""

    CORRUPT = auto()
    """The bytes do not have the checksum that they came with."""

    WRONG = auto()
    """The answer is not to what was asked: another range, say, or the whole object."""

    UNSUITED = auto()
    """The answer is right, as far as it goes, but not of the kind that the lean wire takes."""

    FINAL = auto()
    """Asking again would bring the same answer."""


class Fault(NamedTuple):
    """One attempt that failed."""

    kind: Kind
    words: str
    """What happened, as a clause: ``"answered 503 (starting up)"``."""

    where: str
    """The node that was asked, for people: ``"target t1 (http://10.0.0.1:8081)"``."""

    gate: Gate | None = None
    """Where to wait, if it is barred."""

    pause_s: float = 0.0
    """How long the node wants not to be asked again, seconds."""

    def __str__(self) -> str:
        return f"{self.where} {self.words}"


class _Body(msgspec.Struct):
    message: str = ""
    tcode: str = ""


_decode = msgspec.json.Decoder(_Body).decode

_STATUS: Final[Mapping[int, Kind]] = {
    401: Kind.UNAUTHORIZED,
    403: Kind.DENIED,
    404: Kind.MISSING,
    408: Kind.NODE,
    409: Kind.BUSY,
    410: Kind.MISSING,
    423: Kind.BUSY,
    429: Kind.BUSY,
    500: Kind.NODE,
    502: Kind.NODE,
    503: Kind.NODE,
    504: Kind.NODE,
    507: Kind.FULL,
}

_NODE_WORDS: Final = ("connection refused", "connection reset", "EOF", "i/o timeout")
"""In the message of a 400: a node behind the one that answers is down."""

_NO_COPY: Final = "failed to EC-recover"
"""In the message of a 400: the owner has not found enough slices or copies on other targets.  As
with 404, these may be on one that is away."""

_NO_BUCKET: Final = ("ErrBckNotFound", "ErrRemoteBckNotFound", "ErrRemoteBucketOffline")


def of_answer(status: int, body: bytes, where: str, *, retry_after: str = "") -> Fault:
    """Return the fault that an answer with an error status is.

    Args:
        status: HTTP status, not 200, 206, 301 or 307.
        body: As it came: JSON as a rule, but text, XML or nothing in some cases.
        where: The node that answered.
        retry_after: Its header ``Retry-After``; AIStore sends none, what stands before it may.
    """
    try:
        told = _decode(body)
    except (ValueError, RecursionError):
        told = _Body(message=body.decode(errors="replace"))
    message = " ".join(told.message.split())[:_MAX_MESSAGE_CHARS]
    kind = _STATUS.get(status, Kind.FINAL)
    if told.tcode in _NO_BUCKET:
        kind = Kind.NO_BUCKET
    elif status == 404 and told.tcode == "ErrFailedTo":
        kind = Kind.FINAL  # the backend of the bucket is not configured
    elif status == 400 and any(words in message for words in _NODE_WORDS):
        kind = Kind.NODE
    elif status == 400 and _NO_COPY in message:
        kind = Kind.MISSING
    pause_s = _seconds(retry_after) if status in (429, 503) else 0.0
    if pause_s and kind is Kind.NODE:
        kind = Kind.BUSY  # it is there, and says when to come again
    details = ": ".join(filter(None, (told.tcode, message)))
    words = f"answered {status}" + (f" ({details})" if details else "")
    return Fault(kind, words, where, pause_s=pause_s)


def _seconds(retry_after: str) -> float:
    """Return how long a header ``Retry-After`` asks to wait (RFC 9110, section 10.2.3), seconds.

    Its other form, a date, says little without a common clock, and counts as nothing.
    """
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0


def of_exception(error: BaseException, where: str) -> Fault:
    """Return the fault that a broken or refused connection is.

    Args:
        error: One of `TROUBLE`.
        where: The node that was asked.
    """
    match error:
        case aiohttp.ConnectionTimeoutError():
            words = "did not accept a connection in time"
        case TimeoutError():
            words = "did not send anything for too long"
        case aiohttp.ClientConnectorError(os_error=os_error):
            words = f"cannot be reached ({os_error.strerror or os_error})"
        case aiohttp.ServerDisconnectedError():
            words = "closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            words = "broke off in the middle of an answer"
        case _:
            told = " ".join(str(error).split())[:_MAX_MESSAGE_CHARS]
            words = f"broke off ({told or type(error).__name__})"
    return Fault(Kind.NODE, words, where)


TROUBLE: Final = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What aiohttp raises when a node does not do its part."""
