"""House rule: what the README says runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace_daemon.settings import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, number: int = 0) -> str:
    """Return one of the fenced blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return str(found[number])


def test_the_first_screen_has_exactly_two_commands_and_make_knows_them() -> None:
    commands = [line.split("#")[0].strip() for line in block("sh").splitlines()]
    assert commands == ["make demo", "make test"]
    for command in commands:
        dry = ["make", "--dry-run", "--question", command.removeprefix("make ")]
        assert subprocess.run(dry, cwd=ROOT, capture_output=True, timeout=30).returncode in (0, 1)


@pytest.mark.slow
def test_the_training_script_runs_as_printed(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.pgm").write_bytes(bytes(number))
    command = [sys.executable, "-W", "error", "-c", block("python")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_configuration_is_valid_as_printed() -> None:
    settings = parse(tomllib.loads(block("toml")), origin="README")
    assert settings.default_stream == "train"


def test_the_documents_that_it_names_are_there() -> None:
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
