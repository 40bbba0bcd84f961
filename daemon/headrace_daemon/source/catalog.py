"""The catalog: from the description of a source to its manifest and its reader."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from headrace.errors import ManifestMismatchError
from headrace.sources import Objects

from ..errors import StateFolderError
from .inventory import Inventory, list_folders
from .progress import Progress, nobody
from .readers import reader_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor

    from headrace.manifest import Manifest
    from headrace.sources import Source

    from .ais.store import AisStore
    from .progress import Tell
    from .reader import Reader
    from .roots import Roots
    from .store import ManifestStore


logger = logging.getLogger(__name__)


class OpenSource(NamedTuple):
    """A source that can be read."""

    manifest: Manifest
    reader: Reader | Roots


class Catalog:
    """Opens sources; each is listed once, however many feeds ask for it at the same time.

    Args:
        manifests: Where manifests are kept.
        executor: Threads for listing and reading folders.
        ais: The cluster that buckets are in.
    """

    def __init__(self, manifests: ManifestStore, executor: Executor, ais: AisStore) -> None:
        self._manifests = manifests
        self._executor = executor
        self._ais = ais
        # One opening of a source at a time: the second asker finds what the first has listed.
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    async def open(
        self,
        source: Source,
        *,
        digest: str | None = None,
        tell: Tell = nobody,
    ) -> OpenSource:
        """Return a source's manifest and reader.

        Cancelled, a listing goes on for whoever asks next.

        Args:
            source: What to open.
            digest: The manifest that a cursor was made for; None for the current one.
            tell: Called, possibly from a thread, while it is listed and indexed.

        Raises:
            SourceMissingError: If the source cannot be listed.
            SamplesError, ObjectError: If its shards cannot be indexed.
            StoreUnavailableError, StoreAccessError: If its store does not let us list it.
            StateFolderError: If the manifest cannot be written or read.
            ManifestMismatchError: If `digest` is given and the source does not have it.
        """
        lock = self._locks.setdefault(source.identity, asyncio.Lock())
        await lock.acquire()
        try:
            work = self._find(source, digest, tell)
        except BaseException:
            lock.release()
            raise
        # It goes on when its asker is cancelled, so the lock is its own.
        work.add_done_callback(lambda work: _release(lock, work))
        try:
            manifest = await asyncio.shield(work)
        finally:
            del work  # or its error would keep this frame, and this frame the work
        return OpenSource(manifest, reader_of(source, self._ais, self._executor))

    async def open_all(
        self,
        sources: Mapping[str, Source],
        *,
        digest: str | None = None,
        tell: Tell = nobody,
    ) -> dict[str, OpenSource]:
        """Return the manifests and readers of several sources that make one stream, by name.

        Args:
            sources: What to open, the main source first.
            digest: The data that a cursor was made for: a manifest, or where there are several
                sources all of them together; None for the current ones.
            tell: As in `open`.
        """
        if len(sources) == 1:
            ((name, source),) = sources.items()
            return {name: await self.open(source, digest=digest, tell=tell)}
        loop = asyncio.get_running_loop()
        find = self._manifests.find_combined
        wanted = {} if digest is None else await loop.run_in_executor(self._executor, find, digest)
        found = {
            name: await self.open(source, digest=wanted.get(name), tell=tell)
            for name, source in sources.items()
        }
        digests = {name: source.manifest.digest for name, source in found.items()}
        if digests != wanted:
            keep = self._manifests.keep_combined
            await loop.run_in_executor(self._executor, keep, digests)
        return found

    def _find(self, source: Source, digest: str | None, tell: Tell) -> asyncio.Future[Manifest]:
        if isinstance(source, Objects) and not source.has_bucket:
            return asyncio.get_running_loop().run_in_executor(
                self._executor, self._find_in_folders, source, digest, tell
            )
        work = self._find_in_store(source, digest, tell)
        return self._ais.run_soon(work, name=f"open {source.location}")

    async def _find_in_store(self, source: Source, digest: str | None, tell: Tell) -> Manifest:
        loop = asyncio.get_running_loop()
        manifests = self._manifests

        def tell_and_log(far: Progress) -> None:
            if far.kind == "skipped":
                logger.warning("%s source=%s", far.text, source.location)
            tell(far)

        with _naming(source, manifests):
            manifest = await loop.run_in_executor(self._executor, manifests.find, source, digest)
            if manifest is None:
                inventory = Inventory(
                    manifests, ais=self._ais, executor=self._executor, tell=tell_and_log
                )
                taken = await inventory.take(source)
                manifest = await loop.run_in_executor(self._executor, manifests.keep, source, taken)
        return _checked(source, manifest, digest)

    def _find_in_folders(self, source: Objects, digest: str | None, tell: Tell) -> Manifest:
        with _naming(source, self._manifests):
            manifest = self._manifests.find(source, digest)
            if manifest is None:
                listed = list_folders(
                    source, self._manifests.folder, lambda found: tell(Progress("listing", found))
                )
                manifest = self._manifests.keep(source, listed)
        return _checked(source, manifest, digest)


def _release(lock: asyncio.Lock, work: asyncio.Future[Manifest]) -> None:
    lock.release()
    if not work.cancelled():
        work.exception()  # taken, or the loop reports that nobody did


@contextmanager
def _naming(source: Source, manifests: ManifestStore) -> Iterator[None]:
    """Name the state folder in what the system says about it; sources have errors of their own."""
    try:
        yield
    except OSError as error:
        raise StateFolderError(
            source.location,
            f"the manifest of {source.location} cannot be kept in {manifests.folder}: "
            f"{error.strerror or error}: make room there, or set [daemon] state_dir to another "
            "folder",
        ) from error


def _checked(source: Source, manifest: Manifest, digest: str | None) -> Manifest:
    if digest is not None and manifest.digest != digest:
        raise ManifestMismatchError(
            f"the cursor belongs to manifest {digest[:12]}…, {source.location} has "
            f"{manifest.digest[:12]}… ({len(manifest)} samples, {manifest.total_bytes} "
            "bytes): samples were added, removed or changed since; restore the data, "
            "or start anew with seek()"
        )
    return manifest
