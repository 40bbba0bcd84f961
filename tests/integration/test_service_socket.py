"""A socket that is passed: its path outlives the daemon, and trainers wait in its queue."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from headrace import DaemonDataset, Stream
from headrace.client import Channel
from headrace.plans import Shuffled
from headrace.testing import Ledger
from tests.support.commands import environment
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples
from tests.support.manager import Manager, listening_socket, start
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.commands import Serving

STEPS = 20
EPOCHS = 2


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), STEPS * 8)
    return stream_of(folder, Shuffled(batch_size=8, seed=17))


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "s"


@pytest.fixture
def passed(path: Path) -> Iterator[socket.socket]:
    """Return the socket that a .socket unit would hold."""
    with listening_socket(path) as sock:
        yield sock


class Service:
    """Daemons, one after the other, on one socket."""

    def __init__(self, folder: Path, passed: socket.socket, manager: Manager) -> None:
        self._folder = folder
        self._passed = passed
        self.manager = manager
        self.daemons: list[Serving] = []
        self._is_ready = False

    def start(self, *arguments: str) -> Serving:
        """Start the next one, and wait for nothing."""
        self.manager.drain()  # what the one before has told
        state = os.fspath(self._folder / "state")
        command = ("--state-dir", state, "--allow-source", "*", *arguments)
        self.daemons.append(start(*command, manager=self.manager, passed=self._passed))
        self._is_ready = False
        return self.daemons[-1]

    def wait_until_ready(self) -> None:
        """Wait until the latest one serves."""
        if not self._is_ready:
            self.manager.wait_for("READY")
            self._is_ready = True

    def stop(self) -> None:
        """Tell the latest one to stop, once it serves: before, a signal ends it as any program."""
        self.wait_until_ready()
        self.daemons[-1].send(signal.SIGTERM)
        assert self.daemons[-1].end() == 0, self.daemons[-1].log

    def kill(self) -> None:
        """End the latest one as a crash does."""
        self.daemons[-1].send(signal.SIGKILL)
        self.daemons[-1].end()


@pytest.fixture
def service(folder: Path, passed: socket.socket) -> Iterator[Service]:
    with Manager(folder / "notify") as manager:
        service = Service(folder, passed, manager)
        yield service
        for daemon in service.daemons:
            daemon.close()
            assert "Traceback" not in daemon.log, daemon.log


def test_the_path_outlives_the_daemon_as_it_was_made(service: Service, path: Path) -> None:
    before = path.stat()
    for end in (service.stop, service.kill, service.stop):
        daemon = service.start()
        service.wait_until_ready()
        Channel.connect(os.fspath(path)).close()
        daemon.wait_for(f'"socket":"{path}"')
        end()
        after = path.stat()
        assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
        assert stat.S_ISSOCK(after.st_mode)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_trainer_that_connects_between_two_daemons_is_served_by_the_next(
    service: Service, path: Path, stream: Stream, end: str
) -> None:
    service.start()
    service.wait_until_ready()
    getattr(service, end)()
    lengths: list[int] = []
    train = DaemonDataset(os.fspath(path), stream, deadline_s=60)
    waiting = threading.Thread(target=lambda: lengths.append(len(train)))
    waiting.start()
    wait_until(lambda: _num_queued(path))  # its connection is there, and nobody serves it
    assert lengths == []
    service.start()
    waiting.join(30)
    assert lengths == [STEPS]
    assert sum(1 for _ in train) == STEPS
    train.close()


def _num_queued(path: Path) -> int:
    """Return how many connections there are at a path that nobody has accepted: two ends of one."""
    with open("/proc/net/unix") as table:
        lines = [line.split() for line in table if line.rstrip().endswith(f" {path}")]
    return sum(1 for line in lines if line[5] == "02")  # SS_CONNECTING


def test_a_job_goes_on_over_daemons_that_are_stopped_and_killed(
    service: Service, path: Path, stream: Stream
) -> None:
    service.start()
    train = DaemonDataset(os.fspath(path), stream)
    ledger = Ledger()
    for _ in range(EPOCHS):
        for batch in train:
            check(batch)
            ledger.record(batch)
            if batch.meta["global_step"] in (0, 5, STEPS - 1, STEPS + 3):
                end = service.stop if batch.meta["step"] else service.kill
                end()
                service.start()
    train.close()
    assert ledger.difference(expected(stream, epochs=EPOCHS)) is None
    service.stop()


def test_a_trainer_does_not_notice_a_reload_and_outlives_a_stop_of_a_few_seconds(
    service: Service, folder: Path, path: Path, stream: Stream
) -> None:
    config = folder / "headrace.toml"
    config.write_text("")
    daemon = service.start("--config", str(config))
    service.wait_until_ready()
    train = DaemonDataset(os.fspath(path), stream)
    ledger = Ledger()
    for number in range(EPOCHS):
        for batch in train:
            check(batch)
            ledger.record(batch)
            if batch.meta["step"] in (2, 7):
                config.write_text(f"[daemon]\ngrace_s = {10 + number + batch.meta['step']}\n")
                daemon.send(signal.SIGHUP)
                service.manager.wait_for("RELOADING")
                service.manager.wait_for("READY")
            if batch.meta["step"] == 12:
                assert daemon.log.count("feed opened") == 1, "the session was kept"
                begun = time.monotonic()
                service.stop()
                assert time.monotonic() - begun < 5
                daemon = service.start("--config", str(config))
                service.wait_until_ready()
    train.close()
    assert ledger.difference(expected(stream, epochs=EPOCHS)) is None
    service.stop()
    service.manager.drain()
    one = ["READY", *["RELOADING", "READY"] * 2, "STOPPING"]
    assert service.manager.state == [*one, *one, "READY", "STOPPING"]


def test_a_socket_for_another_process_is_ignored(
    folder: Path, passed: socket.socket, path: Path
) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    own = folder / "own"
    arguments = ("--socket", own, "--state-dir", folder / "state")
    daemon = start(*arguments, pass_fds=[passed.fileno()], env=environ)
    try:
        daemon.wait_for(" INFO settings ")
        assert "sockets ignored pid=1: they were passed to another process" in daemon.log
        Channel.connect(os.fspath(own)).close()
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    finally:
        daemon.close()
    assert not own.exists()
    assert path.exists()


@pytest.mark.parametrize("way", ["option", "configuration"])
def test_another_path_than_that_of_the_socket_is_refused(
    service: Service, folder: Path, path: Path, way: str
) -> None:
    config = folder / "headrace.toml"
    config.write_text('[daemon]\nsocket = "/elsewhere"\n' if way == "configuration" else "")
    option = ("--socket", "/elsewhere") if way == "option" else ()
    daemon = service.start("--config", str(config), *option)
    assert daemon.end() == 2
    origin = "--socket" if way == "option" else "daemon.socket"
    assert daemon.log == (
        f"headrace serve: {origin} is /elsewhere, but the socket that was passed is at {path}: "
        f"leave {origin} out, or set ListenStream= in the .socket unit to the same path\n"
    )
    service.manager.drain()
    assert service.manager.messages == []


@pytest.mark.parametrize("way", ["option", "configuration"])
def test_the_same_path_is_welcome(service: Service, folder: Path, path: Path, way: str) -> None:
    config = folder / "headrace.toml"
    config.write_text(f'[daemon]\nsocket = "{path}"\n' if way == "configuration" else "")
    option = ("--socket", str(path)) if way == "option" else ()
    service.start("--config", str(config), *option)
    service.wait_until_ready()
    service.stop()
    assert path.exists()


def test_two_sockets_or_a_wrong_one_are_refused_in_one_line(folder: Path) -> None:
    with socket.socket(socket.AF_INET) as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        daemon = start("--state-dir", folder / "state", passed=tcp)
        try:
            assert daemon.end() == 2
        finally:
            daemon.close()
    assert daemon.log.startswith(
        "headrace serve: descriptor 3 (headrace.socket), which was passed, is of family AF_INET"
    )
    assert daemon.log.count("\n") == 1


def test_systemds_own_activation_is_understood(folder: Path, stream: Stream) -> None:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("no systemd-socket-activate on PATH")
    path = folder / "activated"
    serve = [sys.executable, "-m", "headrace_daemon", "serve", "--state-dir", folder / "state"]
    # It starts the daemon when the first client connects, and becomes it.
    daemon = subprocess.Popen(
        [program, f"--listen={path}", *map(str, serve), "--allow-source", "*"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(path.exists)
        train = DaemonDataset(os.fspath(path), stream)
        ledger = Ledger()
        for batch in train:
            ledger.record(batch)
        train.close()
        daemon.terminate()
        _, log = daemon.communicate(timeout=30)
    finally:
        daemon.kill()
        daemon.communicate()
    assert daemon.returncode == 0, log
    assert "Traceback" not in log
    assert ledger.difference(expected(stream, epochs=1)) is None
    assert path.exists()
