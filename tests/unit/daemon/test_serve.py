"""``headrace serve``: what wins over what, and what is refused before anything is served."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.commands import headrace, headrace_here, headrace_without_rights, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(socket_path: Path) -> Path:
    return socket_path.parent


def test_options_win_over_the_configuration(folder: Path) -> None:
    path = folder / "headrace.toml"
    path.write_text(
        """
        [daemon]
        socket = "/nowhere/s"
        memory = "1MB"
        state_dir = "/nowhere/state"
        [trust]
        allow_sources = ["/first"]
        """
    )
    options = ("--socket", folder / "s", "--memory", "2MB", "--state-dir", folder / "state")
    allowed = ("--allow-source", "/second", "--allow-source", "/third")
    with serving("--config", path, *options, *allowed) as daemon:
        (line,) = [line for line in daemon.log.splitlines() if " settings " in line]
    settings = json.loads(line.partition(" settings ")[2])
    assert settings["daemon"]["socket"] == f"{folder}/s"
    assert settings["daemon"]["memory"] == "2MB"
    assert settings["daemon"]["state_dir"] == f"{folder}/state"
    assert settings["trust"]["allow_sources"] == ["/first", "/second", "/third"]


def test_it_serves_without_a_configuration(folder: Path) -> None:
    with serving("--socket", folder / "s", "--state-dir", folder / "state"):
        done = headrace("status", "--socket", folder / "s")
        assert (done.returncode, "feeds    none" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--config", "{folder}/missing.toml"], 2, "missing.toml does not exist"),
        (["--config", "{folder}"], 2, "cannot be read: Is a directory"),
        (["--memory", "much"], 2, "--memory: 'much' is no size"),
        (["--memory", "0"], 2, "--memory: '0' is out of range"),
        (["--socket", ""], 2, "--socket: '' is no path"),
        (["--state-dir", ""], 2, "--state-dir: '' is no folder"),
        (["--state-dir", "{folder}/file/state"], 2, "file/state' cannot be made: Not a directory"),
        (["--socket", "{folder}/file"], 2, "file is in the way: it exists and is not a socket"),
        (["--socket", "{folder}/missing/s"], 2, "cannot be made: No such file or directory"),
        (["--socket", "/" + "x" * 200], 2, "has 201 bytes, the system allows 107"),
        (["--allow-source", "aiss://x"], 2, "--allow-source: uri='aiss://x' has scheme 'aiss'"),
        (["--private", "{folder}/missing"], 2, "missing: No such file or directory"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_refused_in_one_line(
    folder: Path, arguments: list[str], status: int, reason: str
) -> None:
    (folder / "file").write_text("")
    defaults = ["--socket", "{folder}/s", "--state-dir", "{folder}/state"]
    done = headrace_here("serve", *(word.format(folder=folder) for word in [*defaults, *arguments]))
    assert (done.returncode, done.stdout) == (status, "")
    assert reason in done.stderr
    assert done.stderr.startswith("headrace serve: ")
    assert done.stderr.count("\n") == 1
    assert not (folder / "s").exists()


@pytest.mark.parametrize("what", ["socket", "state"])
def test_a_folder_without_permission_is_named(folder: Path, what: str) -> None:
    folder.chmod(0o711)
    places = {"socket": folder / "run", "state": folder / "lib"}
    for place, path in places.items():
        path.mkdir()
        path.chmod(0o555 if place == what else 0o777)
    done = headrace_without_rights(
        "serve", "--socket", places["socket"] / "s", "--state-dir", places["state"]
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert os.fspath(places[what]) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_stream_of_a_store_that_nobody_named_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "headrace.toml"
    path.write_text(
        f"""
        [daemon]
        socket = "{folder}/s"
        state_dir = "{folder}/state"
        [streams.train]
        source = {{ uri = "ais://images/train/" }}
        plan = {{ type = "Sequential", batch_size = 1 }}
        """
    )
    done = headrace_here("serve", "--config", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headrace serve: stream train reads ais://images/train/: the ")
    assert "set [store] endpoints in the configuration, or $AIS_ENDPOINT" in done.stderr
    assert not (folder / "s").exists()
    monkeypatch.setenv("AIS_ENDPOINT", "http://127.0.0.1:1")  # down, which is no reason
    with serving("--config", path):
        assert (folder / "s").exists()
