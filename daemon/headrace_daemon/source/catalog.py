"""The catalog: from the description of a source to its manifest and its reader."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import ManifestMismatchError

from .local import LocalReader, list_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from headrace.manifest import Manifest
    from headrace.sources import Source

    from .reader import Reader
    from .store import ManifestStore


class OpenSource(NamedTuple):
    """A source that can be read."""

    manifest: Manifest
    reader: Reader


class Catalog:
    """Opens sources; each is listed once, however many feeds ask for it at the same time.

    Args:
        store: Where manifests are kept.
        executor: Threads for listing and reading.
    """

    def __init__(self, store: ManifestStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        # One opening at a time: the second asker of a source finds what the first has listed.
        self._lock = asyncio.Lock()

    async def open(
        self,
        source: Source,
        *,
        digest: str | None = None,
        progress: Callable[[int], None] = lambda found: None,
    ) -> OpenSource:
        """Return a source's manifest and reader.

        Args:
            source: What to open.
            digest: The manifest that a cursor was made for; None for the current one.
            progress: Called from a thread with the number of objects listed so far.

        Raises:
            SourceMissingError: If the source cannot be listed.
            ManifestMismatchError: If `digest` is given and the source does not have it.
        """
        await self._lock.acquire()
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, self._manifest, source, digest, progress
        )
        # The thread goes on when its asker is cancelled, so the lock is the thread's.
        work.add_done_callback(self._release)
        manifest = await asyncio.shield(work)
        return OpenSource(manifest, LocalReader(source.path, self._executor))

    def _release(self, work: asyncio.Future[Manifest]) -> None:
        self._lock.release()
        if not work.cancelled():
            work.exception()  # taken, or the loop reports that nobody did

    def _manifest(
        self, source: Source, digest: str | None, progress: Callable[[int], None]
    ) -> Manifest:
        # Only one that this source has had: the store also has those of other sources.
        if digest is not None and self._store.has_had(source, digest):
            with suppress(FileNotFoundError):
                return self._store.load(digest)
        manifest = self._store.current(source)
        if manifest is None:
            manifest = self._store.keep(source, list_folder(source, progress))
        if digest is not None and manifest.digest != digest:
            raise ManifestMismatchError(
                f"the cursor belongs to manifest {digest[:12]}…, {source.path} has "
                f"{manifest.digest[:12]}… ({len(manifest)} samples, {manifest.total_bytes} "
                "bytes): files were added, removed or changed in size since; restore the data, "
                "or start anew with seek()"
            )
        return manifest
