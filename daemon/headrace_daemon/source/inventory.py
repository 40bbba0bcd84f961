"""The inventory of a source: each of its selections listed, and put together into one manifest.

The order is that of the selections, and within each that of its own list; with several selections
nothing is sorted over their edges.  Memory is bounded by a piece, as in each list.
"""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .local import list_folder
from .together import run_in_thread
from .writer import ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from headrace.manifest import Manifest
    from headrace.selections import Selection
    from headrace.sources import Source

    from .ais.store import AisStore

_PIECE: Final = 1 << 14
"""Entries that are copied at a time."""


def list_folders(
    source: Source, root: Path, progress: Callable[[int], None] = lambda found: None
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
            parts.add(selection, list_folder(selection, parts.progress))
        return parts.joined()


async def list_source(
    source: Source,
    root: Path,
    *,
    ais: AisStore,
    executor: Executor,
    progress: Callable[[int], None] = lambda found: None,
) -> Manifest:
    """List a source that has buckets.

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
    if len(selections) == 1:
        return await ais.list_objects(selections[0], root, progress)
    with _Sum(root, progress) as parts:
        for selection in selections:
            if selection.bucket is not None:
                found = await ais.list_objects(selection, parts.folder, parts.progress)
            else:
                found = await run_in_thread(
                    executor, partial(list_folder, selection, parts.progress)
                )
            await run_in_thread(executor, partial(parts.add, selection, found))
        return await run_in_thread(executor, parts.joined)


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

    def joined(self) -> Manifest:
        """Return all of it, stored and mapped."""
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
