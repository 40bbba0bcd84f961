"""Writers of archives that give out their bytes as they go."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Final, Protocol

import lz4.frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from .replies import Buffer

CONTENT_TYPES: Final = {
    ".tar": "application/x-tar",
    ".tgz": "application/gzip",
    ".tar.gz": "application/gzip",
    ".zip": "application/zip",
    ".tar.lz4": "application/x-lz4",
}
"""By the archive's extension."""


class Packer(Protocol):
    """Makes an archive."""

    def add(self, name: str, data: Buffer) -> bytes:
        """Return the bytes of one more member."""

    def close(self) -> bytes:
        """Return the bytes that end the archive."""


def packer(extension: str) -> Packer:
    """Return a packer for an archive with one of the extensions of `CONTENT_TYPES`."""
    if extension == ".zip":
        return _Zip()
    if extension == ".tar.lz4":
        compressor = lz4.frame.LZ4FrameCompressor()
        begun = compressor.begin()
        return _Compressed(compressor.compress, compressor.flush, begun)
    if extension in {".tgz", ".tar.gz"}:
        deflate = zlib.compressobj(wbits=31)
        return _Compressed(deflate.compress, deflate.flush, b"")
    return _Tar()


class _Tar:
    def add(self, name: str, data: Buffer) -> bytes:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        return b"".join((header, data, bytes(-len(data) % tarfile.BLOCKSIZE)))

    def close(self) -> bytes:
        return bytes(2 * tarfile.BLOCKSIZE)


class _Compressed:
    def __init__(
        self, compress: Callable[[bytes], bytes], flush: Callable[[], bytes], begun: bytes
    ) -> None:
        self._tar = _Tar()
        self._compress = compress
        self._flush = flush
        # The beginning of the stream, until it goes out with the first bytes.
        self._begun = begun

    def add(self, name: str, data: Buffer) -> bytes:
        return self._begin() + self._compress(self._tar.add(name, data))

    def close(self) -> bytes:
        return self._begin() + self._compress(self._tar.close()) + self._flush()

    def _begin(self) -> bytes:
        begun, self._begun = self._begun, b""
        return begun


class _Zip:
    def __init__(self) -> None:
        self._sink = _Sink()
        self._zip = zipfile.ZipFile(self._sink, "w")

    def add(self, name: str, data: Buffer) -> bytes:
        with self._zip.open(zipfile.ZipInfo(name), "w") as member:
            member.write(data)
        return self._sink.take()

    def close(self) -> bytes:
        self._zip.close()
        return self._sink.take()


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken; it cannot seek, so that a zip is streamed."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:  # type: ignore[override]
        self._written += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken
