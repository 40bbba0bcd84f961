"""Jobs: side by side, of which one may fail for all; beside their owner; in threads, to the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from concurrent.futures import Executor
    from types import TracebackType

_T = TypeVar("_T")


async def run_together(jobs: Iterable[Coroutine[None, None, None]], *, name: str) -> None:
    """Run jobs side by side, and return when all are over.

    Cancelled, it cancels them; when the first fails with a source error, it cancels the others.

    Args:
        jobs: Coroutines, none started.
        name: For their tasks.

    Raises:
        SourceError: The first that a job met.
    """
    # The failure of a job is noted, not raised: a TaskGroup that has an error would keep it to
    # itself when its owner is cancelled meanwhile.
    failures: list[SourceError] = []
    tasks: list[asyncio.Task[None]] = []

    async def run(job: Coroutine[None, None, None]) -> None:
        try:
            await job
        except SourceError as error:
            failures.append(error)
            for task in tasks:
                task.cancel()

    begun = []
    try:
        async with asyncio.TaskGroup() as group:
            for number, job in enumerate(jobs):
                begun.append(job)
                tasks.append(group.create_task(run(job), name=f"{name} {number}"))
    finally:
        for job in begun:
            job.close()  # a task that is cancelled before its first turn never comes to its job
    if failures:
        raise failures[0]


async def run_in_thread(executor: Executor, call: Callable[[], _T]) -> _T:
    """Run a call in a thread, and return when it is over, also when cancelled.

    A thread cannot be interrupted: what it works on is ours again only when it has returned.
    """
    work = asyncio.get_running_loop().run_in_executor(executor, call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await wait_for_thread(work)
        raise


async def wait_for_thread(work: asyncio.Future[_T]) -> None:
    """Wait until a thread has returned, however often this is cancelled meanwhile."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue
    if not work.cancelled():
        work.exception()  # taken, or the loop reports that nobody did


class Tasks:
    """Jobs that go on beside their owner until it ends: a context manager, whose end cancels them.

    Args:
        owner: For messages: "the store".
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        # None outside of the context.
        self._group: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._group is not None
        group, self._group = self._group, None
        for task in self._running:
            task.cancel()
        # Whatever ended the context: all are waited for.
        await group.__aexit__(None, None, None)

    def start(self, job: Coroutine[Any, Any, None], *, name: str) -> None:
        """Begin a job.

        Raises:
            RuntimeError: If the owner is not running.
        """
        if self._group is None:
            job.close()
            raise RuntimeError(f"{self._owner} is not running: it cannot {name}")
        task = self._group.create_task(job, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
