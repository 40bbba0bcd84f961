"""Ranges of objects with places for some of their bytes, and what has to come of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from headrace_daemon.source.reader import Place, RangeRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

EDGE: Final = 0xEE
"""What the memory is filled with where nothing may be written."""


@dataclass(frozen=True)
class Span:
    """A range of an object, the parts of it that are wanted, and the memory for them.

    All parts lie in one memory, as they do in a slot, with a byte before and behind each.
    """

    content: bytes
    start: int
    stop: int
    parts: tuple[tuple[int, int], ...]
    """Where each begins and ends in the object, ascending."""
    memory: bytearray

    @classmethod
    def of(
        cls, content: bytes, start: int, stop: int, parts: Sequence[tuple[int, int]] | None = None
    ) -> Span:
        """Return a range with fresh memory; without parts, one place takes all of it."""
        chosen = tuple([(start, stop)] if parts is None else parts)
        size = sum(last - first + 1 for first, last in chosen) + 1
        return cls(content, start, stop, chosen, bytearray([EDGE]) * size)

    def request(self, name: str, checksum: bytes = b"", version: bytes = b"") -> RangeRequest:
        view, at = memoryview(self.memory), 1
        places = []
        for first, last in self.parts:
            places.append(Place(first, view[at : at + last - first]))
            at += last - first + 1
        return RangeRequest(
            name, self.start, self.stop, len(self.content), places, checksum, version
        )

    @property
    def asked(self) -> str:
        """The range as HTTP says it."""
        return f"{self.start}-{self.stop - 1}"

    @property
    def body(self) -> bytes:
        """What a store sends."""
        return self.content[self.start : self.stop]

    def check(self) -> None:
        """Every part is in its place, and nothing was written beside them."""
        edge = bytes([EDGE])
        parts = (self.content[first:last] for first, last in self.parts)
        assert self.memory == edge + edge.join(parts) + edge * bool(self.parts)

    def is_untouched(self) -> bool:
        return self.memory == bytes([EDGE]) * len(self.memory)


@st.composite
def spans(draw: st.DrawFn, content: bytes) -> Span:
    """Draw a range of an object with up to eight places: empty ones, neighbours and gaps."""
    size = len(content)
    start = draw(st.integers(0, size - 1))
    stop = draw(st.integers(start + 1, size))
    cuts = sorted(draw(st.lists(st.integers(start, stop), max_size=16)))
    parts = [pair for number, pair in enumerate(pairwise(cuts)) if number % 2 == 0]
    if draw(st.booleans()):  # all of them, one right behind the other
        parts = list(pairwise(cuts))
    return Span.of(content, start, stop, parts)
