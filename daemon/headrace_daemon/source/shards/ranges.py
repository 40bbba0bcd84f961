"""The ranges that some samples are read by: neighbours in a shard come in one.

Pure: columns in, requests out.  What is asked for and not wanted is only what lies between two
neighbours: the header of a tar member and its padding, and small members that are not wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from ..reader import Place, RangeRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from headrace.placement import Placement

    from ...errors import ObjectError

GAP_BYTES: Final = 4096
"""Values with so much or less between them come in one range: a header takes 512 bytes, one with
long names some more."""

RANGE_BYTES: Final = 1 << 20
"""A range ends behind so much, so that several are under way; one value may be longer."""


def ranges_of(
    placement: Placement,
    indices: NDArray[np.uint64],
    offsets: NDArray[np.uint64],
    view: memoryview,
    *,
    left_out: Collection[int] = (),
    on_bad: Callable[[int, ObjectError], None] | None = None,
) -> list[RangeRequest]:
    """Return the requests for the values of some samples.

    Args:
        placement: Where they lie.
        indices: The samples, u64[n].
        offsets: Where each value goes in the view, u64[F * n], field by field.
        view: Writable.  The requests have slices of it, which the caller releases.
        left_out: Places of samples in the order of `indices` that are not read.
        on_bad: Called with the place of a sample whose shard cannot be read, and why; None where
            that fails the read.
    """
    count, num_fields = len(indices), len(placement.fields)
    lengths = placement.lengths[indices].T.ravel()  # i64[F * n]
    wanted = lengths > 0
    if left_out:
        is_left = np.zeros(count, dtype=bool)
        is_left[list(left_out)] = True
        wanted &= ~np.tile(is_left, num_fields)
    values = np.flatnonzero(wanted)
    if not len(values):
        return []
    shards = placement.shards[indices].astype(np.int64).T[list(placement.streams)].ravel()
    starts = placement.starts[indices].astype(np.int64).T.ravel()
    order = np.lexsort((starts[values], shards[values]))
    values = values[order]
    shards, starts, lengths = shards[values], starts[values], lengths[values]
    stops = starts + lengths
    # A range begins where the shard is another one, the gap is large, or values overlap.
    gaps = starts[1:] - stops[:-1]
    begins = np.ones(len(values), dtype=bool)
    begins[1:] = (shards[1:] != shards[:-1]) | (gaps < 0) | (gaps > GAP_BYTES)
    targets = offsets[values].astype(np.int64)
    rows = (values % count).tolist()
    table = placement.table
    distinct, numbers = np.unique(shards, return_inverse=True)
    chosen = distinct.astype(np.uint64)
    names, sizes = table.names_of(chosen), table.sizes[chosen].tolist()
    checksums, versions = table.checksums_of(chosen), table.versions_of(chosen)
    requests: list[RangeRequest] = []
    places: list[Place] = []
    own_rows: list[int] = []

    def close(number: int, stop: int) -> None:
        requests.append(
            RangeRequest(
                names[number],
                places[0].start,
                stop,
                sizes[number],
                tuple(places),
                checksums[number],
                versions[number],
                None if on_bad is None else _of_rows(on_bad, sorted(set(own_rows))),
            )
        )
        places.clear()
        own_rows.clear()

    number = stop = 0
    for begin, start, length, target, row, following in zip(
        begins.tolist(),
        starts.tolist(),
        lengths.tolist(),
        targets.tolist(),
        rows,
        numbers.tolist(),
        strict=True,
    ):
        if places and (begin or start + length - places[0].start > RANGE_BYTES):
            close(number, stop)
        places.append(Place(start, view[target : target + length]))
        own_rows.append(row)
        number, stop = following, start + length
    close(number, stop)
    return requests


def _of_rows(
    on_bad: Callable[[int, ObjectError], None], rows: list[int]
) -> Callable[[ObjectError], None]:
    def tell(error: ObjectError) -> None:
        for row in rows:
            on_bad(row, error)

    return tell
