"""What the tests of the SDK share: none leaves a thread behind."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from tests.support.fakes import receivers

if TYPE_CHECKING:
    from collections.abc import Iterator

JOIN_S = 20.0


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test whose datasets leave a thread when they are gone."""
    yield
    if receivers():
        gc.collect()
    for thread in receivers():
        thread.join(JOIN_S)
    assert receivers() == []
