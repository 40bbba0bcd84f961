"""House rule: cells of the table of torch loops are tests, and examples print what pages show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.support.commands import headrace

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(
    r"^```console\n\$ headrace (.*)\n([^`]*)^```",
    (ROOT / "docs" / "plan.md").read_text(),
    re.MULTILINE,
)
PAGE = (ROOT / "docs" / "torch-loops.md").read_text()


def tables() -> list[list[list[str]]]:
    """Return the tables of the page, without the lines under their heads, as rows of cells."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
        ]
        found.append([rows[0], *rows[2:]])
    return found


def test_each_cell_of_the_table_of_loops_names_a_test() -> None:
    claims, proofs = tables()
    assert [row[0] for row in claims] == [row[0] for row in proofs]
    assert claims[0] == proofs[0]
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for claim, proof in zip(claims[1:], proofs[1:], strict=True):
        assert len(claim) == len(proof) == len(claims[0])
        for cell in proof[1:]:
            assert cell.strip("`") in known, f"{proof[0]}: {cell}"


def without_digests(text: str) -> str:
    # Sizes that are made up come from a logarithm, whose last bit is that of the machine.
    return re.sub(r"manifest [0-9a-f]{12}…", "manifest …", text)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "output"), EXAMPLES)
def test_each_example_of_headrace_plan_prints_what_the_page_shows(
    command: str, output: str
) -> None:
    done = headrace(*shlex.split(command))
    assert (done.returncode, done.stderr) == (0, "")
    assert without_digests(done.stdout) == without_digests(output)


def test_the_page_of_headrace_plan_has_examples() -> None:
    assert len(EXAMPLES) == 4
