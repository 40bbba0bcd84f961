"""The journal: what was left out, in the order of delivery and within its limit."""

from __future__ import annotations

import pytest

from headrace.errors import FeedError
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


def test_one_above_the_limit_is_an_error_that_names_it() -> None:
    journal = Journal(Skip(limit=2), skips=(1,))
    journal.add(bad(2))
    journal.add(bad(1, 2))
    with pytest.raises(FeedError, match=r"s5 is gone \(one more than the limit of 2 samples"):
        journal.add(bad(5))
    assert journal.skips == (1, 2)


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
