"""What the tests of the daemon share: both event loops, and a place for a socket."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.loops import LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.loops import Loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    """Return the name of a loop, for `tests.support.loops.run`."""
    return cast("Loop", request.param)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """Return a path that is short enough for a socket, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        yield Path(folder) / "s"
