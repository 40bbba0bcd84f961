"""How many batches are read at a time, for sources that are near, far, full, or faster."""

from __future__ import annotations

import pytest

from headrace_daemon.feed.lookahead import MAX_FACTOR, ROUND, Lookahead


def simulate(
    travel_s: float, work_s: float, *, asked: int = 5, num_batches: int = 3_000, need_s: float = 0.0
) -> Lookahead:
    """Read batches that travel side by side and are worked on one after the other.

    Args:
        travel_s: Of a batch, seconds.
        work_s: Of a batch at the source, seconds.
        asked: Slots that the client asked for.
        num_batches: How many are read.
        need_s: What the client takes for one, seconds.
    """
    ahead = Lookahead(asked)
    now_s = free_s = 0.0
    due: list[tuple[float, float]] = []  # when begun, when there
    for _ in range(num_batches):
        while len(due) < ahead.num_slots:
            free_s = max(free_s, now_s + travel_s / 2) + work_s
            due.append((now_s, free_s + travel_s / 2))
        begun_s, there_s = due.pop(0)
        ahead.note_filled(there_s - begun_s)
        now_s = max(now_s, there_s) + need_s
        ahead.note_given(is_next_ready=bool(due) and due[0][1] <= now_s)
    return ahead


@pytest.mark.parametrize("travel_s", [0.005, 0.02, 0.05])
def test_far_away_there_are_enough_under_way(travel_s: float) -> None:
    work_s = 0.001
    needed = travel_s / work_s  # for the whole rate of the source
    num_slots = simulate(travel_s, work_s).num_slots
    assert num_slots >= min(0.9 * needed, 5 * MAX_FACTOR)
    assert num_slots <= 5 * MAX_FACTOR


@pytest.mark.parametrize(("travel_s", "work_s"), [(0.0, 0.001), (0.0005, 0.001), (0.001, 0.02)])
def test_a_source_that_is_full_gets_no_more(travel_s: float, work_s: float) -> None:
    assert simulate(travel_s, work_s).num_slots == 5


def test_a_client_that_is_slower_needs_no_more() -> None:
    assert simulate(0.02, 0.001, need_s=0.03).num_slots == 5


def test_what_was_needed_is_given_back() -> None:
    ahead = simulate(0.05, 0.001)
    assert ahead.num_slots > 20
    for _ in range(60 * ROUND):
        ahead.note_filled(1.0)  # a source that is far slower now
        ahead.note_given(is_next_ready=False)
    assert ahead.num_slots == 5
