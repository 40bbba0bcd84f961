"""``headrace index``: a manifest for the daemon, and what changed since the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.commands import headrace, headrace_here, headrace_without_rights

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    for number in range(8):
        (path / f"{number}.bin").write_bytes(bytes(100))
    return path


def index(*arguments: str | Path) -> str:
    done = headrace_here("index", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_source_is_listed_once_and_then_kept(tmp_path: Path, data: Path) -> None:
    state = ("--state-dir", tmp_path / "state")
    assert index(data, *state).startswith(f"listed {data}: 8 samples, 800 bytes, manifest ")
    (data / "late.bin").write_bytes(b"x")
    kept = index(data, *state)
    assert kept.startswith(f"kept {data}: 8 samples")
    assert "use --refresh" in kept


def test_a_refresh_says_what_changed(tmp_path: Path, data: Path) -> None:
    state = ("--state-dir", tmp_path / "state")
    index(data, *state)
    (data / "0.bin").write_bytes(b"longer" * 100)
    (data / "1.bin").unlink()
    for number in range(7):
        (data / f"new-{number}").write_bytes(b"")
    changes = index(data, *state, "--refresh").splitlines()
    assert changes[0].startswith(f"listed {data}: 14 samples")
    assert changes[1] == "  added    7: new-0, new-1, new-2, new-3, new-4, …"
    assert changes[2] == "  removed  1: 1.bin"
    assert changes[3] == "  changed  1: 0.bin"
    assert index(data, *state, "--refresh").splitlines()[1:] == [
        "  added    0",
        "  removed  0",
        "  changed  0",
    ]


def test_suffixes_choose_and_names_are_printed_as_they_are(tmp_path: Path, data: Path) -> None:
    state = ("--state-dir", tmp_path / "state")
    name = "[bold]x[red] :smile:.png"
    (data / "a.jpg").write_bytes(b"")
    index(data, *state, "--suffix", ".jpg", "--suffix", ".png")
    (data / name).write_bytes(b"")
    shown = index(data, *state, "--suffix", ".jpg", "--suffix", ".png", "--refresh")
    assert f"added    1: {name}" in shown
    assert "2 samples" in shown


def test_the_source_of_a_stream_is_listed_into_the_state_of_its_daemon(
    tmp_path: Path, data: Path
) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(
        f"""
        default_stream = "train"
        daemon.state_dir = "{tmp_path}/state"
        [streams.train]
        source = {{ uri = "{data}" }}
        plan = {{ type = "Sequential", batch_size = 1 }}
        """
    )
    assert "listed" in index("--config", path)
    assert "kept" in index("--config", path, "--stream", "train")
    assert (tmp_path / "state" / "manifests").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 2, "give a SOURCE, or --config with a stream"),
        (["{data}", "--stream", "x"], 2, "give a SOURCE or --stream, not both"),
        (["--suffix", ".x"], 2, "--suffix belongs to a SOURCE"),
        (["{data}/missing"], 1, "data/missing does not exist"),
        (["{data}/0.bin"], 1, "0.bin is not a folder"),
        (["{data}", "--suffix", ".jpg"], 1, "has no file whose name ends with .jpg"),
        (["ftp://bucket"], 2, "supported are file://"),
        (["--config", "{data}/missing.toml"], 2, "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line(
    data: Path, arguments: list[str], status: int, reason: str
) -> None:
    done = headrace_here("index", *(argument.format(data=data) for argument in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr
    assert done.stderr.startswith("headrace index: ")
    assert done.stderr.count("\n") == 1


def test_a_state_folder_that_is_a_file_is_named(tmp_path: Path, data: Path) -> None:
    done = headrace("index", data, "--state-dir", data / "0.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Not a directory: '{data}/0.bin/" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_state_folder_without_permission_is_named(socket_path: Path) -> None:
    folder = socket_path.parent
    folder.chmod(0o711)
    data, state = folder / "data", folder / "state"
    data.mkdir()
    (data / "x").write_bytes(b"")
    state.mkdir(mode=0o500)
    done = headrace_without_rights("index", data, "--state-dir", state)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Permission denied: '{state}" in done.stderr
