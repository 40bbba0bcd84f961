"""The shelf: raw batches on their way from a loader's workers to the main process.

A worker receives a payload from its daemon right into a memory that the main process can read, and
sends only the header through torch's queue: pickled through a pipe, batches of some megabytes would
take several times as long as they take from the daemon.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import deque
from typing import Final

from .errors import FeedError
from .sharing import SharedFile

_PLACE_BITS: Final = 33
"""Each buffer has a place of 8 GiB in the file, of which only what is written takes memory."""

_WORKER_BITS: Final = 16
"""A worker has 65,536 places: more than it may be asked to prefetch."""

_FRESH_PLACES: Final = 4096
"""Places that are left alone when it is not certain that nobody writes there any more."""


class Shelf(SharedFile):
    """A file with places for the buffers of all workers.

    Args:
        num_workers: Workers that may use it.
    """

    def __init__(self, num_workers: int) -> None:
        super().__init__("headrace shelf", num_workers << _WORKER_BITS << _PLACE_BITS)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Copy what a worker has put at an offset."""
        done = 0
        while done < len(buffer):  # the system reads 2 GiB at a time
            done += os.preadv(self.descriptor, [buffer[done:]], offset + done)


class ShelfBuffers:
    """The buffers of one worker, for a `Receiver`; its two threads use them.

    Args:
        shelf: Where they are.
        worker: Number of the worker.
        num_sent: Batches that the main process may not have read yet.  A DataLoader asks a worker
            for the next but `prefetch_factor` only when it has handed out one, and for the one
            after that when it has handed out, and we have read, that one.
        num_spoilt: How often the feed before did not end in time, and may still write.
    """

    def __init__(self, shelf: Shelf, worker: int, num_sent: int, num_spoilt: int = 0) -> None:
        self._shelf = shelf
        self._base = (worker << _WORKER_BITS) + num_spoilt * _FRESH_PLACES
        if num_spoilt * _FRESH_PLACES >= 1 << _WORKER_BITS:
            raise FeedError("too many feeds of this DataLoader worker did not end in time")
        self._num_sent = num_sent
        self._lock = threading.Lock()
        # By place; they grow.
        self._maps: list[mmap.mmap] = []
        self._free: list[int] = []
        self._sent: deque[int] = deque()

    def reset(self) -> None:
        """Use all places again: the feed has ended, and what was sent is read or forgotten."""
        with self._lock:
            self._sent.clear()
            self._free = list(range(len(self._maps)))

    def allocate(self, num_bytes: int) -> memoryview:
        """Return a writable buffer of a size, at a place of its own."""
        with self._lock:
            place = self._free.pop() if self._free else len(self._maps)
            if place == len(self._maps):
                self._maps.append(self._map(place, num_bytes))
            elif len(self._maps[place]) < num_bytes:
                self._maps[place] = self._map(place, num_bytes)
            return memoryview(self._maps[place])[:num_bytes]

    def _map(self, place: int, num_bytes: int) -> mmap.mmap:
        size = -(-max(1, num_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE  # one page fault costs more than its page
        return mmap.mmap(self._shelf.descriptor, size, flags, offset=self._offset(place))

    def _offset(self, place: int) -> int:
        return (self._base + place) << _PLACE_BITS

    def offset_of(self, view: memoryview) -> int:
        """Return where in the shelf a buffer is."""
        with self._lock:
            return self._offset(self._place_of(view))

    def _place_of(self, view: memoryview) -> int:
        return next(place for place, memory in enumerate(self._maps) if memory is view.obj)

    def give_back(self, view: memoryview) -> None:
        """Take note that a buffer is sent; those that must have been read by now are used again."""
        with self._lock:
            self._sent.append(self._place_of(view))
            while len(self._sent) > self._num_sent:
                self._free.append(self._sent.popleft())
