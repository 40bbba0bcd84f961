"""Cases of cvnets: batches with sizes, tables of sizes, and chains."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from headrace.compat import cvnets

from .verdicts import Result, deviates, reproduced, undocumented

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cases import Case

SAMPLERS: Final = {
    "BatchSampler": "batch_sampler",
    "BatchSamplerDDP": "batch_sampler_ddp",
    "MultiScaleSampler": "multi_scale_sampler",
    "MultiScaleSamplerDDP": "multi_scale_sampler_ddp",
    "VariableBatchSampler": "variable_batch_sampler",
    "VariableBatchSamplerDDP": "variable_batch_sampler_ddp",
    "VideoBatchSampler": "video_batch_sampler",
    "VideoBatchSamplerDDP": "video_batch_sampler_ddp",
    "VideoVariableSeqSampler": "video_variable_seq_sampler",
    "VideoVariableSeqSamplerDDP": "video_variable_seq_sampler_ddp",
}
TABLES: Final[dict[str, tuple[Any, str]]] = {
    "image_batch_pairs": (cvnets.image_batch_pairs, "head"),
    "image_batch_pairs_v0.3": (cvnets.image_batch_pairs, "v0.3"),
    "make_video_pairs": (cvnets.make_video_pairs, "head"),
    "make_video_pairs_v0.3": (cvnets.make_video_pairs, "v0.3"),
}
KINDS: Final = (*SAMPLERS, *TABLES, "make_divisible", "ChainSampler")
_KEYS: Final = ("h", "w", "ids", "frames", "clips")


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.kind == "ChainSampler":
        if case.match == "deviate":
            if case.config["mode"] != "interleave":
                return undocumented(case)
            return deviates(case, lambda case: _chain(case)["batches"], _in_turn(case))
        return reproduced(case, _chain)
    if case.match == "deviate":
        grows_in_evaluation = (
            case.kind.startswith("VariableBatchSampler")
            and not case.config["is_training"]
            and case.config["vbs.scale_inc"]
        )
        if not grows_in_evaluation:
            return undocumented(case)
        return deviates(case, lambda case: _run(case)["batches"], _evaluation(case))
    if case.kind in SAMPLERS:
        return reproduced(case, _run)
    return reproduced(case, _divisible if case.kind == "make_divisible" else _table)


def _run(case: Case) -> dict[str, Any]:
    sampler = cvnets.create_sampler(
        SAMPLERS[case.kind],
        _options(case.config),
        case.inputs["n"],
        case.config["is_training"],
        num_replicas=case.config.get("world_size"),
        rank=case.inputs.get("rank"),
        device_count=case.config["device_count"],
    )
    # The recorded loops call both once for each epoch from 0 upwards; a refusal has no epoch.
    for epoch in range(case.inputs.get("epoch", 0) + 1):
        sampler.set_epoch(epoch)
        sampler.update_scales(epoch)
    length = len(sampler)
    batches = [_batch(batch) for batch in sampler]
    if length != len(batches):
        raise AssertionError(f"len is {length}, but there are {len(batches)} batches")
    facts: dict[str, Any] = {"batches": batches}
    if "scales" in case.record:
        facts["scales"] = [list(row) for row in sampler.img_batch_tuples]
    return facts


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "train_batch_size0": "dataset.train_batch_size0",
        "val_batch_size0": "dataset.val_batch_size0",
    }
    return {names.get(name, f"sampler.{name}"): value for name, value in config.items()}


def _batch(batch: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Return a batch as it is recorded; all of its samples have one size."""
    columns = dict(zip(_KEYS, map(list, zip(*batch, strict=True)), strict=False))
    same = {name: set(column) for name, column in columns.items() if name != "ids"}
    if any(len(values) > 1 for values in same.values()):
        raise AssertionError(f"the samples of a batch differ: {same}")
    return {"ids": columns["ids"]} | {name: values.pop() for name, values in same.items()}


def _evaluation(case: Case) -> list[dict[str, Any]]:
    """Return what evaluation owes: the base size alone, in order, filled up from the start."""
    config, n = case.config, case.inputs["n"]
    ranks = config.get("world_size", 1)
    multiple = config["world_size"] if "world_size" in config else config["device_count"]
    padded = [*range(n), *range(-n % multiple)]
    mine = padded[case.inputs.get("rank", 0) :: ranks]
    size = config["val_batch_size0"]
    batches = [mine[first : first + size] for first in range(0, len(mine), size)]
    if batches:
        batches[-1] += mine[: size - len(batches[-1])]
    base = {"h": config["vbs.crop_size_height"], "w": config["vbs.crop_size_width"]}
    return [{**base, "ids": batch} for batch in batches]


def _chain(case: Case) -> dict[str, Any]:
    sampler = cvnets.create_sampler(
        "chain_sampler",
        {
            "sampler.chain_sampler": case.config["chain"],
            "sampler.chain_sampler_mode": case.config["mode"],
        },
        case.inputs["n"],
        is_training=case.config.get("is_training", True),
        device_count=case.config.get("device_count", 1),
    )
    sampler.set_epoch(case.inputs["epoch"])
    sampler.update_scales(case.inputs["epoch"])
    batches = [{**_batch([item[:-1] for item in batch]), "task": batch[0][-1]} for batch in sampler]
    return {"batches": batches}


def _in_turn(case: Case) -> list[dict[str, Any]]:
    """Return what a chain owes: a batch of each task in turn, as if each were alone."""
    alone = []
    for task in case.config["chain"]:
        sampler = cvnets.create_sampler(
            task["sampler_config"]["name"],
            {
                "sampler": task["sampler_config"],
                "dataset.train_batch_size0": task.get("train_batch_size0"),
                "dataset.val_batch_size0": task.get("val_batch_size0"),
            },
            case.inputs["n"][task["task_name"]],
            is_training=case.config.get("is_training", True),
            device_count=case.config.get("device_count", 1),
        )
        sampler.set_epoch(case.inputs["epoch"])
        alone.append([{**_batch(batch), "task": task["task_name"]} for batch in sampler])
    rounds = zip_longest(*alone)
    return [batch for one in rounds for batch in one if batch is not None]


def _table(case: Case) -> dict[str, Any]:
    make, pairing = TABLES[case.kind]
    options = dict(case.config)
    if "batch_size" in options:
        options["batch_size_gpu0"] = options.pop("batch_size")
    return {"pairs": [list(row) for row in make(**options, pairing=pairing)]}


def _divisible(case: Case) -> dict[str, Any]:
    return {"value": cvnets.make_divisible(case.inputs["value"], case.config["divisor"])}
