"""Members of a shard: which sample and which field each name in a tar belongs to.

Names in, samples out: nothing here reads an archive.  The order of the samples is that of the
archive, and no member is lost silently: a name that is left out is left out by the rule alone, and
two members for one field of one sample are an error that names the second one.

The ``"webdataset"`` rule is the default.  The key of a member is its path up to the first dot of
the last component, its field is what follows, in lower case; a sample is a run of adjacent
members with one key.  The ``"aistore"`` rule does what AIStore's shard reader does and exists
for data sets that were made for it: folders are ignored, the field is what follows the *last*
dot, a sample is gathered from the whole shard, and of two members for one field the later wins.
By the ``"files"`` rule each member is a sample of its own, under its whole name, whose field is
``data``; their order is that of their names, as AIStore lists what is in an archive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from .errors import MemberError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MemberRule = Literal["webdataset", "aistore", "files"]
"""How names become keys and fields."""

RULES: Final = ("webdataset", "aistore", "files")
"""All of them."""

FILE_FIELD: Final = "data"
"""The field of a member that is a sample of its own."""

# A last component that begins with its dot has a key only where a folder without a dot stands
# before it: ``a/.x`` is (``a/``, ``x``).
_WEBDATASET: Final = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)


class MemberName(NamedTuple):
    """What a rule makes of the name of one member."""

    key: str
    """Name of the sample."""

    field: str
    """Name of the field within the sample."""


@dataclass(frozen=True, slots=True)
class MemberSample:
    """One sample of a shard."""

    key: str
    """Its name.  Unique within a shard by the ``"aistore"`` rule only."""

    members: Mapping[str, int]
    """Where the value of each field stands: the index of a member in the list of names."""


def split_name(
    name: str, rule: MemberRule = "webdataset", *, lowercase: bool = True
) -> MemberName | None:
    """Return key and field of a member, or None if it belongs to no sample.

    Args:
        name: Name of the member in the archive, with ``/`` between components.
        rule: How to read it.
        lowercase: Whether fields lose their case (``"webdataset"``).

    Raises:
        PlanError: If the rule is unknown.

    Example:
        >>> split_name("train/0001.seg.png")
        MemberName(key='train/0001', field='seg.png')
        >>> split_name("train/0001.seg.png", "aistore")
        MemberName(key='0001', field='png')
    """
    _check_rule(rule)
    if rule == "webdataset":
        found = _WEBDATASET.fullmatch(name)
        return (
            None
            if found is None
            else MemberName(found[1], found[2].lower() if lowercase else found[2])
        )
    if rule == "files":
        return MemberName(name, FILE_FIELD)
    key, field = aistore_base(name), aistore_extension(name)
    return MemberName(key, field) if field else None


def group_members(
    names: Iterable[str],
    rule: MemberRule = "webdataset",
    *,
    lowercase: bool = True,
    shard: str = "",
) -> list[MemberSample]:
    """Return the samples of a shard, in the order of their first members (``"files"``: of names).

    Args:
        names: Names of the regular members, in the order of the archive; folders and links are no
            members and do not end a run.
        rule: How to read them.
        lowercase: Whether fields lose their case (``"webdataset"``).
        shard: Name of the shard, for errors.

    Raises:
        MemberError: If two adjacent members have the same key and field (``"webdataset"``).
        PlanError: If the rule is unknown.

    Example:
        >>> group_members(["a.jpg", "a.cls", "b.jpg"])[0]
        MemberSample(key='a', members={'jpg': 0, 'cls': 1})
    """
    _check_rule(rule)
    if rule == "files":
        named = sorted((name, index) for index, name in enumerate(names))
        return [MemberSample(name, {FILE_FIELD: index}) for name, index in named]
    samples: list[tuple[str, dict[str, int]]] = []
    known: dict[str, dict[str, int]] = {}
    for index, name in enumerate(names):
        split = split_name(name, rule, lowercase=lowercase)
        if split is None:
            continue
        adjacent = rule == "webdataset"
        if split.key not in known:
            if adjacent:
                known.clear()
            known[split.key] = {}
            samples.append((split.key, known[split.key]))
        members = known[split.key]
        if adjacent and split.field in members:
            raise MemberError(name, key=split.key, field=split.field, shard=shard)
        members[split.field] = index
    return [MemberSample(key, members) for key, members in samples]


def aistore_base(name: str) -> str:
    """Return what stands before the first dot of the last component; it may be empty."""
    return name.rpartition("/")[2].partition(".")[0]


def aistore_extension(name: str) -> str:
    """Return what stands after the last dot of the last component, ``""`` without one."""
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    return extension if dot else ""


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise PlanError(f"rule={rule!r} is unknown: choose {', '.join(map(repr, RULES))}")
