"""What every test shares: the hypothesis profiles, and what trainers are forked from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.cluster import Cluster, find_aisnode
from tests.support.trainers import Trainers

if TYPE_CHECKING:
    from collections.abc import Iterator

# The same examples on every run, so that a red test is the change's fault.
settings.register_profile("fast", max_examples=50, deadline=None, derandomize=True, database=None)
# New examples on every run: for a night, or for a change of the plan or the wire.
settings.register_profile("thorough", max_examples=2_000, deadline=None, print_blob=True)

# What the shell knows of a cluster is not for tests, which name theirs.
for name in [name for name in os.environ if name.startswith("AIS_")]:
    del os.environ[name]

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return a real AIStore cluster, which takes a dozen seconds to start; a bucket for each test.

    Nobody stops a node of it, since GetBatch is slow for long after that.
    """
    aisnode = find_aisnode()
    if aisnode is None:
        pytest.skip("no aisnode on PATH nor in $HEADRACE_AISNODE")
    with Cluster(aisnode) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def zygote() -> Iterator[Trainers]:
    """Return what trainers are forked from, which takes seconds to start."""
    with Trainers() as trainers:
        yield trainers


@pytest.fixture
def trainers(zygote: Trainers) -> Iterator[Trainers]:
    """Return what starts trainers; none of them outlives the test."""
    yield zygote
    zygote.close_all()
