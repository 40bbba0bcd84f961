"""What the contract is tested on: the stand-in, and a real cluster where there is one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.support.ais import Ais, Wire
from tests.support.cluster import find_aisnode
from tests.support.idle import Idle
from tests.support.standin import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def standin() -> Iterator[StandIn]:
    """Return a stand-in that all tests share, as they share the real cluster."""
    with StandIn() as standin:
        yield standin


@pytest.fixture(scope="session", params=["standin", "real"])
def ais(request: pytest.FixtureRequest) -> Iterator[Ais]:
    """Return the one and the other, each over connections of its own."""
    name = "standin" if request.param == "standin" else "cluster"
    with Wire() as wire:
        yield Ais(wire, request.getfixturevalue(name).endpoint)


@pytest.fixture(scope="module")
def new_bucket(ais: Ais, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Return what creates an empty bucket, which is gone after the module."""
    created = []
    numbers = itertools.count(1)
    module = request.module.__name__.rpartition(".")[2].replace("_", "-")

    def create() -> str:
        bucket = f"{module}-{next(numbers)}"
        assert ais.act("POST", bucket, "create-bck").status == 200
        created.append(bucket)
        return bucket

    yield create
    for bucket in created:
        ais.act("DELETE", bucket, "destroy-bck")


@pytest.fixture(scope="module")
def bucket(new_bucket: Callable[[], str]) -> str:
    """Return a bucket that the tests of a module share."""
    return new_bucket()


@pytest.fixture(scope="session", autouse=True)
def idle(request: pytest.FixtureRequest) -> dict[str, list[Idle]]:
    """Return connections to proxies and targets, idle since the first test here."""
    servers = {"standin": "standin"} | ({"real": "cluster"} if find_aisnode() else {})
    opened: dict[str, list[Idle]] = {}
    for server, fixture in servers.items():
        with Wire() as wire:
            ais = Ais(wire, request.getfixturevalue(fixture).endpoint)
            opened[server] = [Idle(url) for url in (ais.endpoint, *ais.targets.values())]
    return opened
