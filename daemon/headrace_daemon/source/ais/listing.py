"""Listings: the names, sizes, checksums and versions of the objects of a bucket, as a manifest.

Objects that are given by name are not listed, but asked for one by one (`inquiry.py`).

Invariant: a listing counts only if the cluster map was complete and the same before and after it,
and no page says that it may lack something.  The store itself lists a bucket whose target has died
without the objects of that target, and answers 200.

Pages come in the order of the UTF-8 bytes of the names.  A page that failed is asked for again,
from the last name on.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from ...errors import (
    ObjectUnreadableError,
    SourceMissingError,
    StoreUnavailableError,
)
from ..together import run_in_thread
from ..writer import ManifestWriter
from .addresses import bucket_path
from .bucket import bucket_error, is_native
from .faults import Fault, Kind
from .retry import Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
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

_PROPS: Final = "name,size,checksum,version"

PAGE_OBJECTS: Final = 0
"""Objects of a page; 0 leaves it to the store: 10,000, or what a provider gives."""

PAGE_S: Final = 60.0
"""How long a page may take at least, seconds, however short the deadline is: a page of a remote
bucket waits for its provider."""

_MAY_LACK: Final = 1
"""Flag of a page: targets are moving objects, and it may be incomplete."""

_STATUS_MASK: Final = 0x1F
_MAX_STATUS: Final = 2
"""Statuses of an entry up to this: the object, on its place or on a wrong one; above: copies."""

_IS_FOLDER: Final = 1 << 8

_MAX_ELEMENT: Final = 255
"""Bytes of the longest element of a name that a disk of the store takes as it is."""

_MISPLACED: Final = ".x"
"""How the files begin that the store keeps objects with longer names in."""

_SHOWN: Final = 60


class _Entry(msgspec.Struct):
    """An object as the store lists it: name, size in bytes, checksum in hex, version, flags."""

    # The limits are those of the columns of a manifest, and of what sums of sizes can be.
    n: Annotated[str, msgspec.Meta(min_length=1)]
    s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0
    cs: Annotated[str, msgspec.Meta(max_length=128)] = ""
    v: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    f: int = 0


class _Page(msgspec.Struct):
    """A page; the id of the listing and the token ask for the next one, no token ends it."""

    UUID: str = ""
    ContinuationToken: str = ""
    Entries: list[_Entry] | None = None
    Flags: int = 0


_decode = msgspec.msgpack.Decoder(_Page).decode


class _Rows(NamedTuple):
    names: list[bytes]
    sizes: list[int]
    checksums: list[bytes]
    versions: list[bytes]


class _Walk(NamedTuple):
    """What the store is asked for, so as to be told all names with some prefix."""

    prefix: str
    start_after: str = ""


class _UnsureError(Exception):
    """A listing that may lack something, or has something twice."""


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

    async def list(
        self, selection: Selection, root: Path, progress: Callable[[int], None] = lambda found: None
    ) -> Manifest:
        """List objects of a bucket into a manifest under a folder.

        Args:
            selection: Of a bucket.
            root: Where manifests are.
            progress: Called with the number of objects found so far, after each page.

        Raises:
            SourceMissingError: If there is no such bucket, or no object that matches.
            ObjectMissingError: If there is no object of a given name.
            StoreUnavailableError: If the store does not answer or stays incomplete to the deadline.
            StoreAccessError: If the bucket may not be listed.
        """
        bucket = selection.bucket
        assert bucket is not None
        if selection.names is not None:
            return await self._look_up(bucket, selection.names, root, progress)
        retry = Retry(self._client.deadline_s)
        last_reason = ""
        while True:
            try:
                before = await self._whole()
                with ManifestWriter(root) as writer:
                    await self._collect(bucket, selection, writer, progress)
                    after = await self._cluster.after()
                    if (after.uuid, after.version) != (before.uuid, before.version):
                        raise _UnsureError("the cluster map has changed meanwhile")
                    if not writer.num_entries:
                        raise SourceMissingError(
                            selection.location, _explain_empty(selection, bucket)
                        )
                    return await self._finish(writer)
            except _UnsureError as unsure:
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

    async def _look_up(
        self, bucket: Bucket, names: Sequence[str], root: Path, progress: Callable[[int], None]
    ) -> Manifest:
        """Return the manifest of given objects, in their order."""
        facts = await self._inquirer.ask(bucket, names, "names=", progress)

        def write() -> Manifest:
            with ManifestWriter(root, is_ordered=True) as writer:
                writer.append(
                    [name.encode() for name in names],
                    [one.size for one in facts],
                    [one.checksum for one in facts],
                    [one.version for one in facts],
                )
                return writer.finish()

        return await run_in_thread(self._executor, write)

    async def _whole(self) -> ClusterMap:
        """Return the map of a cluster that is complete."""
        current = await self._cluster.after()
        if self._cluster.missing:
            raise _UnsureError(self._cluster.explain_missing())
        return current

    async def _finish(self, writer: ManifestWriter) -> Manifest:
        try:
            return await run_in_thread(self._executor, writer.finish)
        except ValueError as error:  # a name was listed twice
            raise _UnsureError(str(error)) from error

    async def _collect(
        self,
        bucket: Bucket,
        selection: Selection,
        writer: ManifestWriter,
        progress: Callable[[int], None],
    ) -> None:
        """Append all objects of a selection to a manifest."""
        walk, misplaced = _Walk(bucket.prefix), ""
        native = await is_native(bucket, self._client)
        if native:
            walk = _walk(bucket.prefix)
            misplaced = await self._find_misplaced(bucket, selection, walk)
        async for page in self._pages(bucket, walk):
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

    async def _pages(self, bucket: Bucket, walk: _Walk) -> AsyncIterator[_Page]:
        """Yield the pages of a list."""
        uuid = token = ""
        # Digests of the tokens so far: those of some providers have no order to go by.
        seen: set[int] = set()
        while True:
            page = await self._page(bucket, walk, uuid, token)
            yield page
            if not page.ContinuationToken:
                return
            uuid, token = page.UUID, page.ContinuationToken
            place = hash(token)
            if place in seen:
                raise ObjectUnreadableError(
                    str(bucket),
                    f"listing {bucket} goes round in circles: it comes back to {token!r}",
                )
            seen.add(place)

    async def _find_misplaced(self, bucket: Bucket, selection: Selection, walk: _Walk) -> str:
        """Return the name of an object that a walk meets in another place than it belongs to.

        The store keeps an object whose name has an element of more than 255 bytes in a file
        ``.x…`` at the root.  A walk through a folder does not meet it, which matters if it is of
        the selection; one from the root lists it out of order, and goes on behind its name on the
        next page, which always matters.  Empty if there is none.
        """
        async for page in self._pages(bucket, _Walk(_MISPLACED)):
            for entry in page.Entries or []:
                if _is_long(entry.n) and (not walk.prefix or _is_wanted(entry, selection)):
                    return entry.n
        return ""

    async def _page(self, bucket: Bucket, walk: _Walk, uuid: str, token: str) -> _Page:
        value = {
            "uuid": uuid,
            "prefix": walk.prefix,
            "start_after": "" if token else walk.start_after,
            "props": _PROPS,
            "continuation_token": token,
            "pagesize": PAGE_OBJECTS,
            "flags": "0",
        }
        what = f"the list of {bucket.uri}"
        answer = await self._client.ask(
            bucket_path(bucket),
            what,
            body={"action": "list", "value": value},
            accept="application/msgpack",
            patience_s=max(PAGE_S, self._client.deadline_s),
        )
        if isinstance(answer, Fault):
            if uuid and answer.kind is Kind.FINAL:
                # The store has forgotten this listing: it goes on from the last name without it.
                return await self._page(bucket, walk, "", token)
            raise bucket_error(bucket, answer)
        try:
            page = await asyncio.get_running_loop().run_in_executor(
                self._executor, _decode, answer.body
            )
        except (ValueError, RecursionError) as error:
            raise ObjectUnreadableError(
                str(bucket), f"{what}: the answer of {self._client.proxy} is no page ({error})"
            ) from error
        if page.Flags & _MAY_LACK:
            raise _UnsureError(
                "the store says that the list may lack objects, since its targets are moving them "
                "(a rebalance or resilver)"
            )
        return page


def _walk(prefix: str) -> _Walk:
    """Return how the store finds all names with a prefix on its own disks.

    Where a disk has, or once had, a folder of the name of the prefix, the store lists only what is
    in that folder: of ``a``, ``a/1`` and not ``ab``.  So it is asked for the folder that all names
    lie in, and told to begin shortly before the first.
    """
    folder = prefix[: prefix.rfind("/") + 1]
    if folder == prefix:
        return _Walk(prefix)
    before = ord(prefix[-1]) - 1
    # Names above that, and below the prefix, are few; they are dropped here.
    is_plain = 0x20 < before < 0x7F and chr(before) != "/"
    start_after = prefix[:-1] + (chr(before) + "~" if is_plain else "")
    return _Walk(folder, start_after if start_after != folder else "")


def _is_past(entries: Sequence[_Entry], prefix: str) -> bool:
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


def _is_wanted(entry: _Entry, selection: Selection) -> bool:
    """Return whether an entry is an object of a selection."""
    return (
        entry.f & _STATUS_MASK <= _MAX_STATUS
        and not entry.f & _IS_FOLDER
        and selection.takes(entry.n)
    )


def _rows(entries: Sequence[_Entry], selection: Selection, bucket: Bucket, walk: _Walk) -> _Rows:
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
    if selection.suffix:
        limits.append(f"ends with {' or '.join(selection.suffix)}")
    if not selection.recursive:
        limits.append("has no '/' after the prefix (recursive = false)")
    which = f" whose name {' and '.join(limits)}" if limits else ""
    return f"bucket {bucket} has no object{which}: a stream needs at least one sample"
