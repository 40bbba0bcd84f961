"""Cases of noether: a main sampler, and others in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from headrace.compat.helios import ResumableRandomSampler
from headrace.compat.noether import (
    InterleavedSampler,
    InterleavedSamplerConfig,
    SamplerIntervalConfig,
)

from . import noether_loop
from .verdicts import Result, deviates, refused, reproduced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .cases import Case

KINDS: Final = ("InterleavedSampler",)


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.match != "deviate":
        return reproduced(case, _run)
    if case.config["batch_size"] < 1:
        return refused(case, _run)
    # Every other deviation is a start that the original gets wrong, or a run that never ends.
    return deviates(case, lambda case: _run(case)["batches"], noether_loop.owed(case))


def _run(case: Case) -> dict[str, Any]:
    config = InterleavedSamplerConfig(**case.config)
    extras = [
        SamplerIntervalConfig(
            sampler=make_sampler(extra["sampler"]),
            pipeline=None,
            **{name: value for name, value in extra.items() if name != "sampler"},
        )
        for extra in case.inputs["extras"]
    ]
    sampler = InterleavedSampler(
        make_sampler(case.inputs["main"]), config, callback_samplers=extras
    )
    length = len(sampler.batch_sampler)
    batches: list[list[int]] = [[]]
    for is_last, index in sampler:
        batches[-1].append(index)
        if is_last:
            batches.append([])
    if batches.pop():
        raise AssertionError("the last batch is not marked as complete")
    if length != len(batches):
        raise AssertionError(f"len is {length}, but there are {len(batches)} batches")
    facts: dict[str, Any] = {
        "batches": [
            {"ds": noether_loop.dataset_of(case.inputs, batch), "ids": batch} for batch in batches
        ],
    }
    if case.match != "deviate" and case.error is None:
        facts["start"] = [sampler.start_epoch, sampler.start_update, sampler.start_sample]
        facts["samples_per_epoch"] = sampler.samples_per_epoch
        facts["effective_batch_size"] = sampler.batch_size
    return facts


def make_sampler(facts: Mapping[str, Any]) -> object:
    """Return a sampler as a case describes it.

    Raises:
        LookupError: If its type is unknown.
    """
    options = {name: value for name, value in facts.items() if name not in ("type", "n")}
    data = range(facts["n"])
    match facts["type"]:
        case "sequential":
            return SequentialSampler(data)
        case "distributed":
            return DistributedSampler(data, **options)  # type: ignore[arg-type]
        case "random":
            generator = torch.Generator()
            generator.manual_seed(facts["seed"])
            return RandomSampler(data, generator=generator)
        case "resumable_random":
            start_iter = options.pop("start_iter", 0)
            sampler = ResumableRandomSampler(data, **options)
            sampler.start_iter = start_iter
            return sampler
    raise LookupError(f"sampler type {facts['type']!r} is unknown")
