"""Where to look: the cursor of a step, reached by seeking and never by walking from the start.

Epochs that are all alike are passed over by arithmetic; where they differ, each one on the way is
counted, as the trainer's own `seek` does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from headrace.errors import CursorError
from headrace.plans import Cursor, Seek
from headrace.plans.engine import (
    BoundPlan,
    advance,
    check,
    is_finished,
    remaining_steps,
    seek,
    settle,
)
from headrace.plans.program import EpochProgram, Place

from ...errors import SettingsError
from .files import reading

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def origin(bound: BoundPlan, options: argparse.Namespace) -> Cursor:
    """Return the cursor from which steps are counted.

    Raises:
        CursorError: If there is no such place, or a state does not fit the plan and the data.
        SettingsError: If more than one place is named.
    """
    world_size = options.world_size
    names = ("epoch", "update", "sample", "state")
    given = [name for name in names if getattr(options, name) is not None]
    if len(given) > 1:
        said = " and ".join(f"--{name}" for name in given)
        raise SettingsError(f"{said} each say where to begin: give one of them")
    for name in names[:3]:
        value = getattr(options, name)
        if value is not None and not 0 <= value < 2**63:
            raise SettingsError(f"--{name} {value}: {name}s are counted from 0")
    if options.state is not None:
        cursor = Cursor.from_state(_state(options.state))
        check(bound, cursor)
        return settle(bound, cursor, world_size)
    if options.update is not None:
        return seek(bound, Seek(update=options.update), world_size)
    if options.sample is not None:
        return seek(bound, Seek(sample=options.sample), world_size)
    epoch = options.epoch or 0
    if epoch and bound.program.ends:
        raise CursorError(
            f"--epoch {epoch}: this plan runs in one pass to its limits: use --steps, --update or "
            "--sample"
        )
    return seek(bound, Seek(epoch=epoch), world_size)


def forward(bound: BoundPlan, cursor: Cursor, world_size: int, steps: int) -> Cursor:
    """Return the cursor some steps later, in later epochs if need be; at most the end of the run.

    Args:
        bound: What is planned.
        cursor: A settled cursor.
        world_size: Number of ranks.
        steps: How many steps, >= 0.
    """
    program = bound.program
    while steps and not is_finished(bound, cursor):
        left = remaining_steps(bound, cursor, world_size)
        taken = min(left, steps)
        cursor = advance(bound, cursor, world_size, taken)
        steps -= taken
        if isinstance(program, EpochProgram) and program.is_constant and not cursor.step:
            epochs, steps = divmod(steps, program.steps(0, world_size))
            place = Place(
                cursor.epoch + epochs,
                0,
                0,
                cursor.update + epochs * program.steps(0, world_size),
                cursor.sample + epochs * program.samples(0, world_size),
            )
            cursor = bound.cursor(place, world_size)
    return cursor


def _state(path: Path) -> Any:  # noqa: ANN401 - of a file
    wrong = "is not JSON: write what state_dict() returned with json.dump"
    with reading(f"--state {path}", wrong):
        return json.loads(path.read_text())
