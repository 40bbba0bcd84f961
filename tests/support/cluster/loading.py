"""Puts many objects into a bucket, over connections that are kept."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from .machine import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)


def object_url(endpoint: str, bucket: str, name: str) -> str:
    """Return where an object is, with its name quoted as it has to be."""
    return f"{endpoint}/v1/objects/{bucket}/{quote(name)}?provider=ais"


async def put_many(
    endpoint: str, bucket: str, objects: Iterable[tuple[str, bytes]], *, in_flight: int
) -> int:
    """Put objects and return how many they were.

    Args:
        endpoint: The URL of a proxy.
        bucket: An existing bucket.
        objects: Names and contents; taken one by one, so they need not be in memory together.
        in_flight: Objects under way at once; at least 1.

    Raises:
        ClusterError: The cluster refused one.
    """
    remaining = iter(objects)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as session,
        asyncio.TaskGroup() as tasks,
    ):
        loads = [
            tasks.create_task(_put_each(session, endpoint, bucket, remaining), name=f"put {number}")
            for number in range(in_flight)
        ]
    return sum(load.result() for load in loads)


async def _put_each(
    session: aiohttp.ClientSession,
    endpoint: str,
    bucket: str,
    remaining: Iterator[tuple[str, bytes]],
) -> int:
    number = 0
    for name, content in remaining:
        # The bytes go to the target that the proxy names, never to the proxy.
        first = URL(object_url(endpoint, bucket, name), encoded=True)
        location = await _put(session, first, b"", 307)
        await _put(session, URL(location, encoded=True), content, 200)
        number += 1
    return number


async def _put(session: aiohttp.ClientSession, url: URL, content: bytes, status: int) -> str:
    """Send one request and return the location in its answer; empty without one."""
    # A stream, since aiohttp warns of large bytes; it is sent from its beginning, once.
    async with session.put(url, data=io.BytesIO(content), allow_redirects=False) as response:
        text = await response.text()
        if response.status != status:
            raise ClusterError(f"PUT {url} was answered with {response.status}: {text}")
        return response.headers.get("Location", "")
