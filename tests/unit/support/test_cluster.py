"""The controller of real clusters, with programs that are none."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.cluster import Cluster, ClusterError, find_aisnode, machine
from tests.support.cluster.keeper import Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[3]
DEADLINE_S: Final = 20.0
SLEEP: Final = ["sleep", "1000"]

STARTER: Final = """
import pathlib, sys
from tests.support.cluster.keeper import Keeper
folder = pathlib.Path(sys.argv[1])
keeper = Keeper(folder, {})
print(keeper._process.pid, keeper.start("node", ["/bin/sleep", "1000"], folder / "log"), flush=True)
sys.stdin.read()
"""
"""Starts a node, tells the process ids of its keeper and of it, and waits."""


@pytest.fixture
def folder() -> Path:
    """Return a folder that a keeper will remove."""
    return Path(tempfile.mkdtemp(prefix="headrace-test-"))


@pytest.fixture
def keeper(folder: Path) -> Iterator[Keeper]:
    keeper = Keeper(folder, os.environ)
    yield keeper
    keeper.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program that says what it was told and ends."""
    path = tmp_path / "aisnode"
    path.write_text('#!/bin/sh\necho "no such flag: $1" >&2\nexit 3\n')
    path.chmod(0o755)
    return path


def wait_for_end(pid: int) -> None:
    """Wait for the end of a process that is not ours; one that is gone already has ended."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    readable, _, _ = select.select([ended], [], [], DEADLINE_S)
    os.close(ended)
    assert readable, f"{pid} has not ended"


def test_the_variable_names_the_program(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_AISNODE", str(program))
    assert find_aisnode() == str(program)


def test_the_program_is_looked_for_on_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_AISNODE", raising=False)
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_aisnode() == str(program)


def test_there_may_be_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_AISNODE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_aisnode() is None


def test_a_variable_that_names_no_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_AISNODE", str(tmp_path / "missing"))
    with pytest.raises(ClusterError, match=r"missing.*name one, or unset"):
        find_aisnode()


def test_a_node_does_not_see_what_changes_its_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("MY_POD", "pod-1")
    monkeypatch.setenv("OTHER", "value")
    environment = machine.clean_environment()
    assert "AIS_ENDPOINT" not in environment
    assert "MY_POD" not in environment
    assert environment["OTHER"] == "value"


def test_ports_are_free_on_every_address() -> None:
    with socket.socket() as taken:
        ports = machine.free_ports(4)
        assert len(set(ports)) == 4
        taken.bind((machine.CONTROL, ports[0]))
        taken.listen()
        assert not machine._is_free(machine.CONTROL, ports[0])
        assert machine._is_free(machine.PUBLIC, ports[0])


def test_a_place_that_will_not_do_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"missing: no user attributes of files"):
        machine.make_folder(tmp_path / "missing")


def test_a_node_that_ends_is_told_of(keeper: Keeper, folder: Path) -> None:
    keeper.start("lives", SLEEP, folder / "log")
    keeper.start("ends", ["sh", "-c", "exit 7"], folder / "log")
    assert keeper.ended(DEADLINE_S) == {"ends": 7}


def test_a_node_that_is_ended_is_forgotten(keeper: Keeper, folder: Path) -> None:
    pid = keeper.start("node", SLEEP, folder / "log")
    keeper.signal("node", signal.SIGKILL)
    assert keeper.end("node") == -signal.SIGKILL
    assert not Path(f"/proc/{pid}").exists(), "a zombie"
    assert keeper.ended(0.0) == {}


def test_closing_leaves_neither_processes_nor_files(keeper: Keeper, folder: Path) -> None:
    pid = keeper.start("node", SLEEP, folder / "log")
    keeper.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


def test_nothing_is_left_when_the_starter_is_killed(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as starter:
        assert starter.stdout is not None
        keeper, node = map(int, starter.stdout.readline().split())
        starter.kill()
    wait_for_end(node)
    wait_for_end(keeper)
    assert not folder.exists()


def test_no_node_is_left_when_the_keeper_is_killed(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as starter:
        assert starter.stdout is not None
        keeper, node = map(int, starter.stdout.readline().split())
        os.kill(keeper, signal.SIGKILL)
        wait_for_end(node)
        starter.kill()
    folder.rename(tmp_path / "left")  # by the keeper, which could not


def test_a_cluster_that_does_not_start_shows_what_its_nodes_wrote(
    program: Path, tmp_path: Path
) -> None:
    try:
        machine.add_addresses()
    except ClusterError as error:
        pytest.skip(str(error))
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ClusterError, match=r"no such flag: -role=proxy"):
        Cluster(str(program), folder=place).start()
    assert list(place.iterdir()) == []
