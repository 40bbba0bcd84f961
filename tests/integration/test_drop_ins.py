"""The drop-in samplers: a daemon that serves their plan delivers what they yield."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from headrace import DaemonDataset, Objects, Stream
from headrace.compat import cvnets, helios, noether
from headrace.compat.aistore import DynamicBatchSampler
from headrace.errors import PlanError
from headrace.plans import Chain, Interleaved
from tests.support.app import AppThread
from tests.support.files import check, write_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NUM_SAMPLES, NUM_OTHERS = 41, 10
RANK, WORLD_SIZE = 1, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    return (
        write_samples(root / "main", NUM_SAMPLES, max_bytes=30),
        write_samples(root / "other", NUM_OTHERS, max_bytes=30, seed=1),
    )


@pytest.fixture(scope="module")
def app() -> Iterator[AppThread]:
    with AppThread(memory="64MB") as app:
        yield app


def sizes_of(folder: Path) -> list[int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = sorted(path.relative_to(folder).as_posix().encode() for path in files)
    return [(folder / name.decode()).stat().st_size for name in names]


def options(name: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - of an option
    return {"sampler": {"name": name, **more}, "dataset": {"train_batch_size0": 4}}


def of_cvnets(name: str, **more: Any) -> Callable[[list[int]], Any]:  # noqa: ANN401
    ranks = {"num_replicas": WORLD_SIZE, "rank": RANK} if name.endswith("_ddp") else {}

    def make(sizes: list[int]) -> Any:  # noqa: ANN401 - of any class
        return cvnets.create_sampler(
            name, options(name, **more), len(sizes), True, device_count=1, **ranks
        )

    return make


def chain(sizes: list[int]) -> Any:  # noqa: ANN401
    tasks = [
        {"task_name": name, "sampler_config": {"name": "variable_batch_sampler"}} for name in "ab"
    ]
    more = options("chain_sampler", chain_sampler=tasks, chain_sampler_mode="interleave")
    lengths = {"a": NUM_SAMPLES, "b": NUM_OTHERS}
    return cvnets.create_sampler("chain_sampler", more, lengths, True, device_count=1)


def interleaved(sizes: list[int]) -> Any:  # noqa: ANN401
    extra = noether.SamplerIntervalConfig(
        sampler=helios.ResumableDistributedSampler(range(NUM_OTHERS), 2, 1, shuffle=False),
        pipeline=None,
        every_n_updates=2,
        batch_size=3,
    )
    main = helios.ResumableDistributedSampler(range(NUM_SAMPLES), 2, 1, seed=3)
    config = noether.InterleavedSamplerConfig(batch_size=4, max_epochs=2)
    return noether.InterleavedSampler(main, config, callback_samplers=[extra])


DROP_INS: dict[str, Callable[[list[int]], Any]] = {
    "helios-random": lambda sizes: helios.ResumableRandomSampler(range(len(sizes)), 3, 7),
    "helios-sequential": lambda sizes: helios.ResumableSequentialSampler(range(len(sizes))),
    "helios-distributed": lambda sizes: helios.ResumableDistributedSampler(
        range(len(sizes)), WORLD_SIZE, RANK, seed=5, batch_size=4
    ),
    "aistore": lambda sizes: DynamicBatchSampler(sizes, 64.5, shuffle=True, seed=4),
    **{
        f"cvnets-{name}": of_cvnets(name)
        for name in (
            "batch_sampler",
            "batch_sampler_ddp",
            "multi_scale_sampler",
            "multi_scale_sampler_ddp",
            "variable_batch_sampler",
            "variable_batch_sampler_ddp",
            "video_batch_sampler",
            "video_batch_sampler_ddp",
            "video_variable_seq_sampler",
            "video_variable_seq_sampler_ddp",
        )
    },
    "cvnets-chain": chain,
    "noether": interleaved,
}


def test_every_drop_in_has_a_row() -> None:
    classes = {type(make(list(range(1, NUM_SAMPLES + 1)))).__name__ for make in DROP_INS.values()}
    samplers = {
        value.__name__
        for module in (cvnets, helios, noether)
        for value in vars(module).values()
        if isinstance(value, type) and hasattr(value, "planned")
    }
    bases = {"ResumableSampler", "EpochPasses", "PlanPasses", "DistributedSampler"}
    assert samplers - bases == classes - {"DynamicBatchSampler"}


@pytest.mark.parametrize("name", DROP_INS)
def test_the_daemon_delivers_what_a_drop_in_yields(
    app: AppThread, folders: tuple[Path, Path], name: str
) -> None:
    folder, other = folders
    sampler = DROP_INS[name](sizes_of(folder))
    plan, others = sampler.plan, Objects(str(other))
    if isinstance(plan, Interleaved):
        plan = plan.over({"callback_0": others})
    if isinstance(plan, Chain):
        plan = plan.over({"b": others})
    topology = sampler._sampler.topology
    dataset = DaemonDataset(app.socket, Stream(Objects(str(folder)), plan), topology=topology)
    for epoch in range(1 if isinstance(plan, Interleaved) else 2):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        expected = [(b.stream, b.indices.tolist(), dict(b.meta)) for b in sampler.planned()]
        got: list[tuple[str, list[int], dict[str, Any]]] = []
        for batch in dataset:
            check(batch)
            meta = {key: batch.meta[key] for key in expected[len(got)][2]}
            got.append((batch.meta["stream"], batch.indices.tolist(), meta))
        assert got == expected
    dataset.close()


def test_a_source_for_a_part_that_does_not_exist_is_refused() -> None:
    plan = interleaved([]).plan
    with pytest.raises(PlanError, match=r"sources\['val'\].* its parts: callback_0"):
        plan.over({"val": Objects("/data")})
