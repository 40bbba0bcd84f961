"""The life of the process: how it starts, what stops it, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from headrace.client import Channel, ConnectionLostError
from headrace.protocol import Payload
from headrace.protocol import messages as m
from tests.support.commands import Serving, headrace, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(socket_path: Path) -> Path:
    return socket_path.parent


@pytest.fixture
def config(folder: Path) -> Path:
    """Return a configuration of a stream of ten files, with a short path of the socket."""
    data = folder / "data"
    data.mkdir()
    for number in range(10):
        (data / f"{number}.bin").write_bytes(bytes(100))
    path = folder / "headrace.toml"
    path.write_text(
        f"""
        default_stream = "train"
        [daemon]
        socket = "{folder}/s"
        state_dir = "{folder}/state"
        drain_s = 20
        [streams.train]
        source = {{ uri = "{data}" }}
        plan = {{ type = "Sequential", batch_size = 2 }}
        """
    )
    return path


@pytest.fixture
def daemon(config: Path) -> Iterator[Serving]:
    with serving("--config", config) as running:
        yield running


def opened(path: Path, credit: int = 0) -> Channel:
    """Return a channel with an open feed."""
    channel = Channel.connect(os.fspath(path))
    channel.send(m.Open(credit=credit))
    assert isinstance(channel.receive(), m.Opened)
    return channel


# ---- how it stops --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_daemon_without_a_trace(
    daemon: Serving, folder: Path, number: signal.Signals
) -> None:
    daemon.send(number)
    assert daemon.end() == 0
    assert not (folder / "s").exists()
    assert "stopping drain_s=20" in daemon.log
    assert daemon.log.endswith("INFO stopped\n")


def test_a_signal_drains_what_clients_are_waiting_for(daemon: Serving, folder: Path) -> None:
    with opened(folder / "s", credit=2) as channel:
        for _ in range(2):
            assert isinstance(channel.receive(), Payload)
        daemon.send(signal.SIGTERM)
        error = channel.receive()
        assert isinstance(error, m.Error)
        assert (error.code, error.retryable, error.scope) == ("draining", True, "connection")
        with pytest.raises(ConnectionLostError, match="closed the connection"):
            channel.receive()
    assert daemon.end() == 0


def test_a_second_signal_does_not_wait_for_a_client_that_does_not_read(
    daemon: Serving, folder: Path
) -> None:
    with (folder / "data" / "0.bin").open("r+b") as large:
        large.truncate(50_000_000)  # more than any socket takes
    with opened(folder / "s", credit=1) as deaf:
        deaf._sock.recv(1, socket.MSG_PEEK)  # the batch is under way
        daemon.send(signal.SIGTERM)
        daemon.wait_for("stopping")
        assert daemon.process.poll() is None
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    assert not (folder / "s").exists()


def test_a_killed_daemon_is_replaced_by_the_next(config: Path, folder: Path) -> None:
    with serving("--config", config) as first:
        first.send(signal.SIGKILL)
        assert first.end() == -signal.SIGKILL
    assert (folder / "s").is_socket()
    with serving("--config", config) as second:
        opened(folder / "s").close()
        second.send(signal.SIGTERM)
        assert second.end() == 0


# ---- the socket ----------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_socket_refuses(
    daemon: Serving, config: Path, folder: Path
) -> None:
    done = headrace("serve", "--config", config)
    assert done.returncode == 1
    assert f"a daemon is already listening on {folder}/s" in done.stderr
    opened(folder / "s").close()
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o660


def test_a_socket_that_became_somebody_elses_is_left_alone(daemon: Serving, folder: Path) -> None:
    (folder / "s").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(folder / "s"))
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
        assert (folder / "s").is_socket()


def test_a_socket_that_somebody_removed_is_no_problem(daemon: Serving, folder: Path) -> None:
    (folder / "s").unlink()
    daemon.send(signal.SIGTERM)
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log


# ---- a private daemon ----------------------------------------------------------------------------


def test_a_private_daemon_ends_with_its_lifeline_and_removes_its_folder(folder: Path) -> None:
    private = folder / "private"
    private.mkdir()
    (private / "daemon.log").write_text("")
    with serving("--private", private, stdin=subprocess.PIPE) as daemon:
        assert (private / "headrace.sock").is_socket()
        assert daemon.process.stdin is not None
        daemon.process.stdin.write("words mean nothing\n")
        daemon.process.stdin.flush()
        opened_stream = {"source": {"uri": os.fspath(folder)}, "plan": {"type": "Sequential"}}
        with Channel.connect(os.fspath(private / "headrace.sock")) as channel:
            channel.send(m.Open(stream=opened_stream))
            error = channel.receive()
            assert isinstance(error, m.Error)
            assert error.code == "plan"  # and not "trust"
        daemon.process.stdin.close()
        assert daemon.end() == 0
    assert not private.exists()


def test_a_private_daemon_removes_no_folder_with_other_things_in_it(folder: Path) -> None:
    (folder / "thesis.tex").write_text("precious")
    done = headrace("serve", "--private", folder, stdin=subprocess.PIPE)
    assert done.returncode == 2
    assert f"--private {folder}: it is removed at the end, and has 'thesis.tex'" in done.stderr
    assert (folder / "thesis.tex").read_text() == "precious"


def test_a_private_daemon_needs_a_lifeline(folder: Path) -> None:
    done = headrace("serve", "--private", folder, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "--private needs a pipe as standard input" in done.stderr
    assert folder.is_dir()


# ---- the log -------------------------------------------------------------------------------------


LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) [^\n]+\n", re.ASCII
)


def test_the_log_has_one_line_per_event_and_no_secrets(config: Path, folder: Path) -> None:
    with serving("--config", config, "--log-level", "debug") as daemon:
        with Channel.connect(os.fspath(folder / "s")) as channel:
            source = {"uri": "/a\n2026-11-21T00:00:00.000Z ERROR forged\r"}
            plan = {"type": "Sequential", "batch_size": 1}
            channel.send(m.Open(stream={"source": source, "plan": plan}))
            assert isinstance(channel.receive(), m.Error)
        with opened(folder / "s", credit=1) as channel:
            token = "5ec2e75ec2e75ec2e75ec2e7"
            channel.receive()
            channel.send(m.Close())
            while not isinstance(channel.receive(), m.End):
                pass
            channel.send(m.Open(token=token))
            again = channel.receive()
            assert isinstance(again, m.Opened)
        daemon.wait_for("feed parked")
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    assert "".join(match[0] for match in LINE.finditer(daemon.log)) == daemon.log
    events = [line.split(" ", 2)[2].split("=")[0] for line in daemon.log.splitlines()]
    for event in ("settings", "feed opened feed", "feed closed feed", "stopped"):
        assert any(line.startswith(event) for line in events), event
    assert token not in daemon.log
    assert again.token not in daemon.log
    assert " ERROR forged" not in re.sub(r".*open refused.*", "", daemon.log)


def test_the_log_begins_with_the_configuration_in_force(daemon: Serving) -> None:
    (line,) = [line for line in daemon.log.splitlines() if " settings " in line]
    assert '"drain_s":20.0' in line
    assert '"max_in_flight":16' in line


def test_the_level_of_the_log_is_kept(config: Path, folder: Path) -> None:
    done = headrace("serve", "--config", config, "--log-level", "loud")
    assert (done.returncode, "invalid choice: 'loud'" in done.stderr) == (2, True)
