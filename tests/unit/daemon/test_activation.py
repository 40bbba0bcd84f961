"""Activation: exactly one listening Unix socket is taken over, and everything else is named."""

from __future__ import annotations

import grp
import os
import socket
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import SettingsError
from headrace_daemon.transport import activation
from tests.support.manager import listening_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def told(count: str = "1", pid: str | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a service that was passed some sockets."""
    return {"LISTEN_PID": pid or str(os.getpid()), "LISTEN_FDS": count, **more}


@pytest.fixture
def passed(socket_path: Path) -> Iterator[socket.socket]:
    with listening_socket(socket_path) as sock:
        yield sock


def test_the_socket_is_taken_and_the_environment_left_clean(
    passed: socket.socket, socket_path: Path
) -> None:
    copy = os.dup(passed.fileno())
    os.set_inheritable(copy, True)
    environ = told(LISTEN_FDNAMES="headrace.socket", LISTEN_PIDFDID="7", HOME="/")
    inherited = activation.take(environ, first=copy)
    assert inherited is not None
    with inherited.sock as sock:
        assert (sock.fileno(), inherited.path) == (copy, socket_path)
        assert not os.get_inheritable(copy)
        assert not sock.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(socket_path))
            sock.accept()[0].close()
    assert environ == {"HOME": "/"}
    assert socket_path.is_socket()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
    ids=lambda environ: " ".join(environ) or "nothing",
)
def test_what_was_not_passed_to_us_is_left_alone(environ: dict[str, str]) -> None:
    assert activation.take({**environ}) is None
    left = {**environ}
    activation.take(left)
    assert left == {}, "no child may think that it was meant"


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (told("2"), "2 sockets were passed, and a daemon serves exactly one"),
        (
            told("2", LISTEN_FDNAMES="a.socket:b.socket"),
            "2 sockets were passed (a.socket, b.socket), and a daemon serves exactly one: leave",
        ),
        (told("one"), "$LISTEN_FDS = 'one' is no number"),
        (told("-1"), "$LISTEN_FDS = '-1' is no number"),
        (told("9" * 5000), "is no number"),
        (told(pid="me"), "$LISTEN_PID = 'me' is no number"),
    ],
)
def test_a_wrong_environment_is_named(environ: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        activation.take(environ)
    assert reason in str(caught.value)


def tcp(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_INET)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def datagram(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(os.fspath(folder / "d"))
    return sock


def connected(folder: Path) -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


def abstract(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0headrace-test-{os.getpid()}")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tcp, "is of family AF_INET and not a Unix socket: the daemon serves one machine"),
        (datagram, "is of type SOCK_DGRAM and not SOCK_STREAM: use ListenStream="),
        (connected, "is not listening: set Accept=no in the .socket unit"),
        (abstract, "has no path, so that anybody could connect"),
    ],
)
def test_a_socket_that_cannot_be_served_is_named_and_left_open(
    socket_path: Path, make: Callable[[Path], socket.socket], reason: str
) -> None:
    with make(socket_path.parent) as sock:
        with pytest.raises(SettingsError) as caught:
            activation.take(told(LISTEN_FDNAMES="x.socket"), first=sock.fileno())
        assert str(caught.value).startswith(f"descriptor {sock.fileno()} (x.socket), which was")
        assert reason in str(caught.value)
        os.fstat(sock.fileno())


def test_a_descriptor_that_is_no_socket_or_not_open_is_named(socket_path: Path) -> None:
    descriptor = os.open(socket_path.parent, os.O_RDONLY)
    with pytest.raises(SettingsError, match=rf"descriptor {descriptor}, which was passed, is no"):
        activation.take(told(), first=descriptor)
    os.close(descriptor)
    with pytest.raises(SettingsError, match=r"is not open, though \$LISTEN_FDS says so"):
        activation.take(told(), first=descriptor)


# ---- does it agree with what is configured? ------------------------------------------------------


def test_links_to_the_same_path_agree(socket_path: Path) -> None:
    link = socket_path.parent / "run"
    link.symlink_to(socket_path.parent)
    activation.check_path(socket_path, os.fspath(link / socket_path.name), "--socket")
    with pytest.raises(SettingsError, match=r"^--socket is /other, but the socket that was passed"):
        activation.check_path(socket_path, "/other", "--socket")


@pytest.mark.usefixtures("passed")
def test_the_group_of_the_socket_has_to_be_the_configured_one(socket_path: Path) -> None:
    activation.check_group(socket_path, "")
    activation.check_group(socket_path, grp.getgrgid(socket_path.stat().st_gid).gr_name)
    other = next(group for group in grp.getgrall() if group.gr_gid != socket_path.stat().st_gid)
    with pytest.raises(SettingsError, match=f"set SocketGroup={other.gr_name} in its .socket unit"):
        activation.check_group(socket_path, other.gr_name)
    with pytest.raises(SettingsError, match="there is no such group"):
        activation.check_group(socket_path, "nobody-knows-it")


@pytest.mark.usefixtures("passed")
def test_a_path_that_is_gone_is_named(socket_path: Path) -> None:
    socket_path.unlink()
    with pytest.raises(SettingsError, match=r"cannot be found.*restart its \.socket unit"):
        activation.check_group(socket_path, "")
