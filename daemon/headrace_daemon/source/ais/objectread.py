"""The read of one object: attempts, one after the other, until its bytes are right or it failed.

Every attempt ends with nothing or with a `Fault`; what kind it is decides about the next attempt.
What has arrived of an object is kept when a connection breaks (`Transfer`): the next attempt asks
for the rest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar

from ...errors import (
    ObjectCorruptError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
    SourceMissingError,
    StoreAccessError,
    StoreFullError,
    StoreUnavailableError,
)
from .faults import Fault, Kind
from .retry import Retry

if TYPE_CHECKING:
    from headrace.buckets import Bucket

    from .client import AisClient
    from .cluster import Cluster
    from .clustermap import Node
    from .counts import Counts
    from .targets import Targets

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Who waits for a target that is barred looks at the cluster map this often, seconds; where a proxy
tells who owns an object, that is asked half a dozen times less."""

MAX_CORRUPT: Final = 3
"""Times that an object may arrive with bytes that do not have its checksum."""

MAX_WRONG: Final = 3
"""Times that something else may be answered than was asked for."""


class Wanted(Protocol):
    """What is asked for: an object, or what is known of it."""

    @property
    def what(self) -> str:
        """The object, for messages."""
        ...

    @property
    def name(self) -> str:
        """Its name in the bucket."""
        ...

    def explain_missing(self, fault: Fault) -> str:
        """Say in words that there is no such object, and what to do."""
        ...


_Wanted = TypeVar("_Wanted", bound=Wanted)
_Asked = TypeVar("_Asked", bound=Wanted, contravariant=True)


class Asks(Protocol[_Asked]):
    """Makes one attempt."""

    async def by_proxy(self, wanted: _Asked, /) -> Fault | None:
        """Ask a proxy; return what went wrong."""
        ...

    async def from_target(self, wanted: _Asked, owner: Node, /) -> Fault | None:
        """Ask a target; return what went wrong."""
        ...


class Ways(NamedTuple, Generic[_Wanted]):
    """What all reads of a bucket have in common: whom they ask, and how."""

    bucket: Bucket
    client: AisClient
    cluster: Cluster
    counts: Counts
    targets: Targets
    wires: Asks[_Wanted]


class ObjectRead(Generic[_Wanted]):
    """The read of one object into the memory of its request, or a question about one.

    Args:
        ways: How to get at the bucket.
        wanted: What to ask for.
        owner: The target to ask; None to ask a proxy.
    """

    __slots__ = ("_met", "_owner", "_retry", "_wanted", "_ways")

    def __init__(self, ways: Ways[_Wanted], wanted: _Wanted, owner: Node | None) -> None:
        self._ways = ways
        self._wanted = wanted
        self._owner = owner
        # What this read has met last itself; None before.
        self._met: Fault | None = None
        # None before the first fault.
        self._retry: Retry | None = None

    @property
    def what(self) -> str:
        """The object, for messages."""
        return self._wanted.what

    async def run(self) -> None:
        """Fill the memory of the request.

        Raises:
            SourceError: If the object is not as the manifest says, or not to be had in time.
        """
        started = time.perf_counter()
        fault = await self.begin()
        if fault is not None:
            await self.run_on(fault, time.perf_counter() - started)

    async def begin(self) -> Fault | None:
        """Make the first attempt; return what went wrong, to go on with `run_on`.

        Raises:
            SourceError: As by `run`.
        """
        where = str(self._owner or f"proxy {self._ways.client.proxy}")
        return self._refused() or await self._in_time(Fault(Kind.NODE, "took too long", where))

    async def run_on(self, fault: Fault, spent_s: float) -> None:
        """Go on behind a first attempt that ended with a fault.

        Args:
            fault: How it ended.
            spent_s: How long it took, seconds.

        Raises:
            SourceError: As by `run`.
        """
        self._retry = retry = Retry(self._ways.client.deadline_s, spent_s=spent_s)
        num_corrupt = num_wrong = 0
        # Whether a proxy has already said that the object is missing, while no target was.
        is_looked_for = False
        while True:
            logger.debug("fault what=%r: %s", self.what, fault)
            if fault.kind is not Kind.BARRED:
                self._met = fault
                self._ways.counts.note_fault(fault, self._owner)
            was_direct = self._owner is not None
            is_patient = True
            match fault.kind:
                case Kind.BARRED:
                    assert fault.gate is not None
                    fault.gate.num_turned_away += 1
                    await self._wait(fault, was_direct=was_direct)
                    is_patient = False
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
                case Kind.WRONG:
                    num_wrong += 1
                    if num_wrong == MAX_WRONG:
                        raise self._final(fault)
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
                case Kind.DENIED | Kind.UNAUTHORIZED | Kind.FINAL | Kind.FULL:
                    raise self._final(fault)
            if not (await retry.pause(fault.pause_s) if is_patient else retry.again()):
                raise self._late(fault)
            self._owner = self._next_owner(fault, was_direct=was_direct)
            refused = self._refused()
            if refused is not None:
                retry.uncount()
                fault = refused
                continue
            self._ways.counts.num_retries += 1
            again = await self._in_time(fault)
            if again is None:
                return
            fault = again

    def _next_owner(self, fault: Fault, *, was_direct: bool) -> Node | None:
        """Return whom to ask next: the owner of this moment, and a proxy every other time."""
        asks_proxy = was_direct or fault.kind in (Kind.MISSING, Kind.NO_BUCKET, Kind.DENIED)
        if asks_proxy and not self._leads_nowhere(fault):
            return None
        owners = self._ways.cluster.owners(self._ways.bucket, [self._wanted.name])
        return owners[0] if owners else None

    def _leads_nowhere(self, fault: Fault) -> bool:
        """Return whether a proxy is known to name nobody but the target that did not answer."""
        if fault.kind not in (Kind.NODE, Kind.BARRED) or self._owner is None:
            return False
        gate = self._ways.targets.gate(self._owner.url)
        return gate.is_barred and gate.is_confirmed

    def _refused(self) -> Fault | None:
        """Return why the target that is to be asked may not be asked now; None if it may."""
        if self._owner is None:
            return None
        gate = self._ways.targets.gate(self._owner.url, str(self._owner))
        return None if gate.admits() else gate.refusal()

    async def _wait(self, fault: Fault, *, was_direct: bool) -> None:
        """Wait until a target that is barred may be asked, or somebody else; at once for a proxy.

        Raises:
            StoreUnavailableError: If the deadline passes.
        """
        if was_direct and not self._leads_nowhere(fault):
            return  # a proxy may know another way
        assert self._retry is not None
        assert fault.gate is not None
        serves_direct = self._ways.cluster.serves_direct
        longest_s = LOOK_S if serves_direct else 6 * LOOK_S
        if not await fault.gate.wait(min(longest_s, self._retry.left_s)) and serves_direct:
            await self._look_around(fault)

    async def _look_around(self, fault: Fault) -> None:
        """Take the cluster map of this moment."""
        assert self._retry is not None
        try:
            async with asyncio.timeout(self._retry.left_s):
                if fault.kind is Kind.BARRED:
                    await self._ways.cluster.current(LOOK_S)
                elif fault.kind is Kind.NODE:
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
        return ObjectMissingError(self.what, self._wanted.explain_missing(fault))

    def _final(self, fault: Fault) -> SourceError:
        if fault.kind is Kind.UNAUTHORIZED:
            told = self._ways.client.access.explain_token()
            return StoreAccessError(self.what, f"{self.what} may not be read ({fault}): {told}")
        if fault.kind is Kind.DENIED:
            return StoreAccessError(self.what, f"{self.what} may not be read: {fault}")
        if fault.kind is Kind.FULL:
            return StoreFullError(
                self.what, f"{self.what} cannot be read: {fault}: make room in the store"
            )
        return ObjectUnreadableError(self.what, f"{self.what} cannot be read: {fault}")

    def _late(self, fault: Fault) -> StoreUnavailableError:
        retry, cluster = self._retry, self._ways.cluster
        assert retry is not None
        met = fault if self._met is None else self._met
        text = f"{self.what} cannot be read: {met}; {retry.explain()}"
        if fault is not met and fault.kind is Kind.BARRED:
            text += f"; {fault}"
        if cluster.missing:
            text += f"; {cluster.explain_missing()}"
        return StoreUnavailableError(self.what, text)

    # ---- one attempt -----------------------------------------------------------------------------

    async def _in_time(self, fault: Fault) -> Fault | None:
        """Make an attempt that ends with the deadline at the latest.

        Args:
            fault: What was wrong then.

        Raises:
            SourceError: If the object is another one, or the deadline has passed.
        """
        if self._retry is None:
            self._retry = Retry(self._ways.client.deadline_s)
        try:
            async with asyncio.timeout(self._retry.left_s):
                return await self._attempt()
        except TimeoutError:
            raise self._late(fault) from None

    async def _attempt(self) -> Fault | None:
        """Ask for the object, or the rest of it."""
        if self._owner is None:
            return await self._ways.wires.by_proxy(self._wanted)
        return await self._ways.wires.from_target(self._wanted, self._owner)
