"""The wire of everything that is not plain: reads by way of a proxy, over TLS, and whatever else.

It is aiohttp, which knows all of HTTP, and pays for it with some 70 µs of CPU per object.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import aiohttp
from yarl import URL

from .addresses import ObjectPaths, is_node_url
from .client import CONNECT_S, header, start_of
from .faults import TROUBLE, Fault, Kind, of_answer, of_exception
from .transfer import Head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.buckets import Bucket

    from .client import AisClient
    from .clustermap import Node
    from .counts import Counts
    from .transfer import Transfer

_SHOWN: Final = 300
_REDIRECTS: Final = (301, 302, 307, 308)


class HttpWire:
    """Reads objects of a bucket, one exchange for each call.

    Args:
        bucket: The bucket.
        client: The session with the cluster.
        counts: Where reads are counted.
        stall_s: How long a node may send nothing, seconds.
    """

    def __init__(
        self, bucket: Bucket, client: AisClient, counts: Counts, *, stall_s: float
    ) -> None:
        self._client = client
        self._counts = counts
        self._paths = ObjectPaths(bucket)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=stall_s)

    async def from_target(self, transfer: Transfer, owner: Node) -> Fault | None:
        """Ask the owner for what has not arrived yet; return what went wrong.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        started = time.perf_counter()
        url = URL(owner.url + self._paths.of(transfer.request.name), encoded=True)
        fault = await self._get(url, transfer, owner)
        if fault is None:
            self._counts.note_read(owner, transfer.size, time.perf_counter() - started)
        return fault

    async def by_proxy(self, transfer: Transfer) -> Fault | None:
        """Ask a proxy for the object, and the target that it redirects to.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        started = time.perf_counter()
        fault = await self._ask(transfer)
        if fault is None:
            self._counts.note_read(None, transfer.size, time.perf_counter() - started)
        return fault

    async def _ask(self, transfer: Transfer) -> Fault | None:
        """Ask a proxy, and whom it names."""
        client = self._client
        proxy = client.proxy
        where = f"proxy {proxy}"
        headers = client.access.headers
        try:
            async with client.session.get(
                URL(proxy + self._paths.of(transfer.request.name), encoded=True),
                headers=headers | _range(transfer),
                allow_redirects=False,
                timeout=self._timeout,
            ) as answer:
                if answer.status in (200, 206):  # a gateway that follows redirects by itself
                    return await _receive(answer, transfer, where)
                content = await start_of(answer)
                if answer.status not in _REDIRECTS:
                    fault = of_answer(answer.status, content, where)
                    if fault.kind is Kind.UNAUTHORIZED and client.access.renew_token(headers):
                        fault = fault._replace(kind=Kind.BUSY)  # the next attempt has the new one
                    if fault.kind is Kind.NODE:
                        client.turn_from(proxy)
                    return fault
                location = header(answer, "Location")
        except TROUBLE as error:
            client.turn_from(proxy)
            return of_exception(error, where)
        try:
            url = URL(proxy).join(URL(location, encoded=True))
            is_good = is_node_url(f"{url.scheme}://{url.raw_authority}")
            is_same = url.path.endswith(f"/{transfer.request.name}")
        except ValueError:
            is_good = is_same = False
        if not is_good:
            return Fault(Kind.FINAL, f"redirects to no address, {location[:_SHOWN]!r}", where)
        if not is_same:  # a name with a line feed, say, is not escaped there
            return Fault(Kind.FINAL, f"redirects to another object, {location[:_SHOWN]!r}", where)
        return await self._get(url, transfer, None)

    async def _get(self, url: URL, transfer: Transfer, owner: Node | None) -> Fault | None:
        """Get the object from a target."""
        where = owner or f"target {url.origin()}"
        try:
            async with self._client.session.get(
                url,
                headers=_range(transfer) or None,
                allow_redirects=False,
                timeout=self._timeout,
            ) as answer:
                return await _receive(answer, transfer, where)
        except TROUBLE as error:
            return of_exception(error, str(where))


def _range(transfer: Transfer) -> dict[str, str]:
    asked = transfer.range
    return {"Range": asked} if asked else {}


async def _receive(
    answer: aiohttp.ClientResponse, transfer: Transfer, where: Node | str
) -> Fault | None:
    """Take the bytes of an answer; what it raises is in `TROUBLE`."""
    if answer.status not in (200, 206):
        fault = of_answer(answer.status, await start_of(answer), str(where))
        return transfer.unsatisfiable(fault) if answer.status == 416 else fault
    refused = transfer.begin(_head(answer), where)
    if refused is not None:
        return refused
    target, size = transfer.request.target, transfer.size
    while chunk := await answer.content.readany():
        end = transfer.done + len(chunk)
        if end > size:
            return transfer.too_many(where)
        target[transfer.done : end] = chunk
        transfer.done = end
    return transfer.end(where)


def _head(answer: aiohttp.ClientResponse) -> Head:
    def value(name: str, headers: Mapping[str, str] = answer.headers) -> bytes:
        return headers.get(name, "").encode(errors="surrogateescape")

    return Head(
        answer.status,
        answer.content_length,
        value("Ais-Checksum-Type"),
        value("Ais-Checksum-Value"),
        value("Ais-Version"),
        value("Content-Range"),
    )
