"""From the samples of a batch to what is asked of their reader."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ..source.reader import ReadRequest
from ..source.shards.ranges import ranges_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from headrace.manifest import Manifest

    from ..errors import ObjectError
    from ..source.reader import Request
    from .layout import Layout


def requests_of(
    manifest: Manifest,
    indices: NDArray[np.uint64],
    names: Sequence[str],
    layout: Layout,
    view: memoryview,
    *,
    left_out: Collection[int] = (),
    filled: NDArray[np.bool_] | None = None,
    on_bad: Callable[[int, ObjectError], None] | None = None,
) -> Sequence[Request]:
    """Return the requests for some samples of a manifest.

    Args:
        manifest: Of the source.
        indices: The samples, u64[n].
        names: Their names, in the same order.
        layout: Where their values go.
        view: Writable.  The requests have slices of it, which the caller releases.
        left_out: Places of samples in the order that are not read.
        filled: Values in shards that are there already, bool[F * n]; None for none.
        on_bad: Called with the place of a sample in the order, and why it cannot be read; None
            where that fails the read.
    """
    if manifest.placement is not None:
        return ranges_of(
            manifest.placement,
            indices,
            layout.offsets,
            view,
            left_out=left_out,
            filled=filled,
            on_bad=on_bad,
        )
    return [
        ReadRequest(
            name,
            view[offset : offset + length],
            checksum,
            version,
            None if on_bad is None else partial(on_bad, place),
        )
        for place, (name, offset, length, checksum, version) in enumerate(
            zip(
                names,
                layout.offsets.tolist(),
                layout.lengths.tolist(),
                manifest.checksums_of(indices),
                manifest.versions_of(indices),
                strict=True,
            )
        )
        if place not in left_out
    ]
