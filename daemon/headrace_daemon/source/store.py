"""The state folder: manifests by digest, and which manifest a source has.

Everything is written aside and renamed.  A pointer from a source to its manifest stays until the
source is listed anew on request, so that files which come later change nothing in a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from headrace.manifest import UNREADABLE, Manifest, written_aside
from headrace.plans.data import combined_digest
from headrace.sources import is_streamed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from headrace.sources import Source


_DIGEST: Final = re.compile("[0-9a-f]{64}")


class ManifestStore:
    """Manifests in the state folder; methods block and may be called from any thread.

    Of one source, one thread at a time may keep a manifest.

    Args:
        root: The state folder; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "manifests"
        """Where the manifests are, by digest."""
        self._sources = root / "sources"
        self._combined = root / "combined"
        # Versions of the shards of a source, for each manifest that it has had.
        self._versions = root / "versions"
        # Loaded manifests that somebody still uses, and what guards them.
        self._loaded: WeakValueDictionary[str, Manifest] = WeakValueDictionary()
        self._lock = Lock()

    def current(self, source: Source) -> Manifest | None:
        """Return the manifest of a source as last listed, or None if it never was."""
        try:
            return self._load_of(source, self._listed(source)[0])
        except (IndexError, FileNotFoundError):
            return None

    def has_had(self, source: Source, digest: str) -> bool:
        """Return whether a source was ever listed as this manifest."""
        return digest in self._listed(source)

    def find(self, source: Source, digest: str | None) -> Manifest | None:
        """Return the manifest to open a source with, or None if it has to be listed.

        Args:
            source: What is opened.
            digest: The manifest that is wanted, which counts only if the source has had it: the
                store also has those of other sources.  None for the current one.
        """
        if digest is not None and self.has_had(source, digest):
            with suppress(FileNotFoundError):
                return self._load_of(source, digest)
        return self.current(source)

    def _load_of(self, source: Source, digest: str) -> Manifest:
        """Return a manifest as a source has it: with the versions that its shards have there.

        Copies of the same shards have one manifest, and other versions.

        Raises:
            FileNotFoundError: If it is not in the store, or the versions are not or are damaged.
            ManifestMismatchError: If its files are damaged.
        """
        manifest = self.load(digest)
        table = _shards_in(source, manifest)
        if table is None:
            return manifest
        path = self._versions_path(source, digest)
        try:
            # Read each time: another process may have listed the source anew.
            versions = np.load(path, allow_pickle=False)
        except UNREADABLE as error:  # one that is not there, too
            raise FileNotFoundError(path) from error
        if versions.dtype.kind != "S" or versions.shape != (len(table),):
            raise FileNotFoundError(path)
        known = versions if versions.any() else None
        if table is manifest:
            return manifest.with_versions(known)
        return manifest.with_shard_versions(known)

    def _keep_versions(self, source: Source, manifest: Manifest) -> None:
        table = _shards_in(source, manifest)
        if table is None:
            return
        versions = table.versions
        if versions is None:
            versions = np.zeros(len(table), dtype="S1")
        path = self._versions_path(source, manifest.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            np.save(aside, versions)

    def _versions_path(self, source: Source, digest: str) -> Path:
        return self._versions / f"{self._pointer(source).stem}-{digest}.npy"

    def load(self, digest: str) -> Manifest:
        """Return a manifest by its digest.

        Raises:
            FileNotFoundError: If it is not in the store.
            ManifestMismatchError: If its files are damaged.
        """
        with self._lock:
            manifest = self._loaded.get(digest)
            if manifest is None:
                manifest = Manifest.load(self.folder, digest)
                self._loaded[digest] = manifest
            return manifest

    def keep(self, source: Source, manifest: Manifest) -> Manifest:
        """Store a manifest as the current one of a source; return it as mapped from its files."""
        if _shards_in(source, manifest) is manifest:
            # Copies of the shards, and the same files as objects, share what is written here.
            manifest.with_versions(None).save(self.folder)
        else:
            manifest.save(self.folder)
        self._keep_versions(source, manifest)
        pointer = self._pointer(source)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "source": msgspec.to_builtins(source),
            "manifest": manifest.digest,
            "earlier": [one for one in self._listed(source) if one != manifest.digest],
        }
        with written_aside(pointer) as aside:
            aside.write(f"{json.dumps(content, indent=1)}\n".encode())
        return self._load_of(source, manifest.digest)

    def keep_combined(self, digests: Mapping[str, str]) -> None:
        """Note which manifests a stream of several sources has: a cursor names all as one.

        Args:
            digests: By name of the part, that of the main source first under an empty name.
        """
        path = self._combined / f"{combined_digest(digests)}.json"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write(f"{json.dumps(digests, indent=1)}\n".encode())

    def find_combined(self, digest: str) -> dict[str, str]:
        """Return what `keep_combined` noted under a digest; nothing if it never did."""
        if not _DIGEST.fullmatch(digest):  # clients say it
            return {}
        try:
            found = msgspec.json.decode((self._combined / f"{digest}.json").read_bytes())
            known = msgspec.convert(found, dict[str, str])
        except (OSError, ValueError):
            return {}
        return known if known and combined_digest(known) == digest else {}

    def _listed(self, source: Source) -> list[str]:
        """Return the digests that a source has had, newest first; none if that cannot be read."""
        try:
            pointer = json.loads(self._pointer(source).read_bytes())
            digests = [pointer["manifest"], *pointer.get("earlier", [])]
        except (FileNotFoundError, KeyError, TypeError, ValueError):  # the last: no JSON, no UTF-8
            return []
        return digests if all(isinstance(digest, str) for digest in digests) else []

    def _pointer(self, source: Source) -> Path:
        return self._sources / f"{hashlib.sha256(source.identity).hexdigest()[:32]}.json"


def _shards_in(source: Source, manifest: Manifest) -> Manifest | None:
    """Return the table of the shards that a source has; None if it has objects."""
    if manifest.placement is not None:
        return manifest.placement.table
    return manifest if is_streamed(source) else None
