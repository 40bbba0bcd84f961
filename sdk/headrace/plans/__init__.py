"""Sampler plans: what is read and in which order.

The public plans are frozen values; the engine that executes them is made of pure functions.
"""

from __future__ import annotations

from .cursor import Cursor, Seek
from .spec import Plan, Sequential, Shuffled

__all__ = ["Cursor", "Plan", "Seek", "Sequential", "Shuffled"]
