"""Layouts: where each value of a batch lies in the payload, known before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.protocol.messages import MISSING

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT: Final = 64
"""Every value begins at a multiple of this: what zero-copy tensors and vector units want."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Values of one batch, field by field."""

    offsets: NDArray[np.uint64]  # u64[F * n], from the start of the payload
    lengths: NDArray[np.uint64]  # u64[F * n]; MISSING for a value that a sample does not have
    num_bytes: int
    """Bytes of the payload; the last value is not padded."""


def lay_out(sizes: NDArray[np.int64]) -> Layout:
    """Place values of known sizes (i64[F, n], negative for none) one after the other."""
    flat = sizes.ravel()
    lengths = flat.astype(np.uint64)
    room = padded(flat)
    offsets = np.zeros(len(flat), dtype=np.uint64)
    offsets[1:] = np.cumsum(room)[:-1]
    num_bytes = int(offsets[-1]) + max(int(flat[-1]), 0) if len(flat) else 0
    is_absent = flat < 0
    if is_absent.any():
        lengths[is_absent] = np.uint64(MISSING)
    return Layout(offsets, lengths, num_bytes)


def room_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what samples take up whose values have these sizes (i64[F, n]), i64[n]."""
    room: NDArray[np.int64] = padded(sizes).sum(axis=0)
    return room


def padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what values of these sizes take up with their alignment, of the same shape.

    Nothing for one that is absent.
    """
    rounded: NDArray[np.int64] = (sizes + (ALIGNMENT - 1)) & ~np.int64(ALIGNMENT - 1)
    return rounded
