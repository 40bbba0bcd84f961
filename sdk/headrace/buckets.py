"""Buckets of an AIStore cluster, as a URI names them.

``ais://bucket/prefix`` is a bucket of the cluster itself; ``s3://``, ``gs://``, ``az://`` and
``oci://`` are remote buckets that the cluster stands in front of.  Nothing is percent-decoded: what
follows the bucket is the beginning of object names, as they are.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from .errors import PlanError

PROVIDERS: Final = {
    "ais": "ais",
    "s3": "aws",
    "aws": "aws",
    "gs": "gcp",
    "gcp": "gcp",
    "az": "azure",
    "azure": "azure",
    "oci": "oci",
}
"""What the cluster calls the provider of each scheme."""

_SCHEMES: Final = {"ais": "ais", "aws": "s3", "gcp": "gs", "azure": "az", "oci": "oci"}

_URI: Final = re.compile(
    r"(?P<scheme>[A-Za-z0-9]+)://"
    r"(?:@(?P<cluster>[^/#@]*)#(?P<namespace>[^/#@]*)/)?"
    r"(?P<name>[^/]*)(?:/(?P<prefix>.*))?",
    re.DOTALL,
)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_MAX_PREFIX_BYTES: Final = 1024


class Bucket(NamedTuple):
    """A bucket and the beginning of the names of its objects."""

    provider: str
    """Of `PROVIDERS`, in its canonical form: ``"aws"``, not ``"s3"``."""

    namespace: str
    """``"@#"`` for the global one, ``"@#name"`` or ``"@cluster#name"`` otherwise."""

    name: str

    prefix: str
    """What the names of the objects begin with; a plain string, not a folder: ``train`` is the
    beginning of ``train-1/x`` too, ``train/`` is not."""

    @classmethod
    def parse(cls, uri: str) -> Bucket:
        """Return the bucket that a URI names.

        Raises:
            PlanError: If it names none.
        """
        match = _URI.fullmatch(uri)
        if match is None or match["scheme"].lower() not in PROVIDERS:
            raise PlanError(
                f"uri={uri!r} names no bucket: write ais://bucket/prefix, or ais://@#namespace/"
                f"bucket/prefix; schemes: {', '.join(f'{scheme}://' for scheme in PROVIDERS)}"
            )
        if not _NAME.fullmatch(match["name"]):
            raise PlanError(
                f"uri={uri!r} has bucket {match['name']!r}: the name of a bucket has letters, "
                "digits, '.', '-' and '_', and at least one of them"
            )
        prefix = match["prefix"] or ""
        if "\0" in prefix or not is_utf8(prefix):
            raise PlanError(f"uri={uri!r} has a prefix that is no UTF-8 text without NUL")
        if len(prefix.encode()) > _MAX_PREFIX_BYTES:
            raise PlanError(
                f"uri={uri!r} has a prefix of {len(prefix.encode())} bytes, the limit is "
                f"{_MAX_PREFIX_BYTES}: the name of an object is not longer"
            )
        namespace = f"@{match['cluster'] or ''}#{match['namespace'] or ''}"
        return cls(PROVIDERS[match["scheme"].lower()], namespace, match["name"], prefix)

    def __str__(self) -> str:
        """Return the bucket as a URI, without the prefix."""
        namespace = "" if self.namespace == "@#" else f"{self.namespace}/"
        return f"{_SCHEMES[self.provider]}://{namespace}{self.name}"

    @property
    def uri(self) -> str:
        """The canonical URI, with the prefix."""
        return f"{self}/{self.prefix}"

    @property
    def is_remote(self) -> bool:
        """Whether the objects are at a cloud provider, and only cached in the cluster."""
        return self.provider != "ais" or not self.namespace.startswith("@#")

    def address(self, name: str) -> str:
        """Return an object as people write it: ``ais://bucket/name``."""
        return f"{self}/{name}"


def is_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
