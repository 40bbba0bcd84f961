"""Streams: from what a client asks for to a plan that is bound to data."""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from headrace.errors import CursorError, PlanError
from headrace.plans.cursor import Cursor, Seek
from headrace.plans.data import Data
from headrace.plans.engine import (
    BoundPlan,
    check,
    epoch_steps,
    largest_batch,
    remaining_steps,
    seek,
    settle,
)
from headrace.sources import Objects, Stream
from headrace.topology import Topology

from ..assemble.layout import padded
from ..errors import TrustError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.plans.order import Indices
    from headrace.sources import Source

    from ..settings import Settings
    from ..source.catalog import Catalog, OpenSource

_MAX_SIZES = 256


class BoundStream(NamedTuple):
    """A stream whose source is open, and a position in it."""

    name: str
    """Name in the configuration; empty for a stream that the client brought."""

    stream: Stream
    source: OpenSource
    bound: BoundPlan
    topology: Topology
    cursor: Cursor

    @property
    def remaining(self) -> int:
        """Steps from the position to the end of its epoch."""
        return remaining_steps(self.bound, self.cursor, self.topology.world_size)

    @property
    def steps(self) -> int:
        """Steps in the whole epoch of the position."""
        if self.cursor.step == 0:
            return epoch_steps(self.bound, self.topology.world_size, self.cursor.epoch)
        return self.cursor.step + self.remaining

    @property
    def samples_per_batch(self) -> int:
        """Samples of the largest batch of one rank; 0 where only the data says it."""
        return self.bound.program.batch_samples(self.topology.world_size) or 0


class Streams:
    """Resolves streams by name or by value, within what the configuration allows.

    Args:
        settings: The configuration.
        catalog: Opens sources.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        """What is resolved from now on is resolved by them; open streams stay as they are."""
        self._catalog = catalog
        # Slot sizes by what determines them: a scan of the epoch each, so worth keeping.
        self._sizes: OrderedDict[tuple[object, ...], int] = OrderedDict()
        self._sizes_lock = Lock()

    async def bind(
        self,
        wanted: str | dict[str, Any],
        topology: Topology,
        start: Mapping[str, Any] | None,
        *,
        progress: Callable[[int], None] = lambda found: None,
    ) -> BoundStream:
        """Open the source of a stream and resolve a position in it.

        Args:
            wanted: A configured name, empty for the default, or a stream as a map.
            topology: Which rank of how many.
            start: A cursor, ``{"seek": {…}}``, or None for the very beginning.
            progress: Called from a thread with the number of objects listed so far.

        Raises:
            PlanError: If the stream, the position or the topology do not fit.
            TrustError: If the client may not read the source.
            SourceError: If the source cannot be listed.
        """
        name, stream = self._resolve(wanted)
        where = _position(start)
        digest = where.manifest if isinstance(where, Cursor) else None
        source = await self._catalog.open(stream.source, digest=digest, progress=progress)
        manifest = source.manifest
        data = Data(len(manifest), manifest.digest, {"sizes": manifest.sizes})
        bound = BoundPlan(stream.plan, len(manifest), manifest.digest, data)
        match where:
            case Cursor():
                check(bound, where)
                cursor = where
            case Seek():
                cursor = seek(bound, where, topology.world_size)
            case None:
                cursor = bound.start()
        cursor = settle(bound, cursor, topology.world_size)
        return BoundStream(name, stream, source, bound, topology, cursor)

    def slot_bytes(self, stream: BoundStream, epoch: int, position: int) -> int:
        """Return the largest payload that one rank meets from a position to the end of an epoch.

        Blocks: it looks at the size of every sample of the rank in that epoch.
        """
        bound = stream.bound
        key = (bound.digest, bound.manifest, stream.topology, epoch, position)
        with self._sizes_lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
                return self._sizes[key]
        sizes = stream.source.manifest.sizes

        def weigh(indices: Indices) -> Any:  # noqa: ANN401 - an array of the same shape
            return padded(sizes[indices])

        cursor = msgspec.structs.replace(bound.start(), epoch=epoch, position=position)
        largest = largest_batch(bound, cursor, stream.topology, weigh)
        with self._sizes_lock:
            self._sizes[key] = largest
            while len(self._sizes) > _MAX_SIZES:
                self._sizes.popitem(last=False)
        return largest

    def largest_slot_bytes(self, stream: BoundStream, epoch: int, position: int) -> int:
        """Return the largest payload that any rank meets; as `slot_bytes`, which is for one."""
        world_size = stream.topology.world_size
        key = (stream.bound.digest, stream.bound.manifest, world_size, epoch, position)
        with self._sizes_lock:
            if key in self._sizes:
                return self._sizes[key]
        largest = max(
            self.slot_bytes(stream._replace(topology=Topology(rank, world_size)), epoch, position)
            for rank in range(world_size)
        )
        with self._sizes_lock:
            self._sizes[key] = largest
        return largest

    def _resolve(self, wanted: str | dict[str, Any]) -> tuple[str, Stream]:
        settings = self.settings
        if isinstance(wanted, str):
            name = wanted or settings.default_stream
            if name in settings.streams:
                return name, settings.streams[name]
            known = ", ".join(sorted(settings.streams)) or "none"
            if not name:
                raise PlanError(
                    "no stream was named and the configuration has no default_stream; configured "
                    f"streams: {known}"
                )
            raise PlanError(f"stream {name!r} is not configured; configured streams: {known}")
        try:
            stream = msgspec.convert(wanted, Stream)
        except msgspec.ValidationError as error:
            raise PlanError(f"the stream cannot be read: {error}") from None
        self._check_trust(stream)
        return "", stream

    def _check_trust(self, stream: Stream) -> None:
        allowed = self.settings.trust.allow_sources
        if not any(is_below(stream.source, prefix) for prefix in allowed):
            raise TrustError(
                f"source {stream.source.location} is not below [trust] allow_sources "
                f"({', '.join(allowed) or 'empty'}): add it there, or open a configured stream by "
                "name"
            )


def is_below(source: Source, prefix: str) -> bool:
    """Tell whether a source is one that an entry of ``[trust] allow_sources`` allows.

    An entry is ``"*"``, a folder, or the URI of a bucket with or without a prefix.  Below means the
    same name, or one that goes on after a ``/``.
    """
    if prefix == "*":
        return True
    allowed = Objects(prefix)
    if (allowed.bucket is None) != (source.bucket is None):
        return False
    if source.bucket is None:
        # Links count as what they point to.
        location, root = os.path.realpath(source.path), os.path.realpath(allowed.path)
    else:
        location, root = source.location, allowed.location
    return location == root or location.startswith(root.rstrip("/") + "/")


def _position(start: Mapping[str, Any] | None) -> Cursor | Seek | None:
    if start is None:
        return None
    if set(start) == {"seek"}:
        try:
            return msgspec.convert(start["seek"], Seek)
        except msgspec.ValidationError as error:
            raise CursorError(f"seek cannot be read: {error}") from None
    return Cursor.from_state(dict(start))
