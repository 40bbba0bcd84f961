"""The whole daemon in a thread of the test's own process, where a test can look into it.

The reading of files goes through a `Reads`, which records it, and may delay it or break it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from unittest import mock

import msgspec
import uvloop

from headrace_daemon.app import App
from headrace_daemon.settings import DaemonSettings, FetchSettings, Settings, TrustSettings
from headrace_daemon.source import readers
from headrace_daemon.source.local import LocalReader
from headrace_daemon.transport.listener import bind

from .loops import turns

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Executor
    from types import TracebackType

    from headrace_daemon.source.reader import Reader, Request

    from .loops import Loop

_T = TypeVar("_T")

DEADLINE_S: Final = 20.0
"""Far more than anything here takes: it turns a hang into a failure."""


class Reads:
    """What the daemon reads from files: recorded, and out of order if a seed is given.

    Args:
        seed: Every read waits for a random number of turns of the loop first; None: no waiting.
        max_turns: The largest of them.
    """

    def __init__(self, seed: int | None = None, max_turns: int = 300) -> None:
        self._rng = None if seed is None else random.Random(seed)
        self._max_turns = max_turns
        self.names: list[str] = []
        """Names of the samples, in the order in which their reads began."""
        # Reads wait until it is set.
        self._gate: asyncio.Event | None = None

    def close_gate(self) -> None:
        """Make reads wait that begin from now on; call it in the loop (`AppThread.call`)."""
        self._gate = asyncio.Event()

    def open_gate(self) -> None:
        """Let them go on, and all further ones; likewise."""
        assert self._gate is not None
        self._gate.set()

    def of(self, root: str, executor: Executor) -> Reader:
        """Return the reader of a folder."""
        return _RecordedReader(self, LocalReader(root, executor))

    async def before(self, requests: Sequence[Request]) -> None:
        """Note that a group of reads begins, and wait as long as it shall."""
        self.names += [request.name for request in requests]
        if self._gate is not None:
            await self._gate.wait()
        if self._rng is not None:
            for _ in range(self._rng.randrange(self._max_turns)):
                await asyncio.sleep(0)  # one turn of the loop; may be cancelled


class _RecordedReader:
    def __init__(self, reads: Reads, reader: Reader) -> None:
        self._reads = reads
        self._reader = reader
        self.location = reader.location
        self.paces_itself = reader.paces_itself

    async def read(self, requests: Sequence[Request]) -> None:
        await self._reads.before(requests)
        await self._reader.read(requests)


class AppThread:
    """A running daemon that may read any folder.  A context manager.

    Args:
        loop: The kind of its event loop.
        memory: Its budget.
        max_in_flight: Groups of reads at a time.
        reads: How it reads.
        settings: More of its ``[daemon]`` settings.
    """

    app: App

    def __init__(
        self,
        *,
        loop: Loop = "uvloop",
        memory: str = "256MiB",
        max_in_flight: int = 16,
        reads: Reads | None = None,
        **settings: Any,  # noqa: ANN401 - of any type
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
        self.socket = str(self.folder / "headrace.sock")
        self.reads = reads or Reads()
        self._factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
        self._settings = Settings(
            daemon=DaemonSettings(
                socket=self.socket,
                memory=memory,
                **{"state_dir": str(self.folder / "state"), **settings},
            ),
            fetch=FetchSettings(max_in_flight=max_in_flight),
            trust=TrustSettings(allow_sources=("*",)),
        )
        self._is_ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="daemon in a thread")

    def configure(self, **changes: Any) -> Self:  # noqa: ANN401 - fields of the settings
        """Change the settings; before it runs."""
        self._settings = msgspec.structs.replace(self._settings, **changes)
        return self

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._factory) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the test shall see it
            self._failure = error
        finally:
            self._is_ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        reported: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: reported.append(context))
        self._stop = asyncio.Event()
        with mock.patch.object(readers, "LocalReader", self.reads.of):
            self.app = App(self._settings, bind(Path(self.socket), ""))
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(self.app.run(), name="app")
                self._is_ready.set()
                await self._stop.wait()
                self.app.stop()
                await asyncio.wait([running], timeout=self._settings.daemon.drain_s)
                running.cancel()
        await turns(3)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left over: {[task.get_name() for task in others]}"
        assert not reported, reported

    def call(self, function: Callable[[], _T]) -> _T:
        """Run a function in the thread of the daemon, and return what it returns."""

        async def run() -> _T:
            return function()

        return self.run(run())

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine in the loop of the daemon, and return what it returns."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, which is asked in the loop of the daemon."""

        async def wait() -> None:
            async with asyncio.timeout(DEADLINE_S):
                while not condition():
                    await turns()

        self.run(wait())

    def num_tasks(self) -> int:
        """Return how many tasks there are beside those that ask."""
        return self.call(lambda: len(asyncio.all_tasks()) - 1)

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_ready.wait(DEADLINE_S)
        if self._failure is not None:
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        shutil.rmtree(self.folder)
        assert not self._thread.is_alive(), "the daemon does not stop"
        if self._failure is not None and error is None:
            raise self._failure
