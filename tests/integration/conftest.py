"""What the tests of the whole line share: a cluster, demos; and none leaves a thread behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fakes import assert_no_receiver_is_left
from tests.support.standin import StandIn
from tests.support.stores import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.demo import Demo


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test whose datasets leave a thread when they are gone."""
    yield
    assert_no_receiver_is_left()


@pytest.fixture
def demos(request: pytest.FixtureRequest) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders may have paths too long for a socket.
    with tempfile.TemporaryDirectory(prefix="hr-") as path:
        yield Path(path)


@pytest.fixture(params=["standin", "real"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Return a cluster of either kind, with a bucket of the test's own."""
    if request.param == "real":
        yield Store(request.getfixturevalue("cluster"))
        return
    with StandIn() as server:
        yield Store(server)
