"""The channel: blocking, one error for everything that can be wrong with a socket."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from headrace import client, errors
from headrace.client import Channel, ConnectionLostError, Retry, UnusableSocketError, raise_error
from headrace.protocol import Payload, State
from headrace.protocol import messages as m
from tests.support.scripted import DEADLINE_S, Conversation, ScriptedDaemon, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon() as daemon:
        yield daemon


@pytest.fixture
def talk(daemon: ScriptedDaemon) -> Iterator[tuple[Channel, Conversation]]:
    """A channel that has been greeted, and the other side of it."""
    with daemon.connect(None) as channel:
        conversation = daemon.accept()
        greeting = threading.Thread(target=conversation.greet)
        greeting.start()
        channel.greeted()
        greeting.join()
        yield channel, conversation


# ---- connecting ----------------------------------------------------------------------------------


def test_socket_path_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SOCKET", "/run/mine.sock")
    assert client.default_socket() == "/run/mine.sock"
    monkeypatch.setenv("HEADRACE_SOCKET", "")
    assert client.default_socket() == client.DEFAULT_SOCKET
    monkeypatch.delenv("HEADRACE_SOCKET")
    assert client.default_socket() == client.DEFAULT_SOCKET


def bound(path: str, *, listening: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    if listening:
        sock.listen()
    return sock


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder whose name fits into the address of a socket: the present one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_missing_socket_may_come(short: Path) -> None:
    with pytest.raises(ConnectionLostError) as caught:
        Channel.connect("no.sock")
    assert str(caught.value) == (
        "no daemon: socket no.sock does not exist; start one with 'headrace serve', pass its "
        "socket, or set HEADRACE_SOCKET"
    )


def test_socket_that_a_dead_daemon_left_may_come_to_life(short: Path) -> None:
    bound("old.sock", listening=False).close()
    with pytest.raises(ConnectionLostError, match=r"no daemon listens on socket old\.sock; start"):
        Channel.connect("old.sock")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_no_socket_is_named(short: Path, what: str) -> None:
    (short / "thing").touch() if what == "file" else (short / "thing").mkdir()
    with pytest.raises(UnusableSocketError, match=r"^thing is not a socket; start one with"):
        Channel.connect("thing")


def test_path_below_a_file_is_named(short: Path) -> None:
    (short / "file").touch()
    with pytest.raises(UnusableSocketError, match=r"cannot connect to socket file/s: .*directory"):
        Channel.connect("file/s")


@pytest.mark.parametrize(
    ("path", "words"),
    [("x" * 200, "has a path of 200 bytes: the system allows 107"), ("", "start one with")],
)
def test_path_that_can_be_no_socket_is_named(path: str, words: str) -> None:
    with pytest.raises(errors.DaemonUnavailableError, match=words):
        Channel.connect(path)


def test_daemon_that_does_not_accept_is_one_that_is_away(short: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("full.sock")
    listener.listen(0)
    with listener, socket.socket(socket.AF_UNIX) as first:
        first.connect("full.sock")
        with pytest.raises(ConnectionLostError, match="does not accept connections"):
            Channel.connect("full.sock", silence_s=0.01)


def test_no_socket_is_left_open_by_a_failure(short: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    bound("mute.sock", listening=False).close()
    for path in ("mute.sock", "no.sock", "."):
        with pytest.raises(errors.DaemonUnavailableError):
            Channel.connect(path)
    assert sorted(os.listdir("/proc/self/fd")) == before


# ---- greeting ------------------------------------------------------------------------------------


def greet_with(daemon: ScriptedDaemon, answer: Callable[[Conversation], None]) -> Channel:
    """Greet a daemon that answers something; the channel closes itself if that fails."""
    channel = daemon.connect(None)
    conversation = daemon.accept()

    def lead() -> None:
        assert conversation.hear(m.Hello).versions == (1,)
        answer(conversation)

    leading = threading.Thread(target=lead)
    leading.start()
    try:
        return channel.greeted()
    finally:
        leading.join()


def saying(message: m.Message) -> Callable[[Conversation], None]:
    return lambda conversation: conversation.say(message)


def test_daemon_of_another_version_is_refused(daemon: ScriptedDaemon) -> None:
    with pytest.raises(errors.VersionMismatchError) as caught:
        greet_with(daemon, saying(m.Welcome(version=2, agent="headrace-daemon/9")))
    assert str(caught.value) == (
        "the daemon (headrace-daemon/9) chose protocol version 2, this SDK speaks 1: upgrade the "
        "older of the two"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (m.Error(code="version", message="no", scope="connection"), errors.VersionMismatchError),
        (m.Error(code="trust", message="no", scope="connection"), errors.FeedError),
        (m.Error(code="busy", message="no", scope="connection"), errors.FeedError),
    ],
)
def test_refusal_at_the_door_is_raised(
    daemon: ScriptedDaemon, error: m.Error, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="no"):
        greet_with(daemon, saying(error))


def test_refusal_that_comes_before_the_greeting_is_raised(daemon: ScriptedDaemon) -> None:
    with daemon.connect(None) as channel:
        conversation = daemon.accept()
        conversation.say(m.Error(code="busy", message="too many", scope="connection"))
        conversation.hang_up()
        with pytest.raises(errors.FeedError, match="too many"):
            channel.greeted()


def test_something_else_than_a_daemon_is_refused(daemon: ScriptedDaemon) -> None:
    def answer(conversation: Conversation) -> None:
        conversation.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with pytest.raises(errors.RemoteProtocolError):
        greet_with(daemon, answer)


def test_daemon_that_hangs_up_on_a_greeting_is_away(daemon: ScriptedDaemon) -> None:
    with pytest.raises(ConnectionLostError, match=r"closed the connection|went away"):
        greet_with(daemon, Conversation.hang_up)


# ---- messages ------------------------------------------------------------------------------------


def test_a_request_is_answered(talk: tuple[Channel, Conversation]) -> None:
    channel, conversation = talk

    def answer() -> None:
        conversation.hear(m.Status)
        conversation.say(m.Notice(kind="listing", text="busy"), m.Report(report={"feeds": 1}))

    answering = threading.Thread(target=answer)
    answering.start()
    assert channel.request(m.Status()) == m.Report(report={"feeds": 1})
    answering.join()


def test_a_refused_request_raises_and_leaves_the_connection(
    talk: tuple[Channel, Conversation],
) -> None:
    channel, conversation = talk

    def answer() -> None:
        conversation.hear(m.Read)
        conversation.say(m.Error(code="plan", message="sample 9 is outside", scope="request"))
        conversation.hear(m.Status)
        conversation.say(m.Report(report={}))

    answering = threading.Thread(target=answer)
    answering.start()
    with pytest.raises(errors.PlanError, match="sample 9 is outside"):
        channel.request(m.Read(indices=(9,)))
    channel.request(m.Status())
    answering.join()


def test_payloads_are_received_into_the_buffers_of_the_caller(daemon: ScriptedDaemon) -> None:
    buffers: list[bytearray] = []

    def allocate(num_bytes: int) -> memoryview:
        buffers.append(bytearray(num_bytes))
        return memoryview(buffers[-1])

    with daemon.connect(allocate) as channel:
        conversation = daemon.accept()

        def lead() -> None:
            conversation.greet()
            conversation.hear(m.Open)
            conversation.say(opened())
            conversation.say_batch(0, 0, payload=b"z" * 100_000)

        leading = threading.Thread(target=lead)
        leading.start()
        channel.greeted()
        channel.send(m.Open(credit=1))
        assert isinstance(channel.receive(), m.Opened)
        assert channel.is_streaming
        event = channel.receive()
        leading.join()
    assert isinstance(event, Payload)
    assert event.payload.obj is buffers[0]
    assert buffers == [b"z" * 100_000]


def test_a_message_is_sent_in_its_state_only(talk: tuple[Channel, Conversation]) -> None:
    channel, conversation = talk
    assert not channel.send_if(State.STREAMING, m.Close)
    assert channel.send_if(State.READY, lambda: None)
    assert channel.send_if(State.READY, m.Status)
    conversation.hear(m.Status)


def test_a_lost_connection_is_an_error_of_its_own(talk: tuple[Channel, Conversation]) -> None:
    channel, conversation = talk
    conversation.hang_up()
    with pytest.raises(ConnectionLostError, match=r"closed the connection|went away"):
        channel.receive()
    with pytest.raises(ConnectionLostError, match="went away"):
        channel.send(m.Status())


def test_silence_is_an_error_where_something_is_awaited(
    talk: tuple[Channel, Conversation],
) -> None:
    channel, _ = talk
    channel._sock.settimeout(0.01)
    asked = iter((False, False, True))
    with pytest.raises(errors.DaemonUnavailableError) as caught:
        channel.receive(is_awaited=lambda: next(asked))
    assert not isinstance(caught.value, ConnectionLostError), "trying again would wait as long"
    assert next(asked, None) is None


def test_shutdown_ends_a_receive_in_another_thread(talk: tuple[Channel, Conversation]) -> None:
    channel, _ = talk
    ended = threading.Event()

    def receive() -> None:
        with pytest.raises(ConnectionLostError):
            channel.receive()
        ended.set()

    receiving = threading.Thread(target=receive)
    receiving.start()
    channel.shutdown()
    assert ended.wait(DEADLINE_S)
    receiving.join()
    channel.close()
    channel.close()
    channel.shutdown()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("plan", errors.PlanError),
        ("cursor", errors.CursorError),
        ("manifest", errors.ManifestMismatchError),
        ("topology", errors.TopologyError),
        ("version", errors.VersionMismatchError),
        ("budget", errors.BudgetError),
        ("trust", errors.FeedError),
    ],
)
def test_an_error_keeps_its_kind_and_its_facts(code: str, kind: type[Exception]) -> None:
    error = m.Error(code=code, message="words", fault="source", retryable=True)
    with pytest.raises(kind, match="words") as caught:
        raise_error(error)
    facts: Any = caught.value
    assert type(facts) is kind
    if isinstance(facts, errors.FeedError):
        assert (facts.code, facts.fault, facts.retryable) == (code, "source", True)


# ---- trying again --------------------------------------------------------------------------------


class Time:
    """A clock that moves by what is waited."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.pauses_s.append(round(seconds, 6))
        self.now_s += seconds
        return False


def test_pauses_grow_up_to_a_limit_and_end_at_the_deadline() -> None:
    time = Time()
    retry = Retry(5.0, time.wait, time)
    while retry.pause():
        pass
    assert time.pauses_s == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0, 0.74]
    assert time.now_s == pytest.approx(1005.0)


def test_lost_interest_ends_the_tries() -> None:
    assert not Retry(5.0, lambda seconds: True).pause()


def test_renewed_tries_have_the_whole_deadline_and_keep_their_pace() -> None:
    time = Time()
    retry = Retry(1.0, time.wait, time)
    for _ in range(3):
        assert retry.pause()
    time.now_s += 100
    retry.renew()
    assert retry.pause()
    assert time.pauses_s == [0.02, 0.04, 0.08, 0.16]
