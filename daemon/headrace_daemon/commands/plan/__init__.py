"""``headrace plan``: what a rank gets at which step, computed as the daemon computes it.

The engine is asked for the batches of a range, which is reached by seeking; they are shown as rows,
counted into a summary, or drawn.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.filesize import decimal

from headrace.plans.engine import BoundPlan, epoch_steps, remaining_steps
from headrace.topology import Topology

from ...errors import SettingsError
from ..progress import working
from .arguments import DEFAULT_STEPS, Range, add_arguments, ranks, step_range
from .places import forward, origin
from .rows import Table, row
from .subject import named_subject
from .summary import Summary, lines
from .walk import batches, extent

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from headrace.plans import Cursor
    from headrace.plans.engine import PlannedBatch

    from .subject import Subject
    from .walk import Extent

__all__ = ["add_arguments", "run"]


def run(options: argparse.Namespace) -> int:
    """Print a range of steps, or their summary, or draw them."""
    wants_rows = not options.summary and options.plot is None
    if options.whole and wants_rows:
        raise SettingsError("--whole goes with --summary or --plot: steps are never left out")
    shown = step_range(options.steps) if options.steps is not None else None
    if options.plot is not None:
        from .plot import check_plot

        check_plot(options.plot)
    Topology(0, options.world_size)  # refuses a size that there is not
    chosen = ranks(options.rank or ("all" if options.summary else "0"), options.world_size)
    what = named_subject(options)
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    with working("planning"):
        bound = BoundPlan.to(what.plan, what.data)
        start = origin(bound, options)
        facts = _facts(bound, what, start, chosen, options.world_size)
        if wants_rows:
            shown = shown or Range(0, DEFAULT_STEPS)
        within = _extent(bound, start, shown, chosen, options)
        # The first chunk may have an epoch to prepare.
        chunks = batches(bound, within, chosen, options.world_size)
        first = next(chunks, [])
    if wants_rows:
        _print_rows(console, options, facts, what, _chained(first, chunks), chosen)
        return 0
    more: dict[str, Any] = {}
    summary = Summary(what) if options.summary else None
    adders: list[Callable[[list[PlannedBatch]], None]] = [summary.add] if summary else []
    if options.plot is not None:
        from .plot import Points

        points = Points(what)
        adders.append(points.add)
    with working("counting") as line:
        done = 0
        for steps in _chained(first, chunks):
            for add in adders:
                add([batch for step in steps for batch in step])
            done += len(steps)
            far = f"{done:,} of {within.num_counted:,} steps"
            line.show(far, done=done, total=within.num_counted)
        if summary is not None:
            found = summary.facts(bound, within, len(chosen), options.world_size)
            more["summary"] = found
        if options.plot is not None:
            points.draw(options.plot, _about(within, chosen, options.world_size))
            more["plot"] = {
                "file": str(options.plot),
                "steps": within.num_steps,
                "drawn": len(points.points),
            }
    _print_findings(console, options, facts, what, more)
    return 0


def _extent(
    bound: BoundPlan,
    start: Cursor,
    shown: Range | None,
    chosen: list[int],
    options: argparse.Namespace,
) -> Extent:
    """Return the steps that are looked at; without a range those that are left of the epoch."""
    first = forward(bound, start, options.world_size, shown.first if shown else 0)
    num_steps = (
        shown.last - shown.first if shown else remaining_steps(bound, start, options.world_size)
    )
    if bound.program.ends:
        left = remaining_steps(bound, first, options.world_size)
        if not left and num_steps:
            total = epoch_steps(bound, options.world_size)
            raise SettingsError(
                f"--steps {options.steps or ''}: the run ends before: it has {total} steps, extras "
                "included"
            )
        num_steps = min(num_steps, left)
    is_counted = options.summary or options.plot is not None
    return extent(
        bound, first, num_steps, chosen, options.world_size, whole=options.whole or not is_counted
    )


def _facts(
    bound: BoundPlan, what: Subject, start: Cursor, chosen: list[int], world_size: int
) -> dict[str, Any]:
    """Return what is known before any step."""
    sizes = what.data.columns.get("sizes")
    epoch = 0 if bound.program.ends else start.epoch
    return {
        "plan": msgspec.to_builtins(what.plan),
        "plan_digest": bound.digest,
        "manifest": bound.manifest,
        "samples": what.data.length,
        "total_bytes": None if sizes is None else int(sizes.sum()),
        "parts": {
            name: {
                "source": None if name not in what.sources else what.sources[name].location,
                "manifest": part.digest,
                "samples": part.length,
            }
            for name, part in what.data.parts.items()
        },
        "rank": chosen[0] if len(chosen) == 1 else None,
        "ranks": chosen,
        "world_size": world_size,
        "epoch": epoch,
        "steps_per_epoch": epoch_steps(bound, world_size, epoch),
    }


# ---- printing ------------------------------------------------------------------------------------


def _print_rows(
    console: Console,
    options: argparse.Namespace,
    facts: dict[str, Any],
    what: Subject,
    chunks: Iterator[list[list[PlannedBatch]]],
    chosen: list[int],
) -> None:
    flat = ([batch for step in steps for batch in step] for steps in chunks)
    if not options.json:
        _print_head(console, facts, what)
        table = Table(what, has_ranks=len(chosen) > 1)
        for found in flat:
            console.out("\n".join(table.lines(found)))
        return
    console.out(
        "{\n" + "".join(f"  {line},\n" for line in _members(facts)) + '  "steps": [', end=""
    )
    separator = "\n"
    for found in flat:
        rows = ",\n".join(f"    {json.dumps(row(batch, what))}" for batch in found)
        console.out(f"{separator}{rows}", end="")
        separator = ",\n"
    console.out("\n  ]\n}")


def _print_findings(
    console: Console,
    options: argparse.Namespace,
    facts: dict[str, Any],
    what: Subject,
    more: dict[str, Any],
) -> None:
    if options.json:
        console.out("{\n  " + ",\n  ".join(_members({**facts, **more})) + "\n}")
        return
    _print_head(console, facts, what)
    if "summary" in more:
        console.out("\n".join(lines(more["summary"], options.world_size)))
    if "plot" in more:
        console.out(f"plot      {more['plot']['file']}: {more['plot']['drawn']:,} batches")


def _print_head(console: Console, facts: dict[str, Any], what: Subject) -> None:
    for name, source in what.sources.items():
        console.out(f"source {f'of {name}: ' if name else ''}{source.location}")
    console.out(f"plan   {what.plan!r}")
    size = "" if facts["total_bytes"] is None else f", {decimal(facts['total_bytes'])}"
    console.out(f"data   {facts['samples']} samples{size}, manifest {facts['manifest'][:12]}…")
    for name, part in facts["parts"].items():
        console.out(f"       {part['samples']} samples of {name}")
    whose = facts["rank"] if facts["rank"] is not None else f"{len(facts['ranks'])} ranks"
    told = f"rank {whose}" if facts["rank"] is not None else whose
    console.out(f"epoch  {facts['steps_per_epoch']} steps; {told} of {facts['world_size']}\n")


def _members(facts: dict[str, Any]) -> list[str]:
    return [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]


def _about(within: Extent, chosen: list[int], world_size: int) -> str:
    """Return what a picture shows, for its title."""
    first = within.first
    ranks_shown = f"rank {chosen[0]}" if len(chosen) == 1 else f"{len(chosen)} ranks"
    counted = "" if within.is_whole else f", {within.num_counted:,} of them drawn"
    return (
        f"{within.num_steps:,} steps from step {first.step} of epoch {first.epoch} on{counted}; "
        f"{ranks_shown} of {world_size}"
    )


def _chained(
    first: list[list[PlannedBatch]], chunks: Iterator[list[list[PlannedBatch]]]
) -> Iterator[list[list[PlannedBatch]]]:
    if first:
        yield first
    yield from chunks
