"""The proof of the demo: two ledgers, compared entry by entry."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from .errors import DemoError

if TYPE_CHECKING:
    from headrace.testing import Ledger


def digest(ledger: Ledger) -> str:
    """Return the SHA-256 over all entries of a ledger, in hex."""
    lines = (msgspec.json.encode(entry) + b"\n" for entry in ledger.entries)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def summary(ledger: Ledger) -> str:
    """Return what a ledger holds, as a line."""
    num_samples = sum(len(entry.ids) for entry in ledger.entries)
    return f"{len(ledger.entries)} batches, {num_samples} samples, digest {digest(ledger)[:16]}"


def check_equal(interrupted: Ledger, uninterrupted: Ledger) -> None:
    """Compare two ledgers: order, samples, and a checksum of the bytes of each batch.

    Raises:
        DemoError: Naming the first difference.
    """
    difference = interrupted.difference(uninterrupted)
    if difference is not None:
        raise DemoError(
            "the interrupted run differs from the uninterrupted one, which must not happen: "
            f"{difference}"
        )
