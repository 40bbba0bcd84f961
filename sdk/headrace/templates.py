"""Templates: many names in one, ``train-{000..255}.tar``.

A range of numbers in braces stands for each of them, as in bash and in AIStore's own templates:
both ends included, with a step as third number (``{0..10..2}``), downwards where the first is the
larger.  Numbers are as wide as the wider end where an end begins with 0.  Of several ranges the
last one varies fastest.  Anything else in braces is what it is.
"""

from __future__ import annotations

import re
from itertools import product
from math import prod
from typing import Final

from .errors import PlanError

MAX_NAMES: Final = 1 << 17
"""Of one template, and of all that a source names.  They are checked and asked for one by one."""

_RANGE: Final = re.compile(r"\{([0-9]+)\.\.([0-9]+)(?:\.\.([0-9]+))?\}")
_MAX_DIGITS: Final = 18


def is_template(text: str) -> bool:
    """Return whether a text stands for several."""
    return _RANGE.search(text) is not None


def expand(text: str, field: str) -> list[str]:
    """Return what a template stands for, in order; a text without a range stands for itself.

    Args:
        text: The template.
        field: What it is the value of, for messages.

    Raises:
        PlanError: If a range is none, or there are too many.
    """
    pieces = _RANGE.split(text)
    if len(pieces) == 1:
        return [text]
    # Text, three numbers, text, three numbers, …, text.
    ranges = [
        _numbers(first, last, step, text, field)
        for first, last, step in zip(pieces[1::4], pieces[2::4], pieces[3::4], strict=True)
    ]
    total = prod(len(numbers) for numbers, _ in ranges)
    if total > MAX_NAMES:
        raise PlanError(
            f"{field}={text!r} stands for {total} names, the limit is {MAX_NAMES}: list a prefix "
            "that they have in common"
        )
    texts = pieces[::4]
    written = [[f"{number:0{width}}" for number in numbers] for numbers, width in ranges]
    found = ["".join(map(str.__add__, texts, (*one, ""))) for one in product(*written)]
    if is_template(found[0]):
        raise PlanError(
            f"{field}={text!r} has a range inside of another: write one for each number"
        )
    return found


def _numbers(first: str, last: str, step: str | None, text: str, field: str) -> tuple[range, int]:
    """Return the numbers of a range, and how wide they are written."""
    if max(len(first), len(last), len(step or "")) > _MAX_DIGITS:
        raise PlanError(f"{field}={text!r} has a number of more than {_MAX_DIGITS} digits")
    low, high, by = int(first), int(last), int(step or 1)
    if not by:
        raise PlanError(f"{field}={text!r} has a range with step 0: it must be 1 at least")
    is_padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 1
    values = range(low, high + 1, by) if low <= high else range(low, high - 1, -by)
    return values, width
