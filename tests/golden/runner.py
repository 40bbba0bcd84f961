"""Runs the cases of a file and counts verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from . import aistore, cvnets, helios, noether, readers, webdataset
from .cases import Case, DamagedFileError, load
from .verdicts import Result, Verdict, mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

CHECKERS: Final[Mapping[str, Callable[[Case], Result]]] = {
    kind: module.check
    for module in (aistore, cvnets, helios, noether, readers, webdataset)
    for kind in module.KINDS
}


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the cases of one file."""

    path: Path
    counts: Counter[Verdict] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    """A sentence for each."""

    def __str__(self) -> str:
        told = ", ".join(f"{self.counts[verdict]} {verdict.value}" for verdict in Verdict)
        return f"{self.path}: {self.counts.total()} cases, {told}"


def run_file(path: Path) -> Report:
    """Run every case of a file.

    Raises:
        DamagedFileError: If the file holds something else, or a class that nobody knows.
    """
    cases = load(path)
    for case in cases:
        if case.kind not in CHECKERS:
            raise DamagedFileError(
                f"{path}: case {case.id} has class {case.kind!r}, which is unknown: known are "
                f"{', '.join(sorted(CHECKERS))}"
            )
    report = Report(path)
    with readers.Place():
        results = [_verdict(case) for case in cases]
    for case, result in zip(cases, results, strict=True):
        report.counts[result.verdict] += 1
        if result.verdict is Verdict.MISMATCH:
            report.mismatches.append(f"{case.id} ({case.kind}, {case.match}): {result.detail}")
    return report


def _verdict(case: Case) -> Result:
    try:
        return CHECKERS[case.kind](case)
    except LookupError as error:
        # Nothing of ours looks up what a case does not have; so the case lacks it.
        return mismatch(f"the case has no, or an unknown, {error}")
