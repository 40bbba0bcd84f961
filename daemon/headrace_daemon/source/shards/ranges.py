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

    from headrace.manifest import Manifest
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
    filled: NDArray[np.bool_] | None = None,
    on_bad: Callable[[int, ObjectError], None] | None = None,
) -> list[RangeRequest]:
    """Return the requests for the values of some samples.

    Args:
        placement: Where they lie.
        indices: The samples, u64[n].
        offsets: Where each value goes in the view, u64[F * n], field by field.
        view: Writable.  The requests have slices of it, which the caller releases.
        left_out: Places of samples in the order of `indices` that are not read.
        filled: Values that are there already, bool[F * n]; None for none.
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
    if filled is not None:
        wanted &= ~filled
    values = wanted.nonzero()[0]
    if not len(values):
        return []
    shards = placement.shards[indices].astype(np.int64).T[list(placement.streams)].ravel()
    starts = placement.starts[indices].astype(np.int64).T.ravel()
    values = values[np.lexsort((starts[values], shards[values]))]
    shards, starts, lengths = shards[values], starts[values], lengths[values]
    firsts = _firsts(shards, starts, starts + lengths)
    targets = offsets[values].astype(np.int64)
    # Tuples and slices are made in C as far as possible: they are the cost of this function.
    views = [
        view[start:stop]
        for start, stop in zip(targets.tolist(), (targets + lengths).tolist(), strict=True)
    ]
    places = tuple(map(Place, starts.tolist(), views))
    lasts = [*firsts[1:], len(values)]
    numbers = shards[firsts].tolist()
    facts = facts_of(placement.table, numbers)
    ends = (starts + lengths).tolist()
    rows = None if on_bad is None else (values % count).tolist()
    requests = []
    for number, first, last in zip(numbers, firsts, lasts, strict=True):
        name, size, checksum, version = facts[number]
        own = places[first:last]
        tell = None
        if on_bad is not None and rows is not None:
            tell = _of_rows(on_bad, sorted(set(rows[first:last])))
        requests.append(
            RangeRequest(name, own[0].start, ends[last - 1], size, own, checksum, version, tell)
        )
    return requests


def _firsts(
    shards: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]
) -> list[int]:
    """Return where each range begins among values that are sorted by shard and place."""
    # Where the shard is another one, the gap is large, or values overlap.
    gaps = starts[1:] - stops[:-1]
    is_first = (shards[1:] != shards[:-1]) | (gaps < 0) | (gaps > GAP_BYTES)
    runs = [0, *(is_first.nonzero()[0] + 1).tolist()]
    firsts = []
    for run, end in zip(runs, [*runs[1:], len(starts)], strict=True):
        first = run
        while first < end:
            firsts.append(first)
            if stops[end - 1] - starts[first] <= RANGE_BYTES:
                break
            fit = np.searchsorted(stops[first:end], starts[first] + RANGE_BYTES, side="right")
            first += max(int(fit), 1)
    return firsts


def facts_of(table: Manifest, shards: list[int]) -> dict[int, tuple[str, int, bytes, bytes]]:
    """Return name, size, checksum and version of some shards."""
    distinct = list(set(shards))
    rows = np.array(distinct, dtype=np.uint64)
    columns = (
        table.names_of(rows),
        table.sizes[rows].tolist(),
        table.checksums_of(rows),
        table.versions_of(rows),
    )
    return dict(zip(distinct, zip(*columns, strict=True), strict=True))


def _of_rows(
    on_bad: Callable[[int, ObjectError], None], rows: list[int]
) -> Callable[[ObjectError], None]:
    def tell(error: ObjectError) -> None:
        for row in rows:
            on_bad(row, error)

    return tell
