"""What the tests of the whole line share: none leaves a thread behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fakes import assert_no_receiver_is_left

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test whose datasets leave a thread when they are gone."""
    yield
    assert_no_receiver_is_left()
