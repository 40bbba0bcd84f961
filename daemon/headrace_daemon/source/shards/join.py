"""Joined streams: from the samples of several sources of shards to those of all of them together.

Invariant: each sample of the first stream has exactly one partner in each other stream, or the
source is refused by the first that has not; with ``length="shortest"`` those without are left out,
and nothing else.  Order and shards are those of the first stream.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ...errors import SamplesError, SourceEmptyError
from ..writer import ManifestWriter
from .writer import SampleWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from headrace.manifest import Manifest
    from headrace.placement import Placement
    from headrace.shards import MultiShard

_PIECE: Final = 1 << 14
"""Samples that are put together at a time."""

_Rows = NDArray[np.int64]


def join_streams(
    source: MultiShard,
    streams: Mapping[str, Manifest],
    root: Path,
    progress: Callable[[int], None] = lambda samples: None,
) -> Manifest:
    """Return the manifest of samples that have a partner in each stream; blocks.

    Keeps a key of each sample in memory while it runs, where samples are joined by them.

    Args:
        source: Says what joins them.
        streams: The samples of each stream, by name, in the order of the source.
        root: Where manifests are; it is stored there.
        progress: Called now and then with the number of samples joined so far.

    Raises:
        SamplesError: If samples have no partner, or no one partner.
        SourceEmptyError: If none is left.
    """
    placements = [_placement(manifest) for manifest in streams.values()]
    rows = _by_key(source, streams) if source.join == "key" else _by_position(source, streams)
    fields = _field_names({name: one.fields for name, one in zip(streams, placements, strict=True)})
    if len(set(fields)) < len(fields):
        twice = next(field for field in fields if fields.count(field) > 1)
        raise SamplesError(
            source.location,
            f"the streams of {source.location} have field {twice!r} twice: rename a stream",
        )
    sources = [number for number, one in enumerate(placements) for _ in one.fields]
    firsts = np.cumsum([0, *(len(one.table) for one in placements)])[:-1]
    table = _table(streams, root)
    main = placements[0]
    names = next(iter(streams.values()))
    # Where each shard of the first stream ends among the samples that are kept.
    ends = np.searchsorted(rows[0], main.bounds[1:].astype(np.int64), side="left").tolist()
    with SampleWriter(root, fields, sources, table) as writer:
        start = 0
        for end in ends:
            for first in range(start, end, _PIECE):
                piece = [column[first : min(first + _PIECE, end)] for column in rows]
                pairs = list(zip(placements, piece, strict=True))
                shards = [
                    one.shards[chosen, 0].astype(np.int64) + offset
                    for (one, chosen), offset in zip(pairs, firsts.tolist(), strict=True)
                ]
                writer.add(
                    [name.encode() for name in names.names_of(piece[0].astype(np.uint64))],
                    np.concatenate([one.starts[chosen] for one, chosen in pairs], axis=1),
                    np.concatenate([one.lengths[chosen] for one, chosen in pairs], axis=1),
                    np.stack(shards, axis=1).astype(np.uint32),
                )
                progress(writer.num_entries)
            writer.end_shard()
            start = end
        if not writer.num_entries:
            raise SourceEmptyError(
                source.location,
                f"no sample of {source.location} has a partner in each stream: check join="
                f"{source.join!r}",
            )
        return writer.finish()


def _placement(manifest: Manifest) -> Placement:
    assert manifest.placement is not None, "a stream of shards"
    return manifest.placement


def _field_names(fields: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        name if len(own) == 1 else f"{name}.{field}"
        for name, own in fields.items()
        for field in own
    ]


def _table(streams: Mapping[str, Manifest], root: Path) -> Manifest:
    """Return all shards; their names begin with the name of their stream and a ``/``."""
    with ManifestWriter(root, is_ordered=True) as writer:
        for name, manifest in streams.items():
            table = _placement(manifest).table
            indices = np.arange(len(table), dtype=np.uint64)
            writer.append(
                [f"{name}/{shard}".encode() for shard in table.names_of(indices)],
                table.sizes.tolist(),
                table.checksums_of(indices),
                table.versions_of(indices),
            )
        return writer.map()


# ---- partners ------------------------------------------------------------------------------------


def _by_position(source: MultiShard, streams: Mapping[str, Manifest]) -> list[_Rows]:
    lengths = {name: len(manifest) for name, manifest in streams.items()}
    shortest = min(lengths, key=lambda name: lengths[name])
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[shortest] != lengths[longest] and source.length == "strict":
        row = lengths[shortest]
        raise SamplesError(
            source.location,
            f"stream {longest!r} has {lengths[longest]} samples and stream {shortest!r} "
            f"{lengths[shortest]}: sample {row} of {longest!r} ({_shown(streams[longest], row)}) "
            f"has no partner behind the last one of {shortest!r} "
            f"({_shown(streams[shortest], row - 1)}); add what is missing, or leave it out with "
            "length='shortest'",
        )
    return [np.arange(lengths[shortest], dtype=np.int64)] * len(streams)


def _by_key(source: MultiShard, streams: Mapping[str, Manifest]) -> list[_Rows]:
    (main_name, main), *others = streams.items()
    keys = _keys(main)
    _check_unique(source, main_name, main, keys)
    rows = [np.arange(len(main), dtype=np.int64)]
    for name, manifest in others:
        own = _keys(manifest)
        where = _check_unique(source, name, manifest, own)
        partners = np.fromiter((where.get(key, -1) for key in keys), np.int64, count=len(keys))
        if source.length == "strict":
            if (partners < 0).any():
                _refuse(source, main_name, main, int(np.argmax(partners < 0)), name, manifest)
            if len(own) > len(keys):
                has_partner = np.zeros(len(own), dtype=bool)
                has_partner[partners] = True
                row = int(np.argmin(has_partner))
                _refuse(source, name, manifest, row, main_name, main)
        rows.append(partners)
    is_whole = np.logical_and.reduce([column >= 0 for column in rows])
    return [column[is_whole] for column in rows]


def _keys(manifest: Manifest) -> list[bytes]:
    blob, offsets = manifest.names.data, manifest.offsets.tolist()
    return [bytes(blob[start:stop]) for start, stop in pairwise(offsets)]


def _check_unique(
    source: MultiShard, name: str, manifest: Manifest, keys: Sequence[bytes]
) -> dict[bytes, int]:
    """Return the row of each key."""
    where = {key: row for row, key in enumerate(keys)}
    if len(where) < len(keys):
        seen: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key in seen:
                raise SamplesError(
                    source.location,
                    f"stream {name!r} has key {key.decode()!r} twice: in shard "
                    f"{_shard(manifest, seen[key])!r} and in shard {_shard(manifest, row)!r}; "
                    "samples that are joined by key have unique ones, so rename one, or use "
                    "join='position'",
                )
            seen[key] = row
    return where


def _refuse(
    source: MultiShard, name: str, manifest: Manifest, row: int, other: str, there: Manifest
) -> None:
    near = min(row, len(there) - 1)
    raise SamplesError(
        source.location,
        f"{_shown(manifest, row)} of stream {name!r} has no partner in stream {other!r}, whose "
        f"sample at that place is {_shown(there, near)}: add what is missing, or leave it out with "
        "length='shortest'",
    )


def _shown(manifest: Manifest, row: int) -> str:
    if row < 0:
        return "none"
    return f"sample {manifest.name(row)!r} of shard {_shard(manifest, row)!r}"


def _shard(manifest: Manifest, row: int) -> str:
    placement = _placement(manifest)
    return placement.table.name(int(placement.shards[row, 0]))
