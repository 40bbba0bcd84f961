"""The recorded cases of `tests.golden`, all of them, and whether their checkers would notice."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.golden import noether_loop
from tests.golden.cases import Case, load
from tests.golden.runner import CHECKERS, run_file
from tests.golden.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json.gz"))


def is_documented(case: Case) -> bool:
    """Return whether a text says how ours differs: in general, or of fields that no file has."""
    shards = [
        shard for bucket in case.inputs.get("buckets", []) for shard in bucket.get("shards", [])
    ]
    members = [member for shard in shards for member in shard["members"]]
    return case.match == "deviate" or any("type" in member for member in members)


@cache
def cases() -> list[Case]:
    return [case for path in RECORDED for case in load(path)]


def first_of_each_kind(wanted: Callable[[Case], bool]) -> list[Case]:
    return list({case.kind: case for case in reversed(cases()) if wanted(case)}.values())


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_every_recorded_case_is_reproduced_or_deviates_as_documented(path: Path) -> None:
    report = run_file(path)
    assert report.mismatches == []
    told = load(path)
    deviating = [case for case in told if is_documented(case)]
    assert report.counts[Verdict.DEVIATING] == len(deviating)
    assert report.counts[Verdict.EXACT] == len(told) - len(deviating)


def test_the_loop_that_judges_deviating_runs_reproduces_the_exact_ones() -> None:
    exact = [
        case
        for case in cases()
        if case.kind == "InterleavedSampler" and case.match == "exact" and case.error is None
    ]
    wrong = [case.id for case in exact if noether_loop.owed(case) != case.record["batches"]]
    assert len(exact) > 100
    assert wrong == []


def altered(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a record that differs in its last number or text."""
    if isinstance(value, dict):
        name = max(value)
        return {**value, name: altered(value[name])}
    if isinstance(value, list):
        return [*value[:-1], altered(value[-1])] if value else [[0]]
    return f"{value}?" if isinstance(value, str | None) else value + 1


@pytest.mark.parametrize(
    "case",
    first_of_each_kind(lambda case: case.match != "deviate"),
    ids=lambda case: case.kind,
)
def test_a_record_that_was_altered_is_a_mismatch(case: Case) -> None:
    assert CHECKERS[case.kind](case).verdict is Verdict.EXACT
    for name in (
        "batches",
        "samples",
        "pairs",
        "value",
        "basename",
        "extension",
        "error",
        "scales",
    ):
        if name in case.record:
            record = {**copy.deepcopy(dict(case.record)), name: altered(case.record[name])}
            result = CHECKERS[case.kind](replace(case, record=record))
            assert result.verdict is Verdict.MISMATCH, name
            assert result.detail


@pytest.mark.parametrize(
    "case",
    first_of_each_kind(lambda case: case.match != "deviate" and "batches" in case.record),
    ids=lambda case: case.kind,
)
def test_a_deviation_that_no_text_describes_is_a_mismatch(case: Case) -> None:
    record = {**case.record, "match": "deviate"}
    result = CHECKERS[case.kind](replace(case, match="deviate", record=record))
    # A run of several samplers is judged by a loop, which says the same here.
    is_judged = case.kind == "InterleavedSampler"
    assert result.verdict is (Verdict.DEVIATING if is_judged else Verdict.MISMATCH)
