"""Unit files of systemd, read as systemd reads them as far as ours go."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "systemd"

Unit = dict[str, dict[str, list[str]]]
"""Values by section and option, in the order in which they stand; an option may stand twice."""


def read(name: str) -> Unit:
    """Return a unit.

    Raises:
        ValueError: If a line is neither empty, nor a comment, a section or an option.
    """
    unit: Unit = {}
    section: dict[str, list[str]] | None = None
    for number, line in enumerate((FOLDER / name).read_text().splitlines(), 1):
        if not line or line[0] in "#;":
            continue
        key, sign, value = line.partition("=")
        if line[0] == "[" and line[-1] == "]":
            section = unit.setdefault(line[1:-1], {})
        elif sign and section is not None and key.isalpha() and not line.endswith("\\"):
            section.setdefault(key, []).append(value)
        else:
            raise ValueError(f"{name}:{number}: {line!r} is no line of a unit")
    return unit


def only(unit: Unit, section: str, key: str) -> str:
    """Return the value of an option that stands exactly once."""
    (value,) = unit[section][key]
    return value
