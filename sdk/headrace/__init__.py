"""Headrace: training data, read ahead of need, in an order that can be resumed at any batch.

The names below are the public API; `DaemonDataset` and `Batch` are loaded on first use, because
they bring torch.
"""

from __future__ import annotations

from . import errors, plans
from .plans import Cursor
from .sources import Objects, Stream
from .topology import Topology

__version__ = "0.1.0"

__all__ = ["Cursor", "Objects", "Stream", "Topology", "errors", "plans"]
