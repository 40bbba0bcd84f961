"""The keyed order once more, in plain Python integers: the oracle of `headrace.plans.order`.

It is written from the description of the algorithm and shares no code with the product:

* ``bits`` is the number of bits of ``length - 1``, at least 1.  A value below ``2**bits`` has a
  low part of ``bits - bits // 2`` bits and a high part of ``bits // 2`` bits.
* Round ``i`` of 32, or of 16 where ``bits`` is above 16, changes the high part when ``i`` is even
  and the low part when it is odd: ``part ^= mix(other part ^ key[i])``, cut to the part's bits.
* ``mix`` is the 64-bit finaliser of MurmurHash3.
* ``key[0..31]`` are the big-endian u64 words of four BLAKE2b-512 digests, of the label
  ``headrace.order.v1`` and the big-endian u64 seed, epoch, role, repeat and 0 to 3.
* A result that is not below ``length`` goes through the network again, until it is.

``tests/golden/keyed.json`` was written by this module.  When an order is changed on purpose (a
compatibility decision: it bumps the plan version), write it anew from the repository's root:

    .venv/bin/python -m tests.support.keyed
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Final

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "keyed.json"
NUM_ROUNDS: Final = 32
NUM_SHOWN: Final = 8
WHOLE_UP_TO: Final = 1 << 17
"""Orders up to this length are pinned whole, by a CRC; longer ones at both ends only."""

CASES: Final = (
    {"n": 1, "seed": 0, "epoch": 0},
    {"n": 2, "seed": 0, "epoch": 0},
    {"n": 2, "seed": 0, "epoch": 1},
    {"n": 3, "seed": 17, "epoch": 0},
    {"n": 5, "seed": 17, "epoch": 0},
    {"n": 5, "seed": 17, "epoch": 1},
    {"n": 16, "seed": 17, "epoch": 3},
    {"n": 17, "seed": 17, "epoch": 3},
    {"n": 1_000, "seed": 0, "epoch": 0},
    {"n": 1_000, "seed": 0, "epoch": 1},
    {"n": 1_000, "seed": 1, "epoch": 0},
    {"n": 1_000, "seed": 2**64 - 1, "epoch": 2**40},
    {"n": 1_000, "seed": 17, "epoch": 4, "role": 1},
    {"n": 1_000, "seed": 17, "epoch": 4, "repeat": 1},
    {"n": 2**16 + 1, "seed": 17, "epoch": 89},
    {"n": 2**20 + 7, "seed": 17, "epoch": 2},
    {"n": 10**9, "seed": 17, "epoch": 2},
    {"n": 2**63 - 1, "seed": 17, "epoch": 0},
)


def entry(position: int, *, n: int, seed: int, epoch: int, role: int = 0, repeat: int = 0) -> int:
    """Return the sample at one position of an epoch of `n` samples."""
    return _walk(position, n, _keys(seed, epoch, role, repeat))


def whole(*, n: int, seed: int, epoch: int, role: int = 0, repeat: int = 0) -> list[int]:
    """Return a whole epoch of `n` samples."""
    keys = _keys(seed, epoch, role, repeat)
    return [_walk(position, n, keys) for position in range(n)]


def record(case: dict[str, int]) -> dict[str, Any]:
    """Return what the golden file says about one of `CASES`."""
    n = case["n"]
    shown = min(n, NUM_SHOWN)
    result: dict[str, Any] = {
        **case,
        "first": [entry(position, **case) for position in range(shown)],
        "last": [entry(position, **case) for position in range(n - shown, n)],
    }
    if n <= WHOLE_UP_TO:
        order = b"".join(number.to_bytes(8, "little") for number in whole(**case))
        result["crc32"] = f"{zlib.crc32(order):08x}"
    return result


def _keys(seed: int, epoch: int, role: int, repeat: int) -> list[int]:
    words = b""
    for block in range(NUM_ROUNDS * 8 // 64):
        numbers = (seed, epoch, role, repeat, block)
        context = b"".join(number.to_bytes(8, "big") for number in numbers)
        words += hashlib.blake2b(b"headrace.order.v1" + context).digest()
    return [int.from_bytes(words[at : at + 8], "big") for at in range(0, len(words), 8)]


def _walk(position: int, n: int, keys: list[int]) -> int:
    bits = max(1, (n - 1).bit_length())
    value = _network(position, bits, keys)
    while value >= n:
        value = _network(value, bits, keys)
    return value


def _network(value: int, bits: int, keys: list[int]) -> int:
    high_bits = bits // 2
    low_bits = bits - high_bits
    high, low = divmod(value, 1 << low_bits)
    for number, key in enumerate(keys[: 32 if bits <= 16 else 16]):
        if number % 2 == 0:
            high ^= _mix(low ^ key) % (1 << high_bits)
        else:
            low ^= _mix(high ^ key) % (1 << low_bits)
    return (high << low_bits) + low


def _mix(value: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % 2**64
    return value ^ value >> 33


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(record(case)) for case in CASES)
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
