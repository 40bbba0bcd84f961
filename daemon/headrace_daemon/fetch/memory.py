"""Memory that bytes are read into: anonymous, and the system's again when it is closed."""

from __future__ import annotations

import contextlib
import mmap


class Memory:
    """A piece of anonymous memory."""

    __slots__ = ("_map", "size", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(-1, max(1, size))
        # Writable, `size` bytes; whoever slices it lets go before the memory is given back.
        self.view = memoryview(self._map)[:size]

    def close(self) -> None:
        """Return the memory to the system."""
        self.view.release()
        # A view that a traceback still holds keeps the memory until the traceback goes.
        with contextlib.suppress(BufferError):
            self._map.close()
