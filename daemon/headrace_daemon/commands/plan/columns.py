"""Data that nobody has listed: lengths, sizes and other columns from the command line.

A plan needs no more of its data than a length, and a budget the sizes, so that one can try a plan
before the data is there.  A value may belong to one part of a composition: ``val=5000``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from headrace.plans import Data

from ...errors import SettingsError
from ...settings import parse_size
from .files import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_DRAWN: Final = 10**8
"""Sizes that are made up at most: 8 bytes each."""

_DRAWN_AT_ONCE: Final = 1 << 20
_SEED: Final = 0
"""Of sizes that are made up: the same each time."""


def lengths(written: Sequence[str]) -> dict[str, int]:
    """Return numbers of samples by part; that of the whole has the name ``""``.

    Raises:
        SettingsError: If one is no number, or is said twice.
    """
    found: dict[str, int] = {}
    for text in written:
        name, value = _named(text)
        try:
            length = int(value.replace("_", ""))
        except ValueError:
            length = 0
        if not 1 <= length < 2**63:
            raise SettingsError(
                f"--length {text!r}: write a number of samples, 1 or more, or NAME=NUMBER for a "
                "part of the plan"
            )
        _put(found, name, length, f"--length {text!r}")
    return found


def sizes(written: Sequence[str], data: dict[str, Data]) -> dict[str, Data]:
    """Return data by part with the sizes of ``--sizes``.

    Args:
        written: ``FILE.npy``, a size, or ``LOW:HIGH``; perhaps after ``NAME=``.
        data: The data by part.

    Raises:
        SettingsError: If there is no such part, or the text is no sizes.
    """
    for text in written:
        name, value = _named(text)
        data = {**data, name: _with(data, name, "sizes", value, f"--sizes {text!r}")}
    return data


def columns(written: Sequence[str], data: dict[str, Data]) -> dict[str, Data]:
    """Return data by part with the columns of ``--column``.

    Args:
        written: ``COLUMN=FILE.npy``, perhaps as ``NAME.COLUMN=FILE.npy``.
        data: The data by part.

    Raises:
        SettingsError: If there is no such part, or the file is no column.
    """
    for text in written:
        path, equals, value = text.partition("=")
        part, dot, column = path.rpartition(".")
        name = part if dot else ""
        if not equals or not column:
            raise SettingsError(
                f"--column {text!r}: write NAME=FILE.npy, such as tokens=tokens.npy"
            )
        data = {**data, name: _with(data, name, column, value, f"--column {text!r}")}
    return data


def _with(data: dict[str, Data], name: str, column: str, value: str, said: str) -> Data:
    if name not in data:
        known = ", ".join(repr(part) for part in data if part) or "none"
        raise SettingsError(
            f"{said}: no part {name!r} has data of its own; those that have: {known}"
        )
    part = data[name]
    found = _column(value, part.length, said)
    if len(found) != part.length:
        raise SettingsError(
            f"{said} has {len(found)} entries for {part.length} samples: give one for each"
        )
    # Without a digest: that of a listing covers its own columns only.
    return Data(part.length, columns={**part.columns, column: found}, shards=part.shards)


def _column(value: str, length: int, said: str) -> NDArray[Any]:
    if value.endswith(".npy") or os.path.exists(value):
        return _load(value, said)
    low, colon, high = value.partition(":")
    try:
        bounds = (parse_size(low), parse_size(high if colon else low))
    except ValueError as error:
        raise SettingsError(
            f"{said}: write FILE.npy, a size such as 64KiB, or LOW:HIGH for sizes in between: "
            f"{error}"
        ) from None
    if bounds[0] > bounds[1]:
        raise SettingsError(f"{said}: {low} is above {high}")
    if length > MAX_DRAWN:
        raise SettingsError(
            f"{said}: sizes are made up for {MAX_DRAWN} samples at most, not for {length}: use a "
            "smaller --length"
        )
    return _log_uniform(bounds[0], bounds[1], length)


def _log_uniform(low: int, high: int, length: int) -> NDArray[np.int64]:
    """Return i64[length] of sizes of which each order of magnitude has equally many."""
    drawn = np.empty(length, dtype=np.int64)
    generator = np.random.default_rng(_SEED)
    for first in range(0, length, _DRAWN_AT_ONCE):
        piece = drawn[first : first + _DRAWN_AT_ONCE]
        exponents = generator.uniform(np.log(low), np.log(high), len(piece))
        piece[:] = np.clip(np.rint(np.exp(exponents)), low, high)
    return drawn


def _load(path: str, said: str) -> NDArray[Any]:
    with reading(f"{said}: {path}", "is no array of numpy: write one with numpy.save"):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iuf":
        raise SettingsError(f"{said}: {path} is no column: it must hold one number per sample")
    column: NDArray[Any] = found
    return column


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else ("", text)


def _put(found: dict[str, int], name: str, value: int, said: str) -> None:
    if name in found:
        raise SettingsError(f"{said}: it is said twice: give it once for each part")
    found[name] = value
