"""The writer of a manifest: columns that grow in files while a listing comes in, page by page.

Memory is bounded by a page, however long the listing is; only one that is out of order is sorted as
a whole at the end.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.lib import format as npy

from headrace.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray


class ManifestWriter:
    """Writes a manifest into a folder aside; a context manager that removes it at the end.

    Args:
        root: Where manifests are; made if it is not there.
        is_ordered: That entries stay as they are appended, in whatever order, and no name comes
            twice; else they are sorted by name.
    """

    def __init__(self, root: Path, *, is_ordered: bool = False) -> None:
        self._root = root
        self._is_ordered = is_ordered
        self._last = b""
        self._is_sorted = True
        self._names_bytes = 0
        self.num_entries = 0
        """Entries so far."""

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=self._root))
        self._columns: list[_Column] = []
        try:
            self._sizes = self._column("sizes", np.int64)
            self._offsets = self._column("offsets", np.uint64)
            self._offsets.append(np.zeros(1, dtype=np.uint64))
            self._names = self._column("names", np.uint8)
            self._checksums = self._column("checksums", np.dtype("S1"))
            self._versions = self._column("versions", np.dtype("S1"))
        except BaseException:
            self._remove()
            raise
        return self

    def _column(self, name: str, dtype: DTypeLike, *, width: int | None = None) -> _Column:
        column = _Column(self._folder / f"{name}.npy", dtype, width=width)
        self._columns.append(column)
        return column

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for column in self._columns:
            # What a full disk did not take is not wanted any more.
            with suppress(OSError):
                column.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(
        self,
        names: Sequence[bytes],
        sizes: Sequence[int],
        checksums: Sequence[bytes],
        versions: Sequence[bytes],
    ) -> None:
        """Append entries; all four have the same length.

        Args:
            names: UTF-8.
            sizes: Bytes.
            checksums: ASCII, empty where unknown.
            versions: Likewise.
        """
        if not names:
            return
        self._is_sorted = self._is_sorted and self._last < names[0] and _rises(names)
        self._last = names[-1]
        lengths = np.fromiter(map(len, names), np.uint64, count=len(names))
        ends = np.cumsum(lengths) + np.uint64(self._names_bytes)
        self._names_bytes = int(ends[-1])
        self._sizes.append(np.array(sizes, dtype=np.int64))
        self._offsets.append(ends)
        self._names.append(np.frombuffer(b"".join(names), dtype=np.uint8))
        self._checksums.append(np.array(checksums, dtype=np.bytes_))
        self._versions.append(np.array(versions, dtype=np.bytes_))
        self.num_entries += len(names)

    def finish(self) -> Manifest:
        """Return the manifest of what was appended, stored under the root and mapped from there.

        Raises:
            ValueError: If they are sorted, and a name was appended twice.
        """
        self._finish_columns()
        if self._is_sorted or self._is_ordered:
            manifest = Manifest.map(self._folder)
            manifest.install(self._folder, self._root)
        else:
            manifest = _sorted(Manifest.map(self._folder))
            manifest.save(self._root)
        return Manifest.load(self._root, manifest.digest)

    def map(self) -> Manifest:
        """Return the manifest of what was appended, in its order, and store it nowhere.

        Its memory stays valid when the files are gone.
        """
        self._finish_columns()
        return Manifest.map(self._folder)

    def _finish_columns(self) -> None:
        for column in self._columns:
            column.finish()
        for optional in (self._checksums, self._versions):
            if not optional.has_content:
                optional.path.unlink()


def _rises(names: Sequence[bytes]) -> bool:
    return all(map(bytes.__lt__, names[:-1], names[1:]))


def _sorted(manifest: Manifest) -> Manifest:
    """Return a manifest in the order of names."""
    names = [
        (manifest.names[start:stop].tobytes(), index)
        for index, (start, stop) in enumerate(
            zip(manifest.offsets[:-1].tolist(), manifest.offsets[1:].tolist(), strict=True)
        )
    ]
    names.sort()
    for (name, _), (following, _) in pairwise(names):
        if name == following:
            raise ValueError(f"the name {name.decode()!r} is listed twice")
    order = np.array([index for _, index in names], dtype=np.int64)
    offsets = np.zeros(len(names) + 1, dtype=np.uint64)
    np.cumsum([len(name) for name, _ in names], out=offsets[1:])
    blob = np.frombuffer(b"".join([name for name, _ in names]), dtype=np.uint8)
    checksums, versions = manifest.checksums, manifest.versions
    return Manifest(
        manifest.sizes[order],
        offsets,
        blob,
        None if checksums is None else checksums[order],
        None if versions is None else versions[order],
    )


_COPY_ROWS: Final = 1 << 16
"""Rows of a column that are copied at a time when it becomes wider."""


class _Column:
    """One ``.npy`` file that grows; a column of text becomes wider where it has to.

    Args:
        path: The file.
        dtype: Of its numbers.
        width: Numbers in a row, if these are several.
    """

    def __init__(self, path: Path, dtype: DTypeLike, *, width: int | None = None) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        self._row_shape = () if width is None else (width,)
        self._file = path.open("w+b")
        self._rows = 0
        self.has_content = False
        """Whether a row of text is not empty."""
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: NDArray[Any]) -> None:
        if rows.dtype.itemsize > self._dtype.itemsize:
            self._widen(rows.dtype)
        if rows.dtype.kind == "S" and not self.has_content:
            self.has_content = bool(rows.any())
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._rows += len(rows)

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """Write the rows so far once more, with more bytes for each."""
        narrow, before, start = self._file, self._dtype, self._start
        narrow.seek(start)
        aside = self.path.with_suffix(".wider")
        self._file, self._dtype = aside.open("w+b"), dtype
        self._write_header()
        self._start = self._file.tell()
        with narrow:
            while rows := narrow.read(_COPY_ROWS * before.itemsize):
                self._file.write(np.frombuffer(rows, dtype=before).astype(dtype).data)
        aside.rename(self.path)

    def finish(self) -> None:
        """Write the header again, with the number of rows, and close the file."""
        self._file.seek(0)
        self._write_header()
        # numpy leaves room in a header for the number of rows to grow.
        assert self._file.tell() == self._start, "the header has outgrown its place"
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write_header(self) -> None:
        npy.write_array_header_1_0(
            self._file,
            {
                "descr": npy.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._rows, *self._row_shape),
            },
        )
