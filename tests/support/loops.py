"""Running a coroutine in a test: on either loop, in debug mode, with a deadline, and cleanly.

A run fails if a task is left over, or if the loop had to report an exception that nobody took.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")
Loop = Literal["asyncio", "uvloop"]

LOOPS: Final[tuple[Loop, ...]] = ("asyncio", "uvloop")
DEADLINE_S: Final = 20.0
"""Far more than any test needs: it turns a hang into a failure that shows where."""

_FACTORIES: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def run(coroutine: Coroutine[Any, Any, T], loop: Loop = "asyncio") -> T:
    """Run a coroutine to its end and return its result."""
    reported: list[dict[str, Any]] = []

    async def supervised() -> T:
        running = asyncio.get_running_loop()
        running.set_exception_handler(lambda _, context: reported.append(context))
        async with asyncio.timeout(DEADLINE_S):
            result = await coroutine
        await turns(3)  # for what has ended to be noted as such
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left over: {[task.get_name() for task in others]}"
        return result

    with asyncio.Runner(debug=True, loop_factory=_FACTORIES[loop]) as runner:
        result = runner.run(supervised())
    assert not reported, reported
    return result


async def turns(number: int = 1) -> None:
    """Let everything else that is ready run, some times over."""
    loop = asyncio.get_running_loop()
    for _ in range(number):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


async def until(condition: Callable[[], object]) -> None:
    """Let everything else run until a condition holds; the deadline of `run` is the limit."""
    while not condition():
        await turns()
