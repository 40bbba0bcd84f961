"""``headrace plan``: what a rank gets at which step, computed as the daemon computes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from headrace.errors import PlanError
from headrace.plans import Seek
from headrace.plans.engine import (
    BoundPlan,
    Flag,
    PlannedBatch,
    epoch_steps,
    next_batch,
    seek,
)
from headrace.sources import Objects, Stream
from headrace.topology import Topology

from ..errors import SettingsError
from ..settings import Settings, load
from .sources import add_source_arguments, configured_stream, current_manifest

if TYPE_CHECKING:
    import argparse

    from headrace.manifest import Manifest

_SHOWN_IDS = 8
_DEFAULT_STEPS = 10
_PLAN_OPTIONS = ("plan", "batch_size", "global_batch_size", "seed", "tail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    what = parser.add_argument_group("what is read")
    add_source_arguments(what, config="configuration file (TOML)")
    how = parser.add_argument_group("the plan, with a SOURCE")
    how.add_argument("--plan", choices=("Shuffled", "Sequential"), help="default Shuffled")
    how.add_argument("--batch-size", type=int, help="samples per step of each rank")
    how.add_argument("--global-batch-size", type=int, help="samples per step of all ranks")
    how.add_argument("--seed", type=int, help="seed of Shuffled")
    how.add_argument("--tail", choices=("short", "drop", "wrap"), help="default short")
    where = parser.add_argument_group("which part of it")
    where.add_argument("--rank", type=int, default=0, help="whose batches; default %(default)s")
    where.add_argument(
        "--world-size", type=int, default=1, help="number of ranks; default %(default)s"
    )
    where.add_argument("--epoch", type=int, default=0, help="counted from 0; default %(default)s")
    where.add_argument(
        "--steps",
        default=f"0:{_DEFAULT_STEPS}",
        help="step, or range FIRST:LAST (LAST excluded; may reach into later epochs); default "
        "%(default)s",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with all sample ids")


def run(options: argparse.Namespace) -> int:
    """Print a range of steps."""
    stream, manifest = _stream(options)
    topology = Topology(options.rank, options.world_size)
    bound = BoundPlan(stream.served_plan, len(manifest), manifest.digest)
    steps = epoch_steps(bound, topology.world_size)
    if options.epoch < 0:
        raise SettingsError(f"--epoch {options.epoch}: epochs are counted from 0")
    first, last = _range(options.steps)
    cursor = seek(bound, Seek(update=options.epoch * steps + first), topology.world_size)
    batches = []
    for _ in range(last - first):
        batch, cursor = next_batch(bound, cursor, topology)
        batches.append(batch)
    facts = {
        "plan": msgspec.to_builtins(stream.plan),
        "plan_digest": bound.digest,
        "manifest": manifest.digest,
        "samples": len(manifest),
        "total_bytes": manifest.total_bytes,
        "rank": topology.rank,
        "world_size": topology.world_size,
        "steps_per_epoch": steps,
    }
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if options.json:
        rows = [_row(batch, manifest) for batch in batches]
        console.out(json.dumps({**facts, "steps": rows}, indent=2))
    else:
        _show(console, stream, facts, batches, manifest)
    return 0


def _stream(options: argparse.Namespace) -> tuple[Stream, Manifest]:
    if options.config is not None:
        if options.source is not None:
            raise SettingsError("give a SOURCE or --config, not both")
        for name in ("suffix", *_PLAN_OPTIONS):
            if getattr(options, name) not in (None, []):
                raise SettingsError(
                    f"--{name.replace('_', '-')} belongs to a SOURCE: with --config the source "
                    "and the plan are those of the stream"
                )
        settings = load(options.config)
        stream = configured_stream(settings, options.stream)[1]
    elif options.source is None:
        raise SettingsError("give a SOURCE, or --config with a stream")
    elif options.stream is not None:
        raise SettingsError("--stream is a name in a configuration: give that with --config")
    else:
        settings = Settings()
        given = {name: getattr(options, name) for name in _PLAN_OPTIONS}
        plan = {name: value for name, value in given.items() if value is not None}
        plan["type"] = plan.pop("plan", "Shuffled")
        if "batch_size" not in plan and "global_batch_size" not in plan:
            plan["batch_size"] = 32
        if "seed" in plan and plan["type"] != "Shuffled":
            raise SettingsError(f"--seed belongs to --plan Shuffled, not to {plan['type']}")
        source = msgspec.to_builtins(Objects(options.source, suffix=tuple(options.suffix)))
        try:
            stream = msgspec.convert({"source": source, "plan": plan}, Stream)
        except msgspec.ValidationError as error:
            raise PlanError(str(error.__cause__ or error)) from None
    return stream, current_manifest(settings, stream.source)


def _range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        begin = int(first or 0)
        end = int(last) if colon and last else begin + (_DEFAULT_STEPS if colon else 1)
    except ValueError:
        raise SettingsError(f"--steps {text!r}: write a step such as 7, or a range 0:10") from None
    if not 0 <= begin <= end:
        raise SettingsError(
            f"--steps {text!r}: the range must begin at 0 or later and not end before"
        )
    return begin, end


def _row(batch: PlannedBatch, manifest: Manifest) -> dict[str, Any]:
    return {
        "epoch": batch.epoch,
        "step": batch.step,
        "global_step": batch.global_step,
        "ids": batch.indices.tolist(),
        "names": manifest.names_of(batch.indices),
        "padding": [bool(flag & Flag.PADDING) for flag in batch.flags.tolist()],
        "bytes": int(manifest.sizes[batch.indices].sum()),
        "cursor": batch.after.to_state(),
    }


def _show(
    console: Console,
    stream: Stream,
    facts: dict[str, Any],
    batches: list[PlannedBatch],
    manifest: Manifest,
) -> None:
    console.print(f"source {stream.source.location}")
    console.print(f"plan   {stream.plan!r}")
    console.print(
        f"data   {facts['samples']} samples, {decimal(facts['total_bytes'])}, manifest "
        f"{manifest.digest[:12]}…"
    )
    console.print(
        f"epoch  {facts['steps_per_epoch']} steps; rank {facts['rank']} of {facts['world_size']}\n"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("epoch", "step", "samples", "bytes"):
        table.add_column(title, justify="right")
    table.add_column("sample ids (+ marks fillers)")
    for batch in batches:
        ids = [
            f"+{index}" if flag & Flag.PADDING else str(index)
            for index, flag in zip(batch.indices.tolist(), batch.flags.tolist(), strict=True)
        ]
        shown = " ".join(ids[:_SHOWN_IDS]) + (" …" if len(ids) > _SHOWN_IDS else "")
        size = decimal(int(manifest.sizes[batch.indices].sum()))
        table.add_row(str(batch.epoch), str(batch.step), str(len(ids)), size, shown)
    console.print(table)
