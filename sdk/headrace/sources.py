"""Sources and streams: where the samples are, and with which plan they are read.

Both are frozen values that stand in a configuration, travel over the wire and are validated
where they are made.  Nothing here does any I/O.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from .buckets import PROVIDERS, Bucket
from .checks import check_choice, check_flag, check_integer
from .errors import PlanError
from .plans import FromSampler, Plan
from .plans.cursor import MAX_SKIPS
from .plans.dictated import Dictated

# A path may hold a colon; only these are URIs.
_SCHEME: Final = re.compile("file(?=:/)|[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
# A bucket that lacks a slash would be taken for a folder, and be missing there.
_HALF_SCHEME: Final = re.compile(f"({'|'.join(PROVIDERS)}):/?(?!/)(.*)", re.IGNORECASE | re.DOTALL)


class Objects(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="Objects"
):
    """One sample per object of a bucket or file of a folder, in the order of their names.

    The name of a sample is that of its object in the bucket, or of its file relative to the folder,
    with ``/`` between components; the order is that of their UTF-8 bytes.  The single field of a
    sample is ``data``.
    """

    uri: str
    """A bucket of an AIStore cluster and the beginning of the names in it (``ais://bucket/prefix``,
    or ``s3://``, ``gs://``, ``az://``, ``oci://`` for remote buckets, see `headrace.buckets`), or a
    folder: a path, ``~/…``, or a ``file://`` URI."""

    suffix: str | tuple[str, ...] = ()
    """Take only names that end with this, or with one of these; all by default.  Case counts."""

    recursive: bool = True
    """Whether folders inside the folder are read too; in a bucket, whether names may have a ``/``
    after the prefix."""

    def __post_init__(self) -> None:
        if not isinstance(self.uri, str | os.PathLike) or not str(self.uri):
            raise PlanError(
                f"uri={self.uri!r} is no source: give a folder, a file:// URI, or ais://bucket/prefix"
            )
        uri = os.fspath(self.uri)
        scheme = _scheme(uri)
        if scheme in PROVIDERS:
            Bucket.parse(uri)
        elif half := _HALF_SCHEME.match(uri):
            raise PlanError(
                f"uri={uri!r} may be a bucket or a folder: write {half[1]}://{half[2]} for a "
                f"bucket, or ./{uri} for a folder"
            )
        elif scheme == "file":
            _check_file_uri(uri)
        elif scheme:
            raise PlanError(
                f"uri={uri!r} has scheme {scheme!r}: supported are file://, "
                f"{', '.join(f'{known}://' for known in PROVIDERS)}"
            )
        suffixes = (self.suffix,) if isinstance(self.suffix, str) else self.suffix
        if not isinstance(suffixes, tuple | list) or not all(isinstance(s, str) for s in suffixes):
            raise PlanError(f"suffix={self.suffix!r} is no suffix: give '.jpg', or a tuple of such")
        if not isinstance(self.recursive, bool):
            raise PlanError(f"recursive={self.recursive!r} must be true or false")
        msgspec.structs.force_setattr(self, "uri", uri)
        msgspec.structs.force_setattr(self, "suffix", tuple(suffixes))
        if "\0" in self.location:
            raise PlanError(f"uri={uri!r} is no source: a path has no NUL byte")

    @property
    def bucket(self) -> Bucket | None:
        """The bucket and prefix; None for a folder."""
        return Bucket.parse(self.uri) if _scheme(self.uri) in PROVIDERS else None

    @property
    def location(self) -> str:
        """Where it is, in one form for all ways to write it: a canonical URI or a path."""
        bucket = self.bucket
        return self.path if bucket is None else bucket.uri

    @property
    def path(self) -> str:
        """The folder as an absolute path, not resolved through links; not for a bucket."""
        assert self.bucket is None, f"{self.uri} is no folder"
        path = unquote(urlsplit(self.uri).path) if _scheme(self.uri) == "file" else self.uri
        return os.path.abspath(os.path.expanduser(path))


def _scheme(uri: str) -> str:
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


Source = Objects
"""All sources, told apart by ``type``."""


class Skip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What leaves out samples that cannot be read, up to a limit.

    A sample that is missing, changed, or arrives corrupt leaves a *hole* in its batch: its values
    are None, its flag is ``hole``, and no other sample moves.  It stays left out for the rest of
    the run, also if it is repaired; the state has the list.
    """

    limit: int = 100
    """Samples that may be left out; one more ends the stream.  Each feed (rank) counts its own."""

    repair: bool = False
    """Whether each epoch tries again what the one before has left out."""

    def __post_init__(self) -> None:
        check_integer("on_bad limit", self.limit, 0, MAX_SKIPS + 1, PlanError)
        check_flag("on_bad repair", self.repair, PlanError)


if TYPE_CHECKING:
    # One that runs in the trainer is taken too, but never read from a map.
    StreamPlan = Plan | Dictated | FromSampler
else:
    StreamPlan = Plan | Dictated


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A source and the plan by which it is read."""

    source: Source
    """Where the samples are."""

    plan: StreamPlan
    """In which order and in which batches they are read."""

    on_bad: Literal["fail", "skip"] | Skip = "fail"
    """What a sample that cannot be read does: ``"fail"`` ends the stream with an error; ``"skip"``,
    or ``Skip(limit=…)``, leaves it out."""

    def __post_init__(self) -> None:
        if not isinstance(self.source, Objects):
            raise PlanError(f"source={self.source!r} is no source: use Objects(uri)")
        plan: object = self.plan
        if not isinstance(plan, Plan | FromSampler | Dictated):
            is_sampler = hasattr(plan, "__iter__") and not isinstance(plan, str | bytes | dict)
            hint = "use plans.FromSampler(…)" if is_sampler else "see headrace.plans"
            raise PlanError(f"plan={plan!r} is no plan: {hint}")
        if not isinstance(self.on_bad, Skip):
            check_choice("on_bad", self.on_bad, ("fail", "skip"), PlanError)

    @property
    def skip(self) -> Skip | None:
        """What is left out; None for nothing."""
        if isinstance(self.on_bad, Skip):
            return self.on_bad
        return Skip() if self.on_bad == "skip" else None

    def anchored(self) -> Stream:
        """Return the stream with absolute paths, for a daemon that runs in another folder."""
        plan = self.plan
        if not isinstance(plan, FromSampler):
            plan = plan.with_sources(_anchored)
        return msgspec.structs.replace(self, source=_anchored(self.source), plan=plan)

    @property
    def served_plan(self) -> Plan | Dictated:
        """The plan as the daemon knows it; not for a stream that holds a sampler."""
        assert not isinstance(self.plan, FromSampler), f"{self.plan!r} does not travel"
        return self.plan

    @property
    def sources(self) -> dict[str, Source]:
        """All sources: that of the stream under an empty name, and those of parts of the plan."""
        own = {} if isinstance(self.plan, FromSampler) else self.plan.sources
        return {"": self.source, **own}


def _anchored(source: Source) -> Source:
    return msgspec.structs.replace(source, uri=source.location)
