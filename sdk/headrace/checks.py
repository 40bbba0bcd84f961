"""Range checks that name the field, its value and what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .errors import HeadraceError


def check_integer(
    name: str, value: object, low: int, high: int, error: type[HeadraceError]
) -> None:
    """Raise `error` unless `value` is an integer with ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise error(f"{name}={value!r} is out of range: it must be an integer in {low}..{high - 1}")
