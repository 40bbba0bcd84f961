"""The breaker of a target: whether it may be asked, judged by how it answered before.

Without it each of hundreds of reads would find out for itself, by a stall or a refused connection,
that a target is away.  After some faults in a row, with no answer between them, the breaker
*trips*: from then on the target is asked by single probes only, at pauses that double, until it
answers one of them (M. Nygard, "Release It!", 2007).

Knows no clock and no loop: times come in as arguments.  Invariant: between two probes there is a
pause, and no pause is longer than `LONGEST_PAUSE_S` or an eighth of a deadline, so that a target is
neither besieged nor forgotten, whatever became of the probes.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

MAX_FAULTS: Final = 5
"""Faults in a row that trip it.  A connection that breaks is one, however many requests it had."""

CALM_ANSWERS: Final = 16
"""Answers in a row after which what was before is forgotten: the first pause is short again."""

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class State(Enum):
    """What a target is good for."""

    CLOSED = auto()
    """It is asked."""

    OPEN = auto()
    """It is not asked before the next probe is due."""

    HALF_OPEN = auto()
    """Likewise, and a probe is out."""


class Event(Enum):
    """What happens."""

    ANSWER = auto()
    """The target answered, to whatever was asked."""

    FAULT = auto()
    """It did not, and that is not one too many."""

    LAST_FAULT = auto()
    """It did not, once too often."""

    PROBE = auto()
    """A probe is sent."""


NEXT: Final[Mapping[tuple[State, Event], State]] = {
    (State.CLOSED, Event.ANSWER): State.CLOSED,
    (State.CLOSED, Event.FAULT): State.CLOSED,
    (State.CLOSED, Event.LAST_FAULT): State.OPEN,
    (State.OPEN, Event.PROBE): State.HALF_OPEN,
    (State.OPEN, Event.ANSWER): State.CLOSED,  # to what was asked before
    (State.OPEN, Event.FAULT): State.OPEN,  # likewise
    (State.HALF_OPEN, Event.ANSWER): State.CLOSED,
    (State.HALF_OPEN, Event.FAULT): State.OPEN,
    (State.HALF_OPEN, Event.PROBE): State.HALF_OPEN,  # nothing was heard of the one before
}
"""The state behind each event; what is not in it cannot happen."""


class Breaker:
    """The breaker of one target.

    Args:
        rng: Draws the pauses; they have no influence on any order of samples.
        deadline_s: How long a read is tried: several probes are due in that time.
    """

    __slots__ = (
        "_deadline_s",
        "_num_answers",
        "_pause_s",
        "_rng",
        "num_faults",
        "num_trips",
        "probe_s",
        "since_s",
        "state",
    )

    def __init__(self, rng: random.Random, deadline_s: float = inf) -> None:
        self._rng = rng
        self._deadline_s = deadline_s
        self.state = State.CLOSED
        self.num_faults = 0
        """Faults since the last answer."""
        self.num_trips = 0
        """How often it tripped."""
        self.since_s = 0.0
        """When it tripped for the last time."""
        self.probe_s = 0.0
        """When the next probe is due, unless it is closed."""
        # Answers since the last fault, up to `CALM_ANSWERS`.
        self._num_answers = CALM_ANSWERS
        # The longest that the next pause may be.
        self._pause_s = FIRST_PAUSE_S

    @property
    def is_closed(self) -> bool:
        """Whether the target is asked without more ado."""
        return self.state is State.CLOSED

    @property
    def is_calm(self) -> bool:
        """Whether an answer would change nothing."""
        return self._num_answers == CALM_ANSWERS

    def admits(self, now_s: float) -> bool:
        """Decide whether a request may be sent now; a probe that is due is given away by that."""
        if self.state is State.CLOSED:
            return True
        if now_s < self.probe_s:
            return False
        self._move(Event.PROBE)
        self._put_off(now_s)
        return True

    def note_answer(self) -> bool:
        """Take note that the target answered; return whether that closes the breaker."""
        was_closed = self.is_closed
        self._move(Event.ANSWER)
        self.num_faults = 0
        self._num_answers = min(self._num_answers + 1, CALM_ANSWERS)
        if self.is_calm:
            self._pause_s = FIRST_PAUSE_S
        return not was_closed

    def note_fault(self, now_s: float) -> bool:
        """Take note that the target did not do its part; return whether that trips the breaker."""
        self.num_faults += 1
        self._num_answers = 0
        if self.is_closed and self.num_faults >= MAX_FAULTS:
            self._move(Event.LAST_FAULT)
            self.num_trips += 1
            self.since_s = now_s
            self._put_off(now_s)
            return True
        self._move(Event.FAULT)
        return False

    def _move(self, event: Event) -> None:
        self.state = NEXT[self.state, event]

    def _put_off(self, now_s: float) -> None:
        """Have the next probe wait: a pause as those of `Retry`."""
        self.probe_s = now_s + self._rng.uniform(self._pause_s / 4, self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S, self._deadline_s / 8)
