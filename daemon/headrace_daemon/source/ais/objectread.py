"""The read of one object: attempts, one after the other, until its bytes are right or it failed.

Every attempt ends with nothing or with a `Fault`; what kind it is decides about the next attempt.
What has arrived of an object is kept when a connection breaks: the next attempt asks for the rest,
and takes it only from an object with the same checksum and version.

Detects that an object has another size, checksum or version than when it was listed, and that the
bytes do not have the checksum that the store sends with them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from yarl import URL

from ...errors import (
    LIST_ANEW,
    ObjectChangedError,
    ObjectCorruptError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceMissingError,
    StoreAccessError,
    StoreUnavailableError,
)
from .addresses import bucket_query, is_node_url, object_root, quoted
from .checksums import is_intact
from .client import header, start_of
from .faults import TROUBLE, Fault, Kind, of_answer, of_exception
from .retry import Retry

if TYPE_CHECKING:
    import aiohttp

    from headrace.buckets import Bucket

    from ..reader import ReadRequest
    from .client import AisClient
    from .cluster import Cluster
    from .clustermap import Node
    from .counts import Counts

logger = logging.getLogger(__name__)

MAX_CORRUPT: Final = 3
"""Times that an object may arrive with bytes that do not have its checksum."""

_SHOWN: Final = 300
_REDIRECTS: Final = (301, 302, 307, 308)


class Ways(NamedTuple):
    """What all reads of a bucket have in common: whom they ask and how long they wait."""

    bucket: Bucket
    client: AisClient
    cluster: Cluster
    counts: Counts
    timeout: aiohttp.ClientTimeout


class ObjectRead:
    """The read of one object into the memory of its request.

    Args:
        ways: How to get at the bucket.
        request: What to read.
        owner: The target to ask; None to ask a proxy.
    """

    __slots__ = ("_done", "_owner", "_request", "_retry", "_stamp", "_started", "_ways")

    def __init__(self, ways: Ways, request: ReadRequest, owner: Node | None) -> None:
        self._ways = ways
        self._request = request
        self._owner = owner
        # Bytes in place, and the checksum and version of the object that they are of.
        self._done = 0
        self._stamp = ("", "")
        self._started = 0.0
        # None before the first fault.
        self._retry: Retry | None = None

    @property
    def what(self) -> str:
        """The object, for messages."""
        return f"object {self._ways.bucket.address(self._request.name)}"

    async def run(self) -> None:
        """Fill the memory of the request.

        Raises:
            SourceError: If the object is not as the manifest says, or not to be had in time.
        """
        fault = await self._attempt()
        if fault is None:
            return
        self._retry = retry = Retry(self._ways.client.deadline_s)
        num_corrupt = 0
        # Whether a proxy has already said that the object is missing, while no target was.
        is_looked_for = False
        while True:
            logger.debug("fault what=%r: %s", self.what, fault)
            self._ways.counts.note_fault(fault, self._owner)
            was_direct = self._owner is not None
            is_patient = True
            match fault.kind:
                case Kind.NODE:
                    await self._look_around(fault)
                case Kind.CORRUPT:
                    num_corrupt += 1
                    if num_corrupt == MAX_CORRUPT:
                        raise ObjectCorruptError(
                            self.what,
                            f"{self.what} arrived {num_corrupt} times with bytes that do not have "
                            f"its checksum ({fault}): restore it in the store",
                        )
                case Kind.DENIED if was_direct:
                    self._ways.cluster.deny_direct(fault)
                    is_patient = False
                case Kind.MISSING | Kind.NO_BUCKET:
                    await self._look_around(fault)
                    if not self._ways.cluster.missing:  # else it is not to be believed
                        if is_looked_for:
                            raise self._missing(fault)
                        is_patient = not was_direct
                        is_looked_for = not was_direct
                case Kind.DENIED | Kind.UNAUTHORIZED | Kind.FINAL:
                    raise self._final(fault)
            if not (await retry.pause() if is_patient else retry.again()):
                raise self._late(fault)
            self._ways.counts.num_retries += 1
            self._owner = self._next_owner(fault, was_direct=was_direct)
            again = await self._attempt()
            if again is None:
                return
            fault = again

    def _next_owner(self, fault: Fault, *, was_direct: bool) -> Node | None:
        """Return whom to ask next: the owner of this moment, and a proxy every other time."""
        if was_direct or fault.kind in (Kind.MISSING, Kind.NO_BUCKET, Kind.DENIED):
            return None
        owners = self._ways.cluster.owners(self._ways.bucket, [self._request.name])
        return owners[0] if owners else None

    async def _look_around(self, fault: Fault) -> None:
        """Take the cluster map of this moment."""
        assert self._retry is not None
        try:
            async with asyncio.timeout(self._retry.left_s):
                if fault.kind is Kind.NODE:
                    await self._ways.cluster.refresh()
                else:  # whether it is to be believed must not be decided by an older map
                    await self._ways.cluster.after()
        except TimeoutError:
            raise self._late(fault) from None
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                self.what, f"{self.what} cannot be read: {fault}; {error}"
            ) from error

    # ---- what a fault comes to -------------------------------------------------------------------

    def _missing(self, fault: Fault) -> ObjectMissingError | SourceMissingError:
        bucket = self._ways.bucket
        if fault.kind is Kind.NO_BUCKET:
            return SourceMissingError(
                str(bucket), f"{self.what}: bucket {bucket} does not exist any more ({fault})"
            )
        return ObjectMissingError(
            self.what,
            f"{self.what} is in the manifest but not in the store any more ({fault}): {LIST_ANEW}",
        )

    def _final(self, fault: Fault) -> StoreAccessError | ObjectUnreadableError:
        if fault.kind is Kind.UNAUTHORIZED:
            told = self._ways.client.access.explain_token()
            return StoreAccessError(self.what, f"{self.what} may not be read ({fault}): {told}")
        if fault.kind is Kind.DENIED:
            return StoreAccessError(self.what, f"{self.what} may not be read: {fault}")
        return ObjectUnreadableError(self.what, f"{self.what} cannot be read: {fault}")

    def _late(self, fault: Fault) -> StoreUnavailableError:
        retry, cluster = self._retry, self._ways.cluster
        assert retry is not None
        text = f"{self.what} cannot be read: {fault}; {retry.explain()}"
        if cluster.missing:
            text += f"; {cluster.explain_missing()}"
        return StoreUnavailableError(self.what, text)

    # ---- one attempt -----------------------------------------------------------------------------

    async def _attempt(self) -> Fault | None:
        """Read the object, or the rest of it."""
        self._started = time.perf_counter()
        ways, owner = self._ways, self._owner
        path = f"{object_root(ways.bucket)}{quoted(self._request.name)}?{bucket_query(ways.bucket)}"
        if owner is not None:
            return await self._get(URL(owner.url + path, encoded=True), owner)
        return await self._ask_proxy(path)

    async def _ask_proxy(self, path: str) -> Fault | None:
        """Ask a proxy for the object, and the target that it redirects to."""
        client = self._ways.client
        proxy = client.proxy
        where = f"proxy {proxy}"
        headers = client.access.headers
        try:
            async with client.session.get(
                URL(proxy + path, encoded=True),
                headers=headers | self._rest(),
                allow_redirects=False,
                timeout=self._ways.timeout,
            ) as answer:
                if answer.status in (200, 206):  # a gateway that follows redirects by itself
                    return await self._receive(answer, where)
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
            is_same = url.path.endswith(f"/{self._request.name}")
        except ValueError:
            is_good = is_same = False
        if not is_good:
            return Fault(Kind.FINAL, f"redirects to no address, {location[:_SHOWN]!r}", where)
        if not is_same:  # a name with a line feed, say, is not escaped there
            return Fault(Kind.FINAL, f"redirects to another object, {location[:_SHOWN]!r}", where)
        return await self._get(url, None)

    async def _get(self, url: URL, owner: Node | None) -> Fault | None:
        """Get the object from a target."""
        ways = self._ways
        where = owner or f"target {url.origin()}"
        try:
            async with ways.client.session.get(
                url,
                headers=self._rest() or None,
                allow_redirects=False,
                timeout=ways.timeout,
            ) as answer:
                return await self._receive(answer, where)
        except TROUBLE as error:
            return of_exception(error, str(where))

    def _rest(self) -> dict[str, str]:
        """Return the header that asks for what has not arrived yet; none for a whole object."""
        return {"Range": f"bytes={self._done}-"} if self._done else {}

    async def _receive(self, answer: aiohttp.ClientResponse, where: Node | str) -> Fault | None:
        """Take the bytes of an answer; what it raises is in `TROUBLE`."""
        request = self._request
        target, size = request.target, len(request.target)
        if answer.status not in (200, 206):
            fault = of_answer(answer.status, await start_of(answer), str(where))
            if answer.status == 416:  # it has become shorter: the whole will tell
                self._done = 0
                return fault._replace(kind=Kind.BUSY)
            return fault
        headers = answer.headers
        stamp = (header(answer, "Ais-Checksum-Value"), header(answer, "Ais-Version"))
        if self._done and (
            answer.status != 206
            or stamp != self._stamp
            or headers.get("Content-Range") != f"bytes {self._done}-{size - 1}/{size}"
        ):
            self._done = 0
            return Fault(Kind.BUSY, "has another object by now", str(where))
        self._stamp = stamp
        done = self._done
        self._check(answer.content_length, size - done, stamp, where)
        try:
            while chunk := await answer.content.readany():
                end = done + len(chunk)
                if end > size:
                    self._done = done = 0
                    return Fault(Kind.NODE, f"sent more than {size} bytes", str(where))
                target[done:end] = chunk
                done = end
        finally:
            self._done = done
        if done < size:
            return Fault(Kind.NODE, f"sent {done} of {size} bytes", str(where))
        if not is_intact(target, headers.get("Ais-Checksum-Type", ""), stamp[0]):
            self._done = 0
            return Fault(Kind.CORRUPT, f"sent bytes without the checksum {stamp[0]}", str(where))
        self._ways.counts.note_read(self._owner, size, time.perf_counter() - self._started)
        return None

    def _check(
        self, length: int | None, due: int, stamp: tuple[str, str], where: Node | str
    ) -> None:
        """Compare an object with its entry in the manifest.

        Raises:
            ObjectChangedError: If it is another one.
        """
        request = self._request
        if length is not None and length != due:
            is_new = f"has {length} bytes"
            was = f"{due}"
        else:
            checksum, version = request.checksum.decode(), request.version.decode()
            # A provider may list checksums of another type than the store keeps.
            if checksum and len(checksum) == len(stamp[0]):
                if checksum == stamp[0]:
                    return
                is_new, was = f"has checksum {stamp[0]} (version {stamp[1]})", f"{checksum}"
            elif version and stamp[1] and version != stamp[1]:
                is_new, was = f"has version {stamp[1]}", f"{version}"
            else:
                return
        raise ObjectChangedError(
            self.what,
            f"{self.what} {is_new} at {where}, the manifest says {was}: it was changed after the "
            f"listing; {LIST_ANEW}",
        )
