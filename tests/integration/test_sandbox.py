"""The sandbox of the unit lets the product work: folders, a store, a restart of neither."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import DaemonDataset, Objects, Stream
from headrace.client import Channel
from headrace.plans import Shuffled
from headrace.protocol import messages as m
from tests.support import sandbox
from tests.support.files import stream_of, write_samples
from tests.support.manager import Manager, listening_socket, start
from tests.support.standin import StandIn

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def possible() -> None:
    reason = sandbox.why_not()
    if reason:
        pytest.skip(reason)


_FORBIDDEN = """
import errno, os, socket
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno == errno.EPERM
    return False
print(refused(os.chown, "/nowhere", 0, 0), refused(os.unshare, 0) if hasattr(os, "unshare") else
      True, refused(socket.socket, socket.AF_NETLINK), refused(os.nice, 1))
socket.socket(socket.AF_INET6).close()
"""


def test_it_forbids_what_it_should() -> None:
    command = [sys.executable, "-m", "tests.support.sandbox", "headrace.service"]
    done = subprocess.run(
        [*command, sys.executable, "-c", _FORBIDDEN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "True True True True\n"), done.stderr


def test_a_daemon_in_it_serves_folders_and_a_store(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where the daemon's `tests.support` is
    files = stream_of(write_samples(tmp_path, 64), Shuffled(batch_size=8, seed=1))
    path = folder / "s"
    with StandIn(num_targets=2) as ais, listening_socket(path) as passed:
        ais.create_bucket("train")
        objects = {f"{number:03}": os.urandom(50_000) for number in range(64)}
        ais.put_many("train", objects)
        bucket = Stream(Objects("ais://train"), Shuffled(batch_size=8, seed=1))
        # A name, so that it is looked up.
        endpoint = ais.endpoint.replace("127.0.0.1", "localhost")
        config = folder / "headrace.toml"
        config.write_text(f'[store]\nendpoints = ["{endpoint}"]\n[trust]\nallow_sources = ["*"]\n')
        program = ("-m", "tests.support.sandbox", "headrace.service", sys.executable)
        with Manager(folder / "notify") as manager:
            daemon = start(
                "--config",
                config,
                "--state-dir",
                folder / "state",
                manager=manager,
                passed=passed,
                program=(*program, "-m", "headrace_daemon"),
            )
            try:
                manager.wait_for("READY")
                for stream in (files, bucket):
                    train = DaemonDataset(os.fspath(path), stream)
                    assert sum(len(batch) for batch in train) == 64
                    train.close()
                manager.wait_for("STATUS", "the store is up: 2 targets")
                _assert_it_notices_a_death(path, manager)
                daemon.send(signal.SIGTERM)
                assert daemon.end() == 0
            finally:
                daemon.close()
    assert "Traceback" not in daemon.log
    assert " WARNING " not in daemon.log, daemon.log


def _assert_it_notices_a_death(path: Path, manager: Manager) -> None:
    with Channel.connect(os.fspath(path)) as channel:
        report = channel.request(m.Status())
    assert isinstance(report, m.Report)
    assert report.report["feeds"] == [], "their trainers closed them"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(os.fspath(path))
        manager.wait_for("STATUS", "1 connection;")
    manager.wait_for("STATUS", "0 connections;")
