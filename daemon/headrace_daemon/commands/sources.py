"""What the commands that work without a daemon share: streams and their manifests."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from headrace.errors import PlanError
from headrace.shards import ARCHIVES, Shards, ends_like
from headrace.sources import Objects

from ..source.ais.access import Access
from ..source.ais.store import AisStore
from ..source.inventory import Inventory, list_folders
from ..source.progress import Progress
from ..source.store import ManifestStore
from .progress import working

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor

    from headrace.manifest import Manifest
    from headrace.sources import Source, Stream

    from ..settings import Settings

_T = TypeVar("_T")


def add_source_arguments(
    group: argparse._ActionsContainer,
    *,
    config: str,
    stream: str = "name of a configured stream; the default one if left out",
) -> None:
    """Declare the options that say what is read.

    Args:
        group: A parser, or a group of one.
        config: What the configuration is for.
        stream: What ``--stream`` takes.
    """
    group.add_argument(
        "source",
        nargs="?",
        help="a folder or ais://bucket/prefix, or shards (…-{000..255}.tar); or use --config",
    )
    group.add_argument(
        "--shards",
        action="store_true",
        help="SOURCE has samples in shards; the default where it ends with .tar",
    )
    group.add_argument(
        "--suffix",
        action="append",
        default=[],
        help="take only names that end with this; may be repeated",
    )
    group.add_argument("--config", type=Path, help=config)
    group.add_argument("--stream", help=stream)


def named_source(options: argparse.Namespace) -> Source:
    """Return the source that the options name.

    Raises:
        PlanError: If it is none.
    """
    suffix = tuple(options.suffix)
    if options.shards or ends_like(options.source, ARCHIVES):
        return Shards(options.source, suffix=suffix)
    return Objects(options.source, suffix=suffix)


def configured_stream(settings: Settings, name: str | None) -> tuple[str, Stream]:
    """Return a stream of the configuration by name, or the default one.

    Raises:
        PlanError: If there is none of that name.
    """
    wanted = name or settings.default_stream
    if wanted in settings.streams:
        return wanted, settings.streams[wanted]
    known = ", ".join(sorted(settings.streams)) or "none"
    if not wanted:
        raise PlanError(
            f"no --stream and no default_stream in the configuration; configured streams: {known}"
        )
    raise PlanError(f"stream {wanted!r} is not configured; configured streams: {known}")


def current_manifest(settings: Settings, source: Source) -> Manifest:
    """Return the manifest that a daemon with these settings would use; list only if it has none."""
    return ManifestStore(Path(settings.daemon.state_dir)).current(source) or list_aside(
        settings, source
    )


def list_aside(settings: Settings, source: Source) -> Manifest:
    """Take the inventory of a source, and keep nothing."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        known = Path(settings.daemon.state_dir)
        return take_inventory(settings, source, ManifestStore(Path(folder)), known=known)


def take_inventory(
    settings: Settings, source: Source, store: ManifestStore, *, known: Path | None = None
) -> Manifest:
    """Take the inventory of a source, with a line of progress on a terminal.

    Args:
        settings: Say where the cluster is, if the source is a bucket.
        source: What to list, and to index where it has shards.
        store: Where manifests and indices are written.
        known: Another state folder, whose indices are used too.
    """
    with working(f"reading {source.title}") as line:

        def tell(far: Progress) -> None:
            if far.kind == "skipped":
                line.say(far.text)
                return
            line.show(far.text, done=far.done, total=far.total)

        if isinstance(source, Objects) and not source.has_bucket:
            return list_folders(
                source, store.folder, lambda found: tell(Progress("listing", found))
            )

        async def take(ais: AisStore, executor: Executor) -> Manifest:
            inventory = Inventory(store, ais=ais, executor=executor, tell=tell, known=known)
            return await inventory.take(source)

        return ask_store(settings, take)


def ask_store(
    settings: Settings, ask: Callable[[AisStore, Executor], Coroutine[Any, Any, _T]]
) -> _T:
    """Run something that asks the cluster of a configuration, in an event loop of its own."""

    async def main() -> _T:
        # As many as in a daemon: several shards of a folder are indexed at a time.
        threads = settings.fetch.max_in_flight
        with ThreadPoolExecutor(threads, thread_name_prefix="headrace") as executor:
            async with AisStore(settings.store, Access(settings.store), executor) as ais:
                return await ask(ais, executor)

    return uvloop.run(main())
