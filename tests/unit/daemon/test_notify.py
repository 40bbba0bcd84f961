"""Notify: datagrams that a service manager understands, and nothing that waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import SettingsError
from headrace_daemon.observe.notify import Notifier
from tests.support.manager import Manager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(socket_path: Path) -> Iterator[Manager]:
    with Manager(socket_path.parent / "notify") as manager:
        yield manager


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    notifier = Notifier(manager.address)
    yield notifier
    notifier.close()


# ---- what is told --------------------------------------------------------------------------------


def test_ready_comes_with_a_status(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("serving nobody")
    assert manager.receive() == {"READY": "1", "STATUS": "serving nobody"}


def test_a_reload_says_when_it_began(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    message = manager.receive()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert set(message) == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(message["MONOTONIC_USEC"]) <= after


def test_a_stop_says_how_long_it_may_take(manager: Manager, notifier: Notifier) -> None:
    notifier.stopping("draining", within_s=13.5)
    told = {"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": "13500000"}
    assert manager.receive() == told


def test_a_status_is_told_when_it_changes(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("one")
    for text in ("one", "two", "two", "one"):
        notifier.status(text)
    notifier.ping()
    manager.wait_for("WATCHDOG")
    assert [message.get("STATUS") for message in manager.messages] == ["one", "two", "one", None]


def test_a_status_stays_one_line_and_one_value(manager: Manager, notifier: Notifier) -> None:
    notifier.status("the store said:\nREADY=1\r\x1b[31m  \ud800 é\t" + "x" * 10_000)
    (key, text), *others = manager.receive().items()
    assert (key, others) == ("STATUS", [])
    assert text.startswith("the store said: READY=1 [31m é xxx")
    assert len(text) <= 400


def test_an_abstract_socket_is_reached() -> None:
    address = f"@headrace-test-{os.getpid()}"
    with Manager(address) as manager:
        notifier = Notifier(address)
        notifier.ping()
        assert manager.receive() == {"WATCHDOG": "1"}
        notifier.close()


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier.take({})
    assert (notifier.is_active, notifier.watchdog_s) == (False, None)
    notifier.ready("x")
    notifier.reloading()
    notifier.status("x")
    notifier.ping()
    notifier.stopping("x", within_s=1)
    notifier.close()


def test_what_systemd_itself_sends_looks_the_same(manager: Manager, notifier: Notifier) -> None:
    program = shutil.which("systemd-notify")
    if program is None:
        pytest.skip("no systemd-notify on PATH")
    env = {**os.environ, "NOTIFY_SOCKET": manager.address}
    subprocess.run(
        [program, "--no-block", "--ready", "--status=well"], env=env, check=True, timeout=20
    )
    theirs = manager.receive()
    notifier.ready("well")
    ours = manager.receive()
    assert {key: theirs[key] for key in ours} == ours


# ---- a manager that does not listen --------------------------------------------------------------


def fill(manager: Manager) -> None:
    """Send until there is no room."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"NOISE=1", manager.address)


def test_a_manager_that_does_not_read_is_told_its_states_later_and_in_order(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    fill(manager)
    caplog.set_level(logging.INFO, "headrace_daemon")
    notifier.ready("first")
    notifier.reloading()
    notifier.status("lost")
    notifier.ping()
    (warning,) = caplog.messages  # once, however much is not told
    assert warning == "service manager not told: Resource temporarily unavailable"
    manager.drain()
    assert manager.state == []
    notifier.ping()
    assert [sorted(manager.receive())[-1] for _ in range(3)] == ["STATUS", "RELOADING", "WATCHDOG"]
    assert manager.state == ["READY", "RELOADING"]
    notifier.status("lost")
    assert manager.receive() == {"STATUS": "lost"}
    assert caplog.messages[1:] == ["service manager reached again"]


def test_a_manager_that_is_gone_ends_nothing(
    manager: Manager, notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace_daemon")
    os.rename(manager.address, f"{manager.address}-gone")
    notifier.ready("x")
    notifier.ping()
    assert caplog.messages == ["service manager not told: No such file or directory"]
    os.rename(f"{manager.address}-gone", manager.address)
    notifier.ping()
    manager.wait_for("READY")
    manager.wait_for("WATCHDOG")


def test_states_that_wait_are_bounded_and_the_last_one_counts(
    manager: Manager, notifier: Notifier
) -> None:
    fill(manager)
    for number in range(1000):
        notifier.ready(str(number))
    manager.drain()
    notifier.ping()
    manager.wait_for("WATCHDOG")
    told = [message["STATUS"] for message in manager.messages if "READY" in message]
    assert told[-1] == "999"
    assert len(told) <= 10


# ---- what the environment says -------------------------------------------------------------------


def test_the_environment_is_taken_and_left_clean(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.take(environ)
    assert environ == {"HOME": "/"}
    assert (notifier.is_active, notifier.watchdog_s) == (True, 3.0)
    notifier.close()


def test_a_watchdog_of_another_process_is_not_fed(manager: Manager) -> None:
    told = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    notifier = Notifier.take(told)
    assert (notifier.is_active, notifier.watchdog_s) == (True, None)
    notifier.close()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, "'vsock:2:1234' is neither a path nor an abstract"),
        ({"NOTIFY_SOCKET": "relative"}, "'relative' is neither a path nor an abstract socket"),
        ({"NOTIFY_SOCKET": "@"}, "has 1 bytes, the system allows 2 to 108"),
        ({"NOTIFY_SOCKET": "/" + "x" * 107}, "has 108 bytes, the system allows 2 to 107"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC = 'soon' is no number"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC = '0' is no number"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(told: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Notifier.take(told)
    assert reason in str(caught.value)
    assert told == {}
