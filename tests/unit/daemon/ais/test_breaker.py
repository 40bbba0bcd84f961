"""The breaker: when a target is asked, and how often it is probed; as a table, and for any past."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.source.ais.breaker import (
    CALM_ANSWERS,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_FAULTS,
    NEXT,
    Breaker,
    Event,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def tripped(now_s: float = 0.0) -> Breaker:
    breaker = Breaker(random.Random(1))
    assert [breaker.note_fault(now_s) for _ in range(MAX_FAULTS)] == [False] * (MAX_FAULTS - 1) + [
        True
    ]
    return breaker


def test_the_table_has_every_event_that_can_happen() -> None:
    possible = {
        State.CLOSED: {Event.ANSWER, Event.FAULT, Event.LAST_FAULT},
        State.OPEN: {Event.ANSWER, Event.FAULT, Event.PROBE},
        State.HALF_OPEN: {Event.ANSWER, Event.FAULT, Event.PROBE},
    }
    assert set(NEXT) == {(state, event) for state, events in possible.items() for event in events}


@pytest.mark.parametrize(
    ("past", "is_closed"),
    [
        ("", True),
        ("f" * (MAX_FAULTS - 1), True),
        ("f" * MAX_FAULTS, False),
        (("f" * (MAX_FAULTS - 1) + "a") * 3, True),  # with answers between them
        ("f" * MAX_FAULTS + "a", True),
        ("f" * MAX_FAULTS + "pa", True),
        ("f" * MAX_FAULTS + "pf", False),
        ("f" * MAX_FAULTS + "pfpf", False),
        ("f" * MAX_FAULTS + "pppa", True),
        ("f" * MAX_FAULTS + "a" + "f" * (MAX_FAULTS - 1), True),  # it has as many again
        ("f" * MAX_FAULTS + "a" + "f" * MAX_FAULTS, False),
    ],
)
def test_what_was_decides_whether_it_is_asked(past: str, is_closed: bool) -> None:
    breaker, now_s = Breaker(random.Random(0)), 0.0
    for step in past:
        now_s += 2 * LONGEST_PAUSE_S
        if step == "f":
            breaker.note_fault(now_s)
        elif step == "a":
            breaker.note_answer()
        else:
            assert breaker.admits(now_s)
            assert breaker.state is State.HALF_OPEN
    assert breaker.is_closed is is_closed


def test_pauses_double_up_to_a_bound_and_are_short_again_once_all_is_calm() -> None:
    breaker = tripped()
    now_s, pauses = 0.0, []
    for _ in range(10):
        assert not breaker.admits(now_s)
        pauses.append(breaker.probe_s - now_s)
        now_s = breaker.probe_s
        assert breaker.admits(now_s)
        breaker.note_fault(now_s)
    limits = [min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(10)]
    assert all(limit / 4 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))

    def next_pause_s() -> float:
        for _ in range(MAX_FAULTS):
            breaker.note_fault(now_s)
        return breaker.probe_s - now_s

    breaker.note_answer()
    assert next_pause_s() >= LONGEST_PAUSE_S / 4, "it answered once, and fails again"
    for _ in range(CALM_ANSWERS):
        breaker.note_answer()
    assert breaker.is_calm
    assert next_pause_s() <= FIRST_PAUSE_S
    assert breaker.num_trips == 3


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "answer", "fault"]), st.floats(0, 20)), max_size=200
    ),
    st.integers(),
)
def test_probes_are_rare_and_come_in_time(steps: Sequence[tuple[str, float]], seed: int) -> None:
    """While it is tripped: never two within a pause, and always one within the longest."""
    breaker, now_s = Breaker(random.Random(seed)), 0.0
    asked: list[float] = []  # since it tripped
    for what, passed_s in steps:
        now_s += passed_s
        was_closed = breaker.is_closed
        if what == "ask":
            is_let_through = breaker.admits(now_s)
            assert is_let_through or not was_closed
            if not was_closed and is_let_through:
                asked.append(now_s)
        elif what == "answer":
            breaker.note_answer()
            assert breaker.is_closed
        elif breaker.note_fault(now_s):
            asked = [now_s]
        if not breaker.is_closed:
            assert breaker.probe_s - asked[-1] <= LONGEST_PAUSE_S
            gaps = [later - earlier for earlier, later in pairwise(asked)]
            assert all(gap >= FIRST_PAUSE_S / 4 for gap in gaps)
