"""The reader: objects out of a bucket, or ranges of them, straight from the targets that own them.

One rule picks the way of a read.  Objects of ``ais://`` buckets come from their owner by the
cluster map, in one exchange.  Those of remote buckets, of buckets with a backend, and of clusters
whose targets do not serve clients come by way of a proxy, which redirects, in two: a target that
does not own a remote object would fetch a second copy of it from the provider.

What is large, on the store's own disks, is read in pieces, side by side (`pieces.py`); an object of
a provider is not: the store fetches all of it before it sends any range.
"""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING, Final

from ...errors import ObjectError, SourceError
from ..reader import RangeRequest, leave_out
from ..together import run_together
from . import pieces
from .bucket import Facts, look_at, patience_s
from .faults import Fault, Kind
from .httpwire import HttpWire
from .lean.exchanges import Round
from .objectread import ObjectRead, Ways
from .pieces import Pieces, transfer_of
from .ranges import RangeTransfer
from .transfer import Transfer
from .wires import Wires

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from headrace.buckets import Bucket

    from ..reader import Request
    from .client import AisClient
    from .cluster import Cluster
    from .clustermap import Node
    from .counts import Counts
    from .lean.exchanges import Exchange
    from .lean.wire import LeanWire
    from .targets import Targets
    from .wires import Choice

WIDTH: Final = 8
"""Requests of one group that are read side by side by aiohttp."""


class AisReader:
    """Reads objects of one bucket, whole or ranges of them.

    Args:
        bucket: The bucket; its prefix does not matter.
        client: The session with the cluster.
        cluster: Says who owns what.
        counts: Where reads are counted.
        targets: Who may be asked.
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
        targets: Targets,
        lean: LeanWire,
        choice: Choice,
        stall_s: float,
    ) -> None:
        self._bucket = bucket
        self._client = client
        self._cluster = cluster
        self._stall_s = stall_s
        self._targets = targets
        self._http = HttpWire(bucket, client, counts, targets, stall_s=stall_s)
        self._wires = Wires(bucket, self._http, lean, choice)
        self._ways = Ways(
            bucket=bucket,
            client=client,
            cluster=cluster,
            counts=counts,
            targets=targets,
            wires=self._wires,
        )
        # Objects that are being read in pieces.
        self._num_in_pieces = 0
        # None before the bucket was asked.
        self._facts: Facts | None = None

    paces_itself = True

    @property
    def location(self) -> str:
        """The bucket, without prefix: sources with different prefixes share their reads."""
        return str(self._bucket)

    async def read(self, requests: Sequence[Request]) -> None:
        """Fill the targets and places of all requests (see `Reader.read`)."""
        if self._facts is None:
            self._facts = await look_at(self._bucket, self._client)
            self._http.stall_s = patience_s(
                is_native=self._facts.is_native,
                stall_s=self._stall_s,
                deadline_s=self._client.deadline_s,
            )
        owners: Sequence[Node] | None = None
        if self._facts.sums_ranges:
            requests = [_without_checksum(request) for request in requests]
        if self._facts.is_native:
            if self._cluster.map is None:
                await self._cluster.current()
            owners = self._cluster.owners(self._bucket, [request.name for request in requests])
            large_bytes = pieces.LARGE_BYTES
            are_comparable = not self._facts.sums_ranges
            if are_comparable and any(request.num_bytes >= large_bytes for request in requests):
                await self._read_large(requests, owners or [None] * len(requests))
                return
        await self._read_whole(requests, owners)

    async def _read_large(self, requests: Sequence[Request], owners: Sequence[Node | None]) -> None:
        """Read what is large in pieces, and the rest beside it."""
        rest: list[tuple[Request, Node | None]] = []
        jobs: list[Coroutine[None, None, None]] = []
        for request, owner in zip(requests, owners, strict=True):
            has_place = self._num_in_pieces + len(jobs) < pieces.AT_ONCE
            if has_place and pieces.is_large(request):
                jobs.append(self._read_in_pieces(request, owner))
            else:
                rest.append((request, owner))
        if rest:
            nodes = [owner for _, owner in rest if owner is not None]
            jobs.append(self._read_whole([request for request, _ in rest], nodes or None))
        await run_together(jobs, name="read objects")

    async def _read_in_pieces(self, request: Request, owner: Node | None) -> None:
        self._num_in_pieces += 1
        try:
            await self._read_pieces(request, owner)
        except ObjectError as error:
            leave_out(request, error)
        finally:
            self._num_in_pieces -= 1

    async def _read_pieces(self, request: Request, owner: Node | None) -> None:
        started = time.perf_counter()
        with Pieces(self._bucket, request) as parts:
            left = iter(parts.pieces)

            async def drain() -> None:
                for piece in left:
                    await ObjectRead(self._ways, piece, owner).run()

            width = min(len(parts.pieces), pieces.WIDTH)
            fault: Fault | None
            try:
                await run_together((drain() for _ in range(width)), name="read pieces")
            except SourceError as error:
                if not parts.is_broken:
                    raise
                whole = parts.asked
                fault = Fault(Kind.BUSY, f"sent no ranges of one object: {error}", str(owner))
            else:
                whole = parts.whole()
                fault = whole.end(str(owner))
        if fault is not None:
            read = ObjectRead(self._ways, whole, owner)
            await read.run_on(fault, time.perf_counter() - started)

    async def _read_whole(self, requests: Sequence[Request], owners: Sequence[Node] | None) -> None:
        if owners is not None and self._wires.are_lean(owners):
            await self._read_lean(requests, owners)
            return
        pairs = zip(requests, owners or repeat(None, len(requests)), strict=True)
        if len(requests) == 1:
            await self._drain(pairs)
        else:
            width = min(len(requests), WIDTH)
            await run_together((self._drain(pairs) for _ in range(width)), name="read objects")

    async def _drain(self, pairs: Iterator[tuple[Request, Node | None]]) -> None:
        """Read objects one after the other, and go on last with what does not come at once."""
        later: list[tuple[Request, ObjectRead[Transfer], Fault, float]] = []
        for request, owner in pairs:
            started = time.perf_counter()
            read = ObjectRead(self._ways, transfer_of(self._bucket, request), owner)
            try:
                fault = await read.begin()
                if fault is not None:
                    later.append((request, read, fault, started))
            except ObjectError as error:
                leave_out(request, error)
        for request, read, fault, started in later:
            try:
                await read.run_on(fault, time.perf_counter() - started)
            except ObjectError as error:
                leave_out(request, error)

    async def _read_lean(self, requests: Sequence[Request], owners: Sequence[Node]) -> None:
        """Ask for everything at once, and go on with what does not come at the first attempt."""
        bucket, wires = self._bucket, self._wires
        round_ = Round(len(requests))
        # Not by `transfer_of`: where an object takes 10 µs, the call would be 1 % of it.
        exchanges = [
            wires.exchange(
                RangeTransfer(bucket, request)
                if isinstance(request, RangeRequest)
                else Transfer(bucket, request),
                owner,
                round_,
            )
            for request, owner in zip(requests, owners, strict=True)
        ]
        try:
            wires.lean.submit(self._let_through(exchanges))
            await round_.wait()
            if round_.has_failed:
                # Each may have to wait for its target, and must not hold up those of others.
                menders = (self._mend(round_) for _ in requests)
                await run_together(menders, name="read again")
        finally:
            if not round_.is_over:
                wires.lean.withdraw(exchanges)

    def _let_through(self, exchanges: Sequence[Exchange]) -> Sequence[Exchange]:
        """Return those whose targets may be asked; the others have failed."""
        targets = self._targets
        if not targets.barred:
            return exchanges
        asked = []
        for exchange in exchanges:
            gate = targets.gate(exchange.owner.url)
            if gate.admits():
                asked.append(exchange)
            else:
                exchange.fail(gate.refusal())
        return asked

    async def _mend(self, round_: Round) -> None:
        """Go on with the objects whose first attempt failed, one after the other."""
        while (failure := await round_.next_failure()) is not None:
            exchange, outcome = failure
            try:
                fault = await self._wires.after(exchange, outcome)
                if fault is not None:
                    spent_s = time.perf_counter() - exchange.started_s
                    read = ObjectRead(self._ways, exchange.transfer, exchange.owner)
                    await read.run_on(fault, spent_s)
            except ObjectError as error:
                leave_out(exchange.transfer.request, error)


def _without_checksum(request: Request) -> Request:
    """Return a request that is known by its version, where ranges have checksums of their own."""
    return request._replace(checksum=b"") if isinstance(request, RangeRequest) else request
