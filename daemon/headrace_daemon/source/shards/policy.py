"""What is refused in a shard, and how much of anything there may be in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPolicy:
    """What to make of a shard that is not just a row of files."""

    links: Literal["skip", "error"] = "skip"
    """Symbolic and hard links are no members, or are refused."""

    max_name_bytes: int = 4096
    """Of one member; that is what a system takes for a path (``PATH_MAX``)."""

    max_pax_bytes: int = 1 << 20
    """Of one extended header, which is held as a whole; attributes of files can be this long."""

    max_pax_records: int = 1000
    """Of one extended header: they are read in one turn of the loop."""

    max_members: int = 1 << 22
    """Of one shard, 24 B each while it is read."""

    max_names_bytes: int = 1 << 29
    """Names of one shard, all together."""

    def __post_init__(self) -> None:
        if self.links not in ("skip", "error"):
            raise ValueError(f"links={self.links!r} is unknown: choose 'skip' or 'error'")

    @property
    def identity(self) -> bytes:
        """What an index depends on: shards are indexed anew when this is another one."""
        # The second word cannot differ any more, but stored indices go by it.
        return f"links={self.links} paths=refuse".encode()


DEFAULT_POLICY = ShardPolicy()
