"""The Headrace daemon: reads ahead of the trainers of one node, in the order of their plans."""

from __future__ import annotations

__version__ = "0.1.0"
