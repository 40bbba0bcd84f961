"""Sources of samples that lie in shards: tar files, one after the other or several side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import msgspec

from .buckets import Bucket, is_utf8
from .checks import check_choice, check_flag
from .errors import PlanError
from .located import Located, roots_of
from .members import RULES, MemberRule
from .selections import Selection

ARCHIVES: Final = (".tar",)
"""Endings of the names of shards that can be indexed."""

COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.lz4", ".zip")
"""Endings of the names of shards that can only be streamed."""

MAX_FIELDS: Final = 256
"""Of a sample: each costs 20 bytes of the manifest for each sample, whether it has it or not."""

MAX_STREAMS: Final = 64

KEY: Final = "__key__"
"""Under this, a sample that is given to a transform has its name, as in WebDataset: no field."""

Missing = Literal["error", "none", "empty"]

_OWN: Final = (
    "fields",
    "missing",
    "rule",
    "lowercase",
    "links",
    "on_bad_shard",
    "on_empty",
    "index",
)

_STREAM: Final = re.compile(r"[^/\0]+")


def ends_like(name: str, endings: Sequence[str]) -> bool:
    """Return whether a name ends like that of a shard, in whatever case it is written."""
    return name.lower().endswith(tuple(ending.lower() for ending in endings))


class Shards(Located, frozen=True, forbid_unknown_fields=True, tag="Shards"):
    """The samples of tar files, as WebDataset writes them.

    Members whose names differ only in what follows the first dot are the fields of one sample.
    A URI that ends like a shard (``.tar``) is one; anything else is a bucket with a prefix, or a
    folder, whose shards are taken in the order of their names.  A folder or prefix that is called
    like a shard has a ``/`` at its end.  The order of the samples is that of
    the shards and, in each, that of the archive.  The first use of a source reads the headers of
    all its shards (the *index*); from then on samples are read by ranges, in any order.

    Shards that are *streamed* (compressed ones, or any with ``index=False``) are read from their
    beginning to their end instead, and nothing is known of their samples beforehand.  Such a source
    names its `fields`, and goes with the plans `Sequential` and `ShardShuffled`; more ranks than
    one need ``Stream(…, steps_per_epoch=…)``, and each of them reads all shards.

    A sample is named by its key: the path of its members up to the first dot of the last component.

    Example:
        >>> source = Shards("ais://imagenet/train-{000..255}.tar", fields=["jpg", "cls"])
        >>> source.selections[0].names[-1]
        'train-255.tar'
    """

    fields: Sequence[str] | None = msgspec.field(default=None)
    """The fields of each sample, in this order; None for all that occur in any of the shards, in
    alphabetical order.  They are decided when the index is built.  What has none of them is no
    sample."""

    missing: Missing = "error"
    """What a sample has that lacks one of the fields: ``"error"`` refuses the source, naming it;
    ``"none"`` gives None, ``"empty"`` ``b""``."""

    rule: MemberRule = "webdataset"
    """How names become keys and fields (`headrace.members`): of ``"webdataset"`` and ``"aistore"``
    several members are a sample, of ``"files"`` each is one."""

    lowercase: bool = True
    """Whether fields lose their case, as in WebDataset; not with ``rule="aistore"``."""

    links: Literal["skip", "error"] = "skip"
    """Whether links in a shard are left out, or refuse the source."""

    on_bad_shard: Literal["error", "skip"] = "error"
    """What a shard does that cannot be indexed (truncated, garbage): ``"error"`` refuses the
    source, naming it; ``"skip"`` takes none of its samples, and says so."""

    on_empty: Literal["error", "skip"] = "error"
    """What a URI or prefix does under which there is no shard: ``"error"`` refuses the source,
    naming it; ``"skip"`` takes nothing of it.  Without any shard or sample the source is refused
    anyway."""

    index: bool | None = None
    """Whether shards are indexed (True), or streamed (False).  By default they are indexed, unless
    a URI, name or suffix ends like a compressed shard (``.tar.gz``, ``.tgz``, ``.tar.lz4``,
    ``.zip``): then all of them are streamed, plain tars too."""

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES, PlanError)
        check_choice("missing", self.missing, ("error", "none", "empty"), PlanError)
        check_choice("links", self.links, ("skip", "error"), PlanError)
        check_choice("on_bad_shard", self.on_bad_shard, ("error", "skip"), PlanError)
        check_choice("on_empty", self.on_empty, ("error", "skip"), PlanError)
        check_flag("lowercase", self.lowercase, PlanError)
        if self.index is not None:
            check_flag("index", self.index, PlanError)
        msgspec.structs.force_setattr(self, "fields", _fields(self.fields))
        super().__post_init__()
        self._check_index()
        for field, chosen in (("prefixes", self._prefixes()), ("names", self._names())):
            for uri, _ in chosen:
                if any(self._is_shard(uri, *root) for root in roots_of(uri)):
                    raise PlanError(
                        f"{field} has {uri!r}, which is a shard: nothing is chosen of it; give "
                        "the bucket or folder that it is in, or write a '/' at the end of one that "
                        "is called like a shard"
                    )

    __hash__ = Located.__hash__

    @cached_property
    def is_streamed(self) -> bool:
        """Whether the shards are read from beginning to end, without an index."""
        return self._compressed is not None if self.index is None else not self.index

    @property
    def _compressed(self) -> str | None:
        """What is written that ends like a compressed shard; None if nothing does."""
        names = (
            name for _, one in self._names() for name in ((one,) if isinstance(one, str) else one)
        )
        said = (name for name in (*self.suffix, *self.uris, *names))
        return next((name for name in said if ends_like(name, COMPRESSED)), None)

    def _check_index(self) -> None:
        if not self.is_streamed:
            if self._compressed is not None:
                raise PlanError(
                    f"index=True does not go with {self._compressed!r}: a compressed shard can "
                    "only be streamed; leave index= out and name the fields, or store plain .tar"
                )
            return
        why = "is streamed without an index"
        if self.fields is None:
            raise PlanError(
                f"fields=None does not go with {self.title}, which {why}, so that nothing knows "
                "the fields: name them, as in fields=['jpg', 'cls']"
            )
        if self.rule != "webdataset":
            raise PlanError(
                f"rule={self.rule!r} does not go with {self.title}, which {why}: it gathers "
                "samples from the whole shard; use rule='webdataset', or index plain .tar"
            )
        if self.on_bad_shard != "error":
            raise PlanError(
                f"on_bad_shard={self.on_bad_shard!r} does not go with {self.title}, which {why}: "
                "use Stream(…, on_bad='skip')"
            )

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(self.suffix) or ARCHIVES + COMPRESSED * self.is_streamed

    @property
    def _endings(self) -> tuple[str, ...]:
        """How a URI ends that is a shard: not with nothing, though all names may be taken."""
        return tuple(filter(None, self.suffix)) or ARCHIVES + COMPRESSED * self.is_streamed

    def _whole(self, uri: str) -> Iterable[Selection]:
        """Return what a URI stands for: shards by name, or all of a root."""
        named: dict[tuple[str, str], list[str]] = {}
        buckets: dict[tuple[str, str], Bucket | None] = {}
        found: list[Selection] = []
        for bucket, path, prefix in roots_of(uri):
            if not self._is_shard(uri, bucket, path, prefix):
                found.append(Selection(bucket, path, prefix, None, self._suffixes, self.recursive))
                continue
            if bucket is None:
                root, name = ("", os.path.dirname(path)), os.path.basename(path)
            else:
                bucket = bucket._replace(prefix="")
                root, name = (str(bucket), ""), prefix
            buckets[root] = bucket
            named.setdefault(root, []).append(name)
        for root, names in named.items():
            own = Selection(buckets[root], root[1], "", tuple(names), (), self.recursive)
            found.append(own)
        return found

    def _is_shard(self, uri: str, bucket: Bucket | None, path: str, prefix: str) -> bool:
        """Return whether a root of a URI is a shard, and no place where shards are."""
        address = path if bucket is None else prefix
        return not uri.endswith("/") and ends_like(address, self._endings)

    def _anchored(self, uri: str) -> str:
        anchored = super()._anchored(uri)
        # Without it, a folder that is called like a shard would be taken for one.
        is_folder = uri.endswith("/") and ends_like(anchored, self._endings)
        return f"{anchored}/" if is_folder else anchored

    def _more_facts(self) -> dict[str, Any]:
        defaults = {
            field.name: field.default
            for field in msgspec.structs.fields(self)
            if field.name in _OWN
        }
        facts = {name: getattr(self, name) for name in defaults}
        return {name: {"is": value} for name, value in facts.items() if value != defaults[name]}


def _fields(given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str):
        raise PlanError(f"fields={given!r} must be a list of names: write fields=[{given!r}]")
    if not isinstance(given, tuple | list) or not given:
        raise PlanError(f"fields={given!r} must be a list of names, of one at least; None for all")
    if len(given) > MAX_FIELDS:
        raise PlanError(f"fields has {len(given)} names, the limit is {MAX_FIELDS}")
    for field in given:
        if not isinstance(field, str) or not is_utf8(field):
            raise PlanError(f"fields has {field!r}, which is no name of a field")
        if field == KEY:
            raise PlanError(f"fields has {field!r}, under which a sample has its own name")
        if field.startswith("."):
            raise PlanError(f"fields has {field!r}: write it without the dot, {field[1:]!r}")
        if list(given).count(field) > 1:
            raise PlanError(f"fields has {field!r} twice: leave one out")
    return tuple(given)


class _WithStreams(type(msgspec.Struct)):  # type: ignore[misc]
    """Takes streams as keyword arguments, whatever they are called."""

    def __call__(cls, /, *unnamed: Any, **given: Any) -> Any:  # noqa: ANN401 - what it makes
        if unnamed:
            raise PlanError(
                f"MultiShard has {unnamed[0]!r} without a name: give each stream as "
                "name=Shards(uri)"
            )
        options = {name: given.pop(name) for name in ("join", "length") if name in given}
        if "streams" in given and isinstance(given["streams"], Mapping):
            given = {**given.pop("streams"), **given}
        return super().__call__(streams=given, **options)


class MultiShard(
    msgspec.Struct,
    metaclass=_WithStreams,
    frozen=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    dict=True,  # for what is computed once
    kw_only=True,
    tag_field="type",
    tag="MultiShard",
):
    """Samples of several streams of shards, joined one to one.

    The fields of a sample are those of all streams: named by the stream where its samples have
    one field (``batch["image"]``), else by stream and field (``batch["image.jpg"]``).
    Order, keys and shards are those of the first stream; the others may be cut into shards in any
    way, and hold their samples in any order where they are joined by key.

    Example:
        >>> pairs = MultiShard(image=Shards("ais://a/img-{0..7}.tar"), mask=Shards("ais://a/mask.tar"))
        >>> list(pairs.streams)
        ['image', 'mask']
    """

    streams: dict[str, Shards]
    """By name, at least one; given as keyword arguments."""

    join: Literal["key", "position"] = "key"
    """What makes samples partners: the same key, which is then unique in each stream, or the same
    place in their streams."""

    length: Literal["strict", "shortest"] = "strict"
    """What becomes of samples without a partner in each stream: ``"strict"`` refuses the source,
    naming the first one and where it was looked for; ``"shortest"`` leaves them out."""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            join: Literal["key", "position"] = "key",
            length: Literal["strict", "shortest"] = "strict",
            **streams: Shards | Mapping[str, Shards],
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.streams:
            raise PlanError("MultiShard has no streams: give each as name=Shards(uri)")
        if len(self.streams) > MAX_STREAMS:
            raise PlanError(
                f"MultiShard has {len(self.streams)} streams, the limit is {MAX_STREAMS}"
            )
        for name, stream in self.streams.items():
            if not isinstance(name, str) or not _STREAM.fullmatch(name) or not is_utf8(name):
                raise PlanError(f"stream {name!r} of MultiShard is no name: leave out '/'")
            if not isinstance(stream, Shards):
                raise PlanError(f"stream {name!r} of MultiShard is {stream!r}: give Shards(uri)")
            if stream.is_streamed:
                raise PlanError(
                    f"stream {name!r} of MultiShard is streamed ({stream.title}): samples are "
                    "joined by their index; store plain .tar, and leave out index=False"
                )
        check_choice("join", self.join, ("key", "position"), PlanError)
        check_choice("length", self.length, ("strict", "shortest"), PlanError)

    def __hash__(self) -> int:
        return hash(self.identity)

    @cached_property
    def selections(self) -> tuple[Selection, ...]:
        """What is taken, stream by stream."""
        return tuple(one for stream in self.streams.values() for one in stream.selections)

    @property
    def has_bucket(self) -> bool:
        """Whether anything is in a bucket."""
        return any(stream.has_bucket for stream in self.streams.values())

    @property
    def title(self) -> str:
        """Where it is as it was written, for people."""
        return self._titled([stream.title for stream in self.streams.values()])

    @property
    def location(self) -> str:
        """Where it is, for people: as `title`, in one form for all ways to write a URI."""
        return self._titled([stream.location for stream in self.streams.values()])

    def _titled(self, titles: Sequence[str]) -> str:
        return " with ".join(titles[:2]) + (" with …" if len(titles) > 2 else "")

    @cached_property
    def identity(self) -> bytes:
        """What tells it from other sources, in one form for all ways to write its URIs."""
        facts = {
            "type": "MultiShard",
            "streams": [
                [name, msgspec.Raw(stream.identity)] for name, stream in self.streams.items()
            ],
            "join": self.join,
            "length": self.length,
        }
        return msgspec.json.encode(facts)

    def anchored(self) -> Self:
        """Return the source with absolute paths, for a process that runs in another folder."""
        streams = {name: stream.anchored() for name, stream in self.streams.items()}
        return msgspec.structs.replace(self, streams=streams)
