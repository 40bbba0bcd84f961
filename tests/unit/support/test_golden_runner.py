from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.golden.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

GOOD: dict[str, Any] = {
    "id": "a.0",
    "group": "a",
    "class": "make_divisible",
    "match": "exact",
    "config": {"divisor": 32},
    "inputs": {"value": 47},
    "value": 64,
}
HELIOS: dict[str, Any] = {
    **GOOD,
    "id": "h.0",
    "class": "ResumableSequentialSampler",
    "config": {"batch_size": 2, "loader_drop_last": False},
    "inputs": {"n": 3, "epoch": 0, "start_iter": -1},
    "match": "deviate",
}


def write(path: Path, cases: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps({"cases": cases}))
    return str(path)


def test_one_line_tells_what_became_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = write(tmp_path / "cases.json", [GOOD, HELIOS])
    assert main([name]) == 0
    told = capsys.readouterr()
    assert told.out == f"{name}: 2 cases, 1 exact, 1 deviating as documented, 0 mismatches\n"
    assert told.err == ""


def test_a_mismatch_is_told_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**GOOD, "id": "a.1", "value": 65}
    names = [write(tmp_path / f"{number}.json", [wrong, GOOD]) for number in range(2)]
    assert main(names) == 1
    told = capsys.readouterr()
    assert told.out.count("2 cases, 1 exact") == told.out.count("1 mismatches") == 2
    assert "a.1 (make_divisible, exact): value is 64, owed is 65" in told.err


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cases.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"cases": [GOOD]}).encode()))
    assert main([str(path)]) == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[]", "no list of cases"),
        (b'{"cases": [1]}', "case 0 is no object"),
        (b'{"cases": [{"id": "x"}]}', "case 0 (x) has no str at 'group'"),
        (json.dumps({"cases": [GOOD, GOOD]}).encode(), "two cases 'a.0'"),
        (json.dumps({"cases": [{**GOOD, "match": "so-so"}]}).encode(), "match 'so-so'"),
        (json.dumps({"cases": [{**GOOD, "error": "E"}]}).encode(), "an error without a type"),
        (json.dumps({"cases": [{**GOOD, "class": "Foo"}]}).encode(), "class 'Foo', which is unk"),
    ],
)
def test_what_is_no_file_of_cases_is_refused_by_name(
    content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    path.write_bytes(content)
    good = write(tmp_path / "good.json", [GOOD])
    assert main([str(path), good]) == 2
    told = capsys.readouterr()
    assert f"error: {path}" in told.err
    assert sentence in told.err
    assert "1 exact" in told.out  # the others are run all the same


def test_a_half_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cases.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"cases": [GOOD]}).encode())[:-12])
    assert main([str(path), str(tmp_path / "none.json")]) == 2
    told = capsys.readouterr().err
    assert "no whole gzip file" in told
    assert "cannot be read: No such file" in told


def test_a_case_that_lacks_something_is_a_mismatch_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {**HELIOS, "match": "exact", "inputs": {"n": 3, "epoch": 0}}
    nothing = {name: value for name, value in GOOD.items() if name != "value"}
    assert main([write(tmp_path / "cases.json", [lacking, nothing])]) == 1
    told = capsys.readouterr().err
    assert "KeyError" in told
    assert "'start_iter'" in told
    assert "the record has no 'value'" in told


def test_it_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m tests.golden" in capsys.readouterr().err
