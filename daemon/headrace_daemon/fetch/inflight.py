"""Reads that are under way: the same bytes are asked for once, however many feeds want them now.

Whoever comes first leads: it reads into its own slot.  Who wants the same object meanwhile, or the
same values out of the same range, follows, and pays one copy when it has arrived.  The copies are
made in the same turn of the loop in which the read ends, before the leader's slot can be sent or
used again, so nobody holds a slot for anybody else.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from ..errors import ObjectError
    from ..source.reader import Reader, Request


class _End(Enum):
    """How the read ended that somebody followed."""

    ARRIVED = auto()
    """The bytes are copied."""

    ABANDONED = auto()
    """The leader was cancelled."""

    FAILED = auto()
    """The leader met an error, of this object or of another one that it read with it."""


class _Follower(NamedTuple):
    request: Request
    # Done or cancelled: nothing may be copied into the request's memory any more.
    end: asyncio.Future[_End]


class _Lead(NamedTuple):
    request: Request
    followers: list[_Follower]


_Key = tuple[str, "Hashable"]
"""Location of the reader and identity of the request."""


class Inflight:
    """The reads under way of all feeds of a node."""

    def __init__(self) -> None:
        self._leads: dict[_Key, _Lead] = {}
        self.num_shared = 0
        """Objects and ranges that arrived by a copy of what another feed was reading."""

    async def read(
        self,
        reader: Reader,
        group: Sequence[Request],
        places: AbstractAsyncContextManager[None],
    ) -> None:
        """Fill the targets of some requests, by reading or by following.

        When the call is over, in whatever way, nothing writes into a target any more.

        Args:
            reader: Of their source.
            group: Requests that are read together.
            places: One is taken while reading, none while following.

        Raises:
            SourceError: The first that the reader met.
        """
        wanted: Sequence[Request] = group
        while wanted:
            async with places:
                leads, followers = self._divide(reader.location, wanted)
                try:
                    await self._lead(reader, leads)
                except BaseException:
                    _leave(followers)
                    raise
            if not followers:
                return
            ends = await _follow(followers)
            self.num_shared += sum(end is _End.ARRIVED for _, end in ends)
            failed = [request for request, end in ends if end is _End.FAILED]
            if failed:
                # Each finds out for itself, at the same time: another object may be to blame.
                async with places:
                    await reader.read(failed)
            wanted = [request for request, end in ends if end is _End.ABANDONED]

    def _divide(
        self, location: str, requests: Iterable[Request]
    ) -> tuple[dict[_Key, _Lead], list[_Follower]]:
        """Take the lead of what nobody reads, and follow the rest."""
        leads: dict[_Key, _Lead] = {}
        followers: list[_Follower] = []
        for request in requests:
            key = (location, request.identity)
            lead = self._leads.get(key)
            if lead is None:
                leads[key] = self._leads[key] = _Lead(request, [])
            else:
                follower = _Follower(request, asyncio.get_running_loop().create_future())
                lead.followers.append(follower)
                followers.append(follower)
        return leads, followers

    async def _lead(self, reader: Reader, leads: dict[_Key, _Lead]) -> None:
        end = _End.ABANDONED
        # Those that were left out: who follows them finds out for itself.
        bad: set[_Key] = set()
        try:
            if leads:
                await reader.read([_noting(key, lead.request, bad) for key, lead in leads.items()])
            end = _End.ARRIVED
        except SourceError:
            end = _End.FAILED
            raise
        finally:
            for key, lead in leads.items():
                del self._leads[key]
                for follower in lead.followers:
                    if not follower.end.done():
                        own = _End.FAILED if key in bad else end
                        if own is _End.ARRIVED:
                            follower.request.copy_from(lead.request)
                        follower.end.set_result(own)


def _noting(key: _Key, request: Request, bad: set[_Key]) -> Request:
    """Return a request that also notes whether it was left out."""
    on_bad = request.on_bad
    if on_bad is None:
        return request

    def note(error: ObjectError) -> None:
        bad.add(key)
        on_bad(error)

    return request._replace(on_bad=note)


async def _follow(followers: Sequence[_Follower]) -> list[tuple[Request, _End]]:
    try:
        return [(follower.request, await follower.end) for follower in followers]
    except asyncio.CancelledError:
        _leave(followers)
        raise


def _leave(followers: Iterable[_Follower]) -> None:
    for follower in followers:
        follower.end.cancel()
