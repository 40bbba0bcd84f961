"""Verdicts on cases: what came out against what is owed."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .cases import Case


class Verdict(Enum):
    """What a case turned out to be."""

    EXACT = "exact"
    DEVIATING = "deviating as documented"
    MISMATCH = "mismatches"


class Result(NamedTuple):
    """The verdict on one case."""

    verdict: Verdict
    detail: str = ""
    """What is wrong, of a mismatch."""


def mismatch(detail: str) -> Result:
    """Return the verdict that something is wrong."""
    return Result(Verdict.MISMATCH, detail)


def reproduced(case: Case, run: Callable[[Case], Mapping[str, Any]]) -> Result:
    """Run a case, and compare every fact that it returns with that of the same name in the record.

    A recorded error is reproduced by one of a class of that name, or derived from one.
    """
    try:
        facts = run(case)
    except Exception as error:  # noqa: BLE001 - what is raised is the result
        names = [kind.__name__ for kind in type(error).__mro__]
        if case.error in names:
            return Result(Verdict.EXACT)
        owed = f"{case.error} is owed" if case.error else "a stream is owed"
        return mismatch(f"{owed}, {type(error).__name__} was raised: {error}")
    if case.error is not None:
        return mismatch(f"{case.error} is owed, nothing was raised")
    for name, value in facts.items():
        if name not in case.record:
            return mismatch(f"the record has no {name!r} to compare with")
        difference = differing(value, case.record[name])
        if difference:
            return mismatch(f"{name}{difference}")
    return Result(Verdict.EXACT)


def refused(case: Case, run: Callable[[Case], Any]) -> Result:
    """Run a case that has to be refused with a ValueError."""
    try:
        run(case)
    except ValueError:
        return Result(Verdict.DEVIATING)
    except Exception as error:  # noqa: BLE001 - what is raised is the result
        return mismatch(f"a ValueError is owed, {type(error).__name__} was raised: {error}")
    return mismatch("a ValueError is owed, nothing was raised")


def deviates(case: Case, run: Callable[[Case], Any], owed: object) -> Result:
    """Run a case, and compare its value with what is owed in place of the record."""
    try:
        value = run(case)
    except Exception as error:  # noqa: BLE001 - what is raised is the result
        return mismatch(f"{type(error).__name__} was raised: {error}")
    difference = differing(value, owed)
    return mismatch(f"result{difference}") if difference else Result(Verdict.DEVIATING)


def undocumented(case: Case) -> Result:
    """Return the verdict on a deviation that no text describes."""
    note = case.record.get("note")
    return mismatch(f"no documented deviation fits this case (note: {note!r})")


def differing(value: object, owed: object) -> str:
    """Return where two values differ first, as the end of a sentence; nothing if they are equal."""
    if isinstance(value, list | tuple) and isinstance(owed, list | tuple):
        for number, (one, other) in enumerate(zip(value, owed, strict=False)):
            if differing(one, other):
                return f"[{number}] is {one!r}, owed is {other!r}"
        if len(value) != len(owed):
            return f" has {len(value)} entries, owed are {len(owed)}"
        return ""
    return "" if value == owed else f" is {value!r}, owed is {owed!r}"
