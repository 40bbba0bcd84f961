"""The summary of a range of steps: counted facts, and lines that say them to people.

Where a range is too long to look at each step, runs of steps spread over it are counted.  What is
known without looking (steps, samples, fillers) stays exact, and the summary says which is which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.filesize import decimal

from headrace.errors import PlanError
from headrace.plans import ByteBudget
from headrace.plans.program import EpochProgram, Place

from .places import forward
from .subject import streams_of
from .tally import Tally
from .walk import RUN_STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.plans.base import Ordered
    from headrace.plans.engine import BoundPlan, PlannedBatch

    from .subject import Subject
    from .walk import Extent

_BAR: Final = 32
_SHOWN_SCALES: Final = 24


class Summary:
    """Counts batches, of each stream and of all.

    Args:
        subject: What is planned.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._plans = streams_of(subject.plan)
        single = self._plans.get("")
        self._whole = Tally(subject, single if isinstance(single, ByteBudget) else None)
        self._streams: dict[str, Tally] = {}
        for name, plan in self._plans.items():
            if name:
                budget = plan if isinstance(plan, ByteBudget) else None
                self._streams[name] = Tally(subject, budget)

    def add(self, batches: list[PlannedBatch]) -> None:
        """Count some batches."""
        self._whole.add(batches)
        for name, tally in self._streams.items():
            tally.add([batch for batch in batches if batch.stream == name])

    def facts(
        self, bound: BoundPlan, within: Extent, num_ranks: int, world_size: int
    ) -> dict[str, Any]:
        """Return all of it as plain data.

        Args:
            bound: What is planned.
            within: The range that was looked at.
            num_ranks: How many ranks were looked at.
            world_size: How many there are.
        """
        samples, fillers = _exact(bound, within, world_size)
        if within.is_whole and num_ranks == world_size:
            samples, fillers = self._whole.num_samples, self._whole.num_fillers
        return {
            "first": {
                "epoch": within.first.epoch,
                "step": within.first.step,
                "global_step": within.first.update,
            },
            "steps": within.num_steps,
            "samples": samples,
            "fillers": fillers,
            "counted_steps": within.num_counted,
            "counted_ranks": num_ranks,
            "counted": self._whole.facts(),
            "streams": {name: tally.facts() for name, tally in self._streams.items()},
        }


def _exact(bound: BoundPlan, within: Extent, world_size: int) -> tuple[int | None, int | None]:
    """Return the samples and fillers of all ranks in a range as far as arithmetic gives them."""
    program, first = bound.program, within.first
    plans = streams_of(bound.plan).values()
    if not isinstance(program, EpochProgram) or any(map(_has_copies, plans)):
        return None, None
    samples = forward(bound, first, world_size, within.num_steps).sample - first.sample
    place = Place(first.epoch, first.step, first.position, first.update, first.sample, first.child)
    if within.num_steps > program.remaining(place, world_size):
        return samples, None
    try:
        entries = program.rank_samples(place, world_size, within.num_steps) * world_size
    except PlanError:  # ranks differ
        return samples, None
    return samples, entries - samples


def _has_copies(plan: Ordered) -> bool:
    """Return whether a cursor of the plan counts more or less than the samples of all ranks."""
    return plan.pad_to > 1 or plan.node_blocks > 1 or plan.replicated


# ---- for people ----------------------------------------------------------------------------------


def lines(facts: Mapping[str, Any], world_size: int) -> Iterator[str]:
    """Yield the lines of a summary.

    Args:
        facts: What `Summary.facts` returned.
        world_size: Number of ranks.
    """
    steps, counted = facts["steps"], facts["counted_steps"]
    first = facts["first"]
    yield f"steps     {steps:,} from step {first['step']} of epoch {first['epoch']} on"
    if counted < steps:
        exact = ["steps", *(name for name in ("samples", "fillers") if facts[name] is not None)]
        yield (
            f"          exact: {', '.join(exact)}; the rest is counted in {counted:,} steps, "
            f"evenly spread runs of {RUN_STEPS} (--whole counts all)"
        )
    ranks = facts["counted_ranks"]
    if ranks < world_size:
        yield f"          batches of {ranks} of {world_size} ranks"
    samples, fillers = facts["samples"], facts["fillers"]
    if samples is not None:
        told = "" if fillers is None else f", {fillers:,} filler{'s' * (fillers != 1)}"
        yield f"samples   {samples:,} on all ranks{told}"
    size = facts["counted"]["bytes"]
    if size is not None and (counted < steps or ranks < world_size):
        about = size * (steps / counted) * (world_size / ranks)
        yield f"bytes     about {decimal(int(about))} on all ranks"
    streams = facts["streams"] or {"": facts["counted"]}
    for name, found in streams.items():
        if name:
            yield ""
            yield f"stream {name}"
        yield from _stream(found, "counted" if counted < steps else "batches")


def _stream(facts: Mapping[str, Any], label: str) -> Iterator[str]:
    told = f"{facts['samples']:,} samples, {facts['fillers']:,} fillers"
    size = facts["bytes"]
    number = f"{facts['batches']:,} batches"
    yield f"{label}   {number}: {told}" + ("" if size is None else f", {decimal(size)}")
    if not facts["batches"]:
        return
    yield f"a batch   {_spread(facts['batch_sizes'], _samples)}"
    if facts["batch_bytes"] is not None:
        yield f"          {_spread(facts['batch_bytes'], _size)}"
    budget = facts["budget"]
    if budget is not None and budget["fill"] is not None:
        limit = budget["limit"]
        shown = _size(limit) if budget["column"] == "sizes" else f"{limit:g} {budget['column']}"
        yield f"budget    {shown}; {budget['batches']:,} batches, {budget['oversized']:,} oversized"
        yield f"fill      {_spread(budget['fill'], '{:.1%}'.format)}"
    if facts["scales"]:
        yield "scales"
        yield from _bars([(_scale(scale), scale["count"]) for scale in facts["scales"]])
        if facts["has_more_scales"]:
            yield "  … and more, which are not counted"
    bins = facts["batch_sizes"]["bins"]
    if len(bins) > 1:
        yield "samples of a batch"
        yield from _bars([(_bin(found, "{:,}".format), found["count"]) for found in bins])
    if facts["sample_bytes"] is not None:
        yield f"bytes of a sample   {_spread(facts['sample_bytes'], _size)}"
        yield from _bars(
            [(_bin(found, _size), found["count"]) for found in facts["sample_bytes"]["bins"]]
        )


def _spread(facts: Mapping[str, Any], show: Any) -> str:  # noqa: ANN401 - any format
    shown = {name: show(facts[name]) for name in ("min", "median", "mean", "max")}
    if shown["min"] == shown["max"]:
        return str(shown["min"])
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _samples(value: float) -> str:
    return f"{value:,.{0 if value == int(value) else 1}f} samples"


def _size(value: float) -> str:
    return decimal(int(value))


def _scale(facts: Mapping[str, int]) -> str:
    clips = f", {facts['frames']} frames × {facts['clips']} clips" if "frames" in facts else ""
    return f"{facts['height']} × {facts['width']}{clips}, {facts['batch_size']} samples"


def _bin(facts: Mapping[str, Any], show: Any) -> str:  # noqa: ANN401 - any format
    low, high = facts["from"], facts["to"]
    if high is not None and high - low <= 1:
        return str(show(low))
    return f"{show(low)} and more" if high is None else f"{show(low)} to {show(high)}"


def _bars(counts: list[tuple[str, int]]) -> Iterator[str]:
    """Yield a line for each count, with a bar whose length is relative to the largest."""
    if len(counts) > _SHOWN_SCALES:
        rest = sum(count for _, count in counts[_SHOWN_SCALES:])
        counts = [*counts[:_SHOWN_SCALES], (f"{len(counts) - _SHOWN_SCALES} more", rest)]
    most = max(count for _, count in counts)
    width = max(len(label) for label, _ in counts)
    digits = max(len(f"{count:,}") for _, count in counts)
    for label, count in counts:
        bar = "█" * -(-count * _BAR // most)
        yield f"  {label:>{width}}  {count:>{digits},}  {bar}".rstrip()
