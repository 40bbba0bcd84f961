"""Dictation: what is drawn, what is told, and when a plan that failed has failed for the loop."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace import Topology
from headrace.dictation import MAX_BYTES, Dictator, Script
from headrace.errors import PlanError, RemoteProtocolError
from headrace.plans import FromSampler
from headrace.plans.cursor import Seek
from headrace.protocol import messages as m
from headrace.protocol.framing import MAX_CONTROL_BYTES
from headrace_daemon.feed import dictated

if TYPE_CHECKING:
    from collections.abc import Iterator


class Failing:
    """Yields some batches and raises then."""

    def __init__(self, *batches: list[int], error: BaseException) -> None:
        self.batches, self.error = batches, error

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches
        raise self.error


def dictator_of(plan: FromSampler, *, ahead: int = 10) -> Dictator:
    script = Script(plan, 100, "aa", Topology())
    return Dictator(script.run(script.locate(Seek(epoch=0)).cursor), ahead, ends=False)


def header(told: m.Dictation) -> m.Batch:
    return m.Batch(
        seq=0,
        epoch=told.epoch,
        step=told.step,
        global_step=told.global_step,
        n=len(told.ids) // 8,
        fields=("data",),
        ids=told.ids,
        off=b"",
        lengths=b"",
        flags=b"",
        cursor=told.cursor,
    )


def test_what_was_received_comes_before_what_the_plan_raised() -> None:
    """Also what the loop was not given yet."""
    dictator = dictator_of(FromSampler(Failing([0], [1], error=ArithmeticError("broken"))))
    dictator.begin_pass()
    message = dictator.untold()
    assert message is not None
    for told in message.batches:
        dictator.received(header(told))
    assert dictator.num_waiting == 0
    assert [dictator.has_failed(num_consumed) for num_consumed in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    "change", [{"ids": bytes(16)}, {"ids": b"\1" + bytes(7)}, {"step": 1}, {"epoch": 1}]
)
def test_another_batch_than_was_told_is_refused(change: dict[str, Any]) -> None:
    dictator = dictator_of(FromSampler([[0], [1]]))
    dictator.begin_pass()
    message = dictator.untold()
    assert message is not None
    other = msgspec.structs.replace(header(message.batches[0]), **change)
    with pytest.raises(RemoteProtocolError, match=r"other samples .* than it was told"):
        dictator.received(other)


def test_an_interruption_is_not_put_off() -> None:
    """As Ctrl-C while a batch is drawn."""
    dictator = dictator_of(FromSampler(Failing([0], [1], [2], error=KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        dictator.begin_pass()


class WithState:
    """Yields batches of one sample for ever, and has a state of some bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.state = {"state": "x" * num_bytes}

    def state_dict(self) -> dict[str, str]:
        return self.state

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.state = state

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.repeat([7])


def test_states_of_a_sampler_fit_into_messages() -> None:
    dictator = dictator_of(FromSampler(WithState(100_000)), ahead=20)
    dictator.begin_pass()
    messages = []
    while (message := dictator.untold()) is not None:
        messages.append(message)
    assert [step for message in messages for step in steps_of(message)] == list(range(20))
    assert all(len(msgspec.msgpack.encode(message)) <= MAX_CONTROL_BYTES for message in messages)


def steps_of(message: m.Indices) -> list[int]:
    return [told.step for told in message.batches]


def test_a_state_that_no_message_can_hold_is_refused_after_what_was_drawn_before() -> None:
    sampler = WithState(1000)
    dictator = dictator_of(FromSampler(sampler), ahead=1)
    dictator.begin_pass()
    sampler.state = {"state": "x" * MAX_BYTES}
    message = dictator.untold()
    assert message is not None
    (told,) = message.batches
    dictator.received(header(told))
    dictator.draw()  # whose state was taken before
    dictator.received(header(dictator_says(dictator)))
    dictator.draw()
    assert isinstance(dictator.failure, PlanError)
    assert "above the limit of" in str(dictator.failure)
    assert dictator.has_failed(2)


def dictator_says(dictator: Dictator) -> m.Dictation:
    message = dictator.untold()
    assert message is not None
    (told,) = message.batches
    return told


def test_no_more_is_drawn_than_a_daemon_takes_whatever_the_window() -> None:
    dictator = dictator_of(FromSampler(WithState(900_000)), ahead=8000)
    dictator.begin_pass()
    drawn = dictator.num_waiting
    assert dictated.MAX_BYTES / 2 < drawn * 900_000 < dictated.MAX_BYTES
    dictator.received(header(dictator_says(dictator)))
    dictator.draw()
    assert dictator.num_waiting == drawn - 1
