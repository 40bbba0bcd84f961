"""Range checks that name the field, its value and what is allowed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .errors import HeadraceError


def check_integer(
    name: str, value: object, low: int, high: int, error: type[HeadraceError]
) -> None:
    """Raise `error` unless `value` is an integer with ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise error(f"{name}={value!r} is out of range: it must be an integer in {low}..{high - 1}")


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    error: type[HeadraceError],
    *,
    above: bool = False,
) -> None:
    """Raise `error` unless `value` is a number with ``low <= value <= high``.

    With `above`, it must be strictly above `low`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (low < value if above else low <= value) and value <= high:  # type: ignore[operator]
        return
    least = f"above {low:g}" if above else f"at least {low:g}"
    most = "finite" if math.isinf(high) or high > 1e300 else f"at most {high:g}"
    raise error(f"{name}={value!r} is out of range: it must be a number {least} and {most}")


def check_flag(name: str, value: object, error: type[HeadraceError]) -> None:
    """Raise `error` unless `value` is a truth value."""
    if not isinstance(value, bool):
        raise error(f"{name}={value!r} must be true or false")


def check_choice(
    name: str, value: object, choices: Iterable[str], error: type[HeadraceError]
) -> None:
    """Raise `error` unless `value` is one of some words."""
    words = [repr(word) for word in choices]
    if not isinstance(value, str) or repr(value) not in words:
        known = f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else words[0]
        raise error(f"{name}={value!r} is unknown: choose {known}")
