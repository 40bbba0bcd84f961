"""Recorded cases as they stand in a file."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MATCHES: Final = ("exact", "exact-or-fixed", "deviate")


class DamagedFileError(Exception):
    """A file does not hold recorded cases."""


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded run of one class."""

    id: str
    group: str
    """Cases of one group have one configuration."""

    kind: str
    """The class or function that was recorded."""

    match: str
    """What is owed, one of `MATCHES`."""

    config: Mapping[str, Any]
    inputs: Mapping[str, Any]

    record: Mapping[str, Any]
    """All of it."""

    @property
    def error(self) -> str | None:
        """The class of the error that was recorded."""
        error = self.record.get("error")
        return None if error is None else str(error["type"])


def load(path: Path) -> list[Case]:
    """Return the cases of a JSON file, which may be packed by gzip.

    Raises:
        DamagedFileError: If it cannot be read, or holds something else.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DamagedFileError(f"{path}: is no whole gzip file: {error}") from error
    except OSError as error:
        raise DamagedFileError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedFileError(f"{path}: is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise DamagedFileError(f"{path}: has no list of cases at 'cases'")
    cases = [_case(path, number, facts) for number, facts in enumerate(content["cases"])]
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise DamagedFileError(f"{path}: has two cases {case.id!r}")
        seen.add(case.id)
    return cases


def _case(path: Path, number: int, facts: object) -> Case:
    where = f"{path}: case {number}"
    if not isinstance(facts, dict):
        raise DamagedFileError(f"{where} is no object")
    if isinstance(facts.get("id"), str):
        where += f" ({facts['id']})"
    for name, kind in (
        ("id", str),
        ("group", str),
        ("class", str),
        ("match", str),
        ("config", dict),
        ("inputs", dict),
    ):
        if not isinstance(facts.get(name), kind):
            raise DamagedFileError(f"{where} has no {kind.__name__} at {name!r}")
    if facts["match"] not in MATCHES:
        raise DamagedFileError(
            f"{where} has match {facts['match']!r}: known are {', '.join(MATCHES)}"
        )
    error = facts.get("error")
    if error is not None and not (isinstance(error, dict) and isinstance(error.get("type"), str)):
        raise DamagedFileError(f"{where} has an error without a type")
    return Case(
        id=facts["id"],
        group=facts["group"],
        kind=facts["class"],
        match=facts["match"],
        config=facts["config"],
        inputs=facts["inputs"],
        record=facts,
    )
