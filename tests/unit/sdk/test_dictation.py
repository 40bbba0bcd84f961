"""Dictation: what is drawn, what is told, and when a plan that failed has failed for the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import Topology
from headrace.dictation import Dictator, Script
from headrace.plans import FromSampler
from headrace.plans.cursor import Seek
from headrace.protocol import messages as m

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
