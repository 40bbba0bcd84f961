"""The store: one AIStore cluster as all streams of a daemon see it.

Nothing is asked before the first stream needs it, or somebody wants to know how the store is, so
that a daemon starts, and serves folders, while the cluster is down.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

import aiohttp

from ...errors import SourceError
from ..together import Tasks
from .client import AisClient
from .cluster import Cluster
from .counts import Counts
from .faults import TROUBLE, Fault, of_answer, of_exception
from .inquiry import Inquirer
from .lean.wire import LeanWire
from .listing import Lister
from .reader import AisReader
from .targets import Targets

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from pathlib import Path
    from types import TracebackType

    from headrace.buckets import Bucket
    from headrace.manifest import Manifest
    from headrace.selections import Selection

    from ...settings import StoreSettings
    from .access import Access
    from .clustermap import Node

_T = TypeVar("_T")

PING_S: Final = 3.0
"""How long a target may take to say that it is well, seconds."""

LOOK_S: Final = 10.0
"""How long the proxies may take to say how the cluster is, when nobody waits to read, seconds: some
of them may be dead, which takes 3 s each to notice."""


class Reach(NamedTuple):
    """How a target answers."""

    node: Node
    seconds: float
    """From the question to the answer, a new connection included."""

    trouble: str
    """What went wrong; empty if it is well."""


class AisStore:
    """A cluster; a context manager around the time in which it may be asked.

    Args:
        settings: ``[store]`` of the configuration.
        access: Where the cluster is and with which rights.
        executor: Threads for decoding and writing.
    """

    def __init__(self, settings: StoreSettings, access: Access, executor: Executor) -> None:
        self._settings = settings
        self.client = AisClient(access, deadline_s=settings.deadline_s)
        self.cluster = Cluster(self.client, direct=settings.direct == "auto")
        self.counts = Counts()
        self.targets = Targets(deadline_s=settings.deadline_s)
        self._lean = LeanWire(
            self.counts,
            self.targets,
            stall_s=settings.stall_s,
            deadline_s=settings.deadline_s,
        )
        inquirer = Inquirer(
            self.client, self.cluster, self.counts, self.targets, stall_s=settings.stall_s
        )
        self._lister = Lister(self.client, self.cluster, inquirer, executor)
        # Listings, and the care for the map.
        self._tasks = Tasks("the store")
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as parts:
            for part in (self.client, self._lean, self._tasks):
                await parts.enter_async_context(part)
            self._parts = parts.pop_all()
        self._tasks.start(self.cluster.keep_fresh(), name="keep the cluster map fresh")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._parts.__aexit__(kind, error, traceback)

    def reader(self, bucket: Bucket) -> AisReader:
        """Return a reader of a bucket."""
        return AisReader(
            bucket,
            client=self.client,
            cluster=self.cluster,
            counts=self.counts,
            targets=self.targets,
            lean=self._lean,
            choice=self._settings.reader,
            stall_s=self._settings.stall_s,
        )

    async def list_objects(
        self, selection: Selection, root: Path, progress: Callable[[int], None] = lambda found: None
    ) -> Manifest:
        """List objects of a bucket into a manifest under a folder; see `Lister.list`."""
        return await self._lister.list(selection, root, progress)

    def run_soon(self, job: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Future[_T]:
        """Begin a job that goes on when its asker is gone: the next one will want its result.

        Args:
            job: Its result or error becomes that of the future.
            name: For the task.
        """
        result: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                value = await job
            except asyncio.CancelledError:
                result.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - handed on to whoever asks
                result.set_exception(error)
            else:
                result.set_result(value)

        self._tasks.start(work(), name=name)
        return result

    # ---- what operators ask ----------------------------------------------------------------------

    async def version(self) -> str:
        """Return the version of AIStore as the cluster says it; empty if it does not."""
        answer = await self.client.ask(
            "/v1/daemon?what=software_version", "the version of the store"
        )
        return "" if isinstance(answer, Fault) else answer.body.decode(errors="replace").strip()

    async def look(self, max_age_s: float) -> str:
        """Make sure that the map is not older than some seconds; return why not, in words.

        Empty words mean that the store is well as far as a proxy knows.
        """
        try:
            async with asyncio.timeout(LOOK_S):
                await self.cluster.current(max_age_s)
        except TimeoutError:
            silence = f"proxy {self.client.proxy} did not answer within {LOOK_S:g} s"
            return self.client.trouble or silence
        except SourceError as error:
            return str(error)
        return ""

    async def ping(self) -> list[Reach]:
        """Ask every target of the map of this moment whether it is well, all at once."""
        current = await self.cluster.refresh()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._ping(node), name=f"ping {node.id}")
                for node in current.targets.values()
            ]
        return [task.result() for task in tasks]

    async def _ping(self, node: Node) -> Reach:
        begin = time.perf_counter()
        try:
            async with self.client.session.get(
                f"{node.url}/v1/health", timeout=aiohttp.ClientTimeout(total=PING_S)
            ) as answer:
                fault = None if answer.status == 200 else of_answer(answer.status, b"", str(node))
        except TROUBLE as error:
            fault = of_exception(error, str(node))
        return Reach(node, time.perf_counter() - begin, "" if fault is None else fault.words)

    def report(self) -> dict[str, Any]:
        """Return what ``headrace status --json`` says of the store."""
        current = self.cluster.map
        proxies = self.client.proxies
        return {
            "endpoints": list(self.client.access.endpoints),
            "proxy": proxies[0] if proxies else "",
            "uuid": "" if current is None else current.uuid,
            "map_version": None if current is None else current.version,
            "num_targets": None if current is None else len(current.targets),
            "missing": [str(node) for node in self.cluster.missing],
            "way": "direct" if self.cluster.serves_direct else "by proxy",
            "reader": self._settings.reader,
            "lean_reads": sum(counts.num_lean for counts in self.counts.nodes.values()),
            "aiohttp_reads": sum(
                counts.num_reads - counts.num_lean for counts in self.counts.nodes.values()
            ),
            "retries": self.counts.num_retries,
            **self.targets.report(),
            "last_fault": self.counts.last_fault,
            "trouble": self.client.trouble,
            "targets": {
                name: {
                    "reads": counts.num_reads,
                    "ranges": counts.num_ranges,
                    "bytes": counts.num_bytes,
                    "faults": counts.num_faults,
                    "mean_ms": round(1000 * counts.total_s / max(1, counts.num_reads), 3),
                }
                for name, counts in self.counts.nodes.items()
            },
        }
