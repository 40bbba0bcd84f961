"""Streams: from what a client asks for to a plan that is bound to data."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from headrace.errors import CursorError, PlanError
from headrace.plans.cursor import Cursor, Seek
from headrace.plans.dictated import Dictated
from headrace.plans.engine import (
    BoundPlan,
    check,
    epoch_steps,
    remaining_steps,
    seek,
    settle,
)
from headrace.sources import Objects, Stream, typed

from ..errors import TrustError
from ..source.progress import nobody

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from headrace.selections import Selection
    from headrace.topology import Topology

    from ..settings import Settings
    from ..source.catalog import Catalog, OpenSource
    from ..source.progress import Tell
    from .bound import BoundPlans


class BoundStream(NamedTuple):
    """A stream whose sources are open, and a position in it."""

    name: str
    """Name in the configuration; empty for a stream that the client brought."""

    stream: Stream
    sources: Mapping[str, OpenSource]
    """The source of the stream under an empty name, and those of parts of the plan by theirs."""

    bound: BoundPlan
    topology: Topology
    cursor: Cursor
    remaining: int
    """Steps from the position to the end of its epoch; -1 where that is not known."""

    steps: int
    """Steps in the whole epoch of the position; likewise."""

    @property
    def source(self) -> OpenSource:
        """The source of the stream."""
        return self.sources[""]

    def source_of(self, part: str) -> OpenSource:
        """Return the source of a part of the plan."""
        return self.sources.get(part, self.source)

    def number_of(self, part: str) -> int:
        """Return the number of the source of a part of the plan; 0 for that of the stream."""
        return list(self.sources).index(part) if part in self.sources else 0

    @property
    def is_sized(self) -> bool:
        """Whether it is known beforehand how large batches are."""
        return not isinstance(self.stream.plan, Dictated) and not self.stream.is_streamed

    @property
    def blocks(self) -> tuple[str, ...]:
        """Digests of the blocks of the data, to tell where two differ."""
        first, *others = (source.manifest.blocks for source in self.sources.values())
        return tuple(first) if not others else tuple(map(_combined, first, *others))

    @property
    def samples_per_batch(self) -> int:
        """Samples of the largest batch of one rank; 0 where only the data says it."""
        return self.bound.program.batch_samples(self.topology.world_size) or 0


class Streams:
    """Resolves streams by name or by value, within what the configuration allows.

    Args:
        settings: The configuration.
        catalog: Opens sources.
        plans: Binds plans to what the sources have.
        executor: Threads for that, and for resolving positions.
    """

    def __init__(
        self, settings: Settings, catalog: Catalog, plans: BoundPlans, executor: Executor
    ) -> None:
        self.settings = settings
        """What is resolved from now on is resolved by them; open streams stay as they are."""
        self._catalog = catalog
        self._plans = plans
        self._executor = executor

    async def bind(
        self,
        wanted: str | dict[str, Any],
        topology: Topology,
        start: Mapping[str, Any] | None,
        *,
        tell: Tell = nobody,
    ) -> BoundStream:
        """Open the sources of a stream and resolve a position in it.

        Args:
            wanted: A configured name, empty for the default, or a stream as a map.
            topology: Which rank of how many.
            start: A cursor, ``{"seek": {…}, "skips": […]}``, or None for the very beginning.
            tell: Called from a thread while sources are listed and indexed.

        Raises:
            PlanError: If the stream, the position or the topology do not fit.
            TrustError: If the client may not read a source.
            SourceError: If a source cannot be listed.
        """
        # What a client says may stand for many sources: looking at all takes a while.
        name, stream = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._resolve, wanted
        )
        where, skips = _position(start)
        digest = where.manifest if isinstance(where, Cursor) else None
        sources = await self._catalog.open_all(stream.sources, digest=digest, tell=tell)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._bound, name, stream, sources, topology, where, skips
        )

    def _bound(
        self,
        name: str,
        stream: Stream,
        sources: Mapping[str, OpenSource],
        topology: Topology,
        where: Cursor | Seek | None,
        given: tuple[int, ...],
    ) -> BoundStream:
        """Resolve a position; may have to look at each sample of an epoch."""
        manifests = {part: source.manifest for part, source in sources.items()}
        bound = self._plans.bind(stream.served_plan, manifests)
        world_size = topology.world_size
        match where:
            case Cursor():
                check(bound, where)
                cursor = where
            case Seek():
                cursor = seek(bound, where, world_size)
            case None:
                cursor = bound.start()
        skips = where.skips if isinstance(where, Cursor) else given
        cursor = msgspec.structs.replace(settle(bound, cursor, world_size), skips=skips)
        remaining = remaining_steps(bound, cursor, world_size)
        steps = remaining if remaining < 0 else cursor.step + remaining
        if cursor.step == 0:
            steps = epoch_steps(bound, world_size, cursor.epoch)
        return BoundStream(name, stream, sources, bound, topology, cursor, remaining, steps)

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
            stream = msgspec.convert(typed(wanted), Stream)
        except msgspec.ValidationError as error:
            raise PlanError(f"the stream cannot be read: {error}") from None
        self._check_trust(stream)
        return "", stream

    def _check_trust(self, stream: Stream) -> None:
        entries = self.settings.trust.allow_sources
        for source in stream.sources.values():
            for selection in source.selections:
                if not is_allowed(selection, entries):
                    raise TrustError(
                        f"source {selection.location} is not below [trust] allow_sources "
                        f"({', '.join(entries) or 'empty'}): add it there, or open a configured "
                        "stream by name"
                    )


def is_allowed(selection: Selection, entries: Sequence[str]) -> bool:
    """Tell whether what is selected is what ``[trust] allow_sources`` allows.

    An entry is ``"*"``, a folder, or the URI of a bucket with or without a prefix; or a template of
    such.  What is below one is allowed: what has the same name, or one that goes on after a ``/``.
    So are names of which each is below one.
    """
    if "*" in entries:
        return True
    allowed = [one for entry in entries for one in Objects(entry).selections]
    bucket = selection.bucket
    if bucket is None:
        # Links count as what they point to.
        path = os.path.realpath(selection.path)
        roots = [os.path.realpath(one.path) for one in allowed if one.bucket is None]
        return _is_below(path, roots) or (
            selection.names is not None
            and all(
                _is_below(os.path.realpath(os.path.join(path, name)), roots)
                for name in selection.names
            )
        )
    roots = [one.bucket.uri for one in allowed if one.bucket is not None]
    return _is_below(bucket.uri, roots) or (
        selection.names is not None
        and all(_is_below(bucket.address(name), roots) for name in selection.names)
    )


def _is_below(location: str, roots: Iterable[str]) -> bool:
    return any(location == root or location.startswith(root.rstrip("/") + "/") for root in roots)


def _combined(*blocks: str) -> str:
    return hashlib.sha256(" ".join(blocks).encode()).hexdigest()


def _position(
    start: Mapping[str, Any] | None,
) -> tuple[Cursor | Seek | None, tuple[int, ...]]:
    """Return a position, and what was left out before it, if it is none that says so."""
    if start is None:
        return None, ()
    if "seek" in start and set(start) <= {"seek", "skips"}:
        try:
            where = msgspec.convert(start["seek"], Seek)
        except msgspec.ValidationError as error:
            raise CursorError(f"seek cannot be read: {error}") from None
        # Judged as those of a cursor.
        state = {"plan": "", "manifest": "", "skips": start.get("skips", [])}
        return where, Cursor.from_state(state).skips
    return Cursor.from_state(dict(start)), ()
