"""Cases of AIStore's package: the byte budget, and the names of members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from headrace.compat.aistore import DynamicBatchSampler
from headrace.members import aistore_base, aistore_extension

from .verdicts import Result, Verdict, mismatch, refused, reproduced, undocumented

if TYPE_CHECKING:
    from .cases import Case

KINDS: Final = ("DynamicBatchSampler", "member_name")


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.kind == "member_name":
        return reproduced(case, _name)
    if case.match != "deviate":
        return _with_skipped(case)
    budget = case.config["max_batch_size"]
    if budget < 0 or (budget == 0 and case.config["drop_last"]):
        return refused(case, run)
    return undocumented(case)


def run(case: Case) -> dict[str, Any]:
    """Run a case."""
    sizes = case.inputs["sizes"]
    objects = [SimpleNamespace(props_cached=SimpleNamespace(size=size)) for size in sizes]
    listing = SimpleNamespace(get_obj_list=lambda: objects)
    sampler = DynamicBatchSampler(listing, **case.config)
    if "torch_manual_seed" in case.inputs:
        import torch

        torch.manual_seed(case.inputs["torch_manual_seed"])
    for _ in range(case.inputs.get("epoch_after_seed", 0)):
        list(sampler)
    length = len(sampler)
    batches = list(sampler)
    if length != len(batches):
        raise AssertionError(f"len is {length}, but there are {len(batches)} batches")
    return {
        "batches": batches,
        "batch_bytes": [sum(sizes[index] for index in batch) for batch in batches],
    }


def _with_skipped(case: Case) -> Result:
    result = reproduced(case, run)
    if result.verdict is not Verdict.EXACT or case.error is not None:
        return result
    # The batches are those of the record, so what they lack must be what it says.
    delivered = {index for batch in case.record["batches"] for index in batch}
    skipped = {*case.record["skipped_zero"], *case.record["skipped_oversized"]}
    return mismatch("a skipped sample is delivered") if skipped & delivered else result


def _name(case: Case) -> dict[str, Any]:
    name = case.inputs["name"]
    return {"basename": aistore_base(name), "extension": aistore_extension(name)}
