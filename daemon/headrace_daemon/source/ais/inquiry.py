"""Inquiries: size, checksum and version of objects that no list has told, each by a HEAD.

They are made for objects that are given by name, and for those of a provider whose list comes
without sizes.  Attempts and faults are those of reads (`objectread.py`): a target that is down is
waited for, and "not found" counts only while no target is missing.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple

from ..together import run_together
from .bucket import is_native, patience_s
from .client import told
from .faults import Fault, Kind
from .httpwire import HttpWire, error_of, head_of
from .objectread import ObjectRead, Ways

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import aiohttp

    from headrace.buckets import Bucket

    from .client import AisClient
    from .cluster import Cluster
    from .clustermap import Node
    from .counts import Counts
    from .targets import Targets

WIDTH: Final = 32
"""Inquiries under way for one list."""

_PROGRESS_EVERY: Final = 1000


class Facts(NamedTuple):
    """What the store knows of an object."""

    size: int
    """Bytes."""

    checksum: bytes
    """In hex; empty where there is none."""

    version: bytes


class Inquiry:
    """A question about one object, and its answer: an errand for `HttpWire`.

    Args:
        bucket: Where it is.
        name: Its name there.
        origin: Where it is said that there is such an object, for messages.
    """

    method = "HEAD"
    # The newer form: it has the size of an empty object too, and nothing that is not wanted.
    query = "&props=size,checksum,version"

    def __init__(self, bucket: Bucket, name: str, origin: str) -> None:
        self._bucket = bucket
        self._origin = origin
        self.name = name
        self.facts = Facts(0, b"", b"")
        """There when the inquiry has ended well."""

    @property
    def what(self) -> str:
        """The object, for messages."""
        return f"object {self._bucket.address(self.name)}"

    @property
    def headers(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def explain_missing(self, fault: Fault) -> str:
        """Say in words that there is no such object, and what to do."""
        return f"{self.what} is in {self._origin} and not in the store ({fault}): check the name"

    async def receive(self, answer: aiohttp.ClientResponse, where: Node | str) -> Fault | None:
        """Take an answer."""
        if answer.status != 200:
            return error_of(answer, await told(answer), where)
        head = head_of(answer)
        if head.length is None:
            return Fault(Kind.FINAL, "does not say how large the object is", str(where))
        self.facts = Facts(head.length, head.checksum, head.version)
        return None


class _Wire:
    """Makes attempts at inquiries."""

    def __init__(self, http: HttpWire) -> None:
        self._http = http

    async def by_proxy(self, inquiry: Inquiry) -> Fault | None:
        return await self._http.run_by_proxy(inquiry)

    async def from_target(self, inquiry: Inquiry, owner: Node) -> Fault | None:
        return await self._http.run_to_target(inquiry, owner)


class Inquirer:
    """Asks a cluster about objects.

    Args:
        client: The session with the cluster.
        cluster: Says who owns what.
        counts: Where faults are counted.
        targets: Who may be asked.
        stall_s: How long a node may send nothing, seconds.
    """

    def __init__(
        self,
        client: AisClient,
        cluster: Cluster,
        counts: Counts,
        targets: Targets,
        *,
        stall_s: float,
    ) -> None:
        self._client = client
        self._targets = targets
        self._cluster = cluster
        self._counts = counts
        self._stall_s = stall_s

    async def ask(
        self,
        bucket: Bucket,
        names: Sequence[str],
        origin: str,
        progress: Callable[[int], None] = lambda found: None,
    ) -> list[Facts]:
        """Return what the store knows of some objects, in their order.

        Args:
            bucket: Where they are; its prefix does not matter.
            names: Their names there.
            origin: Where it is said that there are such objects, for messages.
            progress: Called now and then with the number of answers so far.

        Raises:
            SourceError: If one is not there, or the store does not say in time.
        """
        owners: Sequence[Node] | None = None
        native = await is_native(bucket, self._client)
        if native:
            if self._cluster.map is None:
                await self._cluster.current()
            owners = self._cluster.owners(bucket, names)
        stall_s = patience_s(
            is_native=native, stall_s=self._stall_s, deadline_s=self._client.deadline_s
        )
        http = HttpWire(bucket, self._client, self._counts, self._targets, stall_s=stall_s)
        ways = Ways(
            bucket=bucket,
            client=self._client,
            cluster=self._cluster,
            counts=self._counts,
            targets=self._targets,
            wires=_Wire(http),
        )
        inquiries = [Inquiry(bucket, name, origin) for name in names]
        pairs = zip(inquiries, owners or repeat(None, len(names)), strict=True)
        num_done = 0

        async def drain(pairs: Iterator[tuple[Inquiry, Node | None]]) -> None:
            nonlocal num_done
            for inquiry, owner in pairs:
                await ObjectRead(ways, inquiry, owner).run()
                num_done += 1
                if num_done % _PROGRESS_EVERY == 0:
                    progress(num_done)

        await run_together((drain(pairs) for _ in range(min(len(names), WIDTH))), name="inquire")
        return [inquiry.facts for inquiry in inquiries]
