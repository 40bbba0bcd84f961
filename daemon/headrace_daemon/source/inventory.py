"""The inventory of a source: what is listed and indexed, put together into one manifest.

The order is that of the selections, and within each that of its own list; with several selections
nothing is sorted over their edges.  Memory is bounded by a piece, as in each list.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.shards import MultiShard, Shards

from ..errors import ObjectError, SourceEmptyError
from .local import list_folder
from .progress import Progress, Tell, nobody
from .readers import reader_of
from .shards.elsewhere import MIN_ELSEWHERE, NotMadeError, list_elsewhere
from .shards.index import ShardIndex
from .shards.indexstore import IndexStore, Shard
from .shards.join import join_streams
from .shards.make import index_shards
from .shards.policy import ShardPolicy
from .shards.samples import Members, list_samples
from .shards.table import as_indexed, shards_of
from .together import run_in_thread
from .writer import ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from headrace.located import Located
    from headrace.manifest import Manifest
    from headrace.selections import Selection
    from headrace.sources import Source

    from .ais.store import AisStore
    from .store import ManifestStore

logger = logging.getLogger(__name__)

_PIECE: Final = 1 << 14
"""Entries that are copied at a time."""

_TOLD: Final = 100
"""How often at most somebody is told how far an indexing is, and of shards that are left out."""


def list_folders(
    source: Located, root: Path, progress: Callable[[int], None] = lambda found: None
) -> Manifest:
    """List a source that has no buckets; blocks, and may take long.

    Args:
        source: What to list.
        root: Where manifests are.
        progress: Called now and then with the number of files found so far.

    Raises:
        SourceError: If something of it cannot be listed, or is empty.
    """
    selections = source.selections
    if len(selections) == 1:
        return list_folder(selections[0], progress)
    with _Sum(root, progress) as parts:
        for selection in selections:
            with parts.maybe_empty(source):
                parts.add(selection, list_folder(selection, parts.progress))
        return parts.joined()


async def list_source(
    source: Located,
    root: Path,
    *,
    ais: AisStore,
    executor: Executor,
    progress: Callable[[int], None] = lambda found: None,
) -> Manifest:
    """List the objects of a source.

    Args:
        source: What to list.
        root: Where manifests are.
        ais: The cluster that the buckets are in.
        executor: Threads for listing folders, and for putting lists together.
        progress: Called, possibly from a thread, with the number of objects found so far.

    Raises:
        SourceError: If something of it cannot be listed, or is empty.
    """
    selections = source.selections
    if not source.has_bucket:
        return await run_in_thread(executor, partial(list_folders, source, root, progress))
    if len(selections) == 1:
        return await ais.list_objects(selections[0], root, progress)
    with _Sum(root, progress) as parts:
        for selection in selections:
            with parts.maybe_empty(source):
                if selection.bucket is not None:
                    found = await ais.list_objects(selection, parts.folder, parts.progress)
                else:
                    found = await run_in_thread(
                        executor, partial(list_folder, selection, parts.progress)
                    )
                await run_in_thread(executor, partial(parts.add, selection, found))
        return await run_in_thread(executor, parts.joined)


class Inventory:
    """Takes the inventory of sources.

    Args:
        manifests: Where manifests and indices are kept.
        ais: The cluster that buckets are in.
        executor: Threads for listing folders, and for putting things together.
        tell: Called, possibly from a thread, while it goes on; at most some hundred times for each
            list of shards.
        known: Another state folder, whose indices are used and not changed.
    """

    def __init__(
        self,
        manifests: ManifestStore,
        *,
        ais: AisStore,
        executor: Executor,
        tell: Tell = nobody,
        known: Path | None = None,
    ) -> None:
        self._manifests = manifests
        self._root = manifests.folder
        self._ais = ais
        self._executor = executor
        self._tell = tell
        self._known = known

    async def take(self, source: Source) -> Manifest:
        """Return what a source has now, for `ManifestStore.keep`.

        Of shards that are streamed, that is the table of shards, with their versions.  Its files
        may be gone when this returns: what is mapped of them stays.

        Raises:
            SourceError: If something of it cannot be listed or indexed, or it is empty.
        """
        if isinstance(source, MultiShard):
            return await self._take_streams(source)
        if isinstance(source, Shards) and not source.is_streamed:
            return await self._take_shards(source, self._root)
        table = await self._list(source, self._root)
        if isinstance(source, Shards):
            shards = await run_in_thread(self._executor, partial(shards_of, source, table))
            table = as_indexed(table, shards)
        return table

    async def _list(self, source: Located, root: Path, what: str = "") -> Manifest:
        return await list_source(
            source,
            root,
            ais=self._ais,
            executor=self._executor,
            progress=lambda found: self._tell(Progress("listing", found, what=what)),
        )

    async def _take_shards(self, source: Shards, root: Path, what: str = "") -> Manifest:
        with self._aside() as folder:
            table = await self._list(source, folder, what)
            shards, indices = await self._index(source, table, what)
            table = as_indexed(table, shards)
            if _may_go_elsewhere(shards, indices):
                place = folder / "table"
                await run_in_thread(self._executor, partial(table.write, place))
                try:
                    made = await list_elsewhere(
                        source,
                        place,
                        shards,
                        left_out={
                            row for row, one in enumerate(indices) if isinstance(one, ObjectError)
                        },
                        state=self._manifests.root,
                        known=self._known,
                        root=folder,
                    )
                    # What it was given on disk has none.
                    return made.with_shard_versions(table.versions)
                except NotMadeError as error:
                    logger.warning("list is made here source=%s: %s", source.location, error)

            def members_of(row: int) -> Members | None:
                index = indices[row]
                if isinstance(index, ObjectError):
                    return None
                return Members(index.all_names(), index.starts, index.sizes)

            return await run_in_thread(
                self._executor, partial(list_samples, source, table, members_of, root)
            )

    async def _take_streams(self, source: MultiShard) -> Manifest:
        with self._aside() as folder:
            streams = {
                name: await self._take_shards(stream, folder, name)
                for name, stream in source.streams.items()
            }
            return await run_in_thread(
                self._executor, partial(join_streams, source, streams, self._root)
            )

    async def _index(
        self, source: Shards, table: Manifest, what: str
    ) -> tuple[list[Shard | ObjectError], list[ShardIndex | ObjectError]]:
        """Return what the shards of a table are now, and the index of each."""
        shards = await run_in_thread(self._executor, partial(shards_of, source, table))
        there = [shard for shard in shards if isinstance(shard, Shard)]

        def progress(done: int, total: int, members: int) -> None:
            if done % -(-total // _TOLD) == 0 or done == total:
                self._tell(Progress("indexing", done, total, members, what))

        made = await index_shards(
            there,
            reader_of(source, self._ais, self._executor),
            IndexStore(self._manifests.root, ShardPolicy(links=source.links), known=self._known),
            executor=self._executor,
            progress=progress,
            on_bad="skip" if source.on_bad_shard == "skip" else "fail",
        )
        found = iter(made)
        indices = [next(found) if isinstance(shard, Shard) else shard for shard in shards]
        self._tell_bad([index for index in indices if isinstance(index, ObjectError)])
        return shards, indices

    def _tell_bad(self, errors: Sequence[ObjectError]) -> None:
        """Tell which shards are left out: of many, how many more there are."""
        for number, error in enumerate(errors[:_TOLD], 1):
            self._tell(Progress("skipped", number, what=f"shard left out: {error}"))
        if len(errors) > _TOLD:
            more = f"{len(errors) - _TOLD} more shards left out"
            self._tell(Progress("skipped", len(errors), what=more))

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """Return a folder for what is not needed for itself."""
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=self._root) as aside:
            yield Path(aside)


def _may_go_elsewhere(
    shards: Sequence[Shard | ObjectError], indices: Sequence[ShardIndex | ObjectError]
) -> bool:
    """Return whether a process is worth it, and finds all indices in the state folder."""
    num_members = 0
    for shard, index in zip(shards, indices, strict=True):
        if isinstance(shard, Shard) and isinstance(index, ShardIndex):
            if not shard.is_certain:
                return False  # nothing keeps its index
            num_members += len(index)
    return num_members >= MIN_ELSEWHERE


class _Sum:
    """Lists that are put together; a context manager, whose end removes what is not needed.

    Args:
        root: Where manifests are.
        progress: Of all lists together.
    """

    def __init__(self, root: Path, progress: Callable[[int], None]) -> None:
        self._root = root
        self._writer = ManifestWriter(root, is_ordered=True)
        self._progress = progress
        # Of a selection that was passed over.
        self._empty: SourceEmptyError | None = None

    def __enter__(self) -> _Sum:
        self._writer.__enter__()
        self._aside = tempfile.TemporaryDirectory(prefix=".writing-", dir=self._root)
        self.folder = Path(self._aside.name)
        """For lists that are not needed for themselves."""
        return self

    def __exit__(self, *details: object) -> None:
        self._aside.cleanup()
        self._writer.__exit__(None, None, None)

    def progress(self, found: int) -> None:
        """Tell how much the list under way has."""
        self._progress(self._writer.num_entries + found)

    def add(self, selection: Selection, manifest: Manifest) -> None:
        """Append the list of a selection."""
        lead = f"{selection.label}/".encode() if selection.label else b""
        for names, sizes, checksums, versions in _pieces(manifest):
            self._writer.append([lead + name for name in names], sizes, checksums, versions)
        self._progress(self._writer.num_entries)

    @contextmanager
    def maybe_empty(self, source: Located) -> Iterator[None]:
        """Pass over a selection without an object, if the source takes that."""
        try:
            yield
        except SourceEmptyError as error:
            if not isinstance(source, Shards) or source.on_empty != "skip":
                raise
            self._empty = error.with_traceback(None)

    def joined(self) -> Manifest:
        """Return all of it, stored and mapped.

        Raises:
            SourceEmptyError: If all that there was was passed over.
        """
        if self._empty is not None and not self._writer.num_entries:
            raise self._empty
        return self._writer.finish()


def _pieces(
    manifest: Manifest,
) -> Iterable[tuple[list[bytes], list[int], list[bytes], list[bytes]]]:
    """Yield names, sizes, checksums and versions, some at a time."""
    length = len(manifest)
    for start in range(0, length, _PIECE):
        stop = min(start + _PIECE, length)
        offsets = manifest.offsets[start : stop + 1].tolist()
        blob = manifest.names[offsets[0] : offsets[-1]].tobytes()
        first = offsets[0]
        names = [blob[one - first : following - first] for one, following in pairwise(offsets)]
        unknown = [b""] * len(names)
        yield (
            names,
            manifest.sizes[start:stop].tolist(),
            unknown if manifest.checksums is None else manifest.checksums[start:stop].tolist(),
            unknown if manifest.versions is None else manifest.versions[start:stop].tolist(),
        )
