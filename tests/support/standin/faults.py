"""Scripted faults: which requests meet them, how often, and the log of those that did.

A fault joins an *effect* (see `effects`) to a description of requests.  Whether a request meets a
fault with a rate is a function of the seed, of what is asked for and of how often it was asked
before, and not of the order in which concurrent requests happen to arrive.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import xxhash

from .nodes import Proxy, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from .effects import Effect
    from .nodes import Node
    from .replies import Call

AnyNode: TypeAlias = Literal["any"]
# Requests that a proxy does not answer itself.
_REDIRECTED: Final = ("/v1/objects/", "/v1/ml/")


@dataclass(frozen=True, slots=True)
class Firing:
    """One request that met a fault.

    Args:
        time_s: When, on the monotonic clock.
        node: The id of the node.
        request: The number of the request in the record.
        path: Its path, decoded.
    """

    time_s: float
    node: str
    request: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests meet a fault: those that fit everything that is given.

    Args:
        target: A target, or ``"any"``.
        proxy: A proxy, or ``"any"``.  With neither: the node that answers such requests itself, a
            target for objects and batches, a proxy for all else.
        path: A glob for the decoded path, or a regular expression to search it for.  A glob that
            does not start with ``/v1/`` is one for ``bucket/object``.
        method: ``GET`` and so on.
        direct: Whether it came without a redirect.
        reused: Whether its connection has carried a request before.
        rate: The share of them that meet the fault, 0 to 1.
        seed: Decides which, for a rate below 1.
    """

    target: Target | AnyNode | None = None
    proxy: Proxy | AnyNode | None = None
    path: str | re.Pattern[str] | None = None
    method: str | None = None
    direct: bool | None = None
    reused: bool | None = None
    rate: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it must lie between 0 and 1")

    def fits(self, node: Node, call: Call) -> bool:
        """Return whether a request fits, but for the rate."""
        return (
            self._fits_node(node, call)
            and (self.method is None or self.method == call.method)
            and (self.direct is None or self.direct != call.is_redirected)
            and (self.reused is None or self.reused == call.is_reused)
            and (self.path is None or self._fits_path(call.path))
        )

    def _fits_node(self, node: Node, call: Call) -> bool:
        if self.target is None and self.proxy is None:
            return isinstance(node, Target) or not call.path.startswith(_REDIRECTED)
        wanted = self.target if isinstance(node, Target) else self.proxy
        return wanted == "any" or wanted is node

    def _fits_path(self, path: str) -> bool:
        if isinstance(self.path, re.Pattern):
            return self.path.search(path) is not None
        assert self.path is not None
        glob = self.path if self.path.startswith("/v1/") else f"/v1/objects/{self.path}"
        return re.match(translate(glob), path) is not None


class Fault:
    """A fault that was set: it fires until it has fired `times` times, or is cancelled.

    Args:
        effect: What happens.
        match: To which requests.
        times: How often; None: without end.
        changed: Called when it has fired.
    """

    def __init__(
        self, effect: Effect, match: Match, times: int | None, changed: Callable[[], None]
    ) -> None:
        if times is not None and times < 1:
            raise ValueError(f"times is {times}; it must be at least 1, or None for no end")
        self.effect = effect
        self.match = match
        self.times = times
        self.log: list[Firing] = []
        self._changed = changed
        self._is_cancelled = False
        # How often each request was asked, for the rate.
        self._asked: Counter[str] = Counter()

    @property
    def fired(self) -> int:
        """How often it has fired."""
        return len(self.log)

    @property
    def is_spent(self) -> bool:
        """Whether it will not fire again."""
        return self._is_cancelled or (self.times is not None and self.fired >= self.times)

    def cancel(self) -> None:
        """Let it not fire again; what it has begun goes on."""
        self._is_cancelled = True

    def claim(self, node: Node, call: Call, request: int) -> bool:
        """Return whether a request meets it, and if so log that."""
        if self.is_spent or not self.match.fits(node, call) or not self._is_chosen(call):
            return False
        self.log.append(Firing(time.monotonic(), node.id, request, call.path))
        self._changed()
        return True

    def _is_chosen(self, call: Call) -> bool:
        if self.match.rate >= 1:
            return True
        asked = (
            f"{call.method} {call.path} {call.query.get('archpath')} {call.headers.get('Range')}"
        )
        if call.path.startswith("/v1/ml/"):
            # The path of a batch is new each time, what it asks for is in the body.
            asked = f"batch {xxhash.xxh64_hexdigest(call.body)}"
        self._asked[asked] += 1
        drawn = xxhash.xxh64_intdigest(
            f"{self.match.seed} {self._asked[asked]} {asked}".encode("utf-8", "surrogateescape")
        )
        return drawn < self.match.rate * 2**64

    def __repr__(self) -> str:
        return f"<{self.effect}, fired {self.fired} of {self.times or 'any'} times>"
