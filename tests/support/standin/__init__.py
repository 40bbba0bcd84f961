"""A stand-in for a live AIStore 5.0 cluster, for tests, with scripted faults.

    with StandIn(num_targets=3) as ais:
        ais.create_bucket("train")
        ais.put_many("train", {"a/001": b"...", "a/002": b"..."})
        fault = ais.fault(Cut(after_bytes=5000), path="train/a/*", times=2)
        ...  # read from ais.endpoint
        assert fault.fired == 2
        assert len(ais.requests) == 5

One process; proxies and targets listen on ports of their own on 127.0.0.1, and a thread with a loop
of its own serves them, so that tests of every kind can use it.  Objects are in memory, at the
target that owns them by AIStore's own rule.  The contract tests run on it and on a real cluster;
where the two differ, the stand-in is wrong.
"""

from .assembly import Timing
from .effects import (
    BUSY,
    DIRECT_DENIED,
    LIST_FAILED,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    Change,
    Corrupt,
    Crash,
    Cut,
    CutBatch,
    Delay,
    DropIdle,
    Effect,
    Hangup,
    Redirect,
    Reset,
    ShortBatch,
    Slow,
    Stall,
    StallBatch,
    Status,
    WholeMember,
    WrongLength,
    WrongRange,
)
from .faults import Fault, Firing, Match
from .names import Bucket
from .nodes import DECOMMISSION, MAINTENANCE, Node, Proxy, Target
from .objects import StoredObject
from .record import Request
from .server import StandIn

__all__ = [
    "BUSY",
    "DECOMMISSION",
    "DIRECT_DENIED",
    "LIST_FAILED",
    "MAINTENANCE",
    "TOO_MANY_REQUESTS",
    "UNAVAILABLE",
    "Bucket",
    "Change",
    "Corrupt",
    "Crash",
    "Cut",
    "CutBatch",
    "Delay",
    "DropIdle",
    "Effect",
    "Fault",
    "Firing",
    "Hangup",
    "Match",
    "Node",
    "Proxy",
    "Redirect",
    "Request",
    "Reset",
    "ShortBatch",
    "Slow",
    "Stall",
    "StallBatch",
    "StandIn",
    "Status",
    "StoredObject",
    "Target",
    "Timing",
    "WholeMember",
    "WrongLength",
    "WrongRange",
]
