"""F5: a store that goes down in mid-epoch is waited for; past the deadline the state is whole."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Final

import pytest

from headrace import DaemonDataset
from headrace.errors import FeedError
from headrace.testing import Ledger, ledger_of
from tests.support.commands import headrace
from tests.support.standin import StandIn
from tests.support.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

OBJECTS: Final = {f"{number:03}": b"object %03d" % number for number in range(200)}


@pytest.fixture
def ais() -> Iterator[StandIn]:
    with StandIn() as ais:
        yield ais


@pytest.fixture
def store(ais: StandIn) -> Store:
    store = Store(ais)
    store.put(OBJECTS)
    return store


def stop(ais: StandIn) -> None:
    for node in (*ais.targets, *ais.proxies):
        node.stop()


def start(ais: StandIn) -> None:
    for node in (*ais.proxies, *ais.targets):
        node.start()


def test_a_trainer_waits_for_a_store_that_is_down_and_goes_on(ais: StandIn, store: Store) -> None:
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, store.stream(), prefetch_batches=1)
        truth, ledger = ledger_of(dataset), Ledger()
        dataset.seek(epoch=0)
        batches = iter(dataset)
        ledger.record(next(batches))
        stop(ais)
        rest: list[str] = []

        def train() -> None:
            for batch in batches:
                ledger.record(batch)
            rest.append("done")

        training = threading.Thread(target=train)
        training.start()
        try:
            # Reads that ask for the map wait for a proxy; of many, a breaker keeps the others off.
            app.wait_until(
                lambda: (report := app.app.report()["store"])["trouble"] or report["breakers"]
            )
            assert rest == []
            shown = headrace("status", "--socket", app.socket).stdout
            assert "cannot be reached" in shown
        finally:
            start(ais)
            training.join(40)
        assert rest == ["done"]
        dataset.close()
        app.wait_until(lambda: app.app.report()["store"]["breakers"] == [])
        report = app.call(app.app.report)["store"]
        # At most those that were under way and what tells that the store is back.
        assert 0 < report["retries"] < 3 * len(OBJECTS)
    assert ledger.difference(truth) is None


def test_past_the_deadline_the_error_names_an_object_and_the_state_loads(
    ais: StandIn, store: Store
) -> None:
    with store.daemon(deadline_s=2.0) as app:
        dataset = DaemonDataset(app.socket, store.stream(), prefetch_batches=1)
        truth, ledger = ledger_of(dataset), Ledger()
        dataset.seek(epoch=0)
        batches = iter(dataset)
        ledger.record(next(batches))
        stop(ais)
        with pytest.raises(FeedError) as raised:
            for batch in batches:
                ledger.record(batch)
        assert f"object ais://{store.bucket}/" in str(raised.value)
        assert "[store] deadline_s" in str(raised.value)
        state = json.loads(json.dumps(dataset.state_dict()))
        dataset.close()
        start(ais)
        again = DaemonDataset(app.socket, store.stream())
        again.load_state_dict(state)
        for batch in again:
            ledger.record(batch)
        again.close()
    assert ledger.difference(truth) is None
