"""F5: targets of a real cluster die, or leave and come back, in the middle of an epoch.

AIStore's n-way mirror keeps the copies of an object on the disks of *one* target, so they are of no
help when that dies.  Copies on other targets come with erasure coding: of objects below its limit
it keeps whole ones, and whoever owns an object when its target has left the map has it restored.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

from headrace import DaemonDataset, Stream
from headrace.errors import FeedError
from headrace.plans import Shuffled
from headrace.sources import Objects
from headrace.testing import Ledger, ledger_of
from tests.support.ais import Ais, Wire
from tests.support.cluster import QUICK, Cluster, find_aisnode
from tests.support.files import content
from tests.support.stores import Store
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.app import AppThread

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

OBJECTS: Final = {f"d{number % 3}/{number:03}": content(str(number), 500) for number in range(120)}
MIRRORED: Final = {"mirror": {"enabled": True, "copies": 2}}
CODED: Final = {"ec": {"enabled": True, "data_slices": 1, "parity_slices": 2}}
SHORT_S: Final = 4.0
"""A deadline in which a target that died is first there and refuses, and then out of the map."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a cluster of this module's own; one target leaves for good, another dies and dies."""
    aisnode = find_aisnode()
    if aisnode is None:
        pytest.skip("no aisnode on PATH nor in $HEADRACE_AISNODE")
    with Cluster(aisnode, num_targets=4, config=QUICK) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stores(cluster: Cluster) -> dict[str, Store]:
    """Return a bucket for each test: what is read while targets come and go leaves copies."""
    return {
        "plain": filled(cluster),
        "mirrored": filled(cluster, MIRRORED),
        "coded": filled(cluster, CODED),
        "away": filled(cluster),
        "leaving": filled(cluster),
    }


@pytest.fixture(scope="module")
def daemons(stores: dict[str, Store]) -> Iterator[tuple[AppThread, AppThread]]:
    """Return a daemon that waits, and one that does not for long.

    They have listed everything before the first test: lists wait for the rebalance behind each.
    """
    away = stores["away"]
    with away.daemon() as app, away.daemon(deadline_s=SHORT_S) as hasty:
        for store in stores.values():
            read(app, stream_of(store))
        read(hasty, stream_of(away))
        yield app, hasty


@pytest.fixture
def app(daemons: tuple[AppThread, AppThread]) -> AppThread:
    return daemons[0]


@pytest.fixture
def hasty(daemons: tuple[AppThread, AppThread]) -> AppThread:
    return daemons[1]


@pytest.fixture
def victim(cluster: Cluster) -> Iterator[str]:
    """Return a target that may be killed, and is there again for the next test."""
    name = cluster.targets[-1]
    yield name
    if name not in cluster.smap()["tmap"]:
        cluster.restart(name)


def filled(cluster: Cluster, props: dict[str, Any] | None = None) -> Store:
    store = Store(cluster, props)
    store.put(OBJECTS)
    return store


def stream_of(store: Store) -> Stream:
    return Stream(Objects(store.uri()), Shuffled(batch_size=4, seed=1))


def read(app: AppThread, stream: Stream) -> Ledger:
    """Return the ledger of the first epoch."""
    dataset = DaemonDataset(app.socket, stream)
    try:
        return ledger_of(dataset)
    finally:
        dataset.close()


class Run:
    """A training in the middle of its first epoch.

    Args:
        store: With all objects.
        app: The daemon.
    """

    def __init__(self, store: Store, app: AppThread) -> None:
        self.app = app
        self.stream = stream_of(store)
        # With a map in which all targets are again, or some objects would come from elsewhere.
        app.run(app.app.store.cluster.after())
        assert not self.report()["missing"]
        self.truth = read(app, self.stream)
        self._retries = self.report()["retries"]
        self.dataset = DaemonDataset(app.socket, self.stream, prefetch_batches=1)
        self.ledger = Ledger()
        self._batches = iter(self.dataset)
        for _ in range(10):
            self.ledger.record(next(self._batches))

    def finish(self) -> None:
        """Read the rest of the epoch."""
        for batch in self._batches:
            self.ledger.record(batch)

    def in_thread(self) -> threading.Thread:
        """Begin to read the rest of the epoch."""
        thread = threading.Thread(target=self.finish)
        thread.start()
        return thread

    def wait_for_trouble(self) -> None:
        """Wait until a read has met what went wrong."""
        self.app.wait_until(lambda: self.report()["retries"] > self._retries)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = self.app.app.report()["store"]
        return report

    def assert_is_whole(self) -> None:
        """Fail unless the epoch was what it is where nothing goes wrong."""
        assert self.ledger.difference(self.truth) is None
        self.dataset.close()


def test_a_target_that_leaves_in_order_changes_nothing(
    app: AppThread, stores: dict[str, Store], cluster: Cluster
) -> None:
    """Its objects move to the others while they are read."""
    run, leaver = Run(stores["leaving"], app), cluster.targets[0]
    with Wire() as wire:
        ais = Ais(wire, cluster.endpoint)
        message = {"action": "start-maintenance", "value": {"sid": leaver}}
        # A cluster that has just started is not ready for it (503); later ones would have to wait
        # for the rebalances behind the other tests.
        wait_until(lambda: ais.ask("PUT", "/v1/cluster", body=message).status == 200)
        wait_until(lambda: ais.smap()["tmap"][leaver]["flags"])
    run.finish()
    run.assert_is_whole()
    # By the map of now it owns nothing, and what has not moved yet comes from its neighbour.
    app.run(app.app.store.cluster.after())
    assert read(app, run.stream).difference(run.truth) is None
    assert not run.report()["missing"]


def test_where_there_are_copies_on_other_targets_nobody_waits_for_a_dead_one(
    app: AppThread, stores: dict[str, Store], cluster: Cluster, victim: str
) -> None:
    run = Run(stores["coded"], app)
    cluster.kill(victim)
    run.finish()
    assert victim not in cluster.smap()["tmap"], "it was never back"
    run.assert_is_whole()
    assert run.report()["missing"], "and is told of"


@pytest.mark.parametrize("copies", ["plain", "mirrored"])
def test_a_target_that_dies_and_comes_back_changes_nothing(
    app: AppThread,
    stores: dict[str, Store],
    cluster: Cluster,
    victim: str,
    copies: str,
) -> None:
    """It is gone for longer than the map keeps it, and then joins it, which begins a rebalance."""
    run = Run(stores[copies], app)
    cluster.kill(victim)
    rest = run.in_thread()
    run.wait_for_trouble()
    app.wait_until(lambda: run.report()["missing"])
    cluster.restart(victim)
    rest.join(60)
    assert not rest.is_alive()
    run.assert_is_whole()
    assert run.report()["last_fault"]


def test_a_target_that_stays_away_is_an_error_with_a_state_that_goes_on_when_it_is_back(
    hasty: AppThread, stores: dict[str, Store], cluster: Cluster, victim: str
) -> None:
    bucket = stores["away"].bucket
    run = Run(stores["away"], hasty)
    cluster.kill(victim)
    with pytest.raises(FeedError) as raised:
        run.finish()
    text = str(raised.value)
    assert f"object ais://{bucket}/" in text
    assert victim in text
    assert "within 4 s ([store] deadline_s)" in text
    assert (raised.value.code, raised.value.fault) == ("source", "source")
    state = json.loads(json.dumps(run.dataset.state_dict()))
    assert state["step"] == len(run.ledger.entries) < len(run.truth.entries)

    # It loads while the target is away, and again the stream gets no further than it can.
    again = DaemonDataset(hasty.socket, run.stream)
    again.load_state_dict(state)
    with pytest.raises(FeedError, match=f"object ais://{bucket}/"):
        for batch in again:
            run.ledger.record(batch)
    state = again.state_dict()
    assert state["step"] == len(run.ledger.entries) < len(run.truth.entries)
    again.close()

    cluster.restart(victim)
    again = DaemonDataset(hasty.socket, run.stream)
    again.load_state_dict(state)
    for batch in again:
        run.ledger.record(batch)
    again.close()
    run.assert_is_whole()
