"""Cases of AIStore's package: the byte budget, the names of members, and the readers of shards.

Of a recorded reader the shards are made as tars and read by our walker and naming.  What it
delivers must come out of that, in all cases.  Where more is recorded than reading and naming
(shards dealt to workers, prefixes of buckets, fields that were seen of folders and links, streams
that are joined), the case is owed by the classes that take the place of the reader, and comes
later.
"""

from __future__ import annotations

import tarfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from headrace.compat.aistore import DynamicBatchSampler
from headrace.members import aistore_base, aistore_extension, field_names, group_members
from headrace_daemon.errors import ShardCorruptError
from tests.support.shards import tar_of, walked

from .verdicts import Result, Verdict, deviates, mismatch, refused, reproduced, undocumented

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.members import MemberRule

    from .cases import Case

KINDS: Final = ("DynamicBatchSampler", "member_name", "AISShardReader", "AISMultiShardStream")


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.kind == "AISShardReader":
        return _reader(case)
    if case.kind == "AISMultiShardStream":
        return _streams(case)
    if case.kind == "member_name":
        return reproduced(case, _name)
    if case.match != "deviate":
        return _with_skipped(case)
    budget = case.config["max_batch_size"]
    if budget < 0 or (budget == 0 and case.config["drop_last"]):
        return refused(case, run)
    return undocumented(case)


def run(case: Case) -> dict[str, Any]:
    """Run a case."""
    sizes = case.inputs["sizes"]
    objects = [SimpleNamespace(props_cached=SimpleNamespace(size=size)) for size in sizes]
    listing = SimpleNamespace(get_obj_list=lambda: objects)
    sampler = DynamicBatchSampler(listing, **case.config)
    if "torch_manual_seed" in case.inputs:
        import torch

        torch.manual_seed(case.inputs["torch_manual_seed"])
    for _ in range(case.inputs.get("epoch_after_seed", 0)):
        list(sampler)
    length = len(sampler)
    batches = list(sampler)
    if length != len(batches):
        raise AssertionError(f"len is {length}, but there are {len(batches)} batches")
    return {
        "batches": batches,
        "batch_bytes": [sum(sizes[index] for index in batch) for batch in batches],
    }


def _with_skipped(case: Case) -> Result:
    result = reproduced(case, run)
    if result.verdict is not Verdict.EXACT or case.error is not None:
        return result
    # The batches are those of the record, so what they lack must be what it says.
    delivered = {index for batch in case.record["batches"] for index in batch}
    skipped = {*case.record["skipped_zero"], *case.record["skipped_oversized"]}
    return mismatch("a skipped sample is delivered") if skipped & delivered else result


def _name(case: Case) -> dict[str, Any]:
    name = case.inputs["name"]
    return {"basename": aistore_base(name), "extension": aistore_extension(name)}


class _Shard(NamedTuple):
    """What our walker and naming find in a shard."""

    names: list[str]
    contents: list[str]


def _read(shard: Mapping[str, Any]) -> _Shard:
    """Make a recorded shard, and read it.

    Raises:
        ShardCorruptError: If it is no tar.
    """
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    for member in shard["members"]:
        kind = member.get("type")
        if kind is None:
            members.append((member["name"], member["text"].encode()))
            continue
        info = tarfile.TarInfo(member["name"])
        info.type = {"dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}[kind]
        info.linkname = member.get("target", "")
        members.append(info)
    data = b"no tar" * 500 if shard.get("garbage") else tar_of(members)
    found = walked(data)
    return _Shard(
        [one.name for one in found],
        [data[one.start : one.start + one.size].decode() for one in found],
    )


def _samples(shard: _Shard, rule: MemberRule) -> list[tuple[str, dict[str, str]]]:
    return [
        (sample.key, {field: shard.contents[at] for field, at in sample.members.items()})
        for sample in group_members(shard.names, rule)
    ]


def _reader(case: Case) -> Result:
    buckets = case.inputs["buckets"]
    try:
        shards = [_read(shard) for bucket in buckets for shard in bucket["shards"]]
    except ShardCorruptError:
        # Which class says so to users of the original is not a matter of reading.
        return Result(Verdict.LATER) if case.error == "TarError" else mismatch("a shard is no tar")
    if case.error is not None:
        return mismatch(f"{case.error} is owed, nothing was raised")
    if case.match == "deviate":
        # The original loses a member where our default does not.
        found = [sample for shard in shards for sample in _samples(shard, "webdataset")]
        contents = [content for shard in shards for content in shard.contents]
        delivered = [content for _, fields in case.record["samples"] for content in fields.values()]
        if len(delivered) == len(contents):
            return undocumented(case)
        return deviates(
            case,
            lambda case: sorted(content for _, fields in found for content in fields.values()),
            sorted(contents),
        )
    found = [sample for shard in shards for sample in _samples(shard, "aistore")]
    recorded = [
        (key, {field: content for field, content in fields.items() if content})
        for key, fields in case.record["samples"]
    ]
    is_whole = case.config["worker"] is None and not case.config["prefixes"]
    if found != recorded if is_whole else not _is_part(recorded, found):
        return mismatch(f"samples are {found!r}, owed is {recorded!r}")
    fields = field_names(
        sample for shard in shards for sample in group_members(shard.names, "aistore")
    )
    is_all = is_whole and list(fields) == case.record["observed_extensions"]
    return Result(Verdict.EXACT if is_all else Verdict.LATER)


def _is_part(few: Sequence[object], many: Sequence[object]) -> bool:
    return all(one in many for one in few)


def _streams(case: Case) -> Result:
    """Return whether the members that are joined are those of the shards, at least."""
    contents = [
        [content for shard in stream["shards"] for content in _read(shard).contents]
        for stream in case.inputs["streams"]
    ]
    for joined in case.record.get("samples", []):
        if any(one not in stream for one, stream in zip(joined, contents, strict=True)):
            return mismatch(f"{joined!r} is owed, the streams have {contents!r}")
    return Result(Verdict.LATER)
