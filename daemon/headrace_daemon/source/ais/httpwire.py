"""The wire of everything that is not plain: reads by way of a proxy, over TLS, and whatever else.

It is aiohttp, which knows all of HTTP, and pays for it with some 70 µs of CPU per object.  An
*errand* is what one exchange is about: the bytes of an object, or what is known of one.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final, Protocol

import aiohttp
from yarl import URL

from ...errors import SourceError
from .addresses import ObjectPaths, is_node_url
from .client import CONNECT_S, header, start_of, told
from .faults import TROUBLE, Fault, Kind, of_answer, of_exception
from .transfer import Head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.buckets import Bucket

    from .client import AisClient
    from .clustermap import Node
    from .counts import Counts
    from .targets import Targets
    from .transfer import Transfer

_SHOWN: Final = 300
_REDIRECTS: Final = (301, 302, 307, 308)


class Errand(Protocol):
    """What an exchange is about."""

    method: str
    """Of HTTP."""

    query: str
    """What follows the query that says which bucket it is."""

    name: str
    """Of the object."""

    @property
    def headers(self) -> dict[str, str]:
        """Of the request, beside those of access."""
        ...

    async def receive(self, answer: aiohttp.ClientResponse, where: Node | str) -> Fault | None:
        """Take an answer with status 200, 206 or an error; what it raises is in `TROUBLE`."""
        ...


class HttpWire:
    """Runs errands to objects of a bucket, one exchange for each call.

    Args:
        bucket: The bucket.
        client: The session with the cluster.
        counts: Where reads are counted.
        targets: Who may be asked, and is told how that went.
        stall_s: How long a node may send nothing, seconds.
    """

    def __init__(
        self,
        bucket: Bucket,
        client: AisClient,
        counts: Counts,
        targets: Targets,
        *,
        stall_s: float,
    ) -> None:
        self._client = client
        self._targets = targets
        self._counts = counts
        self._paths = ObjectPaths(bucket)
        self.stall_s = stall_s
        """How long a node may send nothing, seconds."""

    @property
    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self.stall_s)

    async def from_target(self, transfer: Transfer, owner: Node) -> Fault | None:
        """Ask the owner for what has not arrived yet; return what went wrong.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        started = time.perf_counter()
        fault = await self.run_to_target(_Get(transfer), owner)
        if fault is None:
            self._counts.note_read(owner, transfer, time.perf_counter() - started)
        return fault

    async def by_proxy(self, transfer: Transfer) -> Fault | None:
        """Ask a proxy for the object, and the target that it redirects to.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        started = time.perf_counter()
        fault = await self.run_by_proxy(_Get(transfer))
        if fault is None:
            self._counts.note_read(None, transfer, time.perf_counter() - started)
        return fault

    async def run_to_target(self, errand: Errand, owner: Node) -> Fault | None:
        """Run an errand to a target; return what went wrong."""
        return await self._ask(URL(owner.url + self._path(errand), encoded=True), errand, owner)

    def _path(self, errand: Errand) -> str:
        return self._paths.of(errand.name) + errand.query

    async def run_by_proxy(self, errand: Errand) -> Fault | None:
        """Run an errand to a proxy, and to whom it names; return what went wrong."""
        client = self._client
        proxy = client.proxy
        where = f"proxy {proxy}"
        headers = client.access.headers
        try:
            async with (
                client.places,
                client.session.request(
                    errand.method,
                    URL(proxy + self._path(errand), encoded=True),
                    headers=headers | errand.headers,
                    allow_redirects=False,
                    timeout=self._timeout,
                ) as answer,
            ):
                if answer.status in (200, 206, 416):  # a gateway that follows redirects by itself
                    return await errand.receive(answer, where)
                content = await told(answer)
                if answer.status not in _REDIRECTS:
                    fault = error_of(answer, content, where)
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
            is_same = url.path.endswith(f"/{errand.name}")
        except ValueError:
            is_good = is_same = False
        if not is_good:
            return Fault(Kind.FINAL, f"redirects to no address, {location[:_SHOWN]!r}", where)
        if not is_same:  # a name with a line feed, say, is not escaped there
            return Fault(Kind.FINAL, f"redirects to another object, {location[:_SHOWN]!r}", where)
        gate = self._targets.gate(str(url.origin()))
        if not gate.admits():
            gate.is_confirmed = True
            return gate.refusal()
        return await self._ask(url, errand, None)

    async def _ask(self, url: URL, errand: Errand, owner: Node | None) -> Fault | None:
        """Ask a target that may be asked."""
        gate = self._targets.gate(str(url.origin()))
        is_probe = gate.is_barred
        async with nullcontext() if is_probe else gate.places:
            if gate.is_barred and not is_probe:
                return gate.refusal()  # it was barred while this waited for a place
            try:
                fault = await self._exchange(url, errand, owner or gate.where)
            except SourceError:
                gate.note(None)
                raise
            gate.note(fault)
            return fault

    async def _exchange(self, url: URL, errand: Errand, where: Node | str) -> Fault | None:
        try:
            async with self._client.session.request(
                errand.method,
                url,
                headers=errand.headers or None,
                allow_redirects=False,
                timeout=self._timeout,
            ) as answer:
                return await errand.receive(answer, where)
        except TROUBLE as error:
            return of_exception(error, str(where))


class _Get:
    """The errand for what has not arrived of an object."""

    method = "GET"
    query = ""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self.name = transfer.name

    @property
    def headers(self) -> dict[str, str]:
        asked = self._transfer.range
        return {"Range": asked} if asked else {}

    async def receive(self, answer: aiohttp.ClientResponse, where: Node | str) -> Fault | None:
        transfer = self._transfer
        if answer.status not in (200, 206):
            fault = error_of(answer, await start_of(answer), where)
            if answer.status != 416:
                return fault
            return transfer.unsatisfiable(fault, head_of(answer).content_range)
        refused = transfer.begin(head_of(answer), where)
        if refused is not None:
            return refused
        while chunk := await answer.content.readany():
            if transfer.done + len(chunk) > transfer.size:
                return transfer.too_many(where)
            transfer.take(chunk)
        return transfer.end(where)


def error_of(answer: aiohttp.ClientResponse, content: bytes, where: Node | str) -> Fault:
    """Return the fault that an answer with an error status is."""
    retry_after = header(answer, "Retry-After")
    return of_answer(answer.status, content, str(where), retry_after=retry_after)


def head_of(answer: aiohttp.ClientResponse) -> Head:
    """Return what the head of an answer says of an object."""

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
