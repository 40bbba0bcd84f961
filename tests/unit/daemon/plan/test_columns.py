"""Lengths, sizes and columns from the command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.plans import Data
from headrace_daemon.commands.plan import columns
from headrace_daemon.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


def test_lengths_are_those_of_the_whole_or_of_a_part() -> None:
    assert columns.lengths(["1_000", "val=5"]) == {"": 1000, "val": 5}
    for wrong in ("0", "-1", "x", "val=", "", str(2**63)):
        with pytest.raises(SettingsError, match="write a number of samples, 1 or more"):
            columns.lengths([wrong])
    with pytest.raises(SettingsError, match="it is said twice"):
        columns.lengths(["1", "2"])


def test_sizes_are_read_or_made_up(tmp_path: Path) -> None:
    path = tmp_path / "sizes.npy"
    np.save(path, np.arange(3))
    data = {"": Data(3), "val": Data(1000)}
    found = columns.sizes([os.fspath(path), "val=1KiB:1MiB"], data)
    assert found[""].columns["sizes"].tolist() == [0, 1, 2]
    made = found["val"].columns["sizes"]
    assert made.min() >= 1024
    assert made.max() <= 1 << 20
    # Log-uniform: as many below the geometric mean as above it.
    assert 400 < int((made < 1 << 15).sum()) < 600
    again = columns.sizes(["val=1KiB:1MiB"], data)["val"].columns["sizes"]
    assert np.array_equal(again, made)
    assert columns.sizes(["7"], {"": Data(2)})[""].columns["sizes"].tolist() == [7, 7]
    assert columns.sizes(["7"], {"": Data(2)})[""].digest == Data.of(np.array([7, 7])).digest


def test_other_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, np.array([0.5, 1.5]))
    found = columns.columns([f"tokens={path}", f"val.tokens={path}"], {"": Data(2), "val": Data(2)})
    assert found[""].columns["tokens"].tolist() == [0.5, 1.5]
    assert found["val"].columns["tokens"].tolist() == [0.5, 1.5]


def test_what_is_no_column_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {name: tmp_path / f"{name}.npy" for name in ("two", "table", "text", "broken")}
    np.save(paths["two"], np.array([1, 2]))
    np.save(paths["table"], np.ones((3, 2)))
    np.save(paths["text"], np.array(["a", "b", "c"]))
    paths["broken"].write_bytes(b"no array")
    data = {"": Data(3)}
    for written, reason in (
        (f"{paths['two']}", "has 2 entries for 3 samples: give one for each"),
        (f"{paths['table']}", "is no column: it must hold one number per sample"),
        (f"{paths['text']}", "is no column: it must hold one number per sample"),
        (f"{paths['broken']}", "is no array of numpy: write one with numpy.save"),
        (f"{tmp_path / 'missing.npy'}", "missing.npy does not exist: check the path"),
        (f"{tmp_path}", "cannot be read: Is a directory"),
        ("x:y", "write FILE.npy, a size such as 64KiB, or LOW:HIGH for sizes in between"),
        ("2KiB:1KiB", "2KiB is above 1KiB"),
        ("val=3", "no part 'val' has data of its own; those that have: none"),
    ):
        with pytest.raises(SettingsError, match=r"^--sizes ") as caught:
            columns.sizes([written], data)
        assert reason in str(caught.value)
    with pytest.raises(SettingsError, match=r"write NAME=FILE\.npy"):
        columns.columns(["tokens"], data)
    monkeypatch.setattr(columns, "MAX_DRAWN", 2)
    with pytest.raises(SettingsError, match="made up for 2 samples at most, not for 3"):
        columns.sizes(["7"], data)
