"""The cluster as the daemon sees it now: its map, kept up to date, and which targets are missing.

Invariant: "there is no such object" and "this is all there is" are believed only while every target
that was there at the start still is.  A target that died leaves the map after a while; its objects
are 404 then, and listings are shorter without a word.  A target that leaves in order goes through
maintenance or decommissioning first, and is not missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, NoReturn

from ...errors import SourceError, StoreUnavailableError
from .clustermap import ClusterMap, Node, parse
from .faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.buckets import Bucket

    from .client import AisClient

logger = logging.getLogger(__name__)

FRESH_S: Final = 0.5
"""A map of this age is not asked for again, however many readers have trouble at once."""

STALE_S: Final = 30.0
"""A map of this age is asked for again when somebody reads, trouble or not."""


class Cluster:
    """The map of a cluster and what follows from its history.

    Args:
        client: Asks the proxies.
        direct: Whether targets may be read without asking a proxy first.
        clock: Monotonic seconds.
    """

    def __init__(
        self, client: AisClient, *, direct: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._lock = asyncio.Lock()
        # None before the first answer.
        self._map: ClusterMap | None = None
        self._asked_at = 0.0
        # Set when somebody reads by a map that is stale.
        self._is_wanted = asyncio.Event()
        # Targets that were there once and have not left in order.
        self._expected: dict[str, Node] = {}
        self.serves_direct = direct
        """Whether targets are read without asking a proxy first."""

    @property
    def map(self) -> ClusterMap | None:
        """The latest map; None before the first."""
        return self._map

    @property
    def missing(self) -> list[Node]:
        """Targets that were there and are not in the map any more, without having left in order."""
        here = self._map.targets if self._map is not None else {}
        return [node for name, node in self._expected.items() if name not in here]

    async def current(self, max_age_s: float = STALE_S) -> ClusterMap:
        """Return a map that is not older than some seconds.

        Raises:
            StoreUnavailableError: If no proxy gives one within the deadline.
            StoreAccessError: If the token is refused.
        """
        return await self._since(self._clock() - max_age_s)

    async def refresh(self) -> ClusterMap:
        """Return a map of about this moment, because something went wrong with the one there is."""
        return await self.current(FRESH_S)

    async def after(self) -> ClusterMap:
        """Return a map that is asked for after this call: what has happened before shows in it."""
        return await self._since(self._clock())

    async def _since(self, earliest: float) -> ClusterMap:
        """Return a map that was asked for at some time or later; one question serves all askers."""
        if self._map is None or self._asked_at < earliest:
            async with self._lock:
                if self._map is None or self._asked_at < earliest:
                    await self._ask()
        assert self._map is not None
        return self._map

    async def keep_fresh(self) -> NoReturn:
        """Ask for the map again whenever it is stale and somebody reads; runs until cancelled.

        Reads do not wait for it: while no proxy answers they go on by the map that there is.
        """
        while True:
            await self._is_wanted.wait()
            try:
                await self.current()
            except SourceError as error:
                logger.warning("cluster map not renewed: %s", error)
            self._is_wanted.clear()

    async def _ask(self) -> None:
        what = "the cluster map"
        asked_at = self._clock()
        answer = await self._client.ask("/v1/daemon?what=smap", what)
        self._asked_at = asked_at
        try:
            if isinstance(answer, Fault):
                raise ValueError(str(answer))
            new = parse(answer.body)
        except ValueError as error:
            raise StoreUnavailableError(
                what,
                f"{what}: {self._client.proxy} does not answer as an AIStore proxy does ({error}): "
                f"check {self._client.access.origin}",
            ) from error
        self.take(new)

    def take(self, new: ClusterMap) -> None:
        """Make a map the current one, and note who came and went."""
        old = self._map
        if old is not None and new.uuid == old.uuid and new.version < old.version:
            return  # of a proxy that lags behind
        if old is not None and new.uuid != old.uuid:
            logger.warning(
                "another cluster answers old_uuid=%s new_uuid=%s: its objects are checked one by "
                "one against the manifests",
                old.uuid,
                new.uuid,
            )
            self._expected.clear()
        for name in list(self._expected):
            before = old.targets.get(name) if old is not None else None
            if name not in new.targets and before is not None and before.is_leaving:
                del self._expected[name]
                logger.info("target left target=%s", before)
        was_missing = {node.id for node in self.missing}
        self._expected.update(new.targets)
        self._map = new
        self._client.learn(new.proxies)
        for node in self.missing:
            if node.id not in was_missing:
                logger.warning(
                    "target missing from the cluster map target=%s version=%d", node, new.version
                )
        for name in was_missing & set(new.targets):
            logger.info("target is back target=%s", new.targets[name])

    def owners(self, bucket: Bucket, names: Sequence[str]) -> list[Node] | None:
        """Return the targets to read some objects from; None to ask a proxy."""
        if not self.serves_direct or self._map is None:
            return None
        if self._clock() - self._asked_at > STALE_S:
            self._is_wanted.set()
        return self._map.owners(bucket, names) or None

    def deny_direct(self, fault: Fault) -> None:
        """Ask a proxy before each read from now on: the targets do not serve clients directly."""
        if self.serves_direct:
            self.serves_direct = False
            logger.warning("reading through the proxy from now on: %s", fault)

    def explain_missing(self) -> str:
        """Say in words which targets are missing, and what to do."""
        names = " and ".join(map(str, self.missing))
        return (
            f"target {names} was in the cluster map and is missing now, so what is not found may "
            "well exist: bring it back; if it was removed for good, start headrace anew"
        )
