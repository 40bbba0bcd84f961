"""Which target owns an object: highest random weight, as AIStore computes it.

The stand-in keeps every object at the target that a real cluster would keep it at, so that a
client with a wrong hash fails here too.  The numbers are those of AIStore's `core/meta/hrw.go` and
`cmn/xoshiro256`, and of xxHash64 with AIStore's seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

SEED: Final = 1_103_515_245
"""The seed of every hash that decides a place."""

_MASK: Final = (1 << 64) - 1
_STEP: Final = 0x9E37_79B9_7F4A_7C15
_FIRST: Final = 0xBF58_476D_1CE4_E5B9
_SECOND: Final = 0x94D0_49BB_1331_11EB


class Hashed(Protocol):
    """What can own an object: it has the digest of its id."""

    @property
    def digest(self) -> int:
        """`digest` of the id."""


_Owner = TypeVar("_Owner", bound=Hashed)


def digest(text: str) -> int:
    """Return the place hash of an id or of an object's full name: 64 bits, unsigned."""
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogateescape"), SEED)


def weight(key: int) -> int:
    """Return the first number of xoshiro256** seeded with `key` through splitmix64."""
    state = key + _STEP
    first = _splitmix(state & _MASK)
    mixed = _splitmix(first + _STEP & _MASK)
    mixed = mixed * 5 & _MASK
    return ((mixed << 7 | mixed >> 57) & _MASK) * 9 & _MASK


def owner(full_name: str, candidates: Iterable[_Owner]) -> _Owner:
    """Return the candidate that owns an object.

    Args:
        full_name: ``provider/namespace/bucket/object``, decoded.
        candidates: At least one.
    """
    name = digest(full_name)
    return max(candidates, key=lambda candidate: weight(candidate.digest ^ name))


def _splitmix(value: int) -> int:
    value = (value ^ value >> 30) * _FIRST & _MASK
    value = (value ^ value >> 27) * _SECOND & _MASK
    return value ^ value >> 31
