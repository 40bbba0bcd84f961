from __future__ import annotations

import msgspec
import pytest

from headrace.testing import Ledger, LedgerEntry
from headrace_daemon.demo import proof
from headrace_daemon.demo.errors import DemoError

ENTRIES = [
    LedgerEntry(epoch=0, step=step, rank=0, world_size=1, stream="", ids=(step, 9), crc=step)
    for step in range(3)
]


def ledger(*entries: LedgerEntry) -> Ledger:
    made = Ledger()
    made.entries = list(entries)
    return made


def test_equal_ledgers_pass_and_have_one_summary() -> None:
    one, other = ledger(*ENTRIES), ledger(*ENTRIES)
    proof.check_equal(one, other)
    assert proof.summary(one) == proof.summary(other)
    assert proof.summary(one).startswith("3 batches, 6 samples, digest ")


def test_first_difference_is_named() -> None:
    changed = msgspec.structs.replace(ENTRIES[1], crc=77)
    one, other = ledger(*ENTRIES), ledger(ENTRIES[0], changed, ENTRIES[2])
    with pytest.raises(DemoError, match=r"differs .* entry 1: .*crc=1\).*crc=77\)"):
        proof.check_equal(one, other)
    assert proof.summary(one) != proof.summary(other)


def test_missing_end_is_a_difference() -> None:
    with pytest.raises(DemoError, match="2 entries != 3 entries"):
        proof.check_equal(ledger(*ENTRIES[:2]), ledger(*ENTRIES))
