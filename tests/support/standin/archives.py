"""Archives: the files inside of an object, one of them, those that match, or their list."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from posixpath import normpath
from typing import TYPE_CHECKING, Final

import lz4.frame

from .names import has_dots
from .replies import HandlerDied, Refused, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from .names import Bucket
    from .objects import StoredObject
    from .replies import Call

_EXTENSIONS: Final = (".tar", ".tgz", ".tar.gz", ".zip", ".tar.lz4")
# What an archive without extension begins with.
_MAGIC: Final = {
    b"\x1f\x8b": ".tgz",
    b"PK\x03\x04": ".zip",
    b"\x04\x22\x4d\x18": ".tar.lz4",
}
_TAR_MAGIC_AT: Final = 257
_BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Args:
        name: As it is stored.
        data: Its bytes.
    """

    name: str
    data: memoryview


def is_asked_for(query: dict[str, str]) -> bool:
    """Return whether a query asks for a part of an archive, and not for the object."""
    return bool(query.get("archpath") or query.get("archregx") or query.get("archmode"))


def check_path(path: str) -> None:
    """Refuse the path of a file in an archive that AIStore refuses.

    Raises:
        Refused: 400.
    """
    if path.endswith("/") or has_dots(path):
        raise Refused(400, f'invalid archpath "{path}"', tcode="errInvalidPath")


def get(call: Call, bucket: Bucket, name: str, stored: StoredObject) -> Reply:
    """Answer GET of a file in an archive, or of all files that match.

    Raises:
        Refused: 400, for what is no archive and for bad questions; 404, if there is no such file.
        HandlerDied: For what ends AIStore's handler.
    """
    query = call.query
    path = query.get("archpath", "")
    if path and (query.get("archregx") or query.get("archmode")):
        raise Refused(400, "archpath and archregx (or archmode) are mutually exclusive")
    if path:
        found = find(stored, name, path, mime=query.get("archmime", ""))
        if found is None:
            raise Refused(404, f"{path} in {bucket}/{name} does not exist", tcode="ErrNotFound")
        return Reply(200, [("Content-Type", "application/octet-stream")], found)
    matches = _matcher(query.get("archregx", ""), query.get("archmode", "") or "regexp")
    kind = _kind(name, stored, query.get("archmime", ""))
    if kind == ".zip":
        raise HandlerDied
    chosen = [member for member in _members(stored, kind) if matches(member.name)]
    if not chosen:
        raise Refused(
            404, f"no matching files in {bucket}/{name} - does not exist", tcode="ErrNotFound"
        )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in chosen:
            info = tarfile.TarInfo(member.name)
            info.size = len(member.data)
            tar.addfile(info, io.BytesIO(member.data))
    headers = [("Content-Type", "application/x-tar")]
    return Reply(200, headers, archive.getvalue(), is_chunked=True)


def find(stored: StoredObject, name: str, path: str, *, mime: str = "") -> memoryview | None:
    """Return the bytes of one file in an archive, or None.

    Args:
        stored: The archive.
        name: Its name.
        path: Of the file; the name of the archive may come before it.
        mime: The kind of archive; empty: its name and its first bytes say it.

    Raises:
        Refused: 400, for what is no archive or for a bad path.
    """
    check_path(path)
    wanted = path.lstrip("/")
    wanted = wanted.removeprefix(f"{name}/")
    for member in _members(stored, _kind(name, stored, mime)):
        if member.name.removeprefix("/") == wanted:
            return member.data
    return None


def listed(name: str, stored: StoredObject) -> list[tuple[str, int]] | None:
    """Return cleaned names and sizes of the files in an archive; None for what is none."""
    kind = _by_extension(name)
    if kind is None:
        return None
    try:
        members = _members(stored, kind)
    except Refused:
        return None
    return [(normpath(f"/{member.name}").lstrip("/"), len(member.data)) for member in members]


def _members(stored: StoredObject, kind: str) -> list[Member]:
    if stored.members is None or stored.members[0] != kind:
        try:
            stored.members = (kind, list(_read(stored.data, kind)))
        except _BROKEN as broken:
            raise Refused(400, f"archive {kind}: {broken}") from broken
    return stored.members[1]


def _read(data: bytes, kind: str) -> list[Member]:
    if kind == ".zip":
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            return [
                Member(info.filename, memoryview(zipped.read(info)))
                for info in zipped.infolist()
                if not info.is_dir()
            ]
    if kind in {".tgz", ".tar.gz"}:
        data = gzip.decompress(data)
    elif kind == ".tar.lz4":
        data = lz4.frame.decompress(data)
    whole = memoryview(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [
            Member(info.name, whole[info.offset_data : info.offset_data + info.size])
            for info in tar
            if info.isfile()
        ]


def _kind(name: str, stored: StoredObject, mime: str) -> str:
    kind = _by_extension(mime if not mime or mime.startswith(".") else f".{mime}")
    kind = kind or _by_extension(name) or _by_magic(stored.data)
    if kind is None:
        raise Refused(400, f"{name}: not an archive (no extension, no signature)")
    return kind


def _by_extension(name: str) -> str | None:
    return next((known for known in _EXTENSIONS if name.endswith(known)), None)


def _by_magic(data: bytes) -> str | None:
    if data[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return ".tar"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)


def _matcher(text: str, mode: str) -> Callable[[str], bool]:
    if not text:
        return lambda name: True
    if mode == "regexp":
        try:
            pattern = re.compile(text)
        except re.error as wrong:
            raise Refused(400, f"error parsing regexp: {wrong}") from wrong
        return lambda name: pattern.search(name) is not None
    modes: dict[str, Callable[[str], bool]] = {
        "prefix": lambda name: name.startswith(text),
        "suffix": lambda name: name.endswith(text),
        "substr": lambda name: text in name,
        # The path without its extension, which begins at the last dot.
        "wdskey": lambda name: name.rpartition(".")[0] == text,
    }
    if mode not in modes:
        raise Refused(400, f'invalid matching mode "{mode}", expecting one of: {sorted(modes)}')
    return modes[mode]
