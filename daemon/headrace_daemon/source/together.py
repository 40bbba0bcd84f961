"""Jobs side by side, of which one may fail for all, and jobs in threads, which have to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from concurrent.futures import Executor

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
