"""The table of shards: what identifies each shard of a listing, and who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.manifest import Manifest

from ...errors import ObjectChangedError, ObjectError, ObjectUnreadableError
from .indexstore import Shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.shards import Shards


def shards_of(source: Shards, table: Manifest) -> list[Shard | ObjectError]:
    """Return what identifies each shard of a listing; looks at those that are files.

    In the place of a file that is gone, or has changed since it was listed, stands an error.

    Raises:
        ObjectError: That error, where a bad shard is not to be left out.
    """
    roots = {selection.label: selection for selection in source.selections}
    indices = np.arange(len(table), dtype=np.uint64)
    shards: list[Shard | ObjectError] = []
    for name, size, checksum, version in zip(
        table.names_of(indices),
        table.sizes.tolist(),
        table.checksums_of(indices),
        table.versions_of(indices),
        strict=True,
    ):
        label, _, rest = name.partition("/")
        root, own = (roots[""], name) if "" in roots else (roots[label], rest)
        try:
            if root.bucket is not None:
                shard = Shard.of_object(root.root, own, size, checksum, version)
            else:
                shard = _of_file(own, Path(root.path, own), size)
        except ObjectError as error:
            if source.on_bad_shard == "error":
                raise
            shards.append(error)
        else:
            shards.append(shard._replace(name=name))
    return shards


def _of_file(name: str, path: Path, size: int) -> Shard:
    try:
        shard = Shard.of_file(name, path)
    except OSError as error:
        raise ObjectUnreadableError(
            str(path), f"shard {path} cannot be read: {error.strerror}"
        ) from error
    if shard.size != size:
        raise ObjectChangedError(
            str(path),
            f"shard {path} has {shard.size} bytes, it had {size} when it was listed: let it be "
            "written, then list anew",
        )
    return shard


def as_indexed(table: Manifest, shards: Sequence[Shard | ObjectError]) -> Manifest:
    """Return a table with the versions that its shards had when they were looked at."""
    versions = np.array(
        [shard.version if isinstance(shard, Shard) else b"" for shard in shards], dtype=np.bytes_
    )
    if not versions.any():
        return table
    return Manifest(table.sizes, table.offsets, table.names, table.checksums, versions)
