"""D5: what the command prints at a step is what the engine gives there, for every plan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from headrace.compat import cvnets, helios, noether
from headrace.compat.aistore import DynamicBatchSampler
from headrace.plans import Every, Interleaved, Limits, Sequential, Shuffled
from tests.support.commands import headrace_here
from tests.support.planview import PlanView, expected, without_data
from tests.support.rows import data, rows

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.plans import Plan
    from headrace.plans.engine import PlannedBatch

ROWS = {row.name: row for row in rows()}
LENGTH = 20


def rank_batches(view: PlanView, plan: Plan, rank: int, world_size: int) -> list[PlannedBatch]:
    """Return two passes of the public API."""
    sampler = plan.batch_sampler(view.data, rank, world_size)
    return [batch for _ in range(2) for batch in sampler.batches()]


@pytest.mark.parametrize("name", ROWS)
def test_any_step_of_any_plan_is_what_a_trainer_gets(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    parts = tuple(row.plan.program(data(LENGTH)).streams)
    view = PlanView(row.plan, data(LENGTH), parts, tmp_path)
    for world_size in (row.node_blocks, row.node_blocks * 3):
        whole = None
        for rank in {0, world_size - 1}:
            batches = rank_batches(view, row.plan, rank, world_size)
            ranks = ("--world-size", str(world_size), "--rank", str(rank))
            document = view.document(*ranks, "--steps", f"0:{len(batches)}")
            found = document["steps"]
            assert list(map(without_data, found)) == list(map(expected, batches))
            steps = document["steps_per_epoch"]
            assert steps == sum(batch.epoch == batches[0].epoch for batch in batches)
            # First, second, middle, last, and the first of the next epoch, each sought by itself.
            for step in {0, 1, steps // 2, steps - 1, steps} & set(range(len(batches))):
                assert view.steps(*ranks, "--step", str(step)) == [found[step]]
            whole = [*(whole or []), found]
        everything = view.steps("--world-size", str(world_size), "--rank", "all", "--steps", "1")
        assert everything[0] == whole[0][1] if whole and len(whole[0]) > 1 else not everything


@pytest.mark.parametrize("name", [name for name in ROWS if "interleaved" not in name])
def test_an_epoch_a_place_and_a_state_lead_to_the_same_step(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    parts = tuple(row.plan.program(data(LENGTH)).streams)
    view = PlanView(row.plan, data(LENGTH), parts, tmp_path)
    ranks = ("--world-size", str(2 * row.node_blocks))
    steps = view.document(*ranks)["steps_per_epoch"]
    (first,) = view.steps(*ranks, "--steps", str(steps))
    if first["epoch"]:
        later = view.document(*ranks, "--epoch", str(first["epoch"]), "--steps", "0")
        assert later["steps"] == [first]
        sampler = row.plan.batch_sampler(view.data, 0, 2 * row.node_blocks)
        assert (later["epoch"], later["steps_per_epoch"]) == (
            first["epoch"],
            sampler.steps(first["epoch"]),
        )
        before = view.steps(*ranks, "--steps", str(steps - 1))[0]["cursor"]
        (tmp_path / "state.json").write_text(json.dumps(before))
        assert view.steps(*ranks, "--state", tmp_path / "state.json", "--steps", "0") == [first]
        assert before["update"] == steps
        assert view.steps(*ranks, "--update", str(steps), "--steps", "0") == [first]
        assert view.steps(*ranks, "--sample", str(before["sample"]), "--steps", "0") == [first]


def test_a_run_is_entered_after_an_update(tmp_path: Path) -> None:
    view = PlanView(ROWS["interleaved"].plan, data(LENGTH), ("val", "probe", "test"), tmp_path)
    steps = view.steps("--steps", "0:1000")
    after = next(step for step in steps if step["global_step"] == 4 and step["stream"] == "train")
    assert view.steps("--update", "4", "--steps", "0") == [after]
    assert steps[-1]["cursor"]["epoch"] == 1


def test_an_extra_has_a_batch_size_and_data_of_its_own(tmp_path: Path) -> None:
    plan = Interleaved(
        train=Shuffled(batch_size=4),
        extras={"val": Every(Sequential(batch_size=1), updates=2, batch_size=7)},
        limits=Limits(epochs=1),
    )
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    done = headrace_here(
        "plan", "--stream", path, "--length", "8", "--length", "val=9", "--sizes", "10",
        "--sizes", "val=1000", "--json", "--world-size", "1",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert [(step["stream"], step["bytes"], len(step["ids"])) for step in document["steps"]] == [
        ("train", 40, 4),
        ("train", 40, 4),
        ("val", 7000, 7),
        ("val", 2000, 2),
    ]
    assert document["parts"]["val"]["samples"] == 9


def cvnets_options() -> dict[str, Any]:
    return {"dataset": {"train_batch_size0": 4}, "sampler": {"vbs": {"max_n_scales": 3}}}


def chain_options() -> dict[str, Any]:
    tasks = [
        {"task_name": name, "sampler_config": {"name": "variable_batch_sampler"}} for name in "ab"
    ]
    sampler = {"chain_sampler": tasks, "chain_sampler_mode": "interleave"}
    return {"dataset": {"train_batch_size0": 3}, "sampler": sampler}


def noether_sampler() -> Any:  # noqa: ANN401 - of no type that is shared
    main = helios.ResumableDistributedSampler(range(40), 2, 1, seed=3)
    extra = noether.SamplerIntervalConfig(
        sampler=helios.ResumableDistributedSampler(range(10), 2, 1, shuffle=False),
        pipeline=None,
        every_n_updates=2,
        batch_size=3,
    )
    config = noether.InterleavedSamplerConfig(batch_size=4, max_epochs=2)
    return noether.InterleavedSampler(main, config, callback_samplers=[extra])


SIZES = np.random.default_rng(7).integers(1, 30, 40)
COMPAT: dict[str, tuple[Any, int, int, tuple[str, ...]]] = {
    "helios-random": (
        lambda: helios.ResumableRandomSampler(range(40), 3, 7), 0, 1, ("--length", "40")
    ),
    "helios-distributed": (
        lambda: helios.ResumableDistributedSampler(range(40), 3, 2, seed=-1, batch_size=4),
        2, 3, ("--length", "40"),
    ),
    "aistore": (
        lambda: DynamicBatchSampler(SIZES, 64.5, shuffle=True, seed=4),
        0, 1, ("--length", "40", "--sizes", "{sizes}"),
    ),
    "cvnets-vbs-ddp": (
        lambda: cvnets.create_sampler(
            "variable_batch_sampler_ddp", cvnets_options(), 40, True,
            num_replicas=2, rank=1, device_count=1,
        ),
        1, 2, ("--length", "40"),
    ),
    "cvnets-video": (
        lambda: cvnets.create_sampler(
            "video_variable_seq_sampler", cvnets_options(), 40, True, device_count=1
        ),
        0, 1, ("--length", "40"),
    ),
    "cvnets-chain": (
        lambda: cvnets.create_sampler(
            "chain_sampler", chain_options(), {"a": 20, "b": 7}, True, device_count=1
        ),
        0, 1, ("--length", "20", "--length", "b=7"),
    ),
    "noether": (noether_sampler, 1, 2, ("--length", "40", "--length", "callback_0=10")),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPAT)
def test_the_plan_of_a_drop_in_class_prints_its_batches(name: str, tmp_path: Path) -> None:
    make, rank, world_size, words = COMPAT[name]
    np.save(tmp_path / "sizes.npy", SIZES)
    sampler = make()
    plan = msgspec.json.encode(sampler.plan).decode()
    batches = list(sampler.planned())
    done = headrace_here(
        "plan", "--plan", plan, *(word.format(sizes=tmp_path / "sizes.npy") for word in words),
        "--rank", str(rank), "--world-size", str(world_size), "--steps", f"0:{len(batches)}",
        "--json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    steps = json.loads(done.stdout)["steps"]
    assert len(steps) == len(batches) > 3
    for step, batch in zip(steps, batches, strict=True):
        wanted = expected(batch)
        assert {key: step[key] for key in wanted if key != "cursor"} == {
            key: wanted[key] for key in wanted if key != "cursor"
        }
        assert step["cursor"]["plan"] == wanted["cursor"]["plan"]


def test_the_table_has_the_columns_of_the_plan() -> None:
    words = ("plan", "--length", "50", "--sizes", "1000", "--world-size", "2", "--rank", "all")
    video = headrace_here(*words, "--plan", "VideoVariable", "--batch-size", "20", "--steps", "1")
    titles, first, second = [line.split() for line in video.stdout.splitlines()[-3:]]
    assert titles[:7] == ["epoch", "step", "rank", "samples", "bytes", "size", "frames"]
    assert [first[2], second[2]] == ["0", "1"]
    assert "(+" in video.stdout.splitlines()[-1]  # fillers that are not among the first ids
    budget = ("--plan", "ByteBudget", "-o", "max_total=4000", "--steps", "0")
    line = headrace_here(*words, *budget).stdout.splitlines()[-1]
    assert line.split()[:7] == ["0", "0", "1", "4", "4.0", "kB", "4000"]
