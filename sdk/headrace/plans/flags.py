"""Marks on single entries of a batch."""

from __future__ import annotations

from enum import IntFlag


class Flag(IntFlag):
    """Marks on single entries of a batch."""

    PADDING = 1
    """A filler that makes ranks or steps equal; not counted as a sample."""

    WRAPPED = 2
    """A filler of a whole step (``tail="wrap"``); without `PADDING`, a sample of streamed shards
    that have begun again (``steps_per_epoch=``)."""

    OVERSIZED = 4
    """A sample above the budget of its plan."""

    HOLE = 8
    """A sample that could not be read and was left out by policy."""
