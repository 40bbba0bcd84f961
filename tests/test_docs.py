"""House rule: cells of the table of torch loops are tests, examples run and print what pages show,
and the page of plans has every option with its default."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import plans
from tests.support.commands import headrace_here

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(
    r"^```console\n\$ headrace (.*)\n([^`]*)^```",
    (ROOT / "docs" / "plan.md").read_text(),
    re.MULTILINE,
)
PAGE = (ROOT / "docs" / "torch-loops.md").read_text()


PLANS = (ROOT / "docs" / "plans.md").read_text()
ORDER, FIXED = "Options of every order", "Options of fixed batches"
SCALED = "MultiScale, VariableBatch, VideoVariable"
SECTIONS = {
    "Sequential": (ORDER, FIXED, "Sequential"),
    "Shuffled": (ORDER, FIXED, "Shuffled"),
    "ShardShuffled": (ORDER, FIXED, "ShardShuffled"),
    "ByteBudget": (ORDER, "ByteBudget"),
    "MultiScale": (ORDER, FIXED, SCALED),
    "VariableBatch": (ORDER, FIXED, SCALED),
    "VideoVariable": (ORDER, FIXED, SCALED),
    "Chain": ("Chain",),
    "Interleaved": ("Interleaved",),
}


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
    done = headrace_here(*shlex.split(command))
    assert (done.returncode, done.stderr) == (0, "")
    assert without_digests(done.stdout) == without_digests(output)


def test_the_page_of_headrace_plan_has_examples() -> None:
    assert len(EXAMPLES) == 4


def options_on_the_page(section: str) -> dict[str, str]:
    """Return the options that a section of the page of plans lists, with their defaults."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PLANS, re.S | re.M)
    return dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|\S) \|", text, re.MULTILINE))


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_of_plans_has_every_option_with_its_default(name: str) -> None:
    shown: dict[str, str] = {}
    for section in SECTIONS[name]:
        shown |= options_on_the_page(section)
    wanted: dict[str, str] = {}
    for field in msgspec.structs.fields(getattr(plans, name)):
        default: Any = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        scales = isinstance(default, plans.Scales) and default == plans.Scales()
        wanted[field.name] = (
            "" if default is msgspec.NODEFAULT else "Scales()" if scales else repr(default)
        )
    assert wanted.items() <= shown.items()


def test_the_page_of_plans_has_no_option_that_no_plan_has() -> None:
    known = {field for name in SECTIONS for field in getattr(plans, name).__struct_fields__}
    for section in {section for sections in SECTIONS.values() for section in sections}:
        assert options_on_the_page(section).keys() <= known


def test_the_page_of_plans_names_every_public_name_for_plans() -> None:
    elsewhere = {"Cursor", "PlanBatchSampler", "Plan", "Seek", "base_only"}
    for name in set(plans.__all__) - elsewhere:
        assert re.search(rf"\b{name}\b", PLANS), name


@pytest.mark.slow
def test_the_example_of_the_page_of_plans_runs_as_printed(tmp_path: Path) -> None:
    for name in ("images", "val"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.pgm").write_bytes(bytes(number))
    (code,) = re.findall(r"^```python\n(.*?)^```", PLANS, re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documents_that_the_page_of_plans_names_are_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)", PLANS):
        assert (ROOT / "docs" / name).is_file(), name
