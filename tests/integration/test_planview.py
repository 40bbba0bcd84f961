"""D5: what ``headrace plan`` prints for a step is what a trainer receives there, plan by plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from headrace import DaemonDataset, Objects, Stream, Topology
from headrace.plans import (
    ByteBudget,
    Chain,
    Every,
    Growth,
    Interleaved,
    Limits,
    Link,
    MultiScale,
    Sequential,
    ShardShuffled,
    Shuffled,
    Slice,
    VariableBatch,
    VideoVariable,
    registry,
)
from tests.support.commands import headrace_here
from tests.support.daemon import DaemonProcess
from tests.support.files import check, write_samples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from headrace.batch import Batch
    from headrace.plans import Plan

NUM_SAMPLES: Final = 61
NUM_OTHERS: Final = 10
PLANS: Final[dict[str, Plan]] = {
    "sequential": Sequential(batch_size=4),
    "keyed": Shuffled(global_batch_size=8, seed=17),
    "torch": Shuffled(batch_size=4, order="torch", tail="wrap"),
    "torch-continued": Shuffled(batch_size=4, order="torch-continued", tail="drop"),
    "python": Shuffled(batch_size=4, order="python", pad_to=4),
    "subset": Shuffled(batch_size=4, subset=Slice(1, 50, 3), repeats=2),
    "node-blocks": Shuffled(batch_size=4, node_blocks=2),
    "replicated": Shuffled(batch_size=4, replicated=True),
    "shards": ShardShuffled(batch_size=4, samples_per_shard=7, window=10),
    "budget": ByteBudget(max_bytes=3000, seed=3),
    "budget-short": ByteBudget(max_bytes=1500, oversized="own", tail="short"),
    "multi-scale": MultiScale(batch_size=4),
    "variable-batch": VariableBatch(batch_size=4, scale_growth=Growth(epochs=(1,))),
    "video": VideoVariable(batch_size=2, random_clips=True),
}
COMPOSITIONS: Final = ("chain", "interleaved")


def test_each_public_plan_is_among_them() -> None:
    kinds = {type(plan).__name__ for plan in PLANS.values()}
    known = {"Chain", "Interleaved", "FromSampler", *kinds}
    assert known == set(registry.names())


def composition(name: str, others: Objects) -> Plan:
    """Return a plan of which a part has a source of its own."""
    if name == "chain":
        main, other = Shuffled(batch_size=4), Link(Sequential(batch_size=2), others)
        return Chain(plans={"main": main, "other": other}, mode="interleave")
    return Interleaved(
        train=VariableBatch(batch_size=4),
        extras={
            "val": Every(Sequential(batch_size=1), updates=3, batch_size=2, source=others),
            "probe": Every(Shuffled(batch_size=8), epochs=1),
        },
        limits=Limits(epochs=2),
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    main = write_samples(tmp_path_factory.mktemp("main"), NUM_SAMPLES)
    return main, write_samples(tmp_path_factory.mktemp("others"), NUM_OTHERS, seed=1)


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    with DaemonProcess() as daemon:
        yield daemon.socket


def printed(stream: Stream, folder: Path, *arguments: str) -> dict[str, Any]:
    """Return what the command prints for a stream in a file."""
    path = folder / "stream.json"
    path.write_bytes(msgspec.json.encode(stream))
    done = headrace_here("plan", "--stream", path, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def same(row: dict[str, Any], batch: Batch) -> None:
    """Fail unless a printed step is that of a batch."""
    told = {name: batch.meta[name] for name in ("epoch", "step", "global_step", "stream")}
    assert {name: row[name] for name in told} == told
    assert row["ids"] == batch.indices.tolist()
    assert row["names"] == batch.sample_keys
    assert row["bytes"] == sum(map(len, batch["data"]))
    assert row["flags"] == batch.flags.tolist()
    for name in ("height", "width", "frames", "clips", "bytes", "total"):
        assert row["meta"].get(name) == batch.meta.get(name)
    assert row["cursor"] == batch.cursor.to_state()


@pytest.mark.parametrize(("rank", "world_size"), [(0, 2), (1, 2)])
@pytest.mark.parametrize("name", [*PLANS, *COMPOSITIONS])
def test_the_command_prints_what_a_trainer_receives(
    name: str,
    rank: int,
    world_size: int,
    folders: tuple[Path, Path],
    socket: str,
    tmp_path: Path,
) -> None:
    main, others = map(str, folders)
    plan = PLANS[name] if name in PLANS else composition(name, Objects(others))
    stream = Stream(Objects(main), plan)
    ranks = ("--rank", str(rank), "--world-size", str(world_size))
    dataset = DaemonDataset(socket, stream, topology=Topology(rank, world_size))
    passes = 1 if isinstance(plan, Interleaved) else 2
    batches = [batch for _ in range(passes) for batch in dataset]
    dataset.close()
    steps = sum(batch.meta["epoch"] == 0 for batch in batches)
    document = printed(stream, tmp_path, *ranks, "--steps", f"0:{len(batches)}")
    assert document["steps_per_epoch"] == steps
    for row, batch in zip(document["steps"], batches, strict=True):
        same(row, batch)
        check(batch)
    # First, second, middle, last, and the first of the next epoch, each sought by itself.
    for step in {0, 1, steps // 2, steps - 1, steps} & set(range(len(batches))):
        (row,) = printed(stream, tmp_path, *ranks, "--step", str(step))["steps"]
        same(row, batches[step])
