from __future__ import annotations

import argparse
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from headrace import plans
from headrace.compat import cvnets
from headrace.errors import PlanError
from tests.support import cvnets_loop
from tests.support.cvnets_loop import Run

KINDS = ("batch", "multi_scale", "variable_batch", "video_batch", "video_variable_seq")


def options(run: Run, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - options are of any type
    return {
        "dataset": {"train_batch_size0": run.batch_size, "val_batch_size0": run.batch_size},
        "sampler": {
            "num_repeats": run.repeats,
            "truncated_repeat_aug_sampler": run.truncate,
            "use_shards": run.shards,
            "disable_shuffle_sharding": run.keep_order,
            **more,
        },
    }


def make(kind: str, run: Run, **more: Any) -> Any:  # noqa: ANN401 - any sampler
    name = f"{kind}_sampler" + ("_ddp" if run.is_distributed else "")
    ranks = {"num_replicas": run.ranks, "rank": run.rank} if run.is_distributed else {}
    sampler = cvnets.create_sampler(
        name, options(run, **more), run.n, run.is_training, device_count=run.gpus, **ranks
    )
    if run.indices is not None:
        sampler.update_indices(list(run.indices))
    sampler.set_epoch(run.epoch)
    return sampler


def expected(kind: str, run: Run, sampler: Any, **more: Any) -> list[cvnets_loop.Batch]:  # noqa: ANN401
    if kind == "batch":
        return cvnets_loop.fixed(run, 256, 256)
    if kind == "video_batch":
        batches = cvnets_loop.fixed(run, 256, 256)
        return [[(*item, 8, 1) for item in batch] for batch in batches]
    if kind != "video_variable_seq":
        return cvnets_loop.variable(run, sampler.img_batch_tuples)
    vbs = more.get("vbs", {})
    drawn = (vbs["min_clips_per_video"], vbs["max_clips_per_video"]) if vbs else None
    return cvnets_loop.video(
        run,
        sampler.img_batch_tuples,
        vbs.get("clips_per_video", 1),
        drawn if run.is_training else None,
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    is_distributed = draw(st.booleans())
    ranks = draw(st.integers(1, 8)) if is_distributed else 1
    n = draw(st.integers(0, 60))
    return Run(
        n=n,
        epoch=draw(st.integers(0, 3)),
        batch_size=draw(st.integers(1, 9)),
        is_training=draw(st.booleans()),
        is_distributed=is_distributed,
        ranks=ranks,
        rank=draw(st.integers(0, ranks - 1)),
        gpus=draw(st.integers(1, 8)),
        repeats=draw(st.integers(1, 3)),
        truncate=draw(st.booleans()),
        shards=is_distributed and draw(st.booleans()),
        keep_order=draw(st.booleans()),
    )


@given(run=runs(), kind=st.sampled_from(KINDS), draws=st.booleans())
def test_each_sampler_is_that_of_the_plain_loop(run: Run, kind: str, draws: bool) -> None:
    multiple = run.ranks if run.is_distributed else run.gpus
    assume(-run.n % multiple <= run.n)
    nodes = max(1, run.ranks // run.gpus)
    padded = -(-run.n // multiple) * multiple
    each = -(-padded // nodes)
    # Where a node has less than half of what the others have, the original leaves it short.
    assume(not run.shards or 2 * (padded - (nodes - 1) * each) >= each)
    more: dict[str, Any] = {}
    if draws and kind == "video_variable_seq":
        more["vbs"] = {
            "random_video_clips": True,
            "min_clips_per_video": 1,
            "max_clips_per_video": 4,
            "clips_per_video": 4,
        }
    sampler = make(kind, run, **more)
    owed = expected(kind, run, sampler, **more)
    assert len(sampler) == len(owed)
    assert list(sampler) == owed


@given(run=runs(), kind=st.sampled_from(KINDS), data=st.data())
def test_after_update_indices_each_rank_has_its_share_of_them(
    run: Run, kind: str, data: st.DataObject
) -> None:
    multiple = run.ranks if run.is_distributed else run.gpus
    assume(run.n > 0 and -run.n % multiple <= run.n and not run.shards)
    chosen = data.draw(st.lists(st.integers(0, run.n - 1), min_size=1, max_size=30))
    run = replace(run, indices=tuple(chosen))
    sampler = make(kind, run)
    assert list(sampler) == expected(kind, run, sampler)


# --- Options --------------------------------------------------------------------------------------


def test_options_are_read_from_what_the_command_line_makes() -> None:
    parser = cvnets.add_sampler_arguments(argparse.ArgumentParser())
    opts = parser.parse_args(
        ["--sampler.name", "variable_batch_sampler", "--sampler.vbs.max-n-scales", "3"]
    )
    setattr(opts, "dataset.train_batch_size0", 8)
    setattr(opts, "dataset.val_batch_size0", 2)
    setattr(opts, "ddp.use_distributed", True)
    sampler = cvnets.build_sampler(opts, 40, True, None, num_replicas=2, rank=1, device_count=1)
    assert type(sampler) is cvnets.VariableBatchSamplerDDP
    assert [row[:2] for row in sampler.img_batch_tuples] == [(160, 160), (256, 256), (320, 320)]
    assert cvnets.BatchSampler.from_opts(opts, 5, device_count=1).batch_size_gpu0 == 2


def test_an_option_that_is_missing_has_the_default_of_cvnets() -> None:
    sampler = cvnets.create_sampler(
        "variable_batch_sampler", {"dataset.train_batch_size0": 32}, 100, True, device_count=1
    )
    assert sampler.img_batch_tuples == [
        (160, 160, 81),
        (192, 192, 56),
        (256, 256, 32),
        (288, 288, 25),
        (320, 320, 20),
    ]


def test_a_missing_batch_size_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"'dataset\.val_batch_size0' is missing"):
        cvnets.BatchSampler({}, 10)


def test_the_registry_takes_classes_of_users_and_names_what_it_has() -> None:
    registry = cvnets.SAMPLER_REGISTRY
    with pytest.raises(PlanError, match=r"sampler 'mine' is unknown: known are batch_sampler, ba"):
        registry["mine"]
    with pytest.raises(PlanError, match=r"sampler 'batch_sampler' is taken by BatchSampler"):
        registry.register("batch_sampler")(cvnets.MultiScaleSampler)
    assert "chain_sampler" in registry
    assert len(registry) == len(set(registry)) == 11


def test_too_few_samples_to_pad_are_refused_as_in_the_original() -> None:
    with pytest.raises(AssertionError, match=r"n_data_samples=3 cannot be padded"):
        make("batch", Run(n=3, is_distributed=True, ranks=8))


# --- What is put right ----------------------------------------------------------------------------

GROWING: dict[str, Any] = {
    "vbs": {"scale_inc": True, "ep_intervals": [1, 3], "min_scale_inc_factor": 0.5}
}


def test_scales_grow_by_the_epoch_whatever_is_called() -> None:
    steady = make("variable_batch", Run(n=50, batch_size=16), **GROWING)
    tables = []
    for epoch in range(5):
        steady.set_epoch(epoch)
        for _ in range(epoch):
            steady.update_scales(epoch, is_master_node=True)
        tables.append(steady.img_batch_tuples)
    assert tables[0] != tables[1] == tables[2] != tables[3] == tables[4]
    resumed = make("variable_batch", Run(n=50, batch_size=16, epoch=3), **GROWING)
    assert resumed.img_batch_tuples == tables[3]
    steady.set_epoch(3)
    assert list(resumed) == list(steady)


def test_evaluation_keeps_its_size() -> None:
    sampler = make("variable_batch", Run(n=9, is_training=False, epoch=3), **GROWING)
    sampler.update_scales(3)
    assert {item[:2] for batch in sampler for item in batch} == {(256, 256)}


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_others_between_batches_change_nothing(kind: str) -> None:
    alone = list(make(kind, Run(n=40)))
    disturbed = []
    for batch in make(kind, Run(n=40)):
        disturbed.append(batch)
        random.seed(len(disturbed))
    assert disturbed == alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_after_any_batch_continues_there(kind: str) -> None:
    run = Run(n=23, is_distributed=True, ranks=2, rank=1, epoch=2)
    whole = list(make(kind, run))
    sampler = make(kind, run)
    states = [sampler.state_dict() for _ in sampler]
    for done, state in enumerate(states[:-1], 1):
        fresh = make(kind, replace(run, epoch=0))
        fresh.load_state_dict(state)
        assert fresh.epoch == 2
        assert list(fresh) == whole[done:]
    assert states[-1]["epoch"] == 3


def test_the_same_epoch_comes_again_without_set_epoch() -> None:
    sampler = make("variable_batch", Run(n=30, epoch=1))
    first = list(sampler)
    next(iter(sampler))
    assert list(sampler) == first


def test_len_moves_nothing() -> None:
    sampler = make("variable_batch", Run(n=64))
    whole = list(sampler)
    batches = iter(sampler)
    parts = [next(batches)]
    assert len(sampler) == len(whole)
    assert [*parts, *batches] == whole


def test_all_ranks_have_the_same_shapes_at_each_step() -> None:
    shapes = {
        tuple((batch[0][:2], len(batch)) for batch in make("variable_batch", run))
        for rank in range(4)
        for run in [Run(n=97, is_distributed=True, ranks=4, rank=rank, gpus=2, shards=True)]
    }
    assert len(shapes) == 1


# --- The plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_alone_gives_the_same_batches(kind: str) -> None:
    sampler = make(kind, Run(n=33, is_distributed=True, ranks=3, rank=2))
    alone = sampler.plan.batch_sampler(33, 2, 3)
    assert [[item[2] for item in batch] for batch in sampler] == list(alone)
    assert isinstance(sampler.plan, plans.MultiScale | plans.VariableBatch | plans.VideoVariable)


class Images:
    def __len__(self) -> int:
        return 33

    def __getitem__(self, item: tuple[int, ...]) -> tuple[int, ...]:
        return item


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_gets_sizes_and_indices(num_workers: int) -> None:
    sampler = make("variable_batch", Run(n=33))
    data: Any = Images()
    loader: DataLoader[Any] = DataLoader(
        data, batch_sampler=sampler, collate_fn=list, num_workers=num_workers
    )
    assert len(loader) == len(sampler)
    assert list(loader) == list(sampler)


# --- Chains ---------------------------------------------------------------------------------------


def chain(mode: str, **more: Any) -> cvnets.ChainSampler:  # noqa: ANN401
    tasks = [
        {
            "task_name": "a",
            "train_batch_size0": 2,
            "sampler_config": {"name": "batch_sampler", "bs": {"crop_size_width": 64}},
        },
        {
            "task_name": "b",
            "train_batch_size0": 3,
            "sampler_config": {"name": "variable_batch_sampler"},
        },
    ]
    opts = {"sampler.chain_sampler": tasks, "sampler.chain_sampler_mode": mode}
    return cvnets.ChainSampler(opts, {"a": 9, "b": 20}, True, device_count=1, **more)


def test_a_chain_runs_one_task_after_the_other() -> None:
    sampler = chain("sequential")
    sampler.set_epoch(1)
    alone = [
        [(*item, task) for item in batch]
        for task, child in sampler.samplers_dict.items()
        for batch in child
    ]
    assert list(sampler) == alone
    assert len(sampler) == len(alone)


def test_a_chain_in_turns_keeps_tasks_with_their_batches() -> None:
    sampler = chain("interleave")
    children = sampler.samplers_dict
    batches = list(sampler)
    assert [batch[0][-1] for batch in batches[:4]] == ["a", "b", "a", "b"]
    for task, child in children.items():
        mine = [batch for batch in batches if batch[0][-1] == task]
        assert mine == [[(*item, task) for item in batch] for batch in child]


def test_a_chain_continues_from_its_state() -> None:
    whole = list(chain("interleave"))
    sampler = chain("interleave")
    for done, _ in enumerate(sampler, 1):
        if done == 5:
            break
    fresh = chain("interleave")
    fresh.load_state_dict(sampler.state_dict())
    assert list(fresh) == whole[5:]


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([], "must list at least one task"),
        ([{"task_name": "a"}], "a task without sampler_config"),
        ([{"sampler_config": {"name": "batch_sampler"}}], "a task without task_name"),
        ([{"task_name": "c", "sampler_config": {"name": "x"}}], "no entry for task 'c'"),
        (
            [
                {
                    "task_name": "a",
                    "train_batch_size0": 1,
                    "sampler_config": {"name": "batch_sampler"},
                }
            ]
            * 2,
            "two tasks named 'a'",
        ),
    ],
)
def test_a_chain_that_cannot_be_is_refused(tasks: list[Any], sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        cvnets.ChainSampler({"sampler.chain_sampler": tasks}, {"a": 5}, True, device_count=1)


def test_a_chain_has_no_indices_of_its_own() -> None:
    with pytest.raises(NotImplementedError, match=r"make a new chain"):
        chain("sequential").update_indices([1])
