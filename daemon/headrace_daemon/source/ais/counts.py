"""Counts of what was read from the store, for ``headrace status``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clustermap import Node
    from .faults import Fault
    from .transfer import Transfer

BY_PROXY = "by proxy"
"""Stands for all targets in reads that a proxy has redirected."""


@dataclass(slots=True)
class NodeCounts:
    """Reads of one target."""

    num_reads: int = 0
    """Objects, and ranges of objects, that arrived.  A large one counts as one, however many pieces
    it was read in."""

    num_ranges: int = 0
    """Of them, the ranges: samples of shards, or neighbours that were read together."""

    num_lean: int = 0
    """Of them, those that came by the lean wire."""

    num_bytes: int = 0
    """Their bytes, those between the samples of a range included."""

    num_faults: int = 0
    """Attempts that failed."""

    total_s: float = 0.0
    """Seconds of all reads that succeeded, from the request to the last byte; by the lean wire,
    the time is in it in which a request waited for a connection."""


@dataclass(slots=True)
class Counts:
    """Reads of a daemon from its store since it started."""

    nodes: dict[str, NodeCounts] = field(default_factory=dict)
    """By the id of the target, or `BY_PROXY`."""

    num_retries: int = 0
    """Attempts after the first of a read."""

    last_fault: str = ""
    """In words; empty before the first."""

    def note_read(self, owner: Node | None, transfer: Transfer, seconds: float) -> None:
        """Count what arrived by aiohttp; the lean wire counts its own."""
        node = self.of(owner)
        node.num_reads += transfer.num_reads
        node.num_ranges += transfer.num_ranges
        node.num_bytes += transfer.size
        node.total_s += seconds

    def note_fault(self, fault: Fault, owner: Node | None) -> None:
        """Count an attempt that failed."""
        self.of(owner).num_faults += 1
        self.last_fault = str(fault)

    def of(self, owner: Node | None) -> NodeCounts:
        """Return the counts of a target, which may change; None for all by way of a proxy."""
        name = BY_PROXY if owner is None else owner.id
        counts = self.nodes.get(name)
        if counts is None:
            counts = self.nodes[name] = NodeCounts()
        return counts
