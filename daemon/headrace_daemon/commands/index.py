"""``headrace index``: list a source into a manifest, index its shards, or do so anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal

from headrace.manifest import compare
from headrace.sources import Objects

from ..errors import SettingsError
from ..settings import Settings, load
from ..source.store import ManifestStore
from .sources import add_source_arguments, configured_stream, named_source, take_inventory

if TYPE_CHECKING:
    import argparse

    from headrace.manifest import Manifest

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_source_arguments(parser, config="configuration of the daemon that will use it")
    parser.add_argument("--state-dir", help="state folder of the daemon; wins over --config")
    parser.add_argument(
        "--refresh", action="store_true", help="list anew, and say what changed since the last time"
    )


def run(options: argparse.Namespace) -> int:
    """List a source if it was not listed before, or if asked to."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    settings = load(options.config) if options.config is not None else Settings()
    if options.source is not None and options.stream is not None:
        raise SettingsError("give a SOURCE or --stream, not both")
    if options.source is None and options.suffix:
        raise SettingsError("--suffix belongs to a SOURCE: a stream has its own")
    if options.source is None and options.shards:
        raise SettingsError("--shards belongs to a SOURCE: a stream has its own")
    if options.source is not None:
        source = named_source(options)
    elif options.config is not None:
        source = configured_stream(settings, options.stream)[1].source
    else:
        raise SettingsError("give a SOURCE, or --config with a stream")
    store = ManifestStore(Path(options.state_dir or settings.daemon.state_dir))
    before = store.current(source)
    if before is not None and not options.refresh:
        manifest, verb = before, "kept"
    else:
        try:
            taken = take_inventory(settings, source, store)
        except KeyboardInterrupt:
            if isinstance(source, Objects):
                raise
            sys.stderr.write(
                "headrace index: interrupted; shards that were indexed are kept: run it again, and "
                "it goes on there\n"
            )
            return 130
        manifest, verb = store.keep(source, taken), "listed"
    console.print(
        f"{verb} {source.location}: {_amount(manifest)}, {decimal(manifest.total_bytes)}, "
        f"manifest {manifest.digest[:12]}…"
    )
    if manifest.placement is not None:
        console.print(f"fields {', '.join(manifest.fields)}")
    if verb == "kept":
        console.print("use --refresh to list it anew")
    elif before is not None:
        # Of shards, those are told that are new: a sample has no name of its own.
        difference = compare(_objects(before), _objects(manifest))
        for what, names in difference._asdict().items():
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            console.print(f"  {what:<8} {len(names)}" + (f": {shown}" if names else ""))
        if difference.removed and source.has_bucket:
            # A target that is missing when the command starts is not known to it.
            console.print(
                "if they should be there, a target may be missing: 'headrace check CONFIG' shows "
                "those that there are"
            )
    return 0


def _objects(manifest: Manifest) -> Manifest:
    """Return the manifest of what is stored: the shards, where samples lie in such."""
    return manifest if manifest.placement is None else manifest.placement.table


def _amount(manifest: Manifest) -> str:
    samples = f"{len(manifest)} samples"
    if manifest.placement is None:
        return samples
    number = len(manifest.placement.table)
    return f"{samples} in {number} shard{'s' * (number != 1)}"
