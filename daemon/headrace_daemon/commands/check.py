"""``headrace check``: try a configuration without serving it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Console
from rich.filesize import decimal

from headrace.errors import HeadraceError
from headrace.plans.engine import epoch_steps, settle
from headrace.topology import Topology

from ..assemble.slots import MIN_SLOTS
from ..errors import StoreUnavailableError
from ..feed.bound import BoundPlans
from ..feed.orders import OrderMaker
from ..feed.sizes import largest_payload
from ..settings import Settings, load
from ..source.ais.access import Access
from ..transport.listener import group_id
from .sources import ask_store, list_aside

if TYPE_CHECKING:
    import argparse
    from concurrent.futures import Executor

    from ..source.ais.clustermap import ClusterMap
    from ..source.ais.store import AisStore, Reach

STORE_DEADLINE_S: Final = 15.0
"""How long the store is asked again here at most, seconds: somebody waits at a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="configuration file (TOML)")
    parser.add_argument(
        "--world-size",
        type=int,
        default=1,
        help="number of ranks to compute steps for (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Ask the store how it is, list the source of each stream, print the size of its plan."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    topology = Topology(0, options.world_size)
    given = load(options.config)
    store = msgspec.structs.replace(
        given.store, deadline_s=min(given.store.deadline_s, STORE_DEADLINE_S)
    )
    settings = msgspec.structs.replace(given, store=store)
    daemon = settings.daemon
    # What `serve` would refuse is not called valid.
    Access(store)
    if daemon.group:
        group_id(daemon.group)
    console.print(f"{options.config}: valid")
    console.print(f"socket   {daemon.socket}")
    console.print(f"memory   {decimal(daemon.memory_bytes)}")
    console.print(f"state    {daemon.state_dir}")
    failures = 0
    is_store_up = True
    if store.endpoints or any(
        source.has_bucket
        for stream in settings.streams.values()
        for source in stream.sources.values()
    ):
        try:
            failures += _check_store(console, settings)
        except HeadraceError as error:
            console.print(f"  error  {error}", style="red")
            is_late = isinstance(error, StoreUnavailableError)
            if is_late and store.deadline_s < given.store.deadline_s:
                console.print(
                    f"  (here the store has {store.deadline_s:g} s; a daemon gives it deadline_s = "
                    f"{given.store.deadline_s:g})"
                )
            failures += 1
            is_store_up = False
    for name in settings.streams:
        mark = " (default)" if name == settings.default_stream else ""
        console.print(f"\nstream {name}{mark}", style="bold")
        try:
            _check_stream(console, settings, name, topology, is_store_up=is_store_up)
        except HeadraceError as error:
            console.print(f"  error  {error}", style="red")
            failures += 1
    if not settings.streams:
        console.print("\nno [streams.NAME]: clients bring their own, below [trust] allow_sources")
    return 1 if failures else 0


def _check_stream(
    console: Console, settings: Settings, name: str, topology: Topology, *, is_store_up: bool
) -> None:
    stream = settings.streams[name]
    console.print(f"  plan   {stream.plan!r}")
    manifests = {}
    for part, source in stream.sources.items():
        console.print(f"  source {f'{part}: ' if part else ''}{source.location}")
        if source.has_bucket and not is_store_up:
            raise HeadraceError("not listed, since the store could not be asked (see above)")
        manifest = manifests[part] = list_aside(settings, source)
        console.print(
            f"  data   {len(manifest)} samples, {decimal(manifest.total_bytes)}, manifest "
            f"{manifest.digest[:12]}…"
        )
    bound = BoundPlans(OrderMaker()).bind(stream.served_plan, manifests)
    start = settle(bound, bound.start(), topology.world_size)
    steps = epoch_steps(bound, topology.world_size)
    slot_bytes = largest_payload(bound, start, topology, manifests).weight
    needed = MIN_SLOTS * slot_bytes * topology.world_size
    span = "run  " if bound.program.ends else "epoch"
    console.print(
        f"  {span}  {steps} steps on each of {topology.world_size} rank(s), largest batch "
        f"{decimal(slot_bytes)}"
    )
    fits = "fits" if needed <= settings.daemon.memory_bytes else "does NOT fit"
    console.print(
        f"  memory {decimal(needed)} at least ({MIN_SLOTS} slots on each rank): {fits} into "
        f"{decimal(settings.daemon.memory_bytes)}"
    )
    if needed > settings.daemon.memory_bytes:
        raise HeadraceError(
            f"[daemon] memory = {settings.daemon.memory!r} is too small for {name}: raise it to at "
            f"least {needed} bytes, or use a smaller batch"
        )


def _check_store(console: Console, settings: Settings) -> int:
    """Print the cluster and its targets; return how many targets are not well."""
    console.print("\nstore", style="bold")

    async def ask(ais: AisStore, executor: Executor) -> tuple[str, ClusterMap, list[Reach], str]:
        version = await ais.version()
        reaches = await ais.ping()
        return version, await ais.cluster.current(), reaches, ais.client.proxy

    version, cluster, reaches, proxy = ask_store(settings, ask)
    console.print(
        f"  AIStore {version or 'of unknown version'} at {proxy}, cluster {cluster.uuid}, map "
        f"version {cluster.version}, proxies: {len(cluster.proxies)}, targets: {len(reaches)}"
    )
    failures = 0
    for reach in sorted(reaches, key=lambda reach: reach.node.id):
        leaving = ", is leaving the cluster" if reach.node.is_leaving else ""
        if reach.trouble:
            failures += 1
            console.print(f"  error  {reach.node} {reach.trouble}{leaving}", style="red")
        else:
            console.print(f"  {reach.node}: {1000 * reach.seconds:.1f} ms{leaving}")
    return failures
