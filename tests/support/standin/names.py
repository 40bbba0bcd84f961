"""Names on the wire: request targets, buckets, and the names that AIStore refuses.

A path is decoded once and never normalised: `//`, a leading `/` and every UTF-8 character are
part of an object's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from posixpath import normpath
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from .replies import Refused

PROVIDERS: Final = {
    "": "ais",
    "ais": "ais",
    "aws": "aws",
    "s3": "aws",
    "gcp": "gcp",
    "gs": "gcp",
    "azure": "azure",
    "az": "azure",
    "oci": "oci",
    "oc": "oci",
}
"""Every word for a provider, and the provider."""

GLOBAL: Final = "@#"
"""The namespace of buckets that name none."""

_MAX_BUCKET_NAME: Final = 64
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_MAX_FILE_BYTES: Final = 255
_MAX_PARAMETERS: Final = 99
_MODES: Final = ("regexp", "prefix", "suffix", "substr", "wdskey")
# What Go's net/url leaves as it is in a path, beside letters and digits.
_PLAIN_IN_PATH: Final = "/$&+,:;=@~"


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket's identity.

    Args:
        name: Its name.
        provider: One of the values of `PROVIDERS`.
        namespace: `GLOBAL`, or ``@{cluster uuid}#{name}``.
    """

    name: str
    provider: str = "ais"
    namespace: str = GLOBAL

    @property
    def is_remote(self) -> bool:
        """Whether its objects live outside the cluster."""
        return self.provider != "ais"

    def full_name(self, name: str) -> str:
        """Return the name under which an object is hashed."""
        return f"{self.provider}/{self.namespace}/{self.name}/{name}"

    def __str__(self) -> str:
        uuid, _, name = self.namespace[1:].partition("#")
        inside = (f"@{uuid}" if uuid else "") + (f"#{name}" if name else "")
        provider = "s3" if self.provider == "aws" else self.provider
        return f"{provider}://{inside}/{self.name}" if inside else f"{provider}://{self.name}"


def bucket_of(name: str, query: dict[str, str]) -> Bucket:
    """Return the bucket that a path and its query name.

    Raises:
        Refused: 400, for a provider that does not exist, and for a name that no bucket can have.
    """
    if name.startswith("."):
        raise Refused(400, f'reserved bucket name "{name}" (unknown system bucket)')
    if len(name) > _MAX_BUCKET_NAME:
        why = f"{len(name)} > {_MAX_BUCKET_NAME}(max length)"
        raise Refused(400, f"bucket name is too long: {why}")
    if not _BUCKET_NAME.fullmatch(name):
        raise Refused(
            400,
            "bucket name is invalid: may only contain letters, numbers, dashes (-), "
            "underscores (_), and dots (.)",
        )
    return Bucket(name, provider_of(query.get("provider", "")), namespace_of(query))


def provider_of(word: str) -> str:
    """Return the provider that a word means.

    Raises:
        Refused: 400, if there is none.
    """
    try:
        return PROVIDERS[word.lower()]
    except KeyError:
        raise Refused(
            400,
            f'invalid backend provider "{word}": must be one of '
            "[ais, aws (s3://), gcp (gs://), azure (az://), oci (oc://)]",
            tcode="ErrInvalidBackendProvider",
        ) from None


def namespace_of(query: dict[str, str]) -> str:
    """Return the namespace that a query names, in the form that is hashed."""
    given = query.get("namespace", "")
    uuid, _, name = given.removeprefix("@").partition("#")
    return f"@{uuid}#{name}"


def unquoted(path: str) -> str:
    """Return a path without its escapes."""
    return unquote(path, errors="surrogateescape")


def split_target(target: str) -> tuple[str, dict[str, str]]:
    """Split a request target into its decoded path and its query; the last of a kind counts.

    Raises:
        Refused: 400, for 100 parameters or more, and for bad questions about an archive.
    """
    path, _, text = target.partition("?")
    pairs = parse_qsl(text, keep_blank_values=True, errors="surrogateescape") if text else []
    if len(pairs) > _MAX_PARAMETERS:
        raise Refused(400, "dpq: exceeded maximum number of iterations (100)")
    query = dict(pairs)
    if archpath := query.get("archpath"):
        try:
            check_archpath(archpath)
        except Refused as refused:
            raise Refused(400, f"dpq: 'archpath={archpath}', err: {refused.message}") from refused
    mode = query.get("archmode")
    if mode is not None:
        if mode and mode not in _MODES:
            why = f'invalid matching mode "{mode}", expecting one of: [{" ".join(_MODES)}]'
            raise Refused(400, f"dpq: 'archmode={mode}', err: {why}")
        if archpath:
            why = "dpq: archpath and archregx are mutually exclusive"
            raise Refused(400, f"dpq: 'archmode={mode}', err: {why}")
    return unquoted(path), query


def check_object_name(name: str, *, is_head: bool = False) -> None:
    """Refuse a name that AIStore refuses; HEAD takes that of a folder.

    Raises:
        Refused: 400 `errInvalidPath`.
    """
    is_folder = not name or (name.endswith("/") and not is_head)
    if is_folder or name.startswith("~/") or has_dots(name):
        raise Refused(400, f'invalid object name "{name}"', tcode="errInvalidPath")


def file_of(name: str) -> str:
    """Return the path of the file that an object is kept in, within its bucket.

    It is cleaned; one that ends in more than the 255 bytes that a file system takes is replaced.
    """
    if is_long(name):
        return f".x{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()}"
    if "//" in name or name.startswith("/"):
        return normpath(f"/{name}").lstrip("/")
    return name


def is_long(name: str) -> bool:
    """Return whether the last element of a name is too long for a file."""
    return len(name) > _MAX_FILE_BYTES // 4 and _num_bytes(name.rpartition("/")[2]) > (
        _MAX_FILE_BYTES
    )


def has_long_folder(name: str) -> bool:
    """Return whether an element of a name but the last is too long for a folder."""
    return any(_num_bytes(element) > _MAX_FILE_BYTES for element in name.split("/")[:-1])


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def check_archpath(path: str) -> None:
    """Refuse the path of a file in an archive that AIStore refuses.

    Raises:
        Refused: 400.
    """
    if path.endswith("/") or has_dots(path):
        raise Refused(400, f'invalid archpath "{path}"')


def has_dots(path: str) -> bool:
    """Return whether an element of a path is ``.`` or ``..``."""
    return "." in path and not {".", ".."}.isdisjoint(path.split("/"))


def location(url: str, path: str, query: str, marker: dict[str, str]) -> str:
    """Return the address of a redirect.

    Args:
        url: Of the target.
        path: Decoded.
        query: As the client wrote it; may be empty.
        marker: The parameters that the proxy adds.
    """
    if any(special in path for special in "%?# +"):
        # Then AIStore writes path and query anew.
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
        written = quote(path, safe=_PLAIN_IN_PATH, errors="surrogateescape")
        pairs += marker.items()
        return f"{url}{written}?{urlencode(sorted(pairs), errors='surrogateescape')}"
    # It passes all others on as they are.  Go writes bytes above 127 in hexadecimal, and a line
    # break in a header as a space.
    written = "".join(
        chr(byte) if byte < 128 else f"%{byte:02x}"
        for byte in path.encode("utf-8", "surrogateescape")
    )
    written = written.replace("\r", " ").replace("\n", " ")
    return f"{url}{written}?" + "&".join(
        [query] * bool(query) + [f"{k}={v}" for k, v in marker.items()]
    )
