"""Selections: what a source takes of one bucket or folder, its *root*.

A selection is either all objects whose names begin with a prefix, or given names.  A source is a
sequence of selections, in the order of its samples.  No object is in two of them: which names a
selection has follows from what is written, so this is known before anything is listed.

Samples are named as in their root.  Where a source has several roots, the name of a sample begins
with a label of its root and a ``/``: the name of the bucket, or the last component of the folder,
as AIStore's batches have it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from .errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .buckets import Bucket


class Selection(NamedTuple):
    """Objects of one root."""

    bucket: Bucket | None
    """With the prefix that all names begin with; None for a folder."""

    path: str
    """The folder, absolute; empty for a bucket."""

    prefix: str
    """What all names begin with, those of files relative to their folder."""

    names: tuple[str, ...] | None
    """The objects; None for all with the prefix that the next two let through."""

    suffix: tuple[str, ...]
    """One of these ends each name, if there are any."""

    recursive: bool
    """Whether names may have a ``/`` after the prefix."""

    label: str = ""
    """What the names of the samples begin with, before a ``/``; empty for nothing."""

    @property
    def root(self) -> str:
        """The bucket without prefix, or the folder."""
        return self.path if self.bucket is None else str(self.bucket)

    @property
    def location(self) -> str:
        """Root and prefix, for people."""
        if self.bucket is not None:
            return self.bucket.uri
        return os.path.join(self.path, self.prefix) if self.prefix else self.path

    def takes(self, name: str) -> bool:
        """Return whether an object of the root, by its name there, is one of the selection."""
        if self.names is not None:
            return name in self.names
        return (
            name.startswith(self.prefix)
            and (not self.suffix or name.endswith(self.suffix))
            and (self.recursive or "/" not in name[len(self.prefix) :])
        )


def labelled(selections: Sequence[Selection]) -> tuple[Selection, ...]:
    """Return selections with the labels of their roots, if there are several roots.

    A label that two roots would have stays with the first: the next one has ``@`` and its place
    among the roots behind it.
    """
    roots = list(dict.fromkeys(selection.root for selection in selections))
    if len(roots) == 1:
        return tuple(selections)
    buckets = {selection.root: selection.bucket for selection in selections}
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for number, root in enumerate(roots):
        bucket = buckets[root]
        label = os.path.basename(root) or "_" if bucket is None else bucket.name
        while label in taken:
            label += f"@{number}"
        taken.add(label)
        labels[root] = label
    return tuple(selection._replace(label=labels[selection.root]) for selection in selections)


def check_disjoint(selections: Iterable[Selection]) -> None:
    """Refuse selections that have an object in common; O(n log n) in prefixes and names.

    All have the same `suffix` and `recursive`, as those of one source.

    Raises:
        PlanError: Naming two of them, and the object or prefix.
    """
    by_root: dict[str, list[Selection]] = defaultdict(list)
    for selection in selections:
        by_root[selection.root].append(selection)
    for root, own in by_root.items():
        listed = _Listed(root, [selection for selection in own if selection.names is None])
        seen: set[str] = set()
        for selection in own:
            for name in selection.names or ():
                if name in seen:
                    raise PlanError(f"names has {name!r} of {root} twice: {_ONCE}")
                seen.add(name)
                other = listed.find(name)
                if other is not None:
                    raise PlanError(
                        f"names has {name!r} of {root}, which is in {other.location} too: {_ONCE}"
                    )


class _Listed:
    """The selections of one root that have a prefix: none of them has an object of another one.

    Args:
        root: For messages.
        selections: In any order.

    Raises:
        PlanError: If two have one in common.
    """

    def __init__(self, root: str, selections: Iterable[Selection]) -> None:
        # Without folders in between, names meet only prefixes of their own folder.
        self._groups: dict[str, list[tuple[str, Selection]]] = defaultdict(list)
        for selection in selections:
            folder = "" if selection.recursive else _folder(selection.prefix)
            self._groups[folder].append((selection.prefix, selection))
        for group in self._groups.values():
            group.sort(key=_prefix)
            # What begins with a prefix follows it at once.
            for (prefix, _), (following, _) in pairwise(group):
                if following.startswith(prefix):
                    told = (
                        f"prefix {prefix!r} is the beginning of prefix {following!r}"
                        if prefix != following
                        else f"prefix {prefix!r} is there twice"
                    )
                    raise PlanError(
                        f"{told}, both of {root}: objects of the latter would be there twice; "
                        f"{_ONCE}"
                    )

    def find(self, name: str) -> Selection | None:
        """Return the selection that takes an object, if there is one."""
        for folder in {"", _folder(name)}:
            group = self._groups.get(folder, ())
            # Of the prefixes that sort before the name, only the last one can be its beginning.
            place = bisect_right(group, name, key=_prefix) - 1
            if place >= 0 and group[place][1].takes(name):
                return group[place][1]
        return None


def _prefix(one: tuple[str, Selection]) -> str:
    return one[0]


def _folder(name: str) -> str:
    return name[: name.rfind("/") + 1]


_ONCE = "leave one out: an object is in a source once"
