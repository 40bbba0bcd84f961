"""Jobs side by side, of which one may fail for all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable


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

    async with asyncio.TaskGroup() as group:
        for number, job in enumerate(jobs):
            tasks.append(group.create_task(run(job), name=f"{name} {number}"))
    if failures:
        raise failures[0]
