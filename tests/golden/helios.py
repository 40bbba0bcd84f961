"""Cases of helios: indices, in batches as a loader cuts them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from headrace.compat import helios

from .verdicts import Result, refused, reproduced, undocumented

if TYPE_CHECKING:
    from .cases import Case

KINDS: Final = (
    "ResumableRandomSampler",
    "ResumableSequentialSampler",
    "ResumableDistributedSampler",
)
_OF_THE_LOADER: Final = "loader_drop_last"


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.match != "deviate":
        return reproduced(case, run)
    if case.inputs["start_iter"] < 0:
        return refused(case, run)
    return undocumented(case)


def run(case: Case) -> dict[str, Any]:
    """Run a case."""
    options = {name: value for name, value in case.config.items() if name != _OF_THE_LOADER}
    if "rank" in case.inputs:
        options["rank"] = case.inputs["rank"]
    sampler = helios.create_sampler(case.kind, range(case.inputs["n"]), **options)
    sampler.set_epoch(case.inputs["epoch"])
    sampler.start_iter = case.inputs["start_iter"]
    indices = iter(sampler)
    size = case.config["batch_size"]
    batches = list(iter(lambda: list(islice(indices, size)), []))
    if case.config[_OF_THE_LOADER] and batches and len(batches[-1]) < size:
        batches.pop()
    return {"batches": batches, "len": len(sampler)}  # type: ignore[arg-type]
