"""The service: what a service manager is told, in order, and what a reload changes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from headrace.client import Channel, ConnectionLostError
from headrace.errors import HeadraceError
from headrace.protocol import Payload
from headrace.protocol import messages as m
from headrace_daemon.service import Service
from headrace_daemon.settings import Settings
from tests.support.manager import Manager, start
from tests.support.standin import Hangup, StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.commands import Serving

QUICK = """
import os, signal, sys

def block(*_):
    os.write(int(os.environ["IS_BLOCKED"]), b"x")
    os.read(int(os.environ["UNBLOCK"]), 1)

if "UNBLOCK" in os.environ:
    signal.signal(signal.SIGUSR1, block)
import headrace_daemon.service as service
service.TELL_S = service.LOOK_S = service.LOOK_AGAIN_S = 0.05
from headrace_daemon.cli import main
main(sys.argv[1:])
"""
"""The daemon, in haste; its loop is blocked by SIGUSR1."""


class Config:
    """A configuration of one stream of ten files, which a test may change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "headrace.toml"
        self.socket = folder / "s"
        data = folder / "data"
        data.mkdir()
        for number in range(10):
            (data / f"{number}.bin").write_bytes(bytes(100))
        self.write()

    def write(
        self, *, streams: tuple[str, ...] = ("train",), daemon: str = "", rest: str = ""
    ) -> None:
        """Write the file."""
        tables = [
            f"[streams.{name}]\n"
            f'source = {{ uri = "{self.folder}/data" }}\n'
            'plan = { type = "Sequential", batch_size = 2 }\n'
            for name in streams
        ]
        lines = [f'[daemon]\nsocket = "{self.socket}"\nstate_dir = "{self.folder}/state"', daemon]
        self.path.write_text("\n".join([*lines, rest, *tables]))


@pytest.fixture
def config(socket_path: Path) -> Config:
    return Config(socket_path.parent)


@pytest.fixture
def manager(socket_path: Path) -> Iterator[Manager]:
    with Manager(socket_path.parent / "notify") as manager:
        yield manager


@contextmanager
def running(
    config: Config,
    manager: Manager,
    *,
    program: tuple[str, ...] = ("-c", QUICK),
    pass_fds: tuple[int, ...] = (),
    **env: str,
) -> Iterator[Serving]:
    """Run a daemon from the time when it is ready to its death."""
    daemon = start(
        "--config", config.path, manager=manager, program=program, pass_fds=pass_fds, env=env
    )
    try:
        manager.wait_for("READY")
        yield daemon
    except BaseException:
        print(daemon.log)  # noqa: T201 - pytest shows it
        raise
    finally:
        daemon.close()


def opened(config: Config, stream: str, *, credit: int = 0) -> Channel:
    """Return a channel with an open feed."""
    channel = Channel.connect(os.fspath(config.socket))
    channel.send(m.Open(stream=stream, credit=credit))
    event = channel.receive()
    assert isinstance(event, m.Opened), event
    return channel


def refusal(config: Config, stream: str) -> m.Error:
    """Return why a stream is not opened."""
    with Channel.connect(os.fspath(config.socket)) as channel:
        channel.send(m.Open(stream=stream))
        event = channel.receive()
        assert isinstance(event, m.Error), event
        return event


# ---- start and stop ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_is_ready_when_it_listens_and_stops_after_a_drain(
    config: Config, socket_path: Path, kind: str
) -> None:
    place = f"@{socket_path}" if kind == "abstract" else socket_path.parent / "n"
    config.write(daemon="drain_s = 17.5")
    program = ("-m", "headrace_daemon")
    with Manager(place) as manager, running(config, manager, program=program) as daemon:
        assert (
            manager.messages[-1]["STATUS"] == "serving 0 feeds, 0 connections; no store configured"
        )
        with opened(config, "train", credit=2) as channel:
            assert isinstance(channel.receive(), Payload)
            daemon.send(signal.SIGTERM)
            message = manager.wait_for("STOPPING")
            assert message["STATUS"] == "stopping: draining for 17.5 s"
            assert int(message["EXTEND_TIMEOUT_USEC"]) > 17.5e6
            assert isinstance(channel.receive(), Payload), "what there is credit for is delivered"
            error = channel.receive()
            assert isinstance(error, m.Error)
            assert error.code == "draining"
        assert daemon.end() == 0
        manager.drain()
        assert manager.state == ["READY", "STOPPING"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("[daemon]\nmemroy = 1\n", "did you mean 'memory'?"),
        ("no TOML", "is not TOML"),
        ('[store]\nendpoints = ["nowhere"]', "'nowhere' is no endpoint"),
    ],
)
def test_it_is_never_ready_with_a_configuration_that_is_not_valid(
    config: Config, manager: Manager, wrong: str, reason: str
) -> None:
    config.path.write_text(wrong)
    daemon = start("--config", config.path, manager=manager)
    try:
        assert daemon.end() == 2
    finally:
        daemon.close()
    manager.drain()
    assert manager.messages == []
    assert reason in daemon.log


def test_the_environment_of_the_manager_is_not_handed_on(config: Config, manager: Manager) -> None:
    program = QUICK.replace(
        "main(sys.argv",
        "import atexit; atexit.register(lambda: print(sorted(os.environ), file=sys.stderr)); "
        "main(sys.argv",
    )
    with running(config, manager, program=("-c", program)) as daemon:
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    assert "'HOME'" in daemon.log
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
        assert name not in daemon.log


# ---- the watchdog --------------------------------------------------------------------------------


def test_the_watchdog_is_fed_by_the_loop_and_starves_when_that_is_stuck(
    config: Config, socket_path: Path
) -> None:
    is_blocked, unblock = os.pipe(), os.pipe()
    with (
        Manager(socket_path.parent / "n", watchdog_s=0.15) as manager,
        running(
            config,
            manager,
            pass_fds=(is_blocked[1], unblock[0]),
            IS_BLOCKED=str(is_blocked[1]),
            UNBLOCK=str(unblock[0]),
        ) as daemon,
    ):
        for _ in range(3):
            manager.wait_for("WATCHDOG")
        daemon.send(signal.SIGUSR1)
        assert os.read(is_blocked[0], 1) == b"x"
        manager.drain()
        with pytest.raises(TimeoutError):  # other threads of the process go on
            manager.receive(timeout_s=0.6)
        os.write(unblock[1], b"x")
        manager.wait_for("WATCHDOG")
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    for descriptor in (*is_blocked, *unblock):
        os.close(descriptor)


def test_nobody_feeds_a_watchdog_that_is_not_there(config: Config, manager: Manager) -> None:
    with running(config, manager) as daemon:
        for _ in range(2):
            with Channel.connect(os.fspath(config.socket)):
                manager.wait_for("STATUS", "1 connection;")
            manager.wait_for("STATUS", "0 connections;")
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    assert not any("WATCHDOG" in message for message in manager.messages)


# ---- the store -----------------------------------------------------------------------------------


def test_the_status_follows_a_store_that_goes_down_and_comes_back(
    config: Config, manager: Manager
) -> None:
    with StandIn(num_targets=3) as ais:
        down = ais.fault(Hangup(), proxy="any", times=None)
        config.write(rest=f'[store]\nendpoints = ["{ais.endpoint}"]')
        with running(config, manager) as daemon:  # it is ready all the same
            message = manager.wait_for("STATUS", "the store does not answer: ")
            assert f"proxy {ais.endpoint}" in message["STATUS"]
            with opened(config, "train"):
                manager.wait_for("STATUS", "serving 1 feed, 1 connection;")
            down.cancel()
            manager.wait_for("STATUS", "the store is up: 3 targets")
            down = ais.fault(Hangup(), proxy="any", times=None)
            manager.wait_for("STATUS", "the store does not answer: ")
            down.cancel()
            manager.wait_for("STATUS", "the store is up: 3 targets")
            gone = ais.targets[0]
            ais.remove_from_map(gone)
            message = manager.wait_for("STATUS", "the store has 2 targets, missing: ")
            assert gone.id in message["STATUS"]
            ais.return_to_map(gone)
            manager.wait_for("STATUS", "the store is up: 3 targets")
            daemon.send(signal.SIGTERM)
            assert daemon.end() == 0
    assert daemon.log.count("the store does not answer") == 2, "once for each time"


class _Watched:
    """The parts of an `App` and of a `Notifier` that looking at a store needs."""

    def __init__(self) -> None:
        self.is_serving = asyncio.Event()
        self.is_serving.set()
        self.is_looking = asyncio.Event()
        self.has_left = asyncio.Event()
        self.store = self.client = self.access = self
        self.endpoints = ("http://127.0.0.1:1",)
        self.settings = Settings()
        self.is_active = True
        self.watchdog_s = None

    async def look(self, max_age_s: float) -> str:
        self.is_looking.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.has_left.set()
        return ""

    def report(self) -> dict[str, Any]:
        return {"feeds": [], "connections": 0, "store": {"endpoints": []}}

    def ready(self, words: str) -> None: ...
    def status(self, words: str) -> None: ...
    def stopping(self, words: str, *, within_s: float) -> None: ...


def test_a_store_is_let_go_before_the_end_begins() -> None:
    async def stop_while_it_is_asked() -> None:
        parts: Any = _Watched()
        service = Service(parts, parts)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(service.run(), name="service")
            await parts.is_looking.wait()
            service.stop()
            await parts.has_left.wait()  # and all else goes on
            assert not running.done()
            running.cancel()

    asyncio.run(asyncio.wait_for(stop_while_it_is_asked(), 10))


def test_a_store_is_not_looked_at_without_a_manager(config: Config) -> None:
    with StandIn(num_targets=1) as ais:
        config.write(rest=f'[store]\nendpoints = ["{ais.endpoint}"]')
        daemon = start("--config", config.path, program=("-c", QUICK))
        try:
            daemon.wait_for(" INFO settings ")
            with opened(config, "train", credit=10) as channel:
                while not isinstance(channel.receive(), m.EpochEnd):
                    pass
            daemon.send(signal.SIGTERM)
            assert daemon.end() == 0
        finally:
            daemon.close()
        assert ais.requests == []


# ---- reload --------------------------------------------------------------------------------------


def reload(daemon: Serving, manager: Manager) -> str:
    """Reload, and return the status after it."""
    daemon.send(signal.SIGHUP)
    message = manager.wait_for("RELOADING")
    assert int(message["MONOTONIC_USEC"]) > 0
    return manager.wait_for("READY")["STATUS"]


def test_a_reload_takes_streams_in_and_keeps_what_is_open(config: Config, manager: Manager) -> None:
    with running(config, manager) as daemon:
        assert "is not configured" in refusal(config, "other").message
        with opened(config, "train", credit=1) as channel:
            assert isinstance(channel.receive(), Payload)
            config.write(
                streams=("other",),
                daemon="drain_s = 9\ngrace_s = 7",
                rest="[trust]\nallow_sources = ['*']",
            )
            assert "reload refused" not in reload(daemon, manager)
            assert "configured streams: other" in refusal(config, "train").message
            channel.send(m.Credit(total=2))
            assert isinstance(channel.receive(), Payload), "what is open goes on"
            opened(config, "other").close()
            config.write(streams=("other",), daemon="drain_s = 9\ngrace_s = 7\nmax_connections = 1")
            reload(daemon, manager)
            with pytest.raises(HeadraceError, match=r"the limit is \[daemon\] max_connections"):
                Channel.connect(os.fspath(config.socket))
        daemon.wait_for("grace_s=7")
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    assert "stopping drain_s=9" in daemon.log
    settings = [line for line in daemon.log.splitlines() if " settings " in line]
    assert list(json.loads(settings[-1].partition(" settings ")[2])["streams"]) == ["other"]


def test_a_reload_of_who_may_connect_concerns_those_who_connect_from_then_on(
    config: Config, manager: Manager
) -> None:
    with running(config, manager) as daemon, opened(config, "train", credit=1) as channel:
        assert isinstance(channel.receive(), Payload)
        config.write(rest=f"[trust]\nallow_uids = [{os.getuid() + 1}]")
        reload(daemon, manager)
        with pytest.raises(HeadraceError, match=r"is not in \[trust\] allow_uids"):
            Channel.connect(os.fspath(config.socket))
        channel.send(m.Credit(total=2))
        assert isinstance(channel.receive(), Payload)


def broken(config: Config) -> None:
    config.path.write_text("[daemon]\nmemroy = 1\n")


def missing(config: Config) -> None:
    config.path.unlink()


def larger(config: Config) -> None:
    config.write(streams=("other",), daemon='memory = "5MiB"', rest="[store]\nstall_s = 7")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            broken,
            "allowed here: drain_s, grace_s, group, max_connections, memory, socket, state_dir",
        ),
        (missing, "does not exist: check the path"),
        (
            larger,
            "daemon.memory = '5MiB' (in force: '1GiB'), store.stall_s = 7.0 (in force: 20.0): "
            "changes only with a restart of the daemon",
        ),
    ],
)
def test_a_reload_that_is_refused_changes_nothing_and_says_why(
    config: Config, manager: Manager, change: Callable[[Config], None], reason: str
) -> None:
    with running(config, manager) as daemon:
        change(config)
        status = reload(daemon, manager)
        assert "; reload refused: " in status
        assert status.endswith(reason)
        daemon.wait_for("reload refused, the configuration stays as it was: ")
        opened(config, "train").close()
        assert "configured streams: train" in refusal(config, "other").message
        config.write(streams=("train", "other"))
        assert "reload refused" not in reload(daemon, manager)
        opened(config, "other").close()
        daemon.send(signal.SIGTERM)
        assert daemon.end() == 0
    manager.drain()
    assert manager.state == ["READY", *["RELOADING", "READY"] * 2, "STOPPING"]


def test_options_of_the_command_line_win_after_a_reload_too(
    config: Config, manager: Manager
) -> None:
    daemon = start("--config", config.path, "--memory", "7MB", manager=manager)
    try:
        manager.wait_for("READY")
        config.write(daemon='memory = "9MB"')
        assert "reload refused" not in reload(daemon, manager)
        with Channel.connect(os.fspath(config.socket)) as channel:
            report = channel.request(m.Status())
            assert isinstance(report, m.Report)
            assert report.report["memory"]["budget_bytes"] == 7_000_000
    finally:
        daemon.close()


# ---- the end of a terminal -----------------------------------------------------------------------


def test_a_hangup_stops_a_daemon_that_has_nothing_to_reload(
    config: Config, manager: Manager
) -> None:
    daemon = start(
        "--socket", config.socket, "--state-dir", config.folder / "state", manager=manager
    )
    try:
        manager.wait_for("READY")
        daemon.send(signal.SIGHUP)
        manager.wait_for("STOPPING")
        assert daemon.end() == 0
        assert not config.socket.exists()
    finally:
        daemon.close()


_IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.close(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "headrace_daemon", *sys.argv[2:]])
"""


@pytest.mark.parametrize("nohup", [False, True], ids=["plain", "nohup"])
def test_a_daemon_ends_with_its_terminal_unless_it_is_told_to_outlive_it(
    config: Config, manager: Manager, nohup: bool
) -> None:
    master, slave = pty.openpty()

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_TERMINAL, str(slave), "serve", "--config", config.path],
        env={**os.environ, **manager.environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[slave],
        preexec_fn=ignore if nohup else None,
    )
    try:
        os.close(slave)
        manager.wait_for("READY")
        process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING")  # somebody is there: it means what it means to a service
        manager.wait_for("READY")
        os.close(master)
        if nohup:
            with Channel.connect(os.fspath(config.socket)):
                manager.wait_for("STATUS", "1 connection;")
            process.terminate()
        manager.wait_for("STOPPING")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert not config.socket.exists()
    with pytest.raises(ConnectionLostError):
        Channel.connect(os.fspath(config.socket))
