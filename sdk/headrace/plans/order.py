"""Orders: which sample stands at which place of an epoch.

An order is a function of (length, seed, epoch, role, repeat) and a position.  It holds no list:
memory is O(1) in the length and any position is reached in O(1), so that a resume is a number
and 10^9 samples need no more than 10.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.uint64]


class Order(Protocol):
    """The order of the samples of each epoch."""

    @property
    def length(self) -> int:
        """Entries of one epoch."""
        ...

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return the sample indices at some positions of an epoch.

        Args:
            epoch: Epoch, >= 0.
            positions: u64[m], each < length; left unchanged.

        Returns:
            u64[m], a new array.
        """
        ...


@runtime_checkable
class RunOrder(Order, Protocol):
    """An order that reads the data in long runs.

    The samples form a *sequence*, and entries of it are permuted within windows only: the entries
    at positions ``k * window … (k + 1) * window - 1`` are the samples that stand at these places of
    the sequence.
    """

    @property
    def window(self) -> int:
        """Entries that are permuted among each other; 1 where none are."""
        ...

    def places_of(self, epoch: int, samples: Indices) -> Indices:
        """Return where some samples stand in the sequence of an epoch, u64[m]."""
        ...

    def samples_at(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the samples that stand at places ``start … stop - 1``, u64[stop - start]."""
        ...


class SequentialOrder:
    """The order of the manifest, the same in each epoch."""

    __slots__ = ("length",)

    window: Final = 1

    def __init__(self, length: int) -> None:
        self.length = length

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return a copy of the positions: entry i is sample i."""
        return positions.copy()

    def places_of(self, epoch: int, samples: Indices) -> Indices:
        """Return a copy of the samples: each stands at its own place (see `RunOrder`)."""
        return samples.copy()

    def samples_at(self, epoch: int, start: int, stop: int) -> Indices:
        """Return the samples at some places (see `RunOrder.samples_at`)."""
        return np.arange(start, stop, dtype=np.uint64)


NUM_ROUNDS: Final = 16
"""Feistel rounds above `SMALL_BITS`."""

NUM_ROUNDS_SMALL: Final = 32
"""Feistel rounds up to `SMALL_BITS`.  A round mixes few bits there: over a million keys, the orders
of five to eight samples are uneven with 16 rounds (chi-square per degree of freedom 2.3 to 8.7),
even with 32 (0.8 to 1.0)."""

SMALL_BITS: Final = 16

_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_MIX_SHIFT: Final = np.uint64(33)


ORDER_LABEL: Final = b"headrace.order.v1"
_TWEAK_STEP: Final = np.uint64(0x9E3779B97F4A7C15)


class KeyedOrder:
    """A pseudo-random permutation that is computed, not stored: the default shuffle.

    Format-preserving encryption of the position: a Feistel network over the smallest power of
    two that holds the length, with cycle walking for results beyond it (J. Black and
    P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002).  The network alternates
    between a low half and a high half that may differ by one bit; its round function is the
    64-bit finaliser of MurmurHash3 over the half XOR the round key.  Round keys are BLAKE2b
    digests of a label, the seed, the epoch, the role of the stream and the repeat, each as a
    big-endian u64; neither the length nor any digest of the data enters them.

    The result is not for cryptography.  It is pinned by ``tests/golden/keyed.json``.
    """

    __slots__ = ("_label", "_repeat", "_role", "_seed", "length")

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        role: int = 0,
        repeat: int = 0,
        label: bytes = ORDER_LABEL,
    ) -> None:
        self.length = length
        self._seed = seed
        self._role = role
        self._repeat = repeat
        self._label = label

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return the sample indices at some positions of an epoch (see `Order.at`)."""
        keys = round_keys(
            self._seed, epoch, role=self._role, repeat=self._repeat, label=self._label
        )
        return permute(positions, self.length, keys)


def permute(
    positions: Indices, length: int, keys: Indices, *, tweak: Indices | None = None
) -> Indices:
    """Return the images of some positions under the permutation that the keys make of 0..length-1.

    Args:
        positions: u64[m], each < length; left unchanged.
        length: Size of the domain, >= 1.
        keys: Round keys (see `round_keys`).
        tweak: u64[m]; positions with different tweaks are permuted independently.
    """
    bits = max(1, (length - 1).bit_length())
    if bits > SMALL_BITS:
        keys = keys[:NUM_ROUNDS]
    limit = np.uint64(length)
    tweak = None if tweak is None else mix(tweak)
    result = _feistel(positions, bits, keys, tweak)
    # Walking the cycle of a position below the limit must come back below the limit; at least
    # half of the domain is below it, so the expected number of walks is under two.
    outside = np.flatnonzero(result >= limit)
    while outside.size:
        walked = _feistel(result[outside], bits, keys, None if tweak is None else tweak[outside])
        result[outside] = walked
        outside = outside[walked >= limit]
    return result


def round_keys(
    seed: int, epoch: int, *, role: int = 0, repeat: int = 0, label: bytes = ORDER_LABEL
) -> Indices:
    """Return the Feistel round keys of one epoch, u64[32]; a long order uses the first 16."""
    context = label + b"".join(number.to_bytes(8, "big") for number in (seed, epoch, role, repeat))
    stream = b"".join(
        hashlib.blake2b(context + block.to_bytes(8, "big")).digest()
        for block in range(NUM_ROUNDS_SMALL * 8 // 64)
    )
    return np.frombuffer(stream, dtype=">u8").astype(np.uint64)


def mix(values: Indices) -> Indices:
    """Return a 64-bit mix of each value: the finaliser of MurmurHash3, of the value plus one."""
    mixed = (values + np.uint64(1)) * _TWEAK_STEP
    for factor in (_MIX_1, _MIX_2):
        mixed ^= mixed >> _MIX_SHIFT
        mixed *= factor
    mixed ^= mixed >> _MIX_SHIFT
    return mixed


def _feistel(values: Indices, bits: int, keys: Indices, tweak: Indices | None = None) -> Indices:
    low_bits = np.uint64(bits - bits // 2)
    low_mask = np.uint64((1 << int(low_bits)) - 1)
    high_mask = np.uint64((1 << (bits // 2)) - 1)
    low = values & low_mask
    high = values >> low_bits
    # In place and with `out=`: without new arrays in the inner loop it takes a third less time.
    mixed, shifted = np.empty_like(low), np.empty_like(low)
    for number, key in enumerate(keys):
        half, other, mask = (high, low, low_mask) if number % 2 else (low, high, high_mask)
        np.bitwise_xor(half, key, out=mixed)
        if tweak is not None:
            mixed += tweak
        for factor in (_MIX_1, _MIX_2):
            np.right_shift(mixed, _MIX_SHIFT, out=shifted)
            mixed ^= shifted
            mixed *= factor
        np.right_shift(mixed, _MIX_SHIFT, out=shifted)
        mixed ^= shifted
        mixed &= mask
        other ^= mixed
    high <<= low_bits
    high |= low
    return high
