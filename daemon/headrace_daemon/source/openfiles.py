"""Open files: those of a group of reads, and reads of ranges that scatter into their places.

What lies between the places of a range goes into a small buffer that nobody looks at, so that the
range takes one call of the system; a gap that is longer than the buffer is not read at all.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .reader import Place

GAP_BYTES: Final = 16 << 10
"""A longer gap costs more to copy out of the page cache than another call of the system."""

MAX_OPEN: Final = 32
"""Files that are open at the same time for one group; a group of the fetcher needs no more."""

MAX_BUFFERS: Final = os.sysconf("SC_IOV_MAX")
"""Buffers that one call fills."""


class NotRegularError(Exception):
    """There is something else than a file under a name."""


def version_of_file(changed_ns: int) -> bytes:
    """Return what stands for the version of a file: when it was changed, ns."""
    return b"%x" % changed_ns


class FileFacts(NamedTuple):
    """What a file is at this moment."""

    size: int
    """Bytes."""

    version: bytes
    """See `version_of_file`."""


class OpenFile(NamedTuple):
    """A file, open."""

    descriptor: int

    def facts(self) -> FileFacts:
        """Return what it is at this moment.

        Raises:
            NotRegularError: If it is no regular file.
            OSError: As the system says.
        """
        facts = os.fstat(self.descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularError
        return FileFacts(facts.st_size, version_of_file(facts.st_mtime_ns))

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


def open_file(path: str) -> OpenFile:
    """Open a file, which the caller closes.

    Raises:
        OSError: As the system says.
    """
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write.
    return OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))


class OpenFiles:
    """The files of one group of reads, each opened once; a context manager that closes them."""

    def __init__(self) -> None:
        # By path, the one that was opened first in front.
        self._files: dict[str, OpenFile] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        while self._files:
            self._close_first()

    def open(self, path: str) -> OpenFile:
        """Return a file, which stays open until the end or until many others were asked for.

        Raises:
            OSError: As the system says.
        """
        file = self._files.get(path)
        if file is None:
            if len(self._files) == MAX_OPEN:
                self._close_first()
            file = self._files[path] = open_file(path)
        return file

    def _close_first(self) -> None:
        self._files.pop(next(iter(self._files))).close()


class Scatter:
    """Reads ranges of files into their places; may be used by several threads at the same time."""

    def __init__(self) -> None:
        # Written by all threads, read by none.
        self._waste = memoryview(bytearray(GAP_BYTES))

    def read(self, file: OpenFile, places: Sequence[Place]) -> int | None:
        """Fill places; return where the file ends if that is before the end of the last one.

        Args:
            file: Is read by offset: its own position does not matter and does not change.
            places: Ascending, without overlap.

        Raises:
            OSError: As the system says.
        """
        for offset, buffers in self._runs(places):
            end = _fill(file, offset, buffers)
            if end is not None:
                return end
        return None

    def _runs(self, places: Sequence[Place]) -> Iterator[tuple[int, list[memoryview]]]:
        """Yield what one call reads: where it begins, and the buffers that it fills."""
        buffers: list[memoryview] = []
        begin = end = 0
        for start, target in places:
            if not len(target):
                continue
            gap = start - end
            if buffers and (gap > GAP_BYTES or len(buffers) + 2 > MAX_BUFFERS):
                yield begin, buffers
                buffers = []
            if not buffers:
                begin = start
            elif gap:
                buffers.append(self._waste[:gap])
            buffers.append(target)
            end = start + len(target)
        if buffers:
            yield begin, buffers


def _fill(file: OpenFile, offset: int, buffers: list[memoryview]) -> int | None:
    """Fill buffers from an offset on; return where the file ends if they are not full by then."""
    while buffers:
        got = os.preadv(file.descriptor, buffers, offset)
        if not got:
            return offset
        offset += got
        num_full = 0
        for buffer in buffers:
            if got < len(buffer):
                break
            got -= len(buffer)
            num_full += 1
        buffers = buffers[num_full:]
        if got:
            buffers[0] = buffers[0][got:]
    return None
