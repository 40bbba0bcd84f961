"""The states of a connection, as one table that both peers share.

Rules of this file: the table is the only thing that changes a state, and it is data.  A message
that the table does not list in the current state breaks the protocol, whoever sends it.

Theory of operation.  Messages cross on their way: while the client sends ``close``, the daemon may
have sent batches or even the end of the feed.  Hence each peer moves through the table at its
own pace, by what it sends and by what it receives, and the table lists what may still be under
way: a client that has asked to close goes on accepting batches, and a daemon whose feed is over
ignores a ``credit``, ``release`` or ``close`` that crossed its ``end``.  In all interleavings both
peers meet again in READY.

Errors count as three words, by their scope: ``error.request`` changes nothing, ``error.feed`` ends
the feed, ``error.connection`` ends the connection.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(Enum):
    """Where the conversation stands."""

    NEW = "new"
    GREETED = "greeted"
    READY = "ready"
    OPENING = "opening"
    STREAMING = "streaming"
    CLOSING = "closing"
    CLOSED = "closed"


def _stay(state: State, *words: str) -> dict[str, State]:
    return dict.fromkeys(words, state)


_REQUESTS: Final = ("status", "lookup", "read")
_REPLIES: Final = ("report", "entries", "samples", "notice", "error.request")

TRANSITIONS: Final[Mapping[State, Mapping[str, State]]] = {
    State.NEW: {"hello": State.GREETED, "error.connection": State.CLOSED},
    State.GREETED: {"welcome": State.READY, "error.connection": State.CLOSED},
    State.READY: {
        **_stay(State.READY, *_REQUESTS, *_REPLIES, "credit", "release", "indices", "close"),
        "open": State.OPENING,
        "error.connection": State.CLOSED,
    },
    State.OPENING: {
        **_stay(State.OPENING, *_REQUESTS, *_REPLIES, "indices"),
        "opened": State.STREAMING,
        "error.feed": State.READY,
        "close": State.CLOSING,
        "error.connection": State.CLOSED,
    },
    State.STREAMING: {
        **_stay(State.STREAMING, *_REQUESTS, *_REPLIES),
        **_stay(State.STREAMING, "batch", "epoch_end", "credit", "release", "indices"),
        "end": State.READY,
        "error.feed": State.READY,
        "close": State.CLOSING,
        "error.connection": State.CLOSED,
    },
    State.CLOSING: {
        **_stay(State.CLOSING, *_REPLIES),
        **_stay(State.CLOSING, "opened", "batch", "epoch_end"),
        "end": State.READY,
        "error.feed": State.READY,
        "error.connection": State.CLOSED,
    },
    State.CLOSED: {},
}
"""``{state: {word of a message sent or received: next state}}``."""


def advance(state: State, word: str) -> State | None:
    """Return the state after a message, or None where the table has none."""
    return TRANSITIONS[state].get(word)
