"""How far the opening of a source is, for people and for clients that wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple


class Progress(NamedTuple):
    """Where a piece of long work stands."""

    kind: Literal["listing", "indexing", "skipped"]
    """Objects are listed, or the headers of shards are read; or something was left out."""

    done: int
    """Objects listed, or shards indexed."""

    total: int | None = None
    """Where `done` will end, if that is known."""

    samples: int = 0
    """Members found in the shards so far, or samples that they make up."""

    what: str = ""
    """What of it, where there are several: a stream of joined ones; or what was left out."""

    @property
    def text(self) -> str:
        """One line."""
        if self.kind == "skipped":
            return self.what
        where = f"{self.what}: " if self.what else ""
        if self.kind == "listing":
            return f"{where}{self.done} objects listed"
        return f"{where}{self.done} of {self.total} shards indexed, {self.samples} members"


Tell = Callable[[Progress], None]
"""Called now and then, possibly from a thread."""


def nobody(progress: Progress) -> None:
    """Tell nobody."""
