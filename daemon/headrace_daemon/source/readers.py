"""From the description of a source to what reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.shards import MultiShard

from .local import LocalReader
from .roots import Roots

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from headrace.selections import Selection
    from headrace.sources import Source

    from .ais.store import AisStore
    from .reader import Reader


def reader_of(source: Source, ais: AisStore, executor: Executor) -> Reader | Roots:
    """Return the reader of a source: of its objects, or of its shards.

    Args:
        source: The source.
        ais: The cluster that buckets are in.
        executor: Threads for reading folders.
    """
    if isinstance(source, MultiShard):
        return Roots(
            {name: reader_of(stream, ais, executor) for name, stream in source.streams.items()}
        )
    readers: dict[str, Reader | Roots] = {}
    for selection in source.selections:
        if selection.label not in readers:
            readers[selection.label] = _reader_of(selection, ais, executor)
    # Without a label there is one root only.
    return readers[""] if "" in readers else Roots(readers)


def _reader_of(selection: Selection, ais: AisStore, executor: Executor) -> Reader:
    if selection.bucket is None:
        return LocalReader(selection.path, executor)
    return ais.reader(selection.bucket)
