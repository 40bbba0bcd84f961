"""What is taken of buckets and folders, as users write it: URIs, prefixes, names, templates.

The base of all sources.  A value of it is checked where it is made; nothing here does any I/O.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import msgspec

from .buckets import PROVIDERS, Bucket, is_utf8
from .errors import PlanError
from .selections import Selection, check_disjoint, labelled
from .templates import MAX_NAMES, expand, is_template

# A path may hold a colon; only these are URIs.
_SCHEME: Final = re.compile("file(?=:/)|[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
# A bucket that lacks a slash would be taken for a folder, and be missing there.
_HALF_SCHEME: Final = re.compile(f"({'|'.join(PROVIDERS)}):/?(?!/)(.*)", re.IGNORECASE | re.DOTALL)


MAX_SELECTIONS: Final = 1 << 14
"""Prefixes of a source, those of all its URIs together: each is a list of its own."""

Chosen = Mapping[str, str | Sequence[str] | None] | Sequence[str] | str | None
"""What is taken of each of some URIs, or of the only one."""


class Located(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    dict=True,  # for what is computed once
    tag_field="type",
):
    """Objects of buckets and folders, in an order that follows from what is written."""

    uri: str | Sequence[str]
    """A bucket of an AIStore cluster and the beginning of the names in it (``ais://bucket/prefix``,
    or ``s3://``, ``gs://``, ``az://``, ``oci://`` for remote buckets, see `headrace.buckets`), or a
    folder: a path, ``~/…``, or a ``file://`` URI.  Or several of these.  ``{000..255}`` stands for
    each of the numbers, see `headrace.templates`."""

    suffix: str | tuple[str, ...] = ()
    """Take only names that end with this, or with one of these; all by default.  Case counts."""

    recursive: bool = True
    """Whether folders inside the folder are read too; in a bucket, whether names may have a ``/``
    after the prefix."""

    prefixes: Chosen | msgspec.UnsetType = msgspec.UNSET
    """Take only names that begin with this, or with one of these, one after the other: by URI, or
    at once where there is one URI.  Nothing of a URI without any (``[]``), all of one that has None
    or is not named.  Each is the beginning of whole names, so it begins with what the URI has
    behind its bucket."""

    names: Chosen | msgspec.UnsetType = msgspec.UNSET
    """Take these objects, in this order: a list of whole names, or a template, by URI, or at once
    where there is one URI.  They are not listed, so `suffix` and `recursive` do not matter."""

    def __post_init__(self) -> None:
        uris = _uris(self.uri)
        suffixes = (self.suffix,) if isinstance(self.suffix, str) else self.suffix
        if not isinstance(suffixes, tuple | list) or not all(isinstance(s, str) for s in suffixes):
            raise PlanError(f"suffix={self.suffix!r} is no suffix: give '.jpg', or a tuple of such")
        if not isinstance(self.recursive, bool):
            raise PlanError(f"recursive={self.recursive!r} must be true or false")
        force = msgspec.structs.force_setattr
        force(self, "uri", uris[0] if len(uris) == 1 else uris)
        force(self, "suffix", tuple(suffixes))
        for field in ("prefixes", "names"):
            # What is not set does not travel: a daemon that does not know it takes the rest.
            force(self, field, _chosen(field, getattr(self, field), uris) or msgspec.UNSET)
        # A name that is one word is a template; a prefix is itself.
        prefixes = {uri: (one,) if isinstance(one, str) else one for uri, one in self._prefixes()}
        force(self, "prefixes", prefixes or msgspec.UNSET)
        for uri in prefixes:
            if uri in dict(self._names()):
                raise PlanError(f"uri={uri!r} has prefixes and names: give it one of them")
        check_disjoint(self.selections)

    def __hash__(self) -> int:
        return hash(self.identity)

    def _prefixes(self) -> Iterable[tuple[str, Any]]:
        return self.prefixes.items() if isinstance(self.prefixes, Mapping) else ()

    def _names(self) -> Iterable[tuple[str, Any]]:
        return self.names.items() if isinstance(self.names, Mapping) else ()

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs, as they were given."""
        return (self.uri,) if isinstance(self.uri, str) else tuple(self.uri)

    def _whole(self, uri: str) -> Iterable[Selection]:
        """Return all that a URI stands for, root by root."""
        return [Selection(*root, None, self._suffixes, self.recursive) for root in roots_of(uri)]

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(self.suffix)

    @cached_property
    def selections(self) -> tuple[Selection, ...]:
        """What is taken, in the order of the samples.

        Raises:
            PlanError: If that is nothing, or too much.
        """
        prefixes, names = dict(self._prefixes()), dict(self._names())
        found: list[Selection] = []
        num_names = 0
        for uri in self.uris:
            for whole in self._whole(uri):
                if uri in names:
                    chosen = _expanded(names[uri])
                    num_names += len(chosen)
                    for name in chosen:
                        _check_name(name, "names", uri, whole)
                    if chosen:
                        found.append(whole._replace(names=chosen))
                elif uri in prefixes:
                    found += [_begun(whole, prefix, uri) for prefix in prefixes[uri]]
                else:
                    num_names += len(whole.names or ())
                    found.append(whole)
        if not found:
            raise PlanError(
                f"uri={self.uri!r}: prefixes and names take nothing of it: give None for all"
            )
        for number, limit, what in (
            (num_names, MAX_NAMES, "names"),
            (len(found), MAX_SELECTIONS, "URIs and prefixes"),
        ):
            if number > limit:
                raise PlanError(
                    f"uri={self.title!r} has {number} {what}, the limit is {limit}: list a prefix "
                    "that they have in common"
                )
        return labelled(found)

    @property
    def _only(self) -> Selection:
        selections = self.selections
        assert len(selections) == 1, f"{self.title} is not one bucket or folder"
        return selections[0]

    @property
    def bucket(self) -> Bucket | None:
        """The bucket and prefix of the only selection; None for a folder."""
        return self._only.bucket

    @property
    def path(self) -> str:
        """The folder of the only selection, absolute and not resolved through links."""
        only = self._only
        assert only.bucket is None, f"{self.title} is no folder"
        return only.path

    @property
    def has_bucket(self) -> bool:
        """Whether anything is in a bucket."""
        return any(scheme_of(uri) in PROVIDERS for uri in self.uris)

    @property
    def title(self) -> str:
        """Where it is as it was written, for people: the first URI, and how many more."""
        return _titled(self.uris[0], len(self.uris))

    @property
    def location(self) -> str:
        """Where it is, for people: as `title`, in one form for all ways to write a URI."""
        return _titled(_anchored(self.uris[0]), len(self.uris))

    @cached_property
    def identity(self) -> bytes:
        """What tells it from other sources, in one form for all ways to write its URIs."""
        uris, prefixes, names = self._anchored_fields()
        facts: dict[str, Any] = {
            "type": self.__struct_config__.tag,
            "uri": uris[0] if len(uris) == 1 else uris,
            "suffix": self.suffix,
            "recursive": self.recursive,
        }
        more = {"prefixes": prefixes, "names": names, **self._more_facts()}
        return msgspec.json.encode(facts | {key: one for key, one in more.items() if one})

    def _anchored(self, uri: str) -> str:
        """Return one form for all ways to write one of the URIs."""
        return _anchored(uri)

    def _more_facts(self) -> dict[str, Any]:
        """Return what else tells it from others; what is empty does not count."""
        return {}

    def anchored(self) -> Self:
        """Return the source with absolute paths, for a process that runs in another folder."""
        uris, prefixes, names = self._anchored_fields()
        if uris == self.uris:
            return self
        return msgspec.structs.replace(
            self, uri=uris, prefixes=prefixes or msgspec.UNSET, names=names or msgspec.UNSET
        )

    def _anchored_fields(self) -> tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]:
        forms = {uri: self._anchored(uri) for uri in self.uris}
        return (
            tuple(forms[uri] for uri in self.uris),
            {forms[uri]: one for uri, one in self._prefixes()},
            {forms[uri]: one for uri, one in self._names()},
        )


def _titled(first: str, number: int) -> str:
    return first if number == 1 else f"{first} and {number - 1} more"


def _uris(given: object) -> tuple[str, ...]:
    """Return the URIs that were given, each as text."""
    uris = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not uris:
        raise PlanError(f"uri={given!r} is no source: give one URI at least")
    for uri in uris:
        if not isinstance(uri, str | os.PathLike) or not str(uri):
            raise PlanError(
                f"uri={uri!r} is no source: give a folder, a file:// URI, or ais://bucket/prefix"
            )
    return tuple(os.fspath(uri) for uri in uris)


def _chosen(field: str, given: object, uris: tuple[str, ...]) -> dict[str, Any]:
    """Return what is chosen of each URI, by the URI as it stands in `uri`."""
    if given is None or given is msgspec.UNSET:
        return {}
    if not isinstance(given, Mapping):
        if len(uris) != 1:
            raise PlanError(
                f"{field}={given!r} is for one URI, and there are {len(uris)}: write "
                f"{field}={{{uris[0]!r}: …}}"
            )
        given = {uris[0]: given}
    known = {uri: uri for uri in reversed(uris)}
    known |= {_anchored(uri): uri for uri in reversed(uris) if _anchored(uri) not in known}
    found: dict[str, Any] = {}
    for said, one in given.items():
        key = os.fspath(said) if isinstance(said, os.PathLike) else said
        uri = key if key in known else _anchored(key) if isinstance(key, str) else None
        if uri not in known:
            raise PlanError(f"{field} has {key!r}, which is none of uri={uris}")
        if one is None:
            continue
        if not isinstance(one, str) and not (
            isinstance(one, tuple | list) and all(isinstance(text, str) for text in one)
        ):
            raise PlanError(f"{field}[{key!r}]={one!r} must be a text, or a list of texts")
        if is_template(known[uri]):
            raise PlanError(
                f"{field} has {key!r}, which is a template: write what it stands for one by one"
            )
        if known[uri] in found:
            raise PlanError(f"{field} has {key!r} twice, in two ways to write it")
        found[known[uri]] = one if isinstance(one, str) else tuple(one)
    return found


def _expanded(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(expand(names, "names")) if isinstance(names, str) else names


def _begun(whole: Selection, prefix: str, uri: str) -> Selection:
    """Return the part of a selection whose names begin with a prefix."""
    _check_name(f"{prefix}?", "prefixes", uri, whole, shown=prefix)
    if whole.bucket is None:
        return whole._replace(prefix=prefix)
    bucket = Bucket.parse(f"{whole.bucket}/{prefix}")
    return whole._replace(bucket=bucket, prefix=prefix)


def _check_name(
    name: str, field: str, uri: str, whole: Selection, *, shown: str | None = None
) -> None:
    """Refuse what cannot be a name in a root, or not one that a URI has."""
    shown = name if shown is None else shown
    told = f"{field}[{uri!r}] has {shown!r}"
    elements = name.split("/")
    if "\0" in name or not is_utf8(name):
        raise PlanError(f"{told}, which is no UTF-8 text without NUL")
    # Of a file it would name one outside of the folder; of an object the store refuses it.
    if not name or name.endswith("/") or "." in elements or ".." in elements:
        raise PlanError(f"{told}, which is no name: it is relative, without '.' and '..'")
    if whole.bucket is None and "" in elements:
        raise PlanError(f"{told}, which is no name: that of a file is relative to its folder")
    if not name.startswith(whole.prefix):
        raise PlanError(
            f"{told}, which does not begin with {whole.prefix!r}: names are whole, so write "
            f"{whole.prefix + shown!r}, or a URI without {whole.prefix!r}"
        )


def roots_of(uri: str) -> list[tuple[Bucket | None, str, str]]:
    """Return the bucket, or the folder, and the prefix of each URI that one stands for.

    Raises:
        PlanError: If it names none.
    """
    scheme = scheme_of(uri)
    if scheme == "file":
        _check_file_uri(uri)
    elif scheme and scheme not in PROVIDERS:
        raise PlanError(
            f"uri={uri!r} has scheme {scheme!r}: supported are file://, "
            f"{', '.join(f'{known}://' for known in PROVIDERS)}{_as_bucket(uri)}"
        )
    elif uri.startswith("pipe:"):
        raise PlanError(
            f"uri={uri!r} is a command, and none is run: write ais://bucket/…, or a path"
        )
    elif not scheme and (half := _HALF_SCHEME.match(uri)):
        raise PlanError(
            f"uri={uri!r} may be a bucket or a folder: write {half[1]}://{half[2]} for a "
            f"bucket, or ./{uri} for a folder"
        )
    found: list[tuple[Bucket | None, str, str]] = []
    for one in expand(uri, "uri"):
        if scheme in PROVIDERS:
            bucket = Bucket.parse(one)
            found.append((bucket, "", bucket.prefix))
        else:
            path = _path(one)
            if "\0" in path:
                raise PlanError(f"uri={uri!r} is no source: a path has no NUL byte")
            found.append((None, path, ""))
    return found


def _as_bucket(uri: str) -> str:
    """Return how to write an object that is named by its address in a cluster, as a hint."""
    found = re.fullmatch(r"https?://[^/]+/v1/objects/(.+)", uri)
    return f"; an object of a cluster is written ais://{found[1]}" if found else ""


def _path(uri: str) -> str:
    """Return the folder of a URI as an absolute path, not resolved through links."""
    path = unquote(urlsplit(uri).path) if scheme_of(uri) == "file" else uri
    return os.path.abspath(os.path.expanduser(path))


def _anchored(uri: str) -> str:
    """Return one form for all ways to write a URI, which does not depend on the working folder."""
    if is_template(uri):
        return uri if scheme_of(uri) else _path(uri)
    try:
        ((bucket, path, _),) = roots_of(uri)
    except PlanError:
        return uri
    if bucket is not None:
        return bucket.uri
    # With its braces escaped, it is no template, and absolute as it is.
    return uri if is_template(path) else path


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, in small letters; empty for a path."""
    found = _SCHEME.match(uri)
    return found[0].lower() if found else ""


def _check_file_uri(uri: str) -> None:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise PlanError(f"uri={uri!r} is no source: {error}") from None
    if parts.netloc not in ("", "localhost"):
        raise PlanError(f"uri={uri!r} names host {parts.netloc!r}: a file:// URI has no host")
    if not parts.path:
        raise PlanError(f"uri={uri!r} is no source: it names no folder")
    if "?" in uri or "#" in uri:
        raise PlanError(
            f"uri={uri!r} is cut at '?' or '#': in a file:// URI write '#' as %23 and '?' as %3F, "
            "or give the plain path"
        )
