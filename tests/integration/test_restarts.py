"""M2, M6: the daemon is killed, stopped, restarted or frozen while a trainer runs."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from headrace import DaemonDataset, Stream, errors, link
from headrace.plans import Shuffled
from headrace.testing import Ledger
from tests.support.daemon import DaemonProcess
from tests.support.expected import expected
from tests.support.files import check, stream_of, write_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = 30
EPOCHS = 2


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = write_samples(tmp_path_factory.mktemp("samples"), STEPS * 8)
    return stream_of(folder, Shuffled(batch_size=8, seed=17))


@pytest.fixture(scope="module")
def truth(stream: Stream) -> Ledger:
    return expected(stream, epochs=EPOCHS)


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


def run(
    daemon: DaemonProcess,
    stream: Stream,
    trouble: Callable[[], object],
    steps: set[int],
    **options: Any,  # noqa: ANN401 - of any type
) -> Ledger:
    """Train through trouble: it is made after some steps, and ends while the loop goes on."""
    train = DaemonDataset(daemon.socket, stream, **options)
    ledger = Ledger()
    troubles: list[threading.Thread] = []
    for _ in range(EPOCHS):
        for batch in train:
            check(batch)
            ledger.record(batch)
            if batch.meta["global_step"] in steps:
                for thread in troubles:
                    thread.join()
                trouble()
                troubles.append(threading.Thread(target=daemon.start))
                troubles[-1].start()
    for thread in troubles:
        thread.join()
    train.close()
    return ledger


@pytest.mark.parametrize("prefetch_batches", [1, 4, 64])
def test_a_daemon_that_is_killed_and_comes_back_loses_and_repeats_nothing(
    daemon: DaemonProcess, stream: Stream, truth: Ledger, prefetch_batches: int
) -> None:
    """At the first, the second, a middle, the last but one and the last step, and after that."""
    steps = {0, 1, STEPS // 2, STEPS - 2, STEPS - 1, STEPS}
    ledger = run(daemon, stream, daemon.kill, steps, prefetch_batches=prefetch_batches)
    assert ledger.difference(truth) is None


def test_a_daemon_that_is_told_to_stop_and_comes_back_loses_and_repeats_nothing(
    daemon: DaemonProcess, stream: Stream, truth: Ledger
) -> None:
    statuses: list[int] = []

    def terminate() -> None:
        statuses.append(daemon.terminate())

    ledger = run(daemon, stream, terminate, {0, 7, STEPS - 1, STEPS})
    assert ledger.difference(truth) is None
    assert statuses == [0] * 4, daemon.log
    assert daemon.log.count(" INFO stopped") == 4


def test_a_connection_that_is_opened_while_the_trainer_empties_its_queue_goes_on(
    daemon: DaemonProcess, stream: Stream, truth: Ledger
) -> None:
    """The trainer may consume all it has while the new feed is opened: credit must follow."""
    train = DaemonDataset(daemon.socket, stream, prefetch_batches=4)
    ledger = Ledger()
    for batch in train:
        ledger.record(batch)
        if batch.meta["step"] % 5 == 0:
            receiver = train._receiver
            assert receiver is not None
            while receiver._is_awaited():
                pass  # until everything that there is credit for has been received
            daemon.kill()
            daemon.start()
    train.close()
    assert ledger.entries == truth.entries[:STEPS]


def test_a_daemon_that_stays_away_is_an_error_at_the_deadline_and_the_state_loads(
    daemon: DaemonProcess, stream: Stream, truth: Ledger
) -> None:
    train = DaemonDataset(daemon.socket, stream, deadline_s=0.3)
    ledger = Ledger()
    batches = iter(train)
    for _ in range(7):
        ledger.record(next(batches))
    daemon.kill()
    with pytest.raises(errors.DaemonUnavailableError) as caught:
        for batch in batches:
            ledger.record(batch)
    assert daemon.socket in str(caught.value)
    assert "(tried for 0.3 s, the deadline_s of this dataset)" in str(caught.value)
    with pytest.raises(errors.DaemonUnavailableError):
        next(batches)
    state = json.dumps(train.state_dict())
    daemon.start()
    resumed = DaemonDataset(daemon.socket, stream)
    resumed.load_state_dict(json.loads(state))
    for batch in resumed:
        ledger.record(batch)
    resumed.close()
    assert ledger.entries == truth.entries[:STEPS]


def test_a_daemon_that_is_not_there_at_first_is_waited_for(
    daemon: DaemonProcess, stream: Stream, truth: Ledger
) -> None:
    daemon.kill()
    train = DaemonDataset(daemon.socket, stream)
    starting = threading.Thread(target=daemon.start)
    starting.start()
    assert len(train) == STEPS
    starting.join()
    daemon.kill()
    starting = threading.Thread(target=daemon.start)
    starting.start()
    ledger = Ledger()
    for batch in train:
        ledger.record(batch)
    starting.join()
    train.close()
    assert ledger.entries == truth.entries[:STEPS]


def test_questions_wait_for_a_daemon_that_comes_back(daemon: DaemonProcess, stream: Stream) -> None:
    train = DaemonDataset(daemon.socket, stream)
    batches = iter(train)
    first = next(batches)
    daemon.kill()
    starting = threading.Thread(target=daemon.start)
    starting.start()
    assert train.remaining == STEPS - 1
    assert train.read(first.indices) == list(first)
    starting.join()
    train.close()


# ---- a daemon that hangs -------------------------------------------------------------------------


def test_a_frozen_daemon_is_an_error_after_the_deadline(
    daemon: DaemonProcess, stream: Stream, truth: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENCE_S", 0.3)
    train = DaemonDataset(daemon.socket, stream, deadline_s=0.3)
    ledger = Ledger()
    batches = iter(train)
    ledger.record(next(batches))
    daemon.freeze()
    with pytest.raises(errors.DaemonUnavailableError, match=r"said nothing for 0\.3 s"):
        for batch in batches:
            ledger.record(batch)
    with pytest.raises(errors.DaemonUnavailableError, match="connected but said nothing"):
        train.read([0])
    train.close()
    state = train.state_dict()
    daemon.thaw()
    resumed = DaemonDataset(daemon.socket, stream)
    resumed.load_state_dict(state)
    for batch in resumed:
        ledger.record(batch)
    resumed.close()
    assert ledger.entries == truth.entries[:STEPS]


def test_a_daemon_that_thaws_goes_on_where_it_was(
    daemon: DaemonProcess, stream: Stream, truth: Ledger
) -> None:
    train = DaemonDataset(daemon.socket, stream)
    ledger = Ledger()
    batches = iter(train)
    ledger.record(next(batches))
    daemon.freeze()
    receiver = train._receiver
    assert receiver is not None

    def thaw() -> None:
        while not receiver._items.empty():
            pass
        daemon.thaw()

    thawing = threading.Thread(target=thaw)
    thawing.start()
    for batch in batches:
        ledger.record(batch)
    thawing.join()
    train.close()
    assert ledger.entries == truth.entries[:STEPS]
    assert len(daemon.log.split("feed opened")) == 2, "nobody has connected again"
