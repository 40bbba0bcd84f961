"""The ``headrace`` command: which words it knows, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from headrace_daemon import __version__
from headrace_daemon.cli import COMMANDS
from tests.support.commands import HEADRACE, environment, headrace, headrace_here


def test_without_a_word_it_says_which_there_are() -> None:
    done = headrace()
    assert done.returncode == 2
    for name, text in COMMANDS.items():
        assert name in done.stdout
        assert text.split()[0] in done.stdout


def test_help_is_no_error() -> None:
    done = headrace("--help")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str) -> None:
    done = headrace_here(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: headrace {name}" in done.stdout


def test_the_version_is_printed() -> None:
    done = headrace("--version")
    assert (done.returncode, done.stdout) == (0, f"headrace {__version__}\n")


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sysconfig.get_path("scripts")) / "headrace"
    done = subprocess.run([script, "--version"], stdout=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, f"headrace {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["serve", "--nonsense"], ["plan", "--epoch", "first"], ["check"]]
)
def test_arguments_that_nobody_knows_are_refused(arguments: list[str]) -> None:
    done = headrace_here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("status", "rich", "daemon"), ("serve", "uvloop", "daemon")]
)
def test_a_missing_extra_is_named(tmp_path: Path, name: str, module: str, extra: str) -> None:
    (tmp_path / f"{module}.py").write_text(
        f"raise ModuleNotFoundError('No module named {module}', name='{module}')"
    )
    done = headrace(name, env=environment(PYTHONPATH=os.fspath(tmp_path)))
    assert done.returncode == 1
    install = f"pip install 'headrace[{extra}]'"
    expected = f"headrace {name}: needs {module}, which is not installed: {install}\n"
    assert done.stderr == expected


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], [], ["plan", "{data}"], ["plan", "{data}", "--json"]],
    ids=" ".join,
)
@pytest.mark.parametrize("buffering", ["1", ""])
def test_a_reader_that_has_gone_is_no_traceback(
    tmp_path: Path, arguments: list[str], buffering: str
) -> None:
    (tmp_path / "sample").write_bytes(b"x")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = headrace(
            *(argument.format(data=tmp_path) for argument in arguments),
            stdout=writing,
            env=environment(PYTHONUNBUFFERED=buffering, XDG_STATE_HOME=os.fspath(tmp_path)),
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1, 2)  # argparse may have noticed, and not minded


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "sample").write_bytes(b"x")
    with Path("/dev/full").open("w") as full:
        done = headrace("plan", tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "headrace plan: [Errno 28] No space left on device\n"


def test_a_closed_output_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sample").write_bytes(b"x")
    shell = 'exec "$@" >&-'
    done = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *HEADRACE, "plan", tmp_path],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


def test_ctrl_c_ends_with_a_line(tmp_path: Path) -> None:
    script = (
        "import _thread, sys\n"
        "from headrace_daemon.commands import plan\n"
        "def run(options):\n"
        "    raise KeyboardInterrupt\n"
        "plan.run = run\n"
        "from headrace_daemon.cli import main\n"
        "main(['plan', 'x'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "headrace plan: interrupted\n")
