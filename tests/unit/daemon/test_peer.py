"""Peers: who is at the other end, and what becomes of a feed when that process is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from headrace.protocol import messages as m
from headrace_daemon.transport import peer as peer_module
from headrace_daemon.transport.peer import DeathWatch, credentials
from tests.support.loops import run, turns, until
from tests.support.talking import listening
from tests.support.wire import frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.loops import Loop

CLIENT = """
import os, socket, sys
path, hello, request, fork = sys.argv[1], *map(bytes.fromhex, sys.argv[2:4]), sys.argv[4]
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
sock.sendall(hello)
sock.recv(1000)
sock.sendall(request)
pid = os.getpid()
if fork == "fork" and os.fork():
    pid = 0  # the child says when it is ready
else:
    if fork == "fork":
        os.setsid()
    print("ready", flush=True)
sys.stdin.read()
"""
"""Greets, asks for something, and holds the connection until it is told to end or is killed."""


@contextmanager
def client_process(
    path: Path, request: m.ClientMessage | None = None, *, fork: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a client in a process of its own; it has not been waited for when this returns."""
    arguments = [
        os.fspath(path),
        frame(m.Hello(versions=(1,))).hex(),
        b"".join([] if request is None else [frame(request)]).hex(),
        "fork" if fork else "alone",
    ]
    command = [sys.executable, "-I", "-S", "-c", CLIENT, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def said_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, process.stdout.readline) == b"ready\n"


@contextmanager
def accepted(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Connect a client process to a plain socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        with client_process(path) as process:
            sock, _ = server.accept()
            with sock:
                yield process, sock


def test_credentials_are_those_of_the_process_at_the_other_end(socket_path: Path) -> None:
    with accepted(socket_path) as (process, sock):
        who = credentials(sock)
        assert (who.pid, who.uid, who.gid) == (process.pid, os.getuid(), os.getgid())


@pytest.mark.parametrize("way", ["of the socket", "by number"])
def test_the_death_of_a_process_is_noticed(
    loop: Loop, socket_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "by number":
        monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", 0x7FFF)  # as on an older kernel

    async def main() -> None:
        with accepted(socket_path) as (process, sock):
            dead = asyncio.Event()
            watch = DeathWatch(sock, dead.set)
            assert (watch.is_possible, watch.is_dead) == (True, False)
            await turns(5)
            assert not dead.is_set()
            process.send_signal(signal.SIGKILL)
            await dead.wait()
            assert (watch.is_possible, watch.is_dead) == (True, True)
            watch.close()

    run(main(), loop)


def test_whoever_stops_watching_hears_nothing_more(loop: Loop, socket_path: Path) -> None:
    async def main() -> None:
        with accepted(socket_path) as (process, sock):
            first = lowest_free_descriptor()
            calls: list[str] = []
            watch = DeathWatch(sock, lambda: calls.append("dead"))
            watch.close()
            watch.close()
            assert lowest_free_descriptor() == first
            process.kill()
            process.wait()
            await turns(10)
            assert (calls, watch.is_dead) == ([], False)

    run(main(), loop)


def test_where_a_process_cannot_be_watched_it_is_said_so(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(1, f"no pidfd of {pid}")

    monkeypatch.setattr(peer_module, "_SO_PEERPIDFD", 0x7FFF)
    monkeypatch.setattr(os, "pidfd_open", refuse)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            watch = DeathWatch(ours, lambda: None)
            assert not watch.is_possible
            watch.close()

    run(main(), loop)


def lowest_free_descriptor() -> int:
    with socket.socket() as probe:
        return probe.fileno()


# ---- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [False, True])
def test_the_feed_of_a_killed_process_ends_at_once(
    loop: Loop, socket_path: Path, fork: bool
) -> None:
    """Also where a child of it still holds the connection."""

    async def main() -> None:
        async with listening(socket_path) as front:
            other = await front.greeted()
            await other.open(credit=1)
            with client_process(socket_path, m.Open(credit=2), fork=fork) as process:
                await said_ready(process)
                await until(lambda: len(front.daemon.registry.feeds) == 2)
                process.send_signal(signal.SIGKILL)
                await until(lambda: len(front.daemon.registry.feeds) == 1)
                await until(lambda: front.listener.num_sessions == 1)
                assert await other.steps(1) == [(0, 0)]

    run(main(), loop)


def test_the_feed_of_a_living_process_waits_for_it_until_it_is_killed(
    loop: Loop, socket_path: Path
) -> None:
    async def main() -> None:
        async with listening(socket_path) as front:
            garbage = m.Open(credit=2)
            with client_process(socket_path, garbage) as process:
                await said_ready(process)
                await until(lambda: front.daemon.registry.feeds)
                (session,) = front.listener._sessions
                session._sock.shutdown(socket.SHUT_RDWR)  # as if the connection were lost
                await until(lambda: not front.listener.num_sessions)
                (entry,) = front.daemon.registry.feeds
                assert entry.grace is not None
                process.send_signal(signal.SIGKILL)
                await front.daemon.whole()

    run(main(), loop)


def test_where_death_cannot_be_seen_the_end_of_the_connection_counts(
    loop: Loop, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "_open_pidfd", lambda sock: None)

    async def main() -> None:
        async with listening(socket_path) as front:
            client = await front.greeted()
            await client.open(credit=1)
            await client.steps(1)
            client.hang_up()
            await front.daemon.whole()

    run(main(), loop)
