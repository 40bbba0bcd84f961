"""The wires: which of the two an exchange takes.

One rule: what is asked of a target straight away, over plain HTTP, takes the lean wire, and an
answer that does not say how long it is takes aiohttp after all; everything else (reads by way of a
proxy with their redirects, TLS) takes aiohttp.  ``[store] reader`` changes the rule: ``"aiohttp"``
lets nothing take the lean wire, ``"lean"`` makes an error of what it could not take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .addresses import ObjectPaths
from .faults import Fault, Kind
from .lean.exchanges import Exchange, Round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.buckets import Bucket

    from ...errors import SourceError
    from .clustermap import Node
    from .httpwire import HttpWire
    from .lean.wire import LeanWire
    from .transfer import Transfer

Choice = Literal["auto", "lean", "aiohttp"]


class Wires:
    """The ways to the objects of a bucket.

    Args:
        bucket: The bucket.
        http: Takes everything.
        lean: Takes what is plain.
        choice: ``[store] reader``.
    """

    def __init__(self, bucket: Bucket, http: HttpWire, lean: LeanWire, choice: Choice) -> None:
        self._http = http
        self._choice = choice
        self._paths = ObjectPaths(bucket)
        self.lean = lean
        """For exchanges of `exchange`."""

    def are_lean(self, owners: Sequence[Node]) -> bool:
        """Tell whether all of some targets are asked by the lean wire."""
        return self._choice != "aiohttp" and all(map(self.lean.reaches, owners))

    def exchange(self, transfer: Transfer, owner: Node, round_: Round) -> Exchange:
        """Return an exchange for the lean wire."""
        return Exchange(transfer, self._paths.of(transfer.request.name), owner, round_)

    async def by_proxy(self, transfer: Transfer) -> Fault | None:
        """Ask a proxy for what has not arrived yet; return what went wrong.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        return await self._http.by_proxy(transfer)

    async def from_target(self, transfer: Transfer, owner: Node) -> Fault | None:
        """Ask a target for what has not arrived yet; return what went wrong.

        Raises:
            ObjectChangedError: If it is another object than the manifest says.
        """
        if not self.are_lean([owner]):
            if self._choice == "lean":
                words = "is not reached over plain HTTP, but [store] reader is 'lean': set 'auto'"
                return Fault(Kind.FINAL, words, str(owner))
            return await self._http.from_target(transfer, owner)
        round_ = Round(1)
        exchanges = [self.exchange(transfer, owner, round_)]
        try:
            self.lean.submit(exchanges)
            failure = await round_.next_failure()
        finally:
            if not round_.is_over:
                self.lean.withdraw(exchanges)
        return None if failure is None else await self.after(*failure)

    async def after(self, exchange: Exchange, outcome: Fault | SourceError) -> Fault | None:
        """Return what the outcome of an exchange by the lean wire comes to in the end.

        Raises:
            SourceError: If it is one.
        """
        if not isinstance(outcome, Fault):
            raise outcome
        if outcome.kind is not Kind.UNSUITED:
            return outcome
        if self._choice == "lean":
            words = f"{outcome.words}, but [store] reader is 'lean': set 'auto'"
            return Fault(Kind.FINAL, words, outcome.where)
        return await self._http.from_target(exchange.transfer, exchange.owner)
