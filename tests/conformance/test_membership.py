"""What takes time: a target dies and comes back, or is in maintenance; connections are idle.

The former are on clusters that nobody else uses; the connections are idle since the first test of
conformance.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.ais import Ais, Wire, object_path
from tests.support.cluster import QUICK, Cluster, find_aisnode
from tests.support.idle import IDLE_DEADLINE_S
from tests.support.standin import MAINTENANCE, StandIn
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.idle import Idle

pytestmark = pytest.mark.slow

BUCKET: Final = "members"
NAMES: Final = [f"o/{index:02}" for index in range(40)]
KEPT_S: Final = 20.0
"""How long the daemon keeps a connection that it does not use."""
MAY_LACK: Final = 1
"""Flag of a page: targets are moving objects, and it may be incomplete."""


@dataclass(frozen=True)
class Movable:
    """A cluster whose targets can be killed.

    Args:
        ais: The cluster.
        kill: Lets a target die.
        leave: Waits, or sees to it, that a dead target is out of the map.
        restart: Starts it again, and returns when it is in the map and ready.
        maintain: Puts a target into maintenance; its objects begin to move elsewhere.
        move: Waits, or sees to it, that they all have.
    """

    ais: Ais
    kill: Callable[[str], None]
    leave: Callable[[str], None]
    restart: Callable[[str], None]
    maintain: Callable[[str], None]
    move: Callable[[], None]


@contextmanager
def standin() -> Iterator[Movable]:
    with StandIn() as cluster, Wire() as wire:
        nodes = {target.id: target for target in cluster.targets}

        def restart(name: str) -> None:
            nodes[name].start()
            cluster.return_to_map(nodes[name])

        def maintain(name: str) -> None:
            cluster.set_rebalancing(True)
            cluster.set_flags(nodes[name], MAINTENANCE)

        yield Movable(
            Ais(wire, cluster.endpoint),
            kill=lambda name: nodes[name].stop(),
            leave=lambda name: cluster.remove_from_map(nodes[name]),
            restart=restart,
            maintain=maintain,
            move=cluster.rebalance,
        )


@contextmanager
def real() -> Iterator[Movable]:
    aisnode = find_aisnode()
    if aisnode is None:
        pytest.skip("no aisnode on PATH nor in $HEADRACE_AISNODE")
    with Cluster(aisnode, config=QUICK) as cluster, Wire() as wire:
        ais = Ais(wire, cluster.endpoint)

        def maintain(name: str) -> None:
            message = {"action": "start-maintenance", "value": {"sid": name}}
            # A cluster that has just started, or taken a node back, is not ready for it (503).
            wait_until(lambda: ais.ask("PUT", "/v1/cluster", body=message).status == 200)

        yield Movable(
            ais,
            kill=cluster.kill,
            leave=lambda name: wait_until(
                lambda: name not in ais.smap()["tmap"],
            ),
            restart=cluster.restart,
            maintain=maintain,
            move=lambda: wait_until(lambda: names(listed(ais)) == NAMES),
        )


@pytest.fixture(params=[standin, real], ids=["standin", "real"])
def movable(request: pytest.FixtureRequest) -> Iterator[Movable]:
    """Return the one and the other, with `NAMES` in a bucket."""
    with request.param() as movable:
        movable.ais.act("POST", BUCKET, "create-bck")
        movable.ais.put_all(BUCKET, {name: name.encode() for name in NAMES})
        yield movable


def listed(ais: Ais) -> dict[str, Any]:
    """Return the one page of the list."""
    answer = ais.page(BUCKET)
    assert answer.status == 200, answer
    page: dict[str, Any] = answer.content
    return page


def names(page: dict[str, Any]) -> list[str]:
    """Return the names on a page."""
    return [entry["name"] for entry in page["entries"]]


@pytest.mark.timeout(150)
def test_a_target_dies_and_comes_back(movable: Movable) -> None:
    ais = movable.ais
    before = ais.smap()
    victim = ais.owner(BUCKET, NAMES[0])
    urls = ais.targets
    own = [name for name in NAMES if ais.owner(BUCKET, name) == victim]
    others = sorted(set(NAMES) - set(own))

    movable.kill(victim)

    # The map does not know it yet.
    assert ais.smap() == before
    with pytest.raises(ConnectionError):  # on the connection that was there, if any
        ais.wire.ask("GET", urls[victim] + object_path(BUCKET, own[0]))
    with pytest.raises(ConnectionRefusedError):
        ais.wire.ask("GET", urls[victim] + object_path(BUCKET, own[0]), fresh=True)
    assert ais.ask("GET", object_path(BUCKET, own[0])).node == urls[victim]
    answer = ais.page(BUCKET)
    assert (answer.status, answer.tcode) == (400, "ErrFailedTo")
    assert "connection refused" in answer.error["message"]
    for name in others:
        assert ais.ask("GET", object_path(BUCKET, name), at=urls[ais.owner(BUCKET, name)]).body

    movable.leave(victim)

    after = ais.smap()
    assert int(after["version"]) > int(before["version"])
    assert after["uuid"] == before["uuid"]
    assert set(after["tmap"]) == set(before["tmap"]) - {victim}
    for name in others:
        assert ais.get(BUCKET, name).body == name.encode()
    # Its objects are missing, and nothing says that they may come back.
    for name in own:
        for answer in (ais.get(BUCKET, name), ais.follow("GET", object_path(BUCKET, name))):
            assert (answer.status, answer.tcode) == (404, "ErrNotFound")
        assert ais.head(BUCKET, name).status == 404
    wait_until(lambda: ais.page(BUCKET).status == 200)
    assert names(listed(ais)) == others

    movable.restart(victim)

    wait_until(lambda: victim in ais.smap()["tmap"])
    again = ais.smap()
    assert int(again["version"]) > int(after["version"])
    assert ais.targets == urls
    wait_until(lambda: not ais.smap()["tmap"][victim]["flags"])
    for name in NAMES:
        assert ais.get(BUCKET, name).body == name.encode()
    assert names(listed(ais)) == NAMES


@pytest.mark.timeout(150)
def test_a_target_in_maintenance_owns_nothing(movable: Movable) -> None:
    ais = movable.ais
    before = ais.smap()
    leaving = ais.owner(BUCKET, NAMES[1])

    movable.maintain(leaving)

    # It is still in the map, with a flag, and the rule of ownership passes it over.
    wait_until(lambda: bool(ais.smap()["tmap"][leaving]["flags"] & MAINTENANCE))
    after = ais.smap()
    assert int(after["version"]) > int(before["version"])
    assert set(after["tmap"]) == set(before["tmap"])
    for name in NAMES:
        node = ais.ask("GET", object_path(BUCKET, name)).node
        assert node == ais.owner_url(BUCKET, name)
        assert node != ais.targets[leaving]
    # As long as objects are on their way, a list says that it may lack some, and reads find them.
    page = listed(ais)
    assert page["flags"] == MAY_LACK
    for name in NAMES:
        assert ais.follow("GET", object_path(BUCKET, name)).body == name.encode()

    movable.move()
    assert names(listed(ais)) == NAMES


# --- Idle connections -----------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["standin", "real"])
def test_idle_connections_are_closed_but_not_while_the_daemon_keeps_them(
    idle: dict[str, list[Idle]], server: str
) -> None:
    if server not in idle:
        pytest.skip("no aisnode on PATH nor in $HEADRACE_AISNODE")
    for connection in idle[server]:
        connection.join(IDLE_DEADLINE_S)
        assert not connection.is_alive()
        assert connection.open_s > KEPT_S
