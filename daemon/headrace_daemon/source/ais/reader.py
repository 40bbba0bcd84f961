"""The reader: whole objects out of a bucket, straight from the targets that own them.

One rule picks the way of a read.  Objects of ``ais://`` buckets come from their owner by the
cluster map, in one exchange.  Those of remote buckets, of buckets with a backend, and of clusters
whose targets do not serve clients come by way of a proxy, which redirects, in two: a target that
does not own a remote object would fetch a second copy of it from the provider.
"""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING, Final

import msgspec

from ...errors import ObjectUnreadableError, SourceError, SourceMissingError, StoreAccessError
from ..together import run_together
from .addresses import bucket_path
from .faults import Fault, Kind
from .httpwire import HttpWire
from .lean.exchanges import Round
from .objectread import ObjectRead, Ways
from .transfer import Transfer
from .wires import Wires

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.buckets import Bucket

    from ..reader import ReadRequest
    from .client import AisClient, Answer
    from .cluster import Cluster
    from .clustermap import Node
    from .counts import Counts
    from .lean.wire import LeanWire
    from .wires import Choice

WIDTH: Final = 8
"""Objects of one group that are read side by side by aiohttp, or again after a fault."""

REMOTE_STALL_S: Final = 300.0
"""How long a target may send nothing of an object of a remote bucket, seconds: the first byte comes
when the whole object has come from the provider."""


class AisReader:
    """Reads objects of one bucket.

    Args:
        bucket: The bucket; its prefix does not matter.
        client: The session with the cluster.
        cluster: Says who owns what.
        counts: Where reads are counted.
        lean: The connections for what is plain.
        choice: ``[store] reader``.
        stall_s: How long a target may send nothing, seconds.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        client: AisClient,
        cluster: Cluster,
        counts: Counts,
        lean: LeanWire,
        choice: Choice,
        stall_s: float,
    ) -> None:
        self._bucket = bucket
        self._client = client
        self._cluster = cluster
        http = HttpWire(
            bucket,
            client,
            counts,
            stall_s=max(stall_s, REMOTE_STALL_S) if bucket.is_remote else stall_s,
        )
        self._wires = Wires(bucket, http, lean, choice)
        self._ways = Ways(
            bucket=bucket, client=client, cluster=cluster, counts=counts, wires=self._wires
        )
        # Whether the owner by the map is the owner of the bytes; None before the bucket was asked.
        self._is_native: bool | None = None

    @property
    def location(self) -> str:
        """The bucket, without prefix: sources with different prefixes share their reads."""
        return str(self._bucket)

    async def read(self, requests: Sequence[ReadRequest]) -> None:
        """Fill the targets of all requests (see `Reader.read`)."""
        if self._is_native is None:
            self._is_native = await self._ask_bucket()
        owners: Sequence[Node] | None = None
        if self._is_native:
            if self._cluster.map is None:
                await self._cluster.current()
            owners = self._cluster.owners(self._bucket, [request.name for request in requests])
        if owners is not None and self._wires.are_lean(owners):
            await self._read_lean(requests, owners)
            return
        pairs = zip(requests, owners or repeat(None, len(requests)), strict=True)
        if len(requests) == 1:
            await self._drain(pairs)
        else:
            width = min(len(requests), WIDTH)
            await run_together((self._drain(pairs) for _ in range(width)), name="read objects")

    async def _drain(self, pairs: Iterator[tuple[ReadRequest, Node | None]]) -> None:
        for request, owner in pairs:
            await ObjectRead(self._ways, Transfer(self._bucket, request), owner).run()

    async def _read_lean(self, requests: Sequence[ReadRequest], owners: Sequence[Node]) -> None:
        """Ask for everything at once, and go on with what does not come at the first attempt."""
        bucket, wires = self._bucket, self._wires
        round_ = Round(len(requests))
        exchanges = [
            wires.exchange(Transfer(bucket, request), owner, round_)
            for request, owner in zip(requests, owners, strict=True)
        ]
        try:
            wires.lean.submit(exchanges)
            await round_.wait()
            if round_.has_failed:
                width = min(len(requests), WIDTH)
                await run_together((self._mend(round_) for _ in range(width)), name="read again")
        finally:
            if not round_.is_over:
                wires.lean.withdraw(exchanges)

    async def _mend(self, round_: Round) -> None:
        """Go on with the objects whose first attempt failed, one after the other."""
        while (failure := await round_.next_failure()) is not None:
            exchange, outcome = failure
            fault = await self._wires.after(exchange, outcome)
            if fault is not None:
                spent_s = time.perf_counter() - exchange.started_s
                read = ObjectRead(self._ways, exchange.transfer, exchange.owner)
                await read.run_on(fault, spent_s)

    async def _ask_bucket(self) -> bool:
        """Return whether the objects are where the cluster map says."""
        if self._bucket.is_remote:
            return False
        what = f"bucket {self._bucket}"
        answer = await self._client.ask(bucket_path(self._bucket), what, method="HEAD")
        if isinstance(answer, Fault):
            raise bucket_error(self._bucket, answer)
        return not has_backend(answer)


def bucket_error(bucket: Bucket, fault: Fault) -> SourceError:
    """Return what a fault of a bucket as a whole comes to."""
    if fault.kind in (Kind.NO_BUCKET, Kind.MISSING):
        return SourceMissingError(
            str(bucket), f"bucket {bucket} does not exist ({fault}): check the name"
        )
    if fault.kind is Kind.DENIED:
        return StoreAccessError(str(bucket), f"bucket {bucket} may not be read: {fault}")
    return ObjectUnreadableError(str(bucket), f"bucket {bucket} cannot be read: {fault}")


class _Backend(msgspec.Struct):
    name: str = ""


class _Props(msgspec.Struct):
    backend_bck: _Backend = msgspec.field(default_factory=_Backend)


def has_backend(answer: Answer) -> bool:
    """Return whether a bucket, by the answer to its HEAD, is a view of one of a provider."""
    try:
        props = msgspec.json.decode(answer.headers.get("Ais-Bucket-Props", "{}"), type=_Props)
    except (ValueError, RecursionError):
        return True  # by way of a proxy it is right in any case
    return bool(props.backend_bck.name)
