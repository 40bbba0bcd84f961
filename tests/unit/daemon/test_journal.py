"""The journal: what was left out, in the order of delivery and within its limit."""

from __future__ import annotations

import pytest

from headrace.errors import FeedError
from headrace.plans.cursor import MAX_SKIPS
from headrace.sources import Skip
from headrace_daemon.errors import ObjectError, ObjectMissingError
from headrace_daemon.feed.journal import Journal


def bad(*samples: int) -> dict[int, ObjectError]:
    return {sample: ObjectMissingError(f"s{sample}", f"s{sample} is gone") for sample in samples}


def test_it_tells_what_is_new_and_keeps_all_in_order() -> None:
    journal = Journal(Skip(), skips=(7, 3))
    assert journal.add(bad(9, 3, 1)) == ["left out: s9 is gone", "left out: s1 is gone"]
    assert journal.skips == (1, 3, 7, 9)
    assert journal.add(bad(9)) == []
    assert journal.told({"epoch": 2, "skips": []}) == {"epoch": 2, "skips": [1, 3, 7, 9]}
    assert Journal(Skip()).told({"epoch": 2}) == {"epoch": 2}


def test_it_ends_where_a_cursor_can_name_no_more() -> None:
    journal = Journal(Skip(limit=2), skips=range(1, MAX_SKIPS))
    journal.add(bad(MAX_SKIPS))  # the limit is that of the run, which has its own tally
    journal.add(bad(1, 2))
    with pytest.raises(FeedError, match=rf"s5000 is gone \(one more than the {MAX_SKIPS} samples"):
        journal.add(bad(5000))
    assert len(journal.skips) == MAX_SKIPS


def test_it_stays_over_epochs_unless_they_repair() -> None:
    stays, repairs = (Journal(Skip(repair=repair), epoch=4, skips=(1,)) for repair in (False, True))
    assert stays.leaves_out(1, 4)
    assert stays.leaves_out(1, 5)
    assert repairs.leaves_out(1, 4)
    assert not repairs.leaves_out(1, 5), "read ahead"
    for journal in (stays, repairs):
        journal.begin_epoch(4)
        assert journal.skips == (1,)
        journal.begin_epoch(5)
    assert stays.skips == (1,)
    assert repairs.skips == ()


def test_without_a_policy_nothing_is_left_out() -> None:
    journal = Journal(None, skips=(1,))
    assert not journal.allows
    assert not journal.leaves_out(1, 0)
    assert journal.skips == (1,), "what a state says is carried on"
