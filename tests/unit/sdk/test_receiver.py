"""The receiver: whatever happens to its daemon, the order comes out, or an error does."""

from __future__ import annotations

import functools
import itertools
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace import errors, receiver
from headrace.client import ConnectionLostError, Retry, UnusableSocketError
from headrace.protocol import Payload
from headrace.protocol import messages as m
from headrace.receiver import Receiver
from tests.support.scripted import DEADLINE_S, Conversation, ScriptedDaemon, cursor, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.client import Channel
    from headrace.protocol import Event

    Allocate = Callable[[int], memoryview] | None


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon() as daemon:
        yield daemon


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which receivers measure absences."""
    clock = Clock()
    monkeypatch.setattr(receiver, "Retry", functools.partial(Retry, clock=clock))
    return clock


def start(
    daemon: ScriptedDaemon,
    request: m.Open | None = None,
    *,
    window: int = 4,
    deadline_s: float = 60,
) -> Receiver:
    return Receiver(daemon.connect, request or m.Open(), window=window, deadline_s=deadline_s)


def take(receiver: Receiver) -> tuple[int, int]:
    """Return (epoch, step) of the next item, which must be a batch, and consume it."""
    item = receiver.next()
    assert isinstance(item, Payload), item
    assert isinstance(item.header, m.Batch)
    receiver.consumed(item)
    return item.header.epoch, item.header.step


def end(receiver: Receiver, conversation: Conversation) -> None:
    """Stop a receiver whose feed is open, as a polite daemon answers it."""
    stopping = threading.Thread(target=receiver.stop)
    stopping.start()
    while not isinstance(conversation.hear_any(), m.Close):
        pass
    conversation.say(m.End(reason="closed"))
    stopping.join(DEADLINE_S)
    assert not stopping.is_alive()


# ---- a feed --------------------------------------------------------------------------------------


def test_opens_what_was_asked_for_with_credit_for_the_whole_window(daemon: ScriptedDaemon) -> None:
    request = m.Open(stream="train", rank=1, world_size=2, prefetch=7, start=cursor(3, 5))
    receiver = start(daemon, request, window=7)
    conversation = daemon.accept()
    assert conversation.open(3, 5) == msgspec.structs.replace(request, credit=7)
    end(receiver, conversation)


def test_hands_out_batches_and_the_ends_of_epochs_in_their_order(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open(steps=2)
    conversation.say_batch(0, 0)
    conversation.say_batch(0, 1, after=cursor(1, 0))
    conversation.say(m.EpochEnd(epoch=0, cursor=cursor(1, 0)))
    conversation.say_batch(1, 0)
    assert [take(receiver), take(receiver)] == [(0, 0), (0, 1)]
    assert receiver.next() == m.EpochEnd(epoch=0, cursor=cursor(1, 0))
    assert take(receiver) == (1, 0)
    end(receiver, conversation)


def test_grants_as_much_as_was_consumed_and_not_with_every_batch(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, window=4)
    conversation = daemon.accept()
    conversation.open()
    for step in range(4):
        conversation.say_batch(0, step)
    take(receiver)
    take(receiver)
    assert conversation.hear(m.Credit).total == 6
    take(receiver)
    take(receiver)
    assert conversation.hear(m.Credit).total == 8
    end(receiver, conversation)


def test_a_window_of_one_is_granted_batch_by_batch(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, window=1)
    conversation = daemon.accept()
    assert conversation.open().credit == 1
    for step in range(3):
        conversation.say_batch(0, step)
        assert take(receiver) == (0, step)
        assert conversation.hear(m.Credit).total == step + 2
    end(receiver, conversation)


def test_buffers_are_used_again(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, window=1)
    conversation = daemon.accept()
    conversation.open()
    seen = set()
    for step in range(10):
        conversation.say_batch(0, step, payload=bytes([step]) * 1000)
        item = receiver.next()
        assert isinstance(item, Payload)
        assert item.payload == bytes([step]) * 1000
        seen.add(id(item.payload.obj))
        receiver.consumed(item)
        conversation.hear(m.Credit)
    assert len(seen) <= 2
    end(receiver, conversation)


def test_a_larger_batch_gets_a_larger_buffer(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, window=1)
    conversation = daemon.accept()
    conversation.open()
    for step, size in enumerate((10, 100_000, 0, 50)):
        conversation.say_batch(0, step, payload=b"y" * size)
        item = receiver.next()
        assert isinstance(item, Payload)
        assert item.payload == b"y" * size
        receiver.consumed(item)
        conversation.hear(m.Credit)
    end(receiver, conversation)


def test_notices_are_logged_and_change_nothing(
    daemon: ScriptedDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="headrace")
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.greet()
    conversation.hear(m.Open)
    conversation.say(m.Notice(kind="listing", text="9 objects listed", done=9, total=10))
    conversation.say(opened())
    conversation.say(m.Notice(kind="waiting", text="reading the next batch"))
    conversation.say_batch(0, 0)
    assert take(receiver) == (0, 0)
    assert "9 objects listed" in caplog.text
    assert "done=9 of 10" in caplog.text
    assert "reading the next batch" in caplog.text
    end(receiver, conversation)


# ---- reconnecting --------------------------------------------------------------------------------


def test_comes_back_after_the_last_batch_that_it_received(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    first = daemon.accept()
    first.open()
    for step in range(3):
        first.say_batch(0, step)
    assert take(receiver) == (0, 0)  # two more are received and not consumed
    item, other = receiver.next(), receiver.next()
    first.hang_up()
    second = daemon.accept()
    request = second.open(0, 3)
    assert (request.start, request.token, request.credit) == (cursor(0, 3), "token", 2)
    assert isinstance(item, Payload)
    assert isinstance(other, Payload)
    receiver.consumed(item)
    receiver.consumed(other)
    assert second.hear(m.Credit).total == 4
    for step in (3, 4, 5):
        second.say_batch(0, step)
        assert take(receiver) == (0, step)
    end(receiver, second)


def test_what_is_consumed_while_the_feed_is_opened_again_is_granted_then(
    daemon: ScriptedDaemon,
) -> None:
    """The daemon has no credit, and the trainer has nothing left: somebody must say it."""
    receiver = start(daemon, window=4)
    first = daemon.accept()
    first.open()
    for step in range(4):
        first.say_batch(0, step)
    items = [receiver.next() for _ in range(4)]
    first.hang_up()
    second = daemon.accept()
    second.greet()
    assert second.hear(m.Open).credit == 0
    for item in items:
        assert isinstance(item, Payload)
        receiver.consumed(item)
    second.say(opened(0, 4))
    assert second.hear(m.Credit).total == 4
    second.say_batch(0, 4)
    assert take(receiver) == (0, 4)
    end(receiver, second)


def test_an_epoch_whose_end_was_lost_with_the_connection_ends(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    first = daemon.accept()
    first.open(steps=1)
    first.say_batch(0, 0, after=cursor(1, 0))
    assert take(receiver) == (0, 0)
    first.hang_up()
    assert receiver.next() == m.EpochEnd(epoch=0, cursor=cursor(1, 0))
    second = daemon.accept()
    second.open(1, 0, steps=1)
    second.say_batch(1, 0, after=cursor(2, 0))
    assert take(receiver) == (1, 0)
    second.say(m.EpochEnd(epoch=1, cursor=cursor(2, 0)))
    assert receiver.next() == m.EpochEnd(epoch=1, cursor=cursor(2, 0))
    end(receiver, second)


def test_a_feed_that_is_over_does_not_come_back(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, m.Open(epochs=1))
    conversation = daemon.accept()
    conversation.open(steps=1)
    conversation.say_batch(0, 0, after=cursor(1, 0))
    assert take(receiver) == (0, 0)
    conversation.hang_up()  # neither epoch_end nor end have arrived
    assert receiver.next() == m.EpochEnd(epoch=0, cursor=cursor(1, 0))
    assert receiver.next() == m.End(reason="finished")


def test_a_part_of_a_stream_comes_back_at_its_own_next_step(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, m.Open(first=1, stride=3))
    first = daemon.accept()
    first.open(steps=9)
    first.say_batch(0, 1)
    assert take(receiver) == (0, 1)
    first.hang_up()
    second = daemon.accept()
    request = second.open(0, 2, steps=9)
    assert (request.start, request.first, request.stride) == (cursor(0, 2), 2, 3)
    second.say_batch(0, 4)
    assert take(receiver) == (0, 4)
    second.say(m.EpochEnd(epoch=0, cursor=cursor(1, 0)))
    assert isinstance(receiver.next(), m.EpochEnd)
    end(receiver, second)


@pytest.mark.parametrize("code", ["draining", "busy", "budget"])
def test_a_daemon_that_says_try_again_is_tried_again(daemon: ScriptedDaemon, code: str) -> None:
    receiver = start(daemon)
    first = daemon.accept()
    first.open()
    first.say_batch(0, 0)
    assert take(receiver) == (0, 0)
    first.say(m.Error(code="draining", message="bye", retryable=True, scope="connection"))
    second = daemon.accept()
    second.greet()
    second.hear(m.Open)
    second.say(m.Error(code=code, message="not now", retryable=True, scope="feed"))
    third = daemon.accept()
    third.open(0, 1)
    third.say_batch(0, 1)
    assert take(receiver) == (0, 1)
    end(receiver, third)


def test_a_daemon_that_is_greeted_by_a_bang_is_tried_again(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    daemon.accept().hang_up()
    second = daemon.accept()
    second.greet()
    second.hang_up()
    third = daemon.accept()
    third.open()
    third.say_batch(0, 0)
    assert take(receiver) == (0, 0)
    end(receiver, third)


# ---- giving up -----------------------------------------------------------------------------------


def lost(allocate: Allocate) -> Channel:
    raise ConnectionLostError("no daemon: socket /s does not exist")


def unusable(allocate: Allocate) -> Channel:
    raise UnusableSocketError("no permission to connect to socket /s")


def test_nobody_at_the_socket_is_an_error_soon_whatever_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        receiver, "Retry", functools.partial(Retry, clock=itertools.count().__next__)
    )
    nobody = Receiver(lost, m.Open(), window=1, deadline_s=300)
    with pytest.raises(errors.DaemonUnavailableError, match=r"does not exist \(tried for 5 s\)"):
        nobody.next()


def test_a_socket_that_is_not_for_us_is_an_error_at_once(clock: Clock) -> None:
    with pytest.raises(errors.DaemonUnavailableError, match="no permission"):
        Receiver(unusable, m.Open(), window=1, deadline_s=300).next()


def test_a_socket_that_is_not_for_us_yet_is_tried_again(daemon: ScriptedDaemon) -> None:
    """While a daemon comes back, its socket has the mode of nobody's for a moment."""
    answers: Iterator[Callable[[Allocate], Channel]] = iter(
        (daemon.connect, unusable, daemon.connect)
    )
    receiver = Receiver(lambda allocate: next(answers)(allocate), m.Open(), window=1, deadline_s=60)
    first = daemon.accept()
    first.open()
    first.hang_up()
    second = daemon.accept()
    second.open()
    second.say_batch(0, 0)
    assert take(receiver) == (0, 0)
    end(receiver, second)


def test_a_daemon_that_stays_away_is_an_error_at_the_deadline(
    daemon: ScriptedDaemon, clock: Clock
) -> None:
    answers = itertools.chain([daemon.connect], itertools.repeat(lost))
    away = threading.Event()

    def connect(allocate: Allocate) -> Channel:
        answer = next(answers)
        if answer is lost:
            away.set()
        return answer(allocate)

    receiver = Receiver(connect, m.Open(), window=1, deadline_s=60)
    conversation = daemon.accept()
    conversation.open()
    conversation.say_batch(0, 0)
    conversation.hang_up()
    assert away.wait(DEADLINE_S)
    clock.now_s = 60
    assert take(receiver) == (0, 0)  # what was received is not lost
    for _ in range(2):
        with pytest.raises(errors.DaemonUnavailableError) as caught:
            receiver.next()
        assert "tried for 60 s, the deadline_s of this dataset" in str(caught.value)


def test_a_daemon_that_breaks_each_connection_is_an_error_at_the_deadline(
    daemon: ScriptedDaemon, clock: Clock
) -> None:
    receiver = start(daemon, deadline_s=60)
    for _ in range(3):
        conversation = daemon.accept()
        conversation.open()
        conversation.hang_up()  # it owes batches
    conversation = daemon.accept()
    conversation.open()
    clock.now_s = 60
    conversation.hang_up()
    with pytest.raises(errors.DaemonUnavailableError, match="breaks each connection"):
        receiver.next()


def test_absences_do_not_add_up_while_the_trainer_wants_nothing(
    daemon: ScriptedDaemon, clock: Clock
) -> None:
    receiver = start(daemon, window=1, deadline_s=60)
    conversation = daemon.accept()
    conversation.open()
    conversation.say_batch(0, 0)
    item = receiver.next()  # and a long evaluation begins
    for _ in range(3):
        conversation.hang_up()
        conversation = daemon.accept()
        conversation.open(0, 1)
        clock.now_s += 50
    assert isinstance(item, Payload)
    receiver.consumed(item)
    conversation.hear(m.Credit)
    conversation.say_batch(0, 1)
    assert take(receiver) == (0, 1)
    end(receiver, conversation)


def test_a_daemon_that_was_there_has_the_whole_deadline_before_its_first_batch(
    daemon: ScriptedDaemon, clock: Clock
) -> None:
    receiver = start(daemon, deadline_s=300)
    first = daemon.accept()
    first.greet()
    first.hear(m.Open)
    clock.now_s = 100  # a long listing
    first.hang_up()
    second = daemon.accept()
    second.open()
    second.say_batch(0, 0)
    assert take(receiver) == (0, 0)
    end(receiver, second)


def test_a_silent_daemon_that_owes_something_is_an_error(daemon: ScriptedDaemon) -> None:
    def connect(allocate: Allocate) -> Channel:
        channel = daemon.connect(allocate)
        channel._sock.settimeout(0.05)
        return channel

    receiver = Receiver(connect, m.Open(), window=1, deadline_s=60)
    conversation = daemon.accept()
    conversation.open()
    with pytest.raises(errors.DaemonUnavailableError, match="connected but said nothing"):
        receiver.next()


def test_a_silent_daemon_that_owes_nothing_is_not_suspected(daemon: ScriptedDaemon) -> None:
    timeouts: list[bool] = []

    def connect(allocate: Allocate) -> Channel:
        channel = daemon.connect(allocate)
        receive = channel.receive

        def spying(*, is_awaited: Callable[[], bool] = lambda: True) -> Event:
            def asked() -> bool:
                timeouts.append(is_awaited())
                return timeouts[-1]

            return receive(is_awaited=asked)

        channel.receive = spying  # type: ignore[method-assign]
        return channel

    receiver = Receiver(connect, m.Open(), window=1, deadline_s=60)
    conversation = daemon.accept()
    conversation.open()
    channel = receiver._channel
    assert channel is not None
    conversation.say_batch(0, 0)
    item = receiver.next()
    channel._sock.settimeout(0.01)
    conversation.say(m.Notice(kind="waiting", text="the new timeout counts from here"))
    while len(timeouts) < 3:
        pass
    assert timeouts[:3] == [False] * 3
    assert isinstance(item, Payload)
    channel._sock.settimeout(DEADLINE_S)
    receiver.consumed(item)
    conversation.hear(m.Credit)
    conversation.say_batch(0, 1)
    assert take(receiver) == (0, 1)
    end(receiver, conversation)


# ---- refusals and lies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("plan", errors.PlanError),
        ("cursor", errors.CursorError),
        ("manifest", errors.ManifestMismatchError),
        ("topology", errors.TopologyError),
        ("budget", errors.BudgetError),
        ("source", errors.FeedError),
        ("of the future", errors.FeedError),
    ],
)
def test_a_refusal_is_raised_as_what_it_is(
    daemon: ScriptedDaemon, code: str, kind: type[errors.HeadraceError]
) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.greet()
    conversation.hear(m.Open)
    conversation.say(m.Error(code=code, message="because", fault="data", scope="feed"))
    for _ in range(2):
        with pytest.raises(kind, match="because") as caught:
            receiver.next()
        assert caught.value.code == code
    conversation.hears_nothing_more()


def test_an_error_within_the_stream_comes_after_the_batches_before_it(
    daemon: ScriptedDaemon,
) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open()
    conversation.say_batch(0, 0)
    conversation.say(m.Error(code="source", message="file f is gone", fault="data"))
    assert take(receiver) == (0, 0)
    with pytest.raises(errors.FeedError, match="file f is gone") as caught:
        receiver.next()
    assert (caught.value.code, caught.value.fault) == ("source", "data")


def batch(
    epoch: int, step: int, *, after: dict[str, Any] | None = None
) -> Callable[[Conversation], None]:
    return lambda conversation: conversation.say_batch(epoch, step, after=after)


def message(*messages: m.Message) -> Callable[[Conversation], None]:
    return lambda conversation: conversation.say(*messages)


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(batch(0, 2), id="a step is left out"),
        pytest.param(batch(0, 0), id="a step is sent again"),
        pytest.param(batch(1, 1), id="another epoch"),
        pytest.param(batch(0, 1, after=cursor(0, 3)), id="a cursor that leaves out a step"),
        pytest.param(batch(0, 1, after=cursor(0, 1)), id="a cursor that stands still"),
        pytest.param(batch(0, 1, after=cursor(1, 0)), id="an epoch that is too short"),
        pytest.param(batch(0, 1, after=cursor(2, 0)), id="an epoch that is left out"),
        pytest.param(batch(0, 1, after=cursor(0, 2, plan="other")), id="another plan"),
        pytest.param(batch(0, 1, after=cursor(0, 2, manifest="other")), id="another manifest"),
        pytest.param(batch(0, 1, after={}), id="no cursor"),
        pytest.param(
            message(m.EpochEnd(epoch=0, cursor=cursor(1, 0))), id="an epoch that ends too early"
        ),
        pytest.param(message(m.End(reason="finished")), id="a feed that ends"),
        pytest.param(message(m.Report(report={})), id="an answer to nothing"),
    ],
)
def test_a_wrong_order_is_caught(
    daemon: ScriptedDaemon, lie: Callable[[Conversation], None]
) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open(steps=4)
    conversation.say_batch(0, 0)
    lie(conversation)
    assert take(receiver) == (0, 0)
    with pytest.raises(errors.RemoteProtocolError):
        receiver.next()


def test_an_epoch_that_is_too_long_is_caught(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon, m.Open(start=cursor(0, 2)))
    conversation = daemon.accept()
    conversation.open(0, 2, steps=3)
    conversation.say_batch(0, 2, after=cursor(0, 3))
    with pytest.raises(errors.RemoteProtocolError, match="a cursor that does not follow it"):
        receiver.next()


def test_a_batch_of_the_next_epoch_before_the_end_of_this_one_is_caught(
    daemon: ScriptedDaemon,
) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open(steps=1)
    conversation.say_batch(0, 0, after=cursor(1, 0))
    conversation.say_batch(1, 0)
    assert take(receiver) == (0, 0)
    with pytest.raises(errors.RemoteProtocolError, match="where the end of epoch 0 is due"):
        receiver.next()


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        (None, (0, 1)),
        ({"seek": {"epoch": 2}}, (2, 1)),
        ({"seek": {"epoch": 2}}, (1, 0)),
        (cursor(1, 5), (1, 6)),
        (cursor(1, 5), (1, 4)),
        (cursor(1, 5), (2, 1)),
    ],
)
def test_a_feed_that_begins_elsewhere_is_caught(
    daemon: ScriptedDaemon, asked: dict[str, Any] | None, place: tuple[int, int]
) -> None:
    receiver = start(daemon, m.Open(start=asked))
    conversation = daemon.accept()
    conversation.open(*place)
    with pytest.raises(errors.RemoteProtocolError, match="opened the feed at epoch="):
        receiver.next()


@pytest.mark.parametrize("asked", [cursor(1, 5), {"seek": {"epoch": 1}}])
@pytest.mark.parametrize("epoch", [2, 4])
def test_a_position_whose_rest_makes_no_step_begins_a_later_epoch(
    daemon: ScriptedDaemon, asked: dict[str, Any], epoch: int
) -> None:
    receiver = start(daemon, m.Open(start=asked))
    conversation = daemon.accept()
    conversation.open(epoch, 0)
    conversation.say_batch(epoch, 0)
    assert take(receiver) == (epoch, 0)
    end(receiver, conversation)


@pytest.mark.parametrize("is_lost", [False, True])
def test_epochs_without_a_step_are_passed_over(daemon: ScriptedDaemon, is_lost: bool) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open(steps=1)
    conversation.say_batch(0, 0, after=cursor(3, 0))
    assert take(receiver) == (0, 0)
    over = m.EpochEnd(epoch=0, cursor=cursor(3, 0))
    if is_lost:
        conversation.hang_up()
        conversation = daemon.accept()
        conversation.open(3, 0, steps=2)
    else:
        conversation.say(over)
    assert receiver.next() == over
    conversation.say_batch(3, 0)
    assert take(receiver) == (3, 0)
    end(receiver, conversation)


@pytest.mark.parametrize("what", ["plan", "manifest"])
def test_a_daemon_that_comes_back_with_other_data_is_refused(
    daemon: ScriptedDaemon, what: str
) -> None:
    receiver = start(daemon)
    first = daemon.accept()
    first.open()
    first.hang_up()
    second = daemon.accept()
    second.greet()
    second.hear(m.Open)
    second.say(msgspec.structs.replace(opened(), **{what: "cd" * 32}))
    with pytest.raises(errors.ManifestMismatchError, match=f"{what} cdcdcdcdcdcd…"):
        receiver.next()


# ---- stopping ------------------------------------------------------------------------------------


def test_stop_closes_the_feed_and_waits_until_its_memory_is_back(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open()
    conversation.say_batch(0, 0)
    stopping = threading.Thread(target=receiver.stop)
    stopping.start()
    conversation.hear(m.Close)
    conversation.say_batch(0, 1)  # was under way
    assert stopping.is_alive()
    conversation.say(m.End(reason="closed"))
    stopping.join(DEADLINE_S)
    assert not stopping.is_alive()
    assert not receiver._thread.is_alive()
    conversation.hears_nothing_more()


@pytest.mark.parametrize("moment", ["connecting", "greeted", "opening", "streaming"])
def test_stop_does_not_wait_for_a_daemon_that_hangs(daemon: ScriptedDaemon, moment: str) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    if moment != "connecting":
        conversation.greet()
        conversation.hear(m.Open)
    if moment == "streaming":
        conversation.say(opened())
        conversation.say_batch(0, 0)
        assert take(receiver) == (0, 0)
    receiver.stop(wait_s=0.01)
    receiver._thread.join(DEADLINE_S)
    assert not receiver._thread.is_alive()


def test_stop_ends_the_waiting_for_a_daemon_that_is_away() -> None:
    receiver = Receiver(lost, m.Open(), window=1, deadline_s=300)
    receiver.stop()
    assert not receiver._thread.is_alive()
    assert receiver.next() == m.End(reason="closed")


def test_stop_wakes_whoever_waits_for_a_batch(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open()
    items: list[object] = []
    waiting = threading.Thread(target=lambda: items.append(receiver.next()))
    waiting.start()
    end(receiver, conversation)
    waiting.join(DEADLINE_S)
    assert items == [m.End(reason="closed")]


def test_abandon_asks_for_the_end_and_waits_for_nothing(daemon: ScriptedDaemon) -> None:
    receiver = start(daemon)
    conversation = daemon.accept()
    conversation.open()
    receiver.abandon()
    conversation.hear(m.Close)
    conversation.say(m.End(reason="closed"))
    conversation.hears_nothing_more()
    receiver._thread.join(DEADLINE_S)
    assert not receiver._thread.is_alive()
