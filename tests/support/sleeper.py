"""Clients that do not take what is there for them, and the memory that it costs a daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.client import Channel
from headrace.protocol import Payload
from headrace.protocol import messages as m

if TYPE_CHECKING:
    from headrace import Stream

ALLOWANCE: Final = 4 << 20
"""For what the process needs beside batches: tasks, positions, messages.  It is about 0.6 MiB."""


class Sleeper:
    """A client that opens a feed and takes only what it says.  A context manager."""

    def __init__(self, path: str, stream: Stream, *, credit: int = 0, prefetch: int = 64) -> None:
        self.channel = Channel.connect(path)
        plain: dict[str, Any] = msgspec.to_builtins(stream)
        try:
            self.channel.send(m.Open(stream=plain, prefetch=prefetch, credit=credit))
            while isinstance(event := self.channel.receive(), m.Notice):
                pass  # of a listing
            assert isinstance(event, m.Opened), event
        except BaseException:
            self.channel.close()
            raise

    def take(self) -> int:
        """Return the step of the next batch; waits for it."""
        while isinstance(event := self.channel.receive(), m.Notice):
            pass
        assert isinstance(event, Payload), event
        assert isinstance(event.header, m.Batch)
        return event.header.step

    def leave(self) -> None:
        """Close the feed and wait until its memory is back."""
        self.channel.send(m.Close())
        while not isinstance(self.channel.receive(), m.End):
            pass

    def __enter__(self) -> Sleeper:
        return self

    def __exit__(self, *details: object) -> None:
        self.channel.close()


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has ever had."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
