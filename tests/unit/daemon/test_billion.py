"""A billion samples are served from any place in the memory of a few batches."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.manifest import Manifest
from headrace.plans import MultiScale, Sequential, ShardShuffled, Shuffled, VariableBatch
from headrace.topology import Topology
from headrace_daemon.feed.feed import ReadyBatch
from headrace_daemon.source.catalog import OpenSource
from tests.support.loops import run, until
from tests.support.serving import request, running_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.plans import Plan
    from headrace_daemon.source.reader import Request

BILLION = 10**9
MIB = 1 << 20
SIZE = 640

PLANS: list[tuple[Plan, int]] = [
    (Sequential(batch_size=64), 2 * MIB),
    (Shuffled(batch_size=64, seed=1), 2 * MIB),
    (ShardShuffled(batch_size=64, samples_per_shard=100_000), 3 * MIB),
    (MultiScale(batch_size=64), 3 * MIB),
    (VariableBatch(batch_size=256), 5 * MIB),
]


class NoReader:
    """Leaves all memory as it is: a sample without a name has no content."""

    location = "/a/billion"
    paces_itself = False

    async def read(self, requests: Sequence[Request]) -> None:
        pass


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """A billion samples of one size without a name, in a few bytes."""
    manifest = Manifest.__new__(Manifest)
    manifest.sizes = np.broadcast_to(np.int64(SIZE), (BILLION,))
    manifest.offsets = np.broadcast_to(np.uint64(0), (BILLION + 1,))
    manifest.names = np.empty(0, dtype=np.uint8)
    manifest.checksums = manifest.versions = manifest.placement = None
    manifest._extent = None
    manifest.digest, manifest.blocks = "ab" * 32, [""] * 64
    assert manifest.extent.total_bytes == SIZE * BILLION
    return manifest


@pytest.mark.parametrize(("plan", "limit"), PLANS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("percent", [0, 99])
def test_a_billion_samples_are_served_in_little_memory(
    manifest: Manifest, plan: Plan, limit: int, percent: int
) -> None:
    async def main() -> None:
        async with running_registry(plan=plan, budget_bytes=10 * MIB) as daemon:
            daemon.catalog.source = OpenSource(manifest, NoReader())
            whole = await daemon.streams.bind("train", Topology(1, 2), None)
            update = whole.steps * percent // 100
            tracemalloc.start()
            try:
                start = {"seek": {"update": update}}
                opened = request(rank=1, world_size=2, start=start, prefetch=2)
                entry = await daemon.registry.open(opened)
                for step in range(update, update + 5):
                    await until(lambda: entry.feed.head() is not None)
                    item = entry.feed.take()
                    assert isinstance(item, ReadyBatch)
                    assert item.planned.step == step
                    entry.feed.pool.give_back(item.slot)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < limit

    run(main())
