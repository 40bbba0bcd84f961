"""A private daemon that cannot be started says why; the rest is in tests/integration."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from headrace import errors, private
from headrace.private import PrivateDaemon


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def instead_of_python(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make daemons be started with a script instead of Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def test_its_folder_is_its_own_and_goes_with_it(base: Path) -> None:
    daemon = PrivateDaemon("1GiB")
    (folder,) = base.iterdir()
    assert Path(daemon.socket).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    daemon.close()
    daemon.close()
    assert list(base.iterdir()) == []


def test_a_daemon_that_dies_at_once_shows_the_end_of_its_log(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead_of_python("echo first line; echo 'disk full' >&2; exit 3", tmp_path, monkeypatch)
    daemon = PrivateDaemon("1GiB")
    with pytest.raises(errors.DaemonUnavailableError) as caught:
        daemon.ensure_running()
    assert str(caught.value) == "the private daemon did not start:\nfirst line\ndisk full"
    daemon.close()
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("module", ["headrace_daemon", "'uvloop'"])
def test_a_daemon_that_is_not_installed_is_a_sentence(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    instead_of_python(f'echo "No module named {module}"; exit 1', tmp_path, monkeypatch)
    daemon = PrivateDaemon("1GiB")
    with pytest.raises(errors.DaemonUnavailableError, match=r"install it with: pip install"):
        daemon.ensure_running()
    daemon.close()


def test_a_daemon_that_does_not_listen_in_time_is_killed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "START_S", 0.05)
    instead_of_python("echo $$ > pid; exec sleep 600", tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    daemon = PrivateDaemon("1GiB")
    with pytest.raises(errors.DaemonUnavailableError, match="did not start"):
        daemon.ensure_running()
    process = daemon._process
    assert process is not None
    assert process.returncode == -9
    daemon.close()


def test_a_daemon_that_was_closed_is_not_started_again(base: Path) -> None:
    daemon = PrivateDaemon("1GiB")
    daemon.close()
    with pytest.raises(errors.DaemonUnavailableError, match="was closed"):
        daemon.ensure_running()


def test_memory_and_folder_are_passed_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead_of_python('echo "$@"; exit 1', tmp_path, monkeypatch)
    daemon = PrivateDaemon("64MiB")
    with pytest.raises(errors.DaemonUnavailableError) as caught:
        daemon.ensure_running()
    folder = Path(daemon.socket).parent
    command = str(caught.value).splitlines()[1]
    assert command == f"-m headrace_daemon serve --private {folder} --memory 64MiB"
    daemon.close()


def test_a_socket_path_that_is_too_long_is_avoided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    daemon = PrivateDaemon("1GiB")
    assert len(os.fsencode(daemon.socket)) <= 107
    assert not daemon.socket.startswith(str(deep))
    daemon.close()


def test_no_folder_that_is_short_enough_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.DaemonUnavailableError, match="set TMPDIR to a shorter one"):
        PrivateDaemon("1GiB")


def test_in_a_forked_child_it_is_the_parents(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = PrivateDaemon("1GiB")
    monkeypatch.setattr(daemon, "_pid", os.getpid() + 1)
    with daemon._lock:  # as a thread of the parent may have held it
        daemon.ensure_running()
    daemon.close()
    assert len(list(base.iterdir())) == 1
    monkeypatch.undo()
    daemon.close()
