"""Memory without a name that a process shares with those it starts, in whatever way."""

from __future__ import annotations

import os
import weakref
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any, Self


class SharedFile:
    """A file in memory.  It is pickled only on the way into a process that is being started.

    Args:
        name: For lists of open files.
        num_bytes: Its size; what is never written takes no memory.
    """

    def __init__(self, name: str, num_bytes: int) -> None:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.truncate(descriptor, num_bytes)
        self._attach(descriptor)

    def _attach(self, descriptor: int) -> None:
        """Begin to use a descriptor: the file's own, or one that was inherited."""
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            raise TypeError(
                f"a {type(self).__name__} cannot be pickled but for a process that is being started"
            )
        return type(self)._inherit, (reduction.DupFd(self.descriptor),)

    @classmethod
    def _inherit(cls, descriptor: Any) -> Self:  # noqa: ANN401 - its type differs by start method
        shared = cls.__new__(cls)
        shared._attach(descriptor.detach())
        return shared
