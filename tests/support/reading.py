"""A source whose reads finish when the test says so, in the order that the test likes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future
from itertools import count
from typing import TYPE_CHECKING, Any

from headrace.manifest import Manifest
from headrace_daemon.source.catalog import OpenSource
from headrace_daemon.source.reader import RangeRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace_daemon.errors import SourceError
    from headrace_daemon.source.reader import Request


class GatedRead:
    """One call of `GatedReader.read`, which waits until the test lets it go on."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.names = [request.name for request in requests]
        self.is_cancelled = False
        """The caller has lost interest, but a read that lingers has not ended yet."""
        self._go_on: asyncio.Future[SourceError | Exception | None] = (
            asyncio.get_running_loop().create_future()
        )

    @property
    def is_under_way(self) -> bool:
        return not self._go_on.done()

    def finish(self) -> None:
        """Fill the targets and return; for a cancelled one that lingers: just end."""
        self._go_on.set_result(None)

    def fail(self, error: Exception) -> None:
        self._go_on.set_result(error)

    async def wait(self, *, lingers: bool) -> None:
        while True:
            try:
                error = await asyncio.shield(self._go_on)
                break
            except asyncio.CancelledError:
                self.is_cancelled = True
                if not lingers:
                    raise
        if self.is_cancelled:
            raise asyncio.CancelledError
        if error is not None:
            raise error
        for request in self.requests:
            fill(request)


class GatedReader:
    """Reads whose end is up to the test.

    Args:
        lingers: A cancelled read ends only when the test says so, as one in a thread does.
    """

    def __init__(self, *, lingers: bool = False) -> None:
        self.lingers = lingers
        self._readings = count()
        self.reads: list[GatedRead] = []
        """All that were begun, in that order."""
        self._is_open = False

    paces_itself = False

    @property
    def location(self) -> str:
        """Another one each time, so that feeds do not share reads: each has all of its own."""
        return f"gated {next(self._readings)}"

    async def read(self, requests: Sequence[Request]) -> None:
        read = GatedRead(requests)
        self.reads.append(read)
        if self._is_open:
            read.finish()
        await read.wait(lingers=self.lingers)

    @property
    def under_way(self) -> list[GatedRead]:
        """Those that have not ended, in the order in which they were begun."""
        return [read for read in self.reads if read.is_under_way and not self._is_over(read)]

    def _is_over(self, read: GatedRead) -> bool:
        return read.is_cancelled and not self.lingers

    def finish_all(self) -> None:
        for read in self.under_way:
            read.finish()

    def open_gates(self) -> None:
        """Finish all reads, those to come too: so that a test that has failed can end."""
        self._is_open = True
        self.finish_all()


class ReadyReader:
    """Fills everything at once."""

    location = "ready"
    paces_itself = False

    async def read(self, requests: Sequence[Request]) -> None:
        for request in requests:
            fill(request)


class InlineExecutor(Executor):
    """Runs what is submitted at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)
        return future


class GatedExecutor(InlineExecutor):
    """Holds back what measures slots, until the test lets it go on; runs all else at once."""

    def __init__(self) -> None:
        self.gates: list[Callable[[], None]] = []
        self._is_open = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        if self._is_open or getattr(fn, "__name__", "") == "next_items":
            return super().submit(fn, *args, **kwargs)
        future: Future[Any] = Future()
        self.gates.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def open_gates(self) -> None:
        """Let all go on, and those to come."""
        self._is_open = True
        while self.gates:
            self.gates.pop(0)()


def fill(request: Request) -> None:
    """Do what a reader does: put content into the memory of a request."""
    if isinstance(request, RangeRequest):
        content = value_of(request.name, request.object_bytes)
        for start, target in request.places:
            target[:] = content[start : start + len(target)]
    else:
        request.target[:] = value_of(request.name, len(request.target))


def value_of(name: str, size: int) -> bytes:
    """Return the content of a sample, which tells which one it is."""
    return (name.encode() * (size // len(name) + 1))[:size]


def source_of(sizes: Sequence[int], reader: GatedReader | ReadyReader) -> OpenSource:
    """Return a source of samples ``s000``, ``s001``, … of some sizes."""
    manifest = Manifest.build([(f"s{n:03}".encode(), size) for n, size in enumerate(sizes)])
    return OpenSource(manifest, reader)
