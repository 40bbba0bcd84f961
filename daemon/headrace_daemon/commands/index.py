"""``headrace index``: list a source into a manifest, or list it anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal

from headrace.manifest import compare
from headrace.sources import Objects

from ..errors import SettingsError
from ..settings import Settings, load
from ..source.store import ManifestStore
from .sources import add_source_arguments, configured_stream, list_with_progress

if TYPE_CHECKING:
    import argparse

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
    if options.source is not None:
        source = Objects(options.source, suffix=tuple(options.suffix))
    elif options.config is not None:
        source = configured_stream(settings, options.stream)[1].source
    else:
        raise SettingsError("give a SOURCE, or --config with a stream")
    store = ManifestStore(Path(options.state_dir or settings.daemon.state_dir))
    before = store.current(source)
    if before is not None and not options.refresh:
        manifest, verb = before, "kept"
    else:
        listed = list_with_progress(settings, source, store.folder)
        manifest, verb = store.keep(source, listed), "listed"
    console.print(
        f"{verb} {source.location}: {len(manifest)} samples, {decimal(manifest.total_bytes)}, "
        f"manifest {manifest.digest[:12]}…"
    )
    if verb == "kept":
        console.print("use --refresh to list it anew")
    elif before is not None:
        difference = compare(before, manifest)
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
