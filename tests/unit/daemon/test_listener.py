"""The listener: one socket file that is ours, and sessions that end one by one."""

from __future__ import annotations

import grp
import logging
import os
import resource
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from headrace.protocol import messages as m
from headrace_daemon.errors import SettingsError, SocketInUseError
from headrace_daemon.transport.listener import MAX_PATH_BYTES, bind
from headrace_daemon.transport.session import Session
from tests.support.loops import run, turns, until
from tests.support.reading import GatedReader
from tests.support.talking import Client, listening

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.loops import Loop


@pytest.fixture
def path(socket_path: Path) -> Path:
    return socket_path


# ---- the socket file -----------------------------------------------------------------------------


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True


def test_the_socket_is_for_owner_and_group_and_does_not_block(path: Path) -> None:
    with bind(path, "") as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert can_connect(path)
        assert sock.gettimeout() == 0.0


def test_the_mask_of_the_process_stays_as_it_was(path: Path) -> None:
    before = os.umask(0o027)
    try:
        with bind(path, ""):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_socket_belongs_to_the_group(path: Path) -> None:
    group = grp.getgrgid(os.getgid())
    with bind(path, group.gr_name):
        assert path.stat().st_gid == group.gr_gid


def test_an_unknown_group_is_named_and_leaves_no_file(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"daemon.group = 'nobody-knows-it': there is no such"):
        bind(path, "nobody-knows-it")
    assert not path.exists()


def test_a_group_that_the_process_may_not_give_to_is_named_and_leaves_no_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    group = grp.getgrgid(os.getgid()).gr_name
    with pytest.raises(SettingsError, match=f"daemon.group = '{group}'.*Operation not permitted"):
        bind(path, group)
    assert not path.exists()


def test_a_stale_socket_file_is_replaced(path: Path) -> None:
    with bind(path, ""):
        pass  # closed, and the file stays, as after a SIGKILL
    assert path.is_socket()
    assert not can_connect(path)
    with bind(path, ""):
        assert can_connect(path)


def test_a_socket_that_somebody_serves_is_left_alone(path: Path) -> None:
    with bind(path, ""):
        with pytest.raises(SocketInUseError, match=f"already listening on {path}"):
            bind(path, "")
        assert can_connect(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    match kind:
        case "file":
            path.write_text("precious")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(path.parent / "nothing")
    with pytest.raises(SettingsError, match=f"{path} is in the way"):
        bind(path, "")
    assert os.path.lexists(path)


def test_a_folder_that_is_missing_is_named(path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing/s cannot be made: No such file"):
        bind(path.parent / "missing" / "s", "")


def test_a_path_may_be_as_long_as_the_system_allows_and_no_longer(path: Path) -> None:
    longest = path.parent / ("x" * (MAX_PATH_BYTES - len(os.fsencode(path.parent)) - 1))
    with bind(longest, ""):
        assert can_connect(longest)
    with pytest.raises(SettingsError, match=r"has 108 bytes, the system allows 107"):
        bind(longest.with_name(f"{longest.name}x"), "")


# ---- connections ---------------------------------------------------------------------------------


def test_many_clients_are_served_side_by_side(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path) as front:
            clients = [await front.greeted() for _ in range(10)]
            assert front.listener.num_sessions == 10
            for client in clients:
                await client.open(credit=1)
            for client in clients:
                assert await client.steps(1) == [(0, 0)]
                client.hang_up()
            await until(lambda: not front.listener.num_sessions)

    run(main(), loop)


def test_one_client_too_many_is_told_so_and_the_others_go_on(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path, max_connections=2) as front:
            clients = [await front.greeted() for _ in range(2)]
            late = await front.connect()
            error = await late.expect(m.Error)
            assert (error.code, error.retryable, error.scope) == ("busy", True, "connection")
            assert "has 2 connections" in error.message
            await late.end()
            for client in clients:
                await client.nothing()
            clients[0].hang_up()
            await until(lambda: front.listener.num_sessions == 1)
            await front.greeted()

    run(main(), loop)


def test_a_user_who_is_not_allowed_is_told_so(
    loop: Loop, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with listening(path, allow_uids=(os.getuid() + 1,)) as front:
            client = await front.connect()
            error = await client.expect(m.Error)
            assert (error.code, error.fault, error.retryable) == ("trust", "client", False)
            assert f"user id {os.getuid()} is not in [trust] allow_uids" in error.message
            await client.end()

    run(main(), loop)
    assert f"connection refused pid={os.getpid()} uid={os.getuid()}" in caplog.text


def test_a_user_who_is_allowed_is_served(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path, allow_uids=(os.getuid(),)) as front:
            await front.greeted()

    run(main(), loop)


def test_a_bug_in_one_session_is_logged_and_ends_that_one(
    loop: Loop, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Session):
        def _greet(self, hello: m.Hello) -> None:
            if hello.agent == "trigger":
                raise RuntimeError("a bug")
            super()._greet(hello)

    async def main() -> None:
        async with listening(path, session_class=Broken) as front:
            other = await front.greeted()
            client = await front.connect()
            await client.send(m.Hello(versions=(1,), agent="trigger"))
            await client.end()
            await other.nothing()
            await front.greeted()

    run(main(), loop)
    assert "session failed session=2:pid=" in caplog.text


def test_running_out_of_descriptors_is_survived(
    loop: Loop, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with listening(path) as front:
            first = await front.greeted()
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
            clients = [Client(sock) for sock in waiting]
            front.clients += clients
            with socket.socket() as probe:
                limit = probe.fileno()
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                for sock in waiting:
                    sock.connect(os.fspath(path))
                await until(lambda: "accept failed" in caplog.text)
                await first.nothing()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                await client.greet()

    run(main(), loop)


# ---- the end -------------------------------------------------------------------------------------


def test_stopping_sends_everybody_off_and_then_it_is_over(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path) as front:
            clients = [await front.greeted() for _ in range(3)]
            await clients[0].open(credit=2)
            assert await clients[0].steps(2) == [(0, 0), (0, 1)]
            front.listener.stop()
            front.listener.stop()
            for client in clients:
                error = await client.expect(m.Error)
                assert error.code == "draining"
                await client.end()
            assert front.running is not None
            await until(front.running.done)
            assert not front.listener.num_sessions

    run(main(), loop)


def test_nobody_gets_in_while_the_others_drain(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path, reader=GatedReader()) as front:
            client = await front.greeted()
            await client.open(credit=1)
            await until(lambda: front.daemon.gated.reads)
            front.listener.stop()
            await turns(5)
            assert not can_connect(path)
            assert front.running is not None
            assert not front.running.done()
            front.daemon.gated.open_gates()
            assert await client.steps(1) == [(0, 0)]

    run(main(), loop)


def test_whoever_waited_to_be_accepted_is_sent_away(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path) as front:
            sock = socket.socket(socket.AF_UNIX)
            client = Client(sock)
            front.clients.append(client)
            sock.connect(os.fspath(path))  # the listener has not run since
            front.listener.stop()
            event = await client.next()
            assert event is None or (isinstance(event, m.Error) and event.code == "draining")

    run(main(), loop)


def test_a_cancelled_listener_closes_its_socket_and_its_sessions(loop: Loop, path: Path) -> None:
    async def main() -> None:
        async with listening(path) as front:
            client = await front.greeted()
            assert front.running is not None
            front.running.cancel()
            await client.end()
            await until(front.running.done)
            assert not can_connect(path)

    run(main(), loop)


def test_sessions_come_and_go_without_a_word_above_debug(
    loop: Loop, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "headrace_daemon")

    async def main() -> None:
        async with listening(path) as front:
            (await front.greeted()).hang_up()
            await until(lambda: not front.listener.num_sessions)

    run(main(), loop)
    levels = {record.levelname for record in caplog.records}
    assert levels == {"DEBUG"}
