"""The tally: all feeds of a run end in front of the same step, whoever met the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FeedError
from headrace.sources import Skip
from headrace_daemon.errors import ObjectMissingError
from headrace_daemon.feed.tally import MAX_TOLD, Tallies, Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace_daemon.feed.tally import Place


def nothing() -> None:
    pass


def note(tally: Tally, sample: int, place: Place) -> None:
    tally.note(sample, ObjectMissingError(f"s{sample}", f"s{sample} is gone"), place)


def test_the_step_that_passes_the_limit_is_given_by_nobody() -> None:
    tally = Tally(Skip(limit=2))
    woken: list[str] = []
    tally.join(lambda: woken.append("0"), 0, ())
    tally.join(lambda: woken.append("1"), 0, ())
    note(tally, 1, (0, 9))
    note(tally, 2, (0, 3))
    note(tally, 2, (0, 3))
    assert not tally.ends((99, 0))
    note(tally, 3, (0, 7))
    assert tally.end == (0, 9), "two are left out before, this one is too many"
    assert woken == ["0", "1"]
    note(tally, 4, (0, 5))
    assert tally.end == (0, 7), "as reads end, it is known better"
    assert [tally.ends(place) for place in [(0, 6), (0, 7), (1, 0)]] == [False, True, True]
    errors = [str(tally.failure()), str(tally.failure())]
    assert errors[0] == errors[1]
    assert errors[0].startswith("4 samples cannot be read, and on_bad leaves out 2 at most")
    assert "s2 is gone; s4 is gone; s3 is gone; s1 is gone; restore them" in errors[0]
    assert isinstance(tally.failure(), FeedError)


def test_a_step_that_one_has_given_is_given_by_all() -> None:
    tally = Tally(Skip(limit=0))
    tally.give((0, 6))
    tally.give((0, 4))
    note(tally, 1, (0, 5))
    assert tally.end == (0, 7)


def test_what_was_left_out_before_counts_but_ends_nothing_alone() -> None:
    tally = Tally(Skip(limit=2))
    tally.join(nothing, 3, (1, 2, 3))
    assert not tally.ends((99, 0))
    note(tally, 2, (3, 0))
    assert not tally.ends((99, 0))
    note(tally, 4, (3, 5))
    assert tally.end == (3, 5)
    assert str(tally.failure()).startswith("4 samples")


def test_epochs_that_repair_begin_with_nothing() -> None:
    tally = Tally(Skip(limit=1, repair=True))
    tally.join(nothing, 0, (1,))
    for epoch in range(1, 5):
        tally.give((epoch, 0))
        note(tally, 1, (epoch, 3))
    assert not tally.ends((99, 0))
    note(tally, 2, (4, 2))
    assert tally.end == (4, 3)


def test_an_error_names_some() -> None:
    tally = Tally(Skip(limit=1))
    for sample in range(9):
        note(tally, sample, (0, sample))
    assert f"; and {9 - MAX_TOLD} more; restore" in str(tally.failure())


def test_a_run_has_one_for_as_long_as_it_has_a_feed() -> None:
    tallies = Tallies()
    tally = tallies.of("run", Skip())
    assert tallies.of("run", Skip()) is tally
    assert tallies.of("other", Skip()) is not tally
    tally.join(nothing, 0, ())
    tally.join(print, 0, ())
    assert not tally.leave(print)
    assert tally.leave(nothing)
    tallies.forget(tally)
    assert tallies.of("run", Skip()) is not tally


@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=80),
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 15)), max_size=12),
)
def test_all_ranks_give_the_same_steps(
    limit: int, moves: Sequence[tuple[int, int]], bad: set[tuple[int, int]]
) -> None:
    """Three ranks read ahead and give, in any order; whatever was said, all stop at one step."""
    tally = Tally(Skip(limit=limit))
    read, gave = [0, 0, 0], [0, 0, 0]
    stopped: list[int | None] = [None, None, None]

    def move(rank: int, *, gives: bool) -> None:
        if stopped[rank] is None and gives and gave[rank] < 16:
            if tally.ends((0, gave[rank])):
                stopped[rank] = gave[rank]
            elif gave[rank] < read[rank]:
                tally.give((0, gave[rank]))
                gave[rank] += 1
        elif read[rank] < min(gave[rank] + 4, 16):
            if (rank, read[rank]) in bad:
                note(tally, 100 * rank + read[rank], (0, read[rank]))
            read[rank] += 1

    for rank, what in moves:
        move(rank, gives=bool(what))
    for _ in range(60):  # and on to the end
        for rank in range(3):
            move(rank, gives=False)
            move(rank, gives=True)
    if len(bad) <= limit:
        assert gave == [16, 16, 16]
    else:
        assert len({*gave}) == 1
