"""Makes the indices of many shards: several at a time, each stored as soon as it is made.

So nothing is lost when this is cancelled or fails: what was finished is found in the store by the
next call.  A shard is a chain of reads, each of which depends on the last one; memory is one piece
of at most 1 MiB for each shard under way, and the columns of its index.

Headers are read on the loop: a walker asks for so little at once that this takes about 1 ms, less
than it would take to hand it to a thread, which could not work at the same time anyway.  Files of
indices are read and written in the threads of an executor.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Protocol

from ...errors import ObjectError
from ..together import run_in_thread, run_together
from .index import ShardIndex
from .walk import TarWalker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from ..reader import RangeRequest
    from .indexstore import IndexStore, Shard

WIDTH: Final = 16
"""Shards under way at a time: where members are large, each is one small read after the other."""


class RangeReader(Protocol):
    """The part of a reader that indexing needs."""

    async def read(self, requests: Sequence[RangeRequest]) -> None:
        """Fill the places of all requests (see `Reader.read`)."""
        ...


async def index_shards(
    shards: Sequence[Shard],
    reader: RangeReader,
    store: IndexStore,
    *,
    executor: Executor,
    progress: Callable[[int, int, int], None] = lambda done, total, members: None,
    width: int = WIDTH,
    on_bad: Literal["fail", "skip"] = "fail",
) -> list[ShardIndex | ObjectError]:
    """Return the index of each shard, made or as it was stored.

    Cancelled, it leaves the indices that were finished in the store.

    Args:
        shards: Plain tars.
        reader: That of the source that they are in.
        store: Where indices are found and kept.
        executor: Threads for its files.
        progress: Called on the loop when a shard is done: how many are, of how many, and the
            members found so far.
        width: Shards under way at a time.
        on_bad: ``"fail"``: the first shard that cannot be read ends all; ``"skip"``: its error
            stands in the place of its index.

    Raises:
        ShardError: If a shard is damaged or refused, with its name.
        ObjectError: If it cannot be read.
        SourceError: If the source cannot be read.
        StateFolderError: If an index cannot be stored.
    """
    if width < 1:
        raise ValueError(f"width={width}: at least one shard at a time is read")
    made: list[ShardIndex | ObjectError | None] = [None] * len(shards)
    todo = iter(range(len(shards)))
    done = members = 0
    is_new = False

    async def work(todo: Iterator[int]) -> None:
        nonlocal done, members, is_new
        for number in todo:
            shard = shards[number]
            index: ShardIndex | ObjectError | None = None
            if shard.is_certain:
                index = await run_in_thread(executor, partial(store.load, shard))
            if index is None:
                try:
                    index = await _index(shard, reader, store)
                except ObjectError as error:
                    if on_bad == "fail":
                        raise
                    index = _without_frames(error)
                else:
                    if shard.is_certain:
                        await run_in_thread(executor, partial(store.keep, shard, index))
                        is_new = True
            made[number] = index
            done += 1
            members += 0 if isinstance(index, ObjectError) else len(index)
            progress(done, len(shards), members)

    jobs = (work(todo) for _ in range(min(width, len(shards))))
    await run_together(jobs, name="index shards")
    if is_new:
        await run_in_thread(executor, store.sweep)
    return [index for index in made if index is not None]


async def _index(shard: Shard, reader: RangeReader, store: IndexStore) -> ShardIndex:
    """Return the index of a shard, which is read."""
    walker = TarWalker(shard.name, shard.size, store.policy)
    piece = bytearray()
    while (wanted := walker.wanted) is not None:
        length = wanted.stop - wanted.start
        if length > len(piece):
            # Reads grow by doubling; only an extended header needs more than `MAX_BYTES`.
            piece = bytearray(length)
        target = memoryview(piece)[:length]
        await reader.read((shard.request(wanted.start, target),))
        walker.feed(wanted.start, target)
    return ShardIndex.of(walker.take(), shard.size)


def _without_frames(error: ObjectError) -> ObjectError:
    """Return an error to keep: its frames would keep what was read."""
    error.__traceback__ = None
    if error.__cause__ is not None:
        error.__cause__.__traceback__ = None
    return error
