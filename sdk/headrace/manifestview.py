"""The manifest as a dataset shows it: it stays in the daemon, which answers entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Final, overload

from .manifest import Entry
from .plans.cursor import Seek

if TYPE_CHECKING:
    from .protocol import messages as m

_LOOKUP_INDICES: Final = 1024
"""Entries that are looked up at a time: with long names they still fit one message."""


class ManifestView(Sequence[Entry]):
    """Names and sizes of the samples of a stream.

    Args:
        describe: Asks the daemon of a position and of some samples.
    """

    def __init__(self, describe: Callable[[Seek, tuple[int, ...]], m.Entries]) -> None:
        self._describe = describe

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return self._describe(Seek(epoch=0), ()).manifest

    def __len__(self) -> int:
        return self._describe(Seek(epoch=0), ()).length

    @overload
    def __getitem__(self, where: int) -> Entry: ...
    @overload
    def __getitem__(self, where: slice) -> list[Entry]: ...
    def __getitem__(self, where: int | slice) -> Entry | list[Entry]:
        length = len(self)
        if isinstance(where, slice):
            return list(self._entries(range(*where.indices(length))))
        number = index(where)
        if not -length <= number < length:
            raise IndexError(f"sample {number} is outside the manifest of {length} samples")
        (entry,) = self._entries(range(number % length, number % length + 1))
        return entry

    def __iter__(self) -> Iterator[Entry]:
        return self._entries(range(len(self)))

    def _entries(self, indices: range) -> Iterator[Entry]:
        for start in range(0, len(indices), _LOOKUP_INDICES):
            part = tuple(indices[start : start + _LOOKUP_INDICES])
            answer = self._describe(Seek(epoch=0), part)
            yield from map(Entry, answer.names, answer.sizes)
