"""Long lists of samples, made in a process of their own: Python code that would hold up the loop.

Naming and grouping the members of a million samples is some seconds of Python, in which a thread
would take the interpreter from everybody else.  The process finds the indices in the state folder
and stores the manifest there, so only names and digests travel.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.manifest import Manifest
from headrace.shards import Shards

from ...errors import SamplesError, SourceEmptyError
from .indexstore import IndexStore, Shard
from .policy import ShardPolicy
from .samples import Members, list_samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...errors import ObjectError

MIN_ELSEWHERE: Final = 100_000
"""Members from which on a process is worth it: it takes as long to start as some 50,000 take."""


class Job(msgspec.Struct):
    """What the process is told."""

    source: Shards
    table: str
    """A folder with the columns of the manifest of the shards."""

    shards: list[tuple[str, int, bytes]]
    """Name, size and identity of each."""

    left_out: set[int]
    """Rows of the table whose shards have no index."""

    state: str
    """The state folder, where the indices are."""

    known: str
    """Another one; empty for none."""

    root: str
    """Where manifests are."""


class Outcome(msgspec.Struct):
    """What the process says."""

    digest: str = ""
    """Of the manifest, which is in its place."""

    what: str = ""
    """Of the error, if there is one."""

    error: str = ""

    is_empty: bool = False
    """That the error is a `SourceEmptyError`."""


class NotMadeError(Exception):
    """The process did not come to an end: the list is to be made here."""


async def list_elsewhere(
    source: Shards,
    table: Path,
    shards: Sequence[Shard | ObjectError],
    *,
    left_out: set[int],
    state: Path,
    known: Path | None,
    root: Path,
) -> Manifest:
    """Return what `list_samples` does; cancelled, the process is gone.

    Args:
        source: Says what is a sample.
        table: A folder with the columns of the manifest of the shards.
        shards: What identifies each; an error where nothing does.
        left_out: Rows of the table whose shards have no index.
        state: The state folder, where the indices are.
        known: Another one, if they may be there too.
        root: Where manifests are.

    Raises:
        SamplesError, SourceEmptyError: As by `list_samples`.
        NotMadeError: If the process failed otherwise, or an index is gone by now.
    """
    facts = [
        (shard.name, shard.size, shard.identity) if isinstance(shard, Shard) else ("", 0, b"")
        for shard in shards
    ]
    other = "" if known is None else str(known)
    job = Job(source, str(table), facts, left_out, str(state), other, str(root))
    command = (sys.executable, "-P", "-m", __name__)
    try:
        # Its standard input stays open: the end of it tells that the daemon is gone.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
    except OSError as error:
        raise NotMadeError(str(error)) from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        said = await process.stdout.read()
        trouble = await process.stderr.read()
        await process.wait()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
    try:
        outcome = msgspec.json.decode(said, type=Outcome)
    except msgspec.DecodeError:
        last = trouble.decode(errors="replace").strip().rpartition("\n")[2]
        raise NotMadeError(last or f"it ended with status {process.returncode}") from None
    if outcome.error:
        kind = SourceEmptyError if outcome.is_empty else SamplesError
        raise kind(outcome.what, outcome.error)
    return Manifest.load(root, outcome.digest)


def _end_with_daemon() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Do the job that the first line of the standard input describes; print the outcome."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    threading.Thread(target=_end_with_daemon, daemon=True).start()
    known = Path(job.known) if job.known else None
    store = IndexStore(Path(job.state), ShardPolicy(links=job.source.links), known=known)

    def members_of(row: int) -> Members | None:
        if row in job.left_out:
            return None
        shard = Shard(*job.shards[row])
        index = store.load(shard)
        if index is None:
            raise RuntimeError(f"the index of shard {shard.name} is gone")
        return Members(index.all_names(), index.starts, index.sizes)

    try:
        made = list_samples(job.source, Manifest.map(Path(job.table)), members_of, Path(job.root))
        outcome = Outcome(digest=made.digest)
    except (SamplesError, SourceEmptyError) as error:
        is_empty = isinstance(error, SourceEmptyError)
        outcome = Outcome(what=error.what, error=str(error), is_empty=is_empty)
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
    sys.stdout.buffer.flush()
    os._exit(0)  # the thread waits in a read that nothing ends


if __name__ == "__main__":
    main()
