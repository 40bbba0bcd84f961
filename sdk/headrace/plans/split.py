"""Splits: which entries of a step belong to which rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .order import Indices


def stride(start: int, num_entries: int, rank: int, world_size: int) -> Indices:
    """Return the positions of one rank in a step, dealt round-robin.

    Args:
        start: First position of the step.
        num_entries: Entries of the step, fillers included; a multiple of `world_size`.
        rank: Rank of the reader.
        world_size: Number of readers.

    Returns:
        u64[num_entries / world_size] positions ``start + rank, start + rank + world_size, …``.

    Example:
        >>> stride(8, 6, rank=1, world_size=2).tolist()
        [9, 11, 13]
    """
    return np.arange(start + rank, start + num_entries, world_size, dtype=np.uint64)
