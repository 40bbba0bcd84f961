"""The samples of a source of shards: from the members of each shard to a manifest.

Fields are fixed over all shards before the first sample is written, so that the first sample has
the same ones as the last.  The order is that of the shards and of the archives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from headrace.errors import MemberError
from headrace.members import group_members, split_name
from headrace.placement import ABSENT
from headrace.shards import KEY, MAX_FIELDS

from ...errors import SamplesError, SourceEmptyError
from .writer import SampleWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.manifest import Manifest
    from headrace.shards import Shards

_SHOWN: Final = 8


class Members(NamedTuple):
    """The regular members of one shard, in the order of the archive."""

    names: Sequence[str]
    starts: NDArray[np.uint64]  # u64[m], where the data of each begins in the shard
    sizes: NDArray[np.int64]  # i64[m], bytes


def list_samples(
    source: Shards,
    table: Manifest,
    members_of: Callable[[int], Members | None],
    root: Path,
    progress: Callable[[int], None] = lambda samples: None,
) -> Manifest:
    """Return the manifest of the samples of some shards; blocks, and may take long.

    Args:
        source: Says what is a sample.
        table: The shards.
        members_of: Returns the members of a shard of the table, or None for one that is left out.
        root: Where manifests are; it is stored there.
        progress: Called now and then with the number of samples found so far.

    Raises:
        SamplesError: If members do not form samples, or a sample lacks a field.
        SourceEmptyError: If there is no sample.
    """
    fields = source.fields
    if fields is None:
        fields = _fields_of(source, table, members_of)
    numbers = {field: number for number, field in enumerate(fields)}
    seen = np.zeros(len(fields), dtype=bool)
    num_left_out = 0
    with SampleWriter(root, fields, [0] * len(fields), table) as writer:
        for row in range(len(table)):
            members = members_of(row)
            if members is None:
                num_left_out += 1
            else:
                own = _add_shard(source, table.name(row), row, members, numbers, writer)
                np.logical_or(seen, own, out=seen)
            writer.end_shard()
            progress(writer.num_entries)
        if num_left_out == len(table):
            raise SamplesError(
                source.location,
                f"none of the {num_left_out} shards of {source.location} can be indexed, and "
                "on_bad_shard='skip' leaves them all out: index one with on_bad_shard='error' to "
                "see why",
            )
        if not seen.all():
            raise _no_such_field(source, table, members_of, fields[int(np.argmin(seen))])
        return writer.finish()


def _no_such_field(
    source: Shards, table: Manifest, members_of: Callable[[int], Members | None], field: str
) -> SamplesError | SourceEmptyError:
    """Return the error about a field that no sample has, with those that there are."""
    known = _fields_found(source, table, members_of)
    if not known:
        return SourceEmptyError(
            source.location,
            f"no sample in the {len(table)} shard(s) of {source.location}: a sample has a name "
            "with a dot in its last component, as in 000.jpg",
        )
    hint = ""
    if source.rule == "webdataset" and source.lowercase and field != field.lower():
        hint = " in lower case (or see lowercase=)"
    return SamplesError(
        source.location,
        f"no sample of {source.location} has field {field!r}: give some of these to fields="
        f"{hint}: {_listed(known)}",
    )


def _listed(fields: Iterable[str]) -> str:
    names = sorted(fields)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _fields_of(
    source: Shards, table: Manifest, members_of: Callable[[int], Members | None]
) -> tuple[str, ...]:
    """Return the fields that any sample has, in alphabetical order; a made-up one if there is none.

    Raises:
        SamplesError: If there are too many, or one has a name that none may have.
    """
    found = _fields_found(source, table, members_of)
    if len(found) > MAX_FIELDS:
        raise SamplesError(
            source.location,
            f"the samples of {source.location} have more than {MAX_FIELDS} fields "
            f"({_listed(found)}): name those that you want with fields=",
        )
    if KEY in found:
        raise SamplesError(
            source.location,
            f"a sample of {source.location} has field {KEY!r}, under which it has its own name: "
            "name the fields that you want with fields=",
        )
    return tuple(sorted(found)) or ("",)


def _fields_found(
    source: Shards, table: Manifest, members_of: Callable[[int], Members | None]
) -> set[str]:
    """Return the fields that any sample has; some of them where there are too many."""
    found: set[str] = set()
    for row in range(len(table)):
        members = members_of(row)
        if members is None:
            continue
        rule, lowercase = source.rule, source.lowercase
        for name in members.names:
            split = split_name(name, rule, lowercase=lowercase)
            if split is not None:
                found.add(split.field)
        if len(found) > MAX_FIELDS:
            break
    return found


def _add_shard(
    source: Shards,
    shard: str,
    row: int,
    members: Members,
    numbers: dict[str, int],
    writer: SampleWriter,
) -> NDArray[np.bool_]:
    """Append the samples of one shard, and return which fields any of them has, bool[F]."""
    try:
        samples = group_members(members.names, source.rule, lowercase=source.lowercase, shard=shard)
    except MemberError as error:
        raise SamplesError(f"{source.location} {shard}", str(error)) from error
    # The member of each value, by sample and field; -1 for none.
    where = np.full((len(samples), len(numbers)), -1, dtype=np.int64)
    for place, sample in enumerate(samples):
        for field, member in sample.members.items():
            number = numbers.get(field)
            if number is not None:
                where[place, number] = member
    is_absent = where < 0
    has_any = ~is_absent.all(axis=1)
    if not has_any.all():
        samples = [samples[place] for place in np.flatnonzero(has_any).tolist()]
        where, is_absent = where[has_any], is_absent[has_any]
    keys = [sample.key.encode() for sample in samples]
    if source.missing == "error" and is_absent.any():
        place, number = np.argwhere(is_absent)[0].tolist()
        raise SamplesError(
            f"{source.location} {shard}",
            f"sample {samples[place].key!r} of shard {shard!r} lacks field "
            f"{list(numbers)[number]!r} (it has {_listed(samples[place].members)}): "
            f"name the fields that all samples have with fields=, or "
            "say what such a sample has with missing='none' or missing='empty'",
        )
    absent = 0 if source.missing == "empty" else ABSENT
    starts = np.where(is_absent, np.uint64(0), members.starts[where])
    lengths = np.where(is_absent, np.int64(absent), members.sizes[where])
    shards = np.full((len(keys), 1), row, dtype=np.uint32)
    writer.add(keys, starts, lengths, shards)
    has: NDArray[np.bool_] = np.logical_or.reduce(~is_absent, axis=0)
    return has
