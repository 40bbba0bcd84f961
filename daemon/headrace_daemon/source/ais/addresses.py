"""Addresses on the wire: paths and queries of buckets and objects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from headrace.buckets import Bucket


def bucket_path(bucket: Bucket) -> str:
    """Return the path and query of a bucket."""
    return f"/v1/buckets/{bucket.name}?{_query(bucket)}"


def _query(bucket: Bucket) -> str:
    """Return the query that says which bucket of this name is meant."""
    query = {"provider": bucket.provider}
    if bucket.namespace != "@#":
        query["namespace"] = bucket.namespace
    return urlencode(query)


_is_plain: Final = re.compile(r"[A-Za-z0-9_.~/-]*", re.ASCII).fullmatch


def quoted(name: str) -> str:
    """Return the name of an object as a part of a path; its slashes stay."""
    return name if _is_plain(name) else quote(name, safe="/")


class ObjectPaths:
    """The paths, with their queries, of the objects of a bucket.

    Args:
        bucket: The bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._root = f"/v1/objects/{bucket.name}/"
        self._query = f"?{_query(bucket)}"

    def of(self, name: str) -> str:
        """Return the path of an object."""
        return f"{self._root}{quoted(name)}{self._query}"


def is_node_url(url: str) -> bool:
    """Tell whether a string is the address of a node: ``http://host:port``, and a path at most."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
        (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
        and url.isprintable()
        and " " not in url
    )
