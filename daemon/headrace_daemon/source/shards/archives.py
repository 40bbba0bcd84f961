"""The kinds of archives that are shards, and how the members of any of them are streamed.

A plain tar is indexed, and read in any order (`make`).  The others, and a tar on request, are read
from the beginning to the end, in the order of the archive.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from headrace.shards import ends_like

from ...errors import ShardRefusedError
from ..together import run_in_thread
from .policy import DEFAULT_POLICY
from .stream import STEP_BYTES, StreamedMember, TarStream
from .zips import ZipMember, ZipWalker, unpack_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from .indexstore import Shard
    from .make import RangeReader
    from .policy import ShardPolicy

ArchiveKind = Literal["tar", "tar.gz", "tar.lz4", "zip"]
"""What a shard is, by its name."""

READ_BYTES: Final = 1 << 20
"""What is read of a shard at once; of a zip at least one member."""

_SUFFIXES: Final[tuple[tuple[str, ArchiveKind], ...]] = (
    (".tar", "tar"),
    (".tar.gz", "tar.gz"),
    (".tgz", "tar.gz"),
    (".tar.lz4", "tar.lz4"),
    (".zip", "zip"),
)


def kind_of(name: str) -> ArchiveKind:
    """Return what a shard is by the end of its name.

    Raises:
        ShardRefusedError: If that says nothing.
    """
    for suffix, kind in _SUFFIXES:
        if ends_like(name, (suffix,)):
            return kind
    raise ShardRefusedError(
        name,
        f"its name says not what it is: shards end with {', '.join(end for end, _ in _SUFFIXES)}; "
        "rename it, or leave it out with suffix=",
    )


async def stream_members(
    shard: Shard,
    reader: RangeReader,
    *,
    executor: Executor,
    max_member_bytes: int,
    policy: ShardPolicy = DEFAULT_POLICY,
    hold: Callable[[int], Awaitable[None]] | None = None,
) -> AsyncGenerator[StreamedMember, None]:
    """Yield the members of a shard in their order, with what they hold.

    Memory is two reads (`READ_BYTES`), two steps (256 KiB), one member and an eighth of it; of a
    zip twice `READ_BYTES`, or a larger member packed and unpacked, the megabyte or so that is
    unpacked at once, and what its directory makes (see `ZipWalker`).

    Args:
        shard: What is read.
        reader: That of its source.
        executor: Threads that unpack.
        max_member_bytes: The largest member that is taken.
        policy: What is refused.
        hold: Called before more memory is taken, or when it is less again, with the bytes that are
            held from then on until it is called again: without the members that were yielded.

    Raises:
        ShardError: If it is damaged or refused, behind the members that stand before the damage.
        ExtraMissingError: If a package is missing that reads this kind.
        SourceError: If it cannot be read.
    """
    kind = kind_of(shard.name)
    if kind == "zip":
        walker = ZipWalker(shard.name, shard.size, max_member_bytes=max_member_bytes, policy=policy)
        while (wanted := walker.wanted) is not None:
            if hold is not None:
                await hold(2 * (walker.held_bytes + wanted.stop - wanted.start))
            tail = await _read(shard, reader, *wanted)
            await run_in_thread(executor, partial(walker.feed, tail))
            del tail
            if hold is not None:
                await hold(walker.finding_bytes)
            await run_in_thread(executor, walker.find)
        for group in _groups(walker.members):
            start = group[0].start
            if hold is not None:
                unpacked_bytes = sum(member.size for member in group)
                read_bytes = 2 * (group[-1].stop - start)
                await hold(walker.held_bytes + read_bytes + unpacked_bytes)
            data = await _read(shard, reader, start, group[-1].stop)
            unpacked, error = await run_in_thread(
                executor, partial(unpack_all, shard.name, group, start, memoryview(data))
            )
            for member in unpacked:
                yield member
            if error is not None:
                raise error
        return
    stream = TarStream(shard.name, kind, max_member_bytes=max_member_bytes, policy=policy)
    at = held = 0
    least = 2 * min(READ_BYTES, shard.size) + 2 * STEP_BYTES
    while not stream.is_over:
        # What is begun grows piece by piece, and Python leaves an eighth of room behind it.
        needed = least + stream.begun_bytes + stream.begun_bytes // 8
        if hold is not None and needed != held:
            await hold(needed)
            held = needed
        if stream.needs_input:
            if at < shard.size:
                stop = min(at + READ_BYTES, shard.size)
                stream.feed(await _read(shard, reader, at, stop))
                at = stop
            else:
                stream.finish()
        for member in await run_in_thread(executor, stream.step):
            yield member


def _groups(members: Sequence[ZipMember]) -> Iterator[list[ZipMember]]:
    """Yield runs of members that stand one after the other, and are read and unpacked at once."""
    group: list[ZipMember] = []
    unpacked_bytes = 0
    for member in members:
        unpacked_bytes += member.size
        if group and (
            member.start != group[-1].stop
            or member.stop - group[0].start > READ_BYTES
            or unpacked_bytes > READ_BYTES
        ):
            yield group
            group, unpacked_bytes = [], member.size
        group.append(member)
    if group:
        yield group


async def _read(shard: Shard, reader: RangeReader, start: int, stop: int) -> bytes:
    target = bytearray(stop - start)
    await reader.read((shard.request(start, memoryview(target)),))
    return bytes(target)
