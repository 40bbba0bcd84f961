"""Cases of WebDataset: names of members, and the samples that they form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.members import group_members, split_name

from .verdicts import Result, reproduced, undocumented

if TYPE_CHECKING:
    from .cases import Case

KINDS: Final = ("base_plus_ext", "group_by_keys")


def check(case: Case) -> Result:
    """Return the verdict on a case."""
    if case.match == "deviate":
        return undocumented(case)
    return reproduced(case, _name if case.kind == "base_plus_ext" else _samples)


def _name(case: Case) -> dict[str, Any]:
    split = split_name(case.inputs["name"], lowercase=False)
    return {"value": [None, None] if split is None else list(split)}


def _samples(case: Case) -> dict[str, Any]:
    names = case.inputs["members"]
    samples = group_members(names, lowercase=case.config.get("lcase", True))
    return {
        "samples": [
            [sample.key, {field: f"<{names[at]}>" for field, at in sample.members.items()}]
            for sample in samples
        ]
    }
