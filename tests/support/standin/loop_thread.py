"""An event loop on a thread of its own, so that tests of every kind can use what it serves."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")
DEADLINE_S: Final = 30.0
"""Far more than anything here takes: it turns a hang into a failure."""


class LoopThread:
    """Runs a loop from `start` to `stop`.

    Args:
        set_up: Runs on the loop before `start` returns.
        tear_down: Runs on the loop when it is to stop, even if `set_up` has failed.
        name: Of the thread.
    """

    def __init__(
        self,
        set_up: Callable[[], Awaitable[None]],
        tear_down: Callable[[], Awaitable[None]],
        name: str,
    ) -> None:
        self._set_up = set_up
        self._tear_down = tear_down
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._ready = threading.Event()
        # Both are set before the thread is ready.
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        # None, if nothing went wrong.
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start, and raise what `set_up` raises."""
        self._thread.start()
        assert self._ready.wait(DEADLINE_S), f"{self._thread.name} did not start"
        if self._failure is not None:
            self._thread.join(DEADLINE_S)
            raise self._failure

    def stop(self) -> None:
        """Stop, and raise what went wrong."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"{self._thread.name} did not stop"
        if self._failure is not None:
            raise self._failure

    def run(self, function: Callable[[], _T]) -> _T:
        """Run a function or coroutine function on the loop, and return or raise what it does."""

        async def run() -> _T:
            result = function()
            return cast("_T", await result) if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE_S)

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as failure:  # noqa: BLE001 - it is raised in the thread that waits
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            await self._set_up()
            self._ready.set()
            await self._stopping.wait()
        finally:
            await self._tear_down()
