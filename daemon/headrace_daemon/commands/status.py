"""``headrace status``: what a running daemon does, and whom it waits for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from headrace.client import Channel, default_socket
from headrace.protocol import messages as m

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--socket", default=default_socket(), help="the daemon's socket (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Ask a daemon and print its answer."""
    with Channel.connect(options.socket) as channel:
        answer = channel.request(m.Status())
    assert isinstance(answer, m.Report)
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    if options.json:
        console.out(json.dumps(answer.report, indent=2))
    else:
        _show(console, answer.report)
    return 0


def _show(console: Console, report: dict[str, Any]) -> None:
    memory = report["memory"]
    console.print(
        f"headrace {report['version']} (protocol {report['protocol']}), pid {report['pid']}, up "
        f"{_duration(report['uptime_s'])}, {report['connections'] - 1} other connection(s)",
    )
    console.print(
        f"memory   {decimal(memory['held_bytes'])} held, "
        f"{decimal(memory['guaranteed_bytes'])} promised, "
        f"{decimal(memory['budget_bytes'])} budget",
    )
    _show_stage(console, report["stage"])
    _show_store(console, report["store"])
    default = report["default_stream"]
    names = [f"{name} (default)" if name == default else name for name in report["streams"]]
    console.print(f"streams  {', '.join(names) or 'none configured'}")
    if not report["feeds"]:
        console.print("feeds    none")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in (
        "feed",
        "rank",
        "epoch",
        "step",
        "ready",
        "slots",
        "batches",
        "sent",
        "waits for",
    ):
        is_text = title in ("feed", "waits for")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=not is_text)
    for feed in report["feeds"]:
        table.add_row(
            feed["stream"] or feed["source"],
            f"{feed['rank']}/{feed['world_size']}",
            str(feed["epoch"]),
            str(feed["step"]),
            str(feed["ready"]),
            f"{feed['slots']} × {decimal(feed['slot_bytes'])}",
            str(feed["batches"]),
            decimal(feed["bytes"]),
            _verdict(feed),
        )
    console.print(table)


def _show_stage(console: Console, stage: dict[str, Any]) -> None:
    if not stage["pieces"]:
        return
    again = f", {decimal(stage['again_bytes'])} again" if stage["again_bytes"] else ""
    console.print(
        f"stage    {decimal(stage['held_bytes'])} held; {decimal(stage['bytes'])} read in "
        f"{stage['pieces']} pieces{again}, {stage['hits']} values taken from there",
    )


def _show_store(console: Console, store: dict[str, Any]) -> None:
    if store["map_version"] is None:
        where = ", ".join(store["endpoints"])
        told = "has not answered yet" if store["trouble"] else "not asked for anything yet"
        console.print(f"store    {f'{where}, {told}' if where else 'none configured'}")
        _show_trouble(console, store)
        return
    console.print(
        f"store    {store['proxy']}, cluster {store['uuid']}, map version {store['map_version']}",
    )
    console.print(
        f"         {store['num_targets']} targets, reads {store['way']}, "
        f"{store['retries']} retries",
    )
    console.print(
        f"         {store['lean_reads']} reads by the lean reader, {store['aiohttp_reads']} by "
        f"aiohttp ([store] reader = {store['reader']!r})",
    )
    _show_trouble(console, store)
    for node in store["missing"]:
        console.print(f"         missing: {node}", style="red")
    for breaker in store["breakers"]:
        console.print(
            f"         not asked: {breaker['target']}, since {_duration(breaker['since_s'])}, but "
            f"for probes: it failed {breaker['faults']} times in a row, the last time it "
            f"{breaker['reason']}; {breaker['waiting']} reads wait",
            style="red",
        )
    if store["trips"]:
        console.print(
            f"         targets were not asked for a while {store['trips']} times, and "
            f"{store['turned_away']} reads turned away by that"
        )
    for name, reads in sorted(store["targets"].items()):
        mean = f", mean {reads['mean_ms']:.1f} ms" if reads["reads"] else ""
        ranges = f", {reads['ranges']} ranges of objects" if reads["ranges"] else ""
        console.print(
            f"         {name}: {reads['reads'] - reads['ranges']} objects{ranges}, "
            f"{decimal(reads['bytes'])}{mean}, "
            f"{reads['faults']} faults",
        )
    if store["last_fault"]:
        console.print(f"         last fault: {store['last_fault']}")


def _show_trouble(console: Console, store: dict[str, Any]) -> None:
    if store["trouble"]:
        console.print(f"         does not answer: {store['trouble']}", style="red")


def _verdict(feed: dict[str, Any]) -> str:
    """Say which side a feed has mostly waited for."""
    if feed["is_parked"]:
        return "its client, which lost its connection"
    waits = {
        "the trainer": feed["waited_for_credit_s"],
        "the source": feed["waited_for_bytes_s"],
        "the socket": feed["sending_s"],
    }
    name, seconds = max(waits.items(), key=lambda item: item[1])
    total = sum(waits.values())
    return f"{name} ({seconds / total:.0%})" if total > 0 else "nobody yet"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
