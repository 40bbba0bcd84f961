"""House rule: each cell of the table of torch loops is a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
