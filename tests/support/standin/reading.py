"""GET and HEAD of an object at a target: headers, ranges, and the older and newer form of HEAD."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from . import archives
from .names import file_of, is_long
from .replies import HandlerDied, Headers, Refused, Reply

if TYPE_CHECKING:
    from .names import Bucket
    from .nodes import Target
    from .objects import StoredObject
    from .replies import Call

_BINARY: Final = ("Content-Type", "application/octet-stream")
_PROPS: Final = frozenset(
    {
        *("name", "size", "checksum", "version", "atime", "copies", "ec", "custom"),
        *("location", "chunked", "last-modified", "etag"),
    }
)
_BASE_36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def get(call: Call, target: Target, bucket: Bucket, name: str, stored: StoredObject) -> Reply:
    """Answer GET.

    Raises:
        Refused: 400 or 416, for a range that cannot be served; as `archives` does.
        HandlerDied: For what ends AIStore's handler.
    """
    query = call.query
    text = call.headers.get("Range", "")
    if archives.is_asked_for(query):
        if text:
            asked = f"range: {text}, arch query: ({_archive_query(query)})"
            raise Refused(
                400,
                f"cannot range-read archived content {asked} - operation not supported",
                tcode="ErrUnsupp",
            )
        return archives.get(call, target, bucket, name, stored)
    headers = _common(stored)
    stored.read_ns = time.time_ns()
    if not text:
        return Reply(200, [*headers, _BINARY], stored.data)
    size = len(stored.data)
    start, length = parse_range(text, size, f"{bucket}/{name}")
    headers += [
        ("Accept-Ranges", "bytes"),
        ("Content-Range", f"bytes {start}-{start + length - 1}/{size}"),
        _BINARY,
    ]
    return Reply(206, headers, memoryview(stored.data)[start : start + length])


def parse_range(text: str, size: int, full_name: str) -> tuple[int, int]:
    """Return start and length of the one range that a header asks for, clipped.

    Args:
        text: The header.
        size: Of the object, in bytes.
        full_name: Of the object, for messages.

    Raises:
        Refused: 416; with the size, if the range begins behind the end.
        HandlerDied: If there is no range in it.
    """
    if not text.startswith("bytes="):
        raise Refused(416, f'read range "{text}" is invalid (prefix)')
    ranges: list[tuple[int, int]] = []
    behind = ""
    for part in text.removeprefix("bytes=").split(","):
        one = part.strip()
        if not one:
            continue
        if "-" not in one:
            raise Refused(416, f'read range "{text}" is invalid (-)')
        first, _, last = (word.strip() for word in one.partition("-"))
        if not first:
            if not last.isdecimal():
                raise Refused(416, f'read range "{one}" is invalid as per RFC 7233 Section 2.1')
            length = min(int(last), size)
            ranges.append((size - length, length))
            continue
        if not first.isdecimal():
            raise Refused(416, f'read range "{one}" is invalid (start)')
        start = int(first)
        if start >= size:
            behind = one
            continue
        if last and (not last.isdecimal() or int(last) < start):
            raise Refused(416, f'read range "{one}" is invalid (end)')
        end = min(int(last), size - 1) if last else size - 1
        ranges.append((start, end - start + 1))
    if len(ranges) > 1:
        message = f"cannot multi-range read {full_name} - operation not supported"
        raise Refused(416, message, tcode="ErrUnsupp")
    if behind and not ranges:
        raise Refused(
            416,
            f"size={size}: not satisfiable range [{behind}]",
            tcode="ErrRangeNotSatisfiable",
            headers=[("Content-Range", f"bytes */{size}")],
        )
    if not ranges:
        raise HandlerDied
    return ranges[0]


def head(call: Call, target: Target, bucket: Bucket, name: str, stored: StoredObject) -> Reply:
    """Answer HEAD.

    Raises:
        Refused: 400, for unknown properties, or if the object is there and must not be.
    """
    presence = call.query.get("presence", "")
    if presence in {"1", "3"}:
        return Reply()
    if presence == "5":
        raise Refused(400, f"{bucket}/{name} is present (vs requested 'flt-outside'(5))")
    size = len(stored.data)
    if call.query.get("props"):
        return Reply(200, _chosen(call.query["props"], target, stored))
    headers = [
        *_common(stored),
        ("Ais-Bucket-Name", bucket.name),
        ("Ais-Bucket-Provider", bucket.provider),
        ("Ais-Location", location(target)),
        ("Ais-Mirror-Copies", "1"),
        ("Ais-Mirror-Paths", f"[{_mountpath(target)}]"),
        # AIStore knows a long name by its file, and a header has no blanks at its ends.
        ("Ais-Name", file_of(name) if is_long(name) else name.strip()),
        ("Ais-Present", "true"),
    ]
    if size:
        headers.append(("Content-Length", str(size)))
    return Reply(200, headers)


def location(target: Target) -> str:
    """Return the place of an object as AIStore writes it."""
    return f"{target.name}:mp[{_mountpath(target)}, nvme0n1]"


def _chosen(props: str, target: Target, stored: StoredObject) -> Headers:
    headers = [("Ais-Present", "true"), ("Content-Length", str(len(stored.data)))]
    common = _common(stored)
    for prop in props.split(","):
        if prop not in _PROPS:
            raise Refused(
                400, f'invalid property "{prop}" in props list', headers=[("Ais-Present", "true")]
            )
        prefix = {
            "checksum": "Ais-Checksum",
            "version": "Ais-Version",
            "atime": "Ais-Atime",
            "custom": "Ais-Custom",
        }.get(prop)
        if prefix is not None:
            headers += [header for header in common if header[0].startswith(prefix)]
        elif prop == "copies":
            headers.append(("Ais-Mirror-Copies", "1"))
            headers.append(("Ais-Mirror-Paths", _mountpath(target)))
        elif prop == "location":
            headers.append(("Ais-Location", location(target)))
        elif prop == "last-modified":
            headers.append(("Last-Modified", formatdate(stored.written_ns / 1e9, usegmt=True)))
        elif prop == "etag":
            written = base_36(stored.written_ns)
            headers.append(("Etag", f'"v1-{stored.checksum}-{written}"'))
    return headers


def base_36(number: int) -> str:
    """Return a positive number in base 36."""
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _BASE_36[digit] + digits
    return digits


def stored_headers(stored: StoredObject) -> Headers:
    """Return what a PUT answers."""
    return _common(stored)


def _common(stored: StoredObject) -> Headers:
    headers = [
        ("Ais-Atime", str(stored.read_ns)),
        ("Ais-Checksum-Type", "xxhash2"),
        ("Ais-Checksum-Value", stored.checksum),
    ]
    if stored.version:
        headers.append(("Ais-Version", stored.version))
    headers += [("Ais-Custom-Md", f"{key}={value}") for key, value in stored.custom.items()]
    return headers


def _archive_query(query: dict[str, str]) -> str:
    names = ("archpath", "archregx", "archmode")
    return ", ".join(f"{name}={query[name]}" for name in names if query.get(name))


def _mountpath(target: Target) -> str:
    return f"/mnt/{target.id}"
