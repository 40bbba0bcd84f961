"""Pages: what the store lists of a bucket, some thousand objects at a time.

They come in the order of the UTF-8 bytes of the names.  A page that failed is asked for again, from
the last name on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec

from ...errors import ObjectUnreadableError
from .addresses import bucket_path
from .bucket import bucket_error
from .faults import Fault, Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from concurrent.futures import Executor

    from headrace.buckets import Bucket

    from .client import AisClient


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


class Entry(msgspec.Struct):
    """An object as the store lists it: name, size in bytes, checksum in hex, version, flags."""

    # The limits are those of the columns of a manifest, and of what sums of sizes can be.
    n: Annotated[str, msgspec.Meta(min_length=1)]
    s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0
    cs: Annotated[str, msgspec.Meta(max_length=128)] = ""
    v: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    f: int = 0


class Page(msgspec.Struct):
    """A page; the id of the listing and the token ask for the next one, no token ends it."""

    UUID: str = ""
    ContinuationToken: str = ""
    Entries: list[Entry] | None = None
    Flags: int = 0


_decode = msgspec.msgpack.Decoder(Page).decode


class Walk(NamedTuple):
    """What the store is asked for, so as to be told all names with some prefix."""

    prefix: str
    start_after: str = ""


class UnsureError(Exception):
    """A listing that may lack something, or has something twice."""


class Pager:
    """Asks for pages.

    Args:
        client: The session with the cluster.
        executor: A thread of it decodes them.
    """

    def __init__(self, client: AisClient, executor: Executor) -> None:
        self._client = client
        self._executor = executor

    async def pages(self, bucket: Bucket, walk: Walk) -> AsyncGenerator[Page, None]:
        """Yield the pages of a list.

        Args:
            bucket: Of what.
            walk: Which names.

        Raises:
            UnsureError: If the store says that a page may lack something.
            SourceError: If the bucket may not be listed, or the store does not answer in time.
        """
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

    async def _page(self, bucket: Bucket, walk: Walk, uuid: str, token: str) -> Page:
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
            raise UnsureError(
                "the store says that the list may lack objects, since its targets are moving them "
                "(a rebalance or resilver)"
            )
        return page


def walk_of(prefix: str) -> Walk:
    """Return how the store finds all names with a prefix on its own disks.

    Where a disk has, or once had, a folder of the name of the prefix, the store lists only what is
    in that folder: of ``a``, ``a/1`` and not ``ab``.  So it is asked for the folder that all names
    lie in, and told to begin shortly before the first.
    """
    folder = prefix[: prefix.rfind("/") + 1]
    if folder == prefix:
        return Walk(prefix)
    before = ord(prefix[-1]) - 1
    # Names above that, and below the prefix, are few; they are dropped here.
    is_plain = 0x20 < before < 0x7F and chr(before) != "/"
    start_after = prefix[:-1] + (chr(before) + "~" if is_plain else "")
    return Walk(folder, start_after if start_after != folder else "")


def is_object(entry: Entry) -> bool:
    """Return whether an entry is an object, and not a further copy of one, or a folder."""
    return entry.f & _STATUS_MASK <= _MAX_STATUS and not entry.f & _IS_FOLDER
