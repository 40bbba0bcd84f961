"""Layouts: where each value of a batch lies in the payload, known before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT: Final = 64
"""Every value begins at a multiple of this: what zero-copy tensors and vector units want."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Values of one batch, field-major."""

    offsets: NDArray[np.uint64]  # u64[F * n], from the start of the payload
    lengths: NDArray[np.uint64]  # u64[F * n]
    num_bytes: int
    """Bytes of the payload; the last value is not padded."""


def lay_out(sizes: NDArray[np.int64]) -> Layout:
    """Place values of known sizes (i64[n]) one after the other."""
    lengths = sizes.astype(np.uint64)
    ends = np.cumsum(padded(sizes))
    offsets = np.zeros(len(sizes), dtype=np.uint64)
    offsets[1:] = ends[:-1]
    num_bytes = int(offsets[-1] + lengths[-1]) if len(sizes) else 0
    return Layout(offsets, lengths, num_bytes)


def padded(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what values of these sizes take up with their alignment, of the same shape."""
    rounded: NDArray[np.int64] = (sizes + (ALIGNMENT - 1)) & ~np.int64(ALIGNMENT - 1)
    return rounded
