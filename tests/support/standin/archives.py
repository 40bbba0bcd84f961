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

from .replies import HandlerDied, Refused, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from .names import Bucket
    from .nodes import Target
    from .objects import StoredObject
    from .replies import Call

_EXTENSIONS: Final = (".tar.lz4", ".tar.gz", ".tgz", ".zip", ".tar")
# What an archive without extension begins with.
_MAGIC: Final = {
    b"\x1f\x8b": ".tgz",
    b"PK\x03\x04": ".zip",
    b"\x04\x22\x4d\x18": ".tar.lz4",
}
_TAR_MAGIC_AT: Final = 257
_TRUNCATED: Final = "unexpected EOF"
_INVALID: Final = "archive/tar: invalid tar header"
# Go's HTTP server gives an answer of up to this size a length, if nobody has flushed it.
_MAX_UNFLUSHED_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class Member:
    """A file or a folder in an archive.

    Args:
        name: As it is stored.
        data: Its bytes.
        is_dir: Whether it is a folder.
    """

    name: str
    data: memoryview
    is_dir: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in an archive.

    Args:
        kind: The archive's extension.
        members: In the order of the archive, up to where it is broken.
        broken: What is wrong with it, in AIStore's words; empty, if nothing is.
    """

    kind: str
    members: list[Member]
    broken: str = ""


def is_asked_for(query: dict[str, str]) -> bool:
    """Return whether a query asks for a part of an archive, and not for the object."""
    # `archregx` means nothing without a mode, which may be empty.
    return bool(query.get("archpath")) or "archmode" in query


def known_extension(mime: str) -> str:
    """Return the extension of the archives of a type; ``.tar`` for no type.

    Raises:
        Refused: 400, for an unknown type.
    """
    if not mime:
        return ".tar"
    for extension in _EXTENSIONS:
        if extension[1:] in mime:
            return extension
    raise Refused(400, f'unknown mime type "{mime}"', tcode="errUnknownMime")


def get(call: Call, target: Target, bucket: Bucket, name: str, stored: StoredObject) -> Reply:
    """Answer GET of a file in an archive, or of all files that match.

    Raises:
        Refused: 400, for what is no archive and for bad questions; 404, if there is no such file.
        HandlerDied: For what ends AIStore's handler.
    """
    query = call.query
    mime = query.get("archmime", "")
    where = f"{bucket}/{name}"
    if path := query.get("archpath", ""):
        found = find(stored, name, path.lstrip("/").removeprefix(f"{name}/"), mime=mime)
        if found is None:
            message = f"{target.name}: {path} in {where} does not exist"
            raise Refused(404, message, tcode="ErrNotFound")
        return Reply(200, [("Content-Type", "application/octet-stream")], found)
    wanted, mode = query.get("archregx", ""), query["archmode"] or "prefix"
    asked = f"(archregx={wanted}, archmode={mode})"
    contents = _contents(stored, _kind(name, stored, mime))
    if contents.kind == ".zip":
        raise HandlerDied
    try:
        matches = matcher(wanted, mode)
    except re.error as wrong:
        why = f"{target.name}: failed to extract files that match {asked} from {where}, err: "
        raise Refused(400, f"{why}error parsing regexp: {wrong}", tcode="ErrFailedTo") from wrong
    chosen = [member for member in contents.members if matches(member.name)]
    if contents.broken:
        raise Refused(400, contents.broken)
    if not chosen:
        message = f"{target.name}: {asked} in {where} does not exist"
        raise Refused(404, message, tcode="ErrNotFound")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in chosen:
            info = tarfile.TarInfo(member.name)
            info.type = tarfile.DIRTYPE if member.is_dir else tarfile.REGTYPE
            info.size = len(member.data)
            tar.addfile(info, io.BytesIO(member.data))
        # Python would fill up the last record of 10 KiB, and Go does not.
        end = tar.offset + 2 * tarfile.BLOCKSIZE
    body = archive.getvalue()[:end]
    is_chunked = len(body) > _MAX_UNFLUSHED_BYTES
    return Reply(200, [("Content-Type", "application/x-tar")], body, is_chunked=is_chunked)


def find(stored: StoredObject, name: str, path: str, *, mime: str = "") -> memoryview | None:
    """Return the bytes of one file in an archive, or None.

    Args:
        stored: The archive.
        name: Its name.
        path: Of the file; a leading ``/`` makes no difference.
        mime: The kind of archive; empty: its name or its first bytes say it.

    Raises:
        Refused: 400, for what is no archive, and if there is no such file before it is broken.
    """
    contents = _contents(stored, _kind(name, stored, mime))
    wanted = path.lstrip("/")
    for member in contents.members:
        if member.name.removeprefix("/") == wanted and not member.is_dir:
            return member.data
    if contents.broken:
        if contents.kind == ".zip":
            raise Refused(400, f"failed to open {name}: {contents.broken}", tcode="wrapError")
        raise Refused(400, contents.broken)
    return None


def listed(name: str, stored: StoredObject) -> list[tuple[str, str, int]] | None:
    """Return names, cleaned names and sizes of the files in an archive; None for another object.

    Raises:
        Refused: If it is no archive, or not a whole one, though its name says so.
    """
    kind = _by_extension(name)
    if kind is None:
        return None
    contents = _contents(stored, kind)
    if contents.broken:
        raise Refused(400, contents.broken)
    return [
        (member.name, normpath(f"/{member.name}").lstrip("/"), len(member.data))
        for member in contents.members
        if not member.is_dir
    ]


def matcher(text: str, mode: str) -> Callable[[str], bool]:
    """Return what says whether a stored name matches.

    Raises:
        re.error: For a bad regular expression.
    """
    if text in {"", "*"}:
        return lambda name: True
    if mode == "regexp":
        pattern = re.compile(text)
        return lambda name: pattern.search(name) is not None
    modes: dict[str, Callable[[str], bool]] = {
        "prefix": lambda name: name.startswith(text),
        "suffix": lambda name: name.endswith(text),
        "substr": lambda name: text in name,
        # The path without its extension, which begins at the last dot.
        "wdskey": lambda name: name.rpartition(".")[0] == text,
    }
    return modes[mode]


def _contents(stored: StoredObject, kind: str) -> Contents:
    if stored.contents is None or stored.contents.kind != kind:
        stored.contents = _read(stored.data, kind)
    return stored.contents


def _read(data: bytes, kind: str) -> Contents:
    try:
        if kind == ".zip":
            return _read_zip(data)
        if kind in {".tgz", ".tar.gz"}:
            data = gzip.decompress(data)
        elif kind == ".tar.lz4":
            data = lz4.frame.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, RuntimeError) as broken:
        return Contents(kind, [], _TRUNCATED if isinstance(broken, EOFError) else str(broken))
    return _read_tar(data, kind)


def _read_zip(data: bytes) -> Contents:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        members = [
            Member(info.filename, memoryview(zipped.read(info)), info.is_dir())
            for info in zipped.infolist()
        ]
    return Contents(".zip", members)


def _read_tar(data: bytes, kind: str) -> Contents:
    if not data:
        return Contents(kind, [])
    whole = memoryview(data)
    members: list[Member] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                end = info.offset_data + info.size
                if info.isdir():
                    members.append(Member(f"{info.name}/", memoryview(b""), is_dir=True))
                elif info.isfile() and end <= len(data):
                    members.append(Member(info.name, whole[info.offset_data : end]))
            rest = data[tar.offset : tar.offset + tarfile.BLOCKSIZE]
    except tarfile.ReadError as broken:
        is_short = "truncated" in str(broken) or "unexpected end" in str(broken)
        return Contents(kind, members, _TRUNCATED if is_short else _INVALID)
    # Python takes what it cannot read for the end.
    if rest and len(rest) < tarfile.BLOCKSIZE:
        return Contents(kind, members, _TRUNCATED)
    return Contents(kind, members, _INVALID if any(rest) else "")


def _kind(name: str, stored: StoredObject, mime: str) -> str:
    if mime:
        return known_extension(mime)
    kind = _by_extension(name) or _by_magic(stored.data)
    if kind is None:
        raise Refused(400, f'unrecognized or unsupported file format: "{name}"')
    return kind


def _by_extension(name: str) -> str | None:
    return next((known for known in _EXTENSIONS if name.endswith(known)), None)


def _by_magic(data: bytes) -> str | None:
    if data[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return ".tar"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
