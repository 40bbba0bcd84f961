"""Listings: the names, sizes, checksums and versions of the objects of a bucket, as a manifest.

Objects that are given by name are looked up (`lookup.py`).

Invariant: a listing counts only if the cluster map was complete and the same before and after it,
and no page says that it may lack something.  The store itself lists a bucket whose target has died
without the objects of that target, and answers 200.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import (
    ObjectUnreadableError,
    SourceEmptyError,
    StoreUnavailableError,
)
from ..together import run_in_thread
from ..writer import ManifestWriter
from .bucket import is_native
from .lookup import Lookup
from .pages import Entry, Pager, UnsureError, Walk, is_object, walk_of
from .retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from headrace.buckets import Bucket
    from headrace.manifest import Manifest
    from headrace.selections import Selection

    from .client import AisClient
    from .cluster import Cluster
    from .clustermap import ClusterMap
    from .inquiry import Inquirer

logger = logging.getLogger(__name__)

_MAX_ELEMENT: Final = 255
"""Bytes of the longest element of a name that a disk of the store takes as it is."""

_MISPLACED: Final = ".x"
"""How the files begin that the store keeps objects with longer names in."""

_SHOWN: Final = 60


class _Rows(NamedTuple):
    names: list[bytes]
    sizes: list[int]
    checksums: list[bytes]
    versions: list[bytes]


class Lister:
    """Lists buckets of a cluster into manifests.

    Args:
        client: The session with the cluster.
        cluster: Says whether it is complete.
        inquirer: Asks for what no list tells.
        executor: A thread of it decodes and writes pages.
    """

    def __init__(
        self, client: AisClient, cluster: Cluster, inquirer: Inquirer, executor: Executor
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._inquirer = inquirer
        self._executor = executor
        self._pager = Pager(client, executor)
        self._lookup = Lookup(client, self._pager, inquirer, executor)

    async def list(
        self, selection: Selection, root: Path, progress: Callable[[int], None] = lambda found: None
    ) -> Manifest:
        """List objects of a bucket into a manifest under a folder.

        Args:
            selection: Of a bucket.
            root: Where manifests are.
            progress: Called with the number of objects found so far, after each page.

        Raises:
            SourceMissingError: If there is no such bucket.
            SourceEmptyError: If it has no object that matches.
            ObjectMissingError: If there is no object of a given name.
            StoreUnavailableError: If the store does not answer or stays incomplete to the deadline.
            StoreAccessError: If the bucket may not be listed.
        """
        bucket = selection.bucket
        assert bucket is not None
        if selection.names is not None:
            return await self._lookup.manifest(bucket, selection.names, root, progress)
        retry = Retry(self._client.deadline_s)
        last_reason = ""
        while True:
            try:
                before = await self._whole()
                with ManifestWriter(root) as writer:
                    await self._collect(bucket, selection, writer, progress)
                    after = await self._cluster.after()
                    if (after.uuid, after.version) != (before.uuid, before.version):
                        raise UnsureError("the cluster map has changed meanwhile")
                    if not writer.num_entries:
                        raise SourceEmptyError(
                            selection.location, _explain_empty(selection, bucket)
                        )
                    return await self._finish(writer)
            except UnsureError as unsure:
                reason = str(unsure)
            if not await retry.pause():
                raise StoreUnavailableError(
                    selection.location,
                    f"{selection.location} cannot be listed as a whole: {reason}; "
                    f"{retry.explain()}",
                )
            level = logging.DEBUG if reason == last_reason else logging.WARNING
            logger.log(level, "listing begun anew source=%s: %s", selection.location, reason)
            last_reason = reason

    async def _whole(self) -> ClusterMap:
        """Return the map of a cluster that is complete."""
        current = await self._cluster.after()
        if self._cluster.missing:
            raise UnsureError(self._cluster.explain_missing())
        return current

    async def _finish(self, writer: ManifestWriter) -> Manifest:
        try:
            return await run_in_thread(self._executor, writer.finish)
        except ValueError as error:  # a name was listed twice
            raise UnsureError(str(error)) from error

    async def _collect(
        self,
        bucket: Bucket,
        selection: Selection,
        writer: ManifestWriter,
        progress: Callable[[int], None],
    ) -> None:
        """Append all objects of a selection to a manifest."""
        walk, misplaced = Walk(bucket.prefix), ""
        native = await is_native(bucket, self._client)
        if native:
            walk = walk_of(bucket.prefix)
            misplaced = await self._find_misplaced(bucket, selection, walk)
        async for page in self._pager.pages(bucket, walk):
            if misplaced and (walk.prefix or page.ContinuationToken):
                raise ObjectUnreadableError(
                    str(bucket),
                    f"bucket {bucket} cannot be listed as a whole: the name "
                    f"{_shortened(misplaced)!r} has an element of more than {_MAX_ELEMENT} bytes, "
                    "and the store lists such objects, or others in their place, only in part: "
                    "rename it",
                )
            entries = page.Entries or []

            rows = await run_in_thread(
                self._executor, partial(_rows, entries, selection, bucket, walk)
            )
            if not native:
                await self._complete(bucket, rows)
            await run_in_thread(self._executor, partial(writer.append, *rows))
            progress(writer.num_entries)
            if _is_past(entries, bucket.prefix):
                return

    async def _complete(self, bucket: Bucket, rows: _Rows) -> None:
        """Find out what a list of a provider's objects does not say: sizes of some.

        A size of 0 is left out as well, so empty objects are asked for too.
        """
        # What ends with a slash marks a folder for people, is empty, and cannot be asked for.
        places = [
            place
            for place, size in enumerate(rows.sizes)
            if not size and not rows.names[place].endswith(b"/")
        ]
        if not places:
            return
        names = [rows.names[place].decode() for place in places]
        found = await self._inquirer.ask(bucket, names, f"the list of {bucket.uri}")
        for place, facts in zip(places, found, strict=True):
            rows.sizes[place] = facts.size
            rows.checksums[place] = rows.checksums[place] or facts.checksum
            rows.versions[place] = rows.versions[place] or facts.version

    async def _find_misplaced(self, bucket: Bucket, selection: Selection, walk: Walk) -> str:
        """Return the name of an object that a walk meets in another place than it belongs to.

        The store keeps an object whose name has an element of more than 255 bytes in a file
        ``.x…`` at the root.  A walk through a folder does not meet it, which matters if it is of
        the selection; one from the root lists it out of order, and goes on behind its name on the
        next page, which always matters.  Empty if there is none.
        """
        async for page in self._pager.pages(bucket, Walk(_MISPLACED)):
            for entry in page.Entries or []:
                if _is_long(entry.n) and (not walk.prefix or _is_wanted(entry, selection)):
                    return entry.n
        return ""


def _is_past(entries: Sequence[Entry], prefix: str) -> bool:
    """Return whether all entries of a page, and so of the next ones, are behind a prefix."""
    limit = prefix.encode()
    return bool(entries) and all(
        entry.n.encode() > limit and not entry.n.startswith(prefix) for entry in entries
    )


def _is_long(name: str) -> bool:
    return len(name) * 4 > _MAX_ELEMENT and any(
        len(element.encode()) > _MAX_ELEMENT for element in name.split("/")
    )


def _shortened(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def _is_wanted(entry: Entry, selection: Selection) -> bool:
    """Return whether an entry is an object of a selection."""
    return is_object(entry) and selection.takes(entry.n)


def _rows(entries: Sequence[Entry], selection: Selection, bucket: Bucket, walk: Walk) -> _Rows:
    """Return the objects among some entries that belong to a selection.

    Raises:
        ObjectUnreadableError: If there is one that was not asked for.
    """
    for entry in entries:
        if not entry.n.startswith(walk.prefix):
            raise ObjectUnreadableError(
                str(bucket),
                f"the store lists {entry.n!r} in {bucket.uri}, which does not begin with "
                f"{walk.prefix!r}",
            )
    wanted = [entry for entry in entries if _is_wanted(entry, selection)]
    return _Rows(
        names=[entry.n.encode() for entry in wanted],
        sizes=[entry.s for entry in wanted],
        checksums=[entry.cs.encode() for entry in wanted],
        versions=[entry.v.encode() for entry in wanted],
    )


def _explain_empty(selection: Selection, bucket: Bucket) -> str:
    limits = [f"begins with {bucket.prefix!r}"] if bucket.prefix else []
    if any(selection.suffix):
        limits.append(f"ends with {' or '.join(selection.suffix)}")
    if not selection.recursive:
        limits.append("has no '/' after the prefix (recursive = false)")
    which = f" whose name {' and '.join(limits)}" if limits else ""
    return f"bucket {bucket} has no object{which}: a stream needs at least one sample"
