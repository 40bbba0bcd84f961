"""The writer of a manifest whose samples lie in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.placement import write_fields, write_table

from ..writer import ManifestWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from headrace.manifest import Manifest


class SampleWriter(ManifestWriter):
    """Writes samples, some at a time; a context manager that removes what it did not finish.

    Args:
        root: Where manifests are.
        fields: Names of the F fields.
        streams: For each, which of the K streams it comes from.
        table: All shards, stream by stream.
    """

    def __init__(
        self, root: Path, fields: Sequence[str], streams: Sequence[int], table: Manifest
    ) -> None:
        super().__init__(root, is_ordered=True)
        self._fields = tuple(fields)
        self._streams = tuple(streams)
        self._table = table

    def __enter__(self) -> SampleWriter:
        super().__enter__()
        try:
            self._starts = self._column("starts", np.uint64, width=len(self._fields))
            self._lengths = self._column("lengths", np.int64, width=len(self._fields))
            self._shards = self._column("shards", np.uint32, width=max(self._streams) + 1)
            self._bounds = self._column("bounds", np.uint64)
            self._bounds.append(np.zeros(1, dtype=np.uint64))
            write_fields(self._folder, self._fields, self._streams)
            write_table(self._folder, self._table)
        except BaseException:
            self._remove()
            raise
        return self

    def add(
        self,
        keys: Sequence[bytes],
        starts: NDArray[np.uint64],
        lengths: NDArray[np.int64],
        shards: NDArray[np.uint32],
    ) -> None:
        """Append m samples.

        Args:
            keys: UTF-8.
            starts: u64[m, F].
            lengths: i64[m, F].
            shards: u32[m, K], rows of the table.
        """
        nothing = [b""] * len(keys)
        sizes = np.maximum(lengths, 0).sum(axis=1)
        self.append(keys, sizes.tolist(), nothing, nothing)
        self._starts.append(starts)
        self._lengths.append(lengths)
        self._shards.append(shards)

    def finish(self) -> Manifest:
        """Return the manifest, stored and mapped; its shards have the versions that were given."""
        return super().finish().with_shard_versions(self._table.versions)

    def end_shard(self) -> None:
        """The samples of the next shard of the first stream follow."""
        self._bounds.append(np.array([self.num_entries], dtype=np.uint64))
