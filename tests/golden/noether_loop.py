"""The interleaved run once more, as a plain loop over samples: the oracle of deviating cases.

It follows the description of the loop with the defects of the original put right, shares no code
with the product, and takes orders from torch itself.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .cases import Case

Batch = dict[str, Any]


def owed(case: Case) -> list[Batch]:
    """Return the rest of the uninterrupted run from where a case starts."""
    batches, edges = uninterrupted(case)
    config = case.config
    starts = {name: config.get(f"start_{name}") for name in ("epoch", "update", "sample")}
    starts = {name: value for name, value in starts.items() if value is not None}
    skipped = case.inputs["main"].get("start_iter", 0)
    if skipped:
        starts = {"sample": skipped * case.inputs["main"]["batch_size"]}
    if not starts:
        return batches
    ((unit, value),) = starts.items()
    if value == 0:
        return batches
    for edge in edges:
        if edge[unit] == value and (unit != "epoch" or edge["is_epoch"]):
            return batches[edge["batches"] :]
    return []  # at or past the limits


def uninterrupted(case: Case) -> tuple[list[Batch], list[dict[str, Any]]]:
    """Return the batches of a whole run, and what had been counted after each update."""
    config, inputs = case.config, case.inputs
    main = _Orders(inputs["main"])
    extras = [_Orders(extra["sampler"]) for extra in inputs["extras"]]
    offsets = list(
        accumulate([inputs["main"]["n"], *(e["sampler"]["n"] for e in inputs["extras"])])
    )
    size, samples_per_epoch = config["batch_size"], main.length
    if config.get("drop_last", True) and main.length:
        size = min(size, main.length)
        samples_per_epoch = main.length // size * size
    limits = [config.get(f"max_{name}") for name in ("epochs", "updates", "samples")]
    batches: list[Batch] = []
    edges: list[dict[str, Any]] = []

    def run_extra(number: int) -> None:
        indices = extras[number].draw()
        extra_size = inputs["extras"][number].get("batch_size") or size
        for first in range(0, len(indices), extra_size):
            ids = [offsets[number] + index for index in indices[first : first + extra_size]]
            batches.append({"ds": number + 1, "ids": ids})

    if config.get("evaluation") or 0 in limits:
        for number in range(len(extras)):
            run_extra(number)
        return batches, edges
    if not samples_per_epoch:
        return batches, edges
    epoch = update = sample = last = 0
    while True:
        order = main.draw(epoch)[:samples_per_epoch]
        for first in range(0, samples_per_epoch, size):
            batch = order[first : first + size]
            batches.append({"ds": 0, "ids": batch})
            sample, update = sample + len(batch), update + 1
            has_ended = first + len(batch) == samples_per_epoch
            epoch += has_ended
            for number, extra in enumerate(inputs["extras"]):
                if _is_due(extra, epoch, update, sample, last, has_ended=has_ended):
                    run_extra(number)
            last = sample
            edges.append(
                {
                    "epoch": epoch,
                    "is_epoch": has_ended,
                    "update": update,
                    "sample": sample,
                    "batches": len(batches),
                }
            )
            reached = zip((epoch, update, sample), limits, strict=True)
            if any(limit is not None and count >= limit for count, limit in reached):
                return batches, edges


def dataset_of(inputs: Mapping[str, Any], batch: list[int]) -> int:
    """Return which dataset the indices of a batch are from.

    Raises:
        AssertionError: If they are from several.
    """
    lengths = [inputs["main"]["n"], *(extra["sampler"]["n"] for extra in inputs["extras"])]
    ends = list(accumulate(lengths))
    found = {bisect_right(ends, index) for index in batch}
    if len(found) != 1:
        raise AssertionError(f"a batch mixes the datasets {sorted(found)}")
    return found.pop()


def _is_due(
    extra: Mapping[str, Any], epoch: int, update: int, sample: int, last: int, *, has_ended: bool
) -> bool:
    if extra.get("every_n_epochs") is not None:
        return has_ended and epoch % extra["every_n_epochs"] == 0
    if extra.get("every_n_updates") is not None:
        return bool(update % extra["every_n_updates"] == 0)
    every = extra["every_n_samples"]
    return bool(sample % every == 0 or last // every < sample // every)


class _Orders:
    """What a sampler yields, pass by pass."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        kind, n = facts["type"], facts["n"]
        self._set_epoch: Callable[[int], object] = lambda epoch: None
        self.length = n
        self._pass: Callable[[], list[int]]
        if kind == "distributed":
            options = {name: value for name, value in facts.items() if name not in ("type", "n")}
            data: Any = range(n)
            sampler: DistributedSampler[int] = DistributedSampler(data, **options)
            self._set_epoch = sampler.set_epoch
            self.length = len(sampler)
            self._pass = lambda: list(sampler)
        elif kind == "random":
            generator = torch.Generator()
            generator.manual_seed(facts["seed"])
            drawn = RandomSampler(range(n), generator=generator)
            self._pass = lambda: [index for _, index in zip(range(n), drawn, strict=False)]
        elif kind == "resumable_random":
            resumable = _Resumable(n, facts["seed"])
            self._set_epoch = resumable.set_epoch
            self._pass = resumable.draw
        else:
            self._pass = lambda: list(range(n))

    def draw(self, epoch: int | None = None) -> list[int]:
        if epoch is not None:
            self._set_epoch(epoch)
        return self._pass()


class _Resumable:
    """A permutation of torch, seeded anew for each pass."""

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed, self._epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def draw(self) -> list[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed + self._epoch)
        return [int(one) for one in torch.randperm(self._n, generator=generator)]
