"""Shards through a whole daemon, by the stage and without it: the same, and nothing is left."""

from __future__ import annotations

import io
import tarfile
from itertools import zip_longest
from typing import TYPE_CHECKING

import pytest

from headrace import DaemonDataset, Shards, Stream, Topology
from headrace.plans import Plan, Sequential, ShardShuffled
from headrace.testing import Ledger
from headrace_daemon.settings import FetchSettings
from tests.support.app import AppThread

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

COUNTS = (1, 3, 7, 50, 100, 39)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 200 samples of two fields in all."""
    folder = tmp_path_factory.mktemp("shards")
    number = 0
    for shard, count in enumerate(COUNTS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for _ in range(count):
                for field, size in (("img", 3000 + 37 * number % 2000), ("txt", number % 5)):
                    member = tarfile.TarInfo(f"s{number:04}.{field}")
                    content = (f"{number} " * size).encode()[:size]
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                number += 1
    return folder


def run(app: AppThread, folder: Path, plan: Plan, world_size: int) -> tuple[Ledger, dict[str, Any]]:
    """Return what all ranks are given in two epochs, and what the daemon says then."""
    stream = Stream(Shards(str(folder)), plan)
    ranks = [Topology(rank, world_size) for rank in range(world_size)]
    datasets = [DaemonDataset(app.socket, stream, topology=rank) for rank in ranks]
    ledger = Ledger()
    for _ in range(2):
        for step in zip_longest(*datasets):
            for batch, rank in zip(step, ranks, strict=True):
                ledger.record(batch, rank)
    report = app.call(app.app.report)
    for dataset in datasets:
        dataset.close()
    app.wait_until(lambda: not app.app.report()["memory"]["held_bytes"])
    assert app.call(app.app.report)["feeds"] == []
    return ledger, report["stage"]


@pytest.mark.parametrize(
    ("plan", "world_size"),
    [
        (ShardShuffled(batch_size=8, window=60), 1),
        (ShardShuffled(batch_size=8, window=1000), 2),
        (Sequential(batch_size=4), 2),
    ],
)
def test_what_comes_is_the_same_and_all_memory_comes_back(
    folder: Path, plan: Plan, world_size: int
) -> None:
    with AppThread() as app:
        tasks = app.num_tasks()
        staged, report = run(app, folder, plan, world_size)
        assert report["hits"] > 200
        app.wait_until(lambda: app.app._stage.held_bytes == 0)
        # Somebody who leaves in the middle.
        broken = DaemonDataset(app.socket, Stream(Shards(str(folder)), plan))
        next(iter(broken))
        broken.close()
        app.wait_until(lambda: not app.app.report()["memory"]["held_bytes"])
        assert app.num_tasks() <= tasks + 1
    with AppThread().configure(fetch=FetchSettings(stage=0)) as app:
        direct, report = run(app, folder, plan, world_size)
        assert report["pieces"] == 0
    assert staged.difference(direct) is None
