"""What the commands that work without a daemon share: streams and their manifests."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from headrace.errors import PlanError

from ..source.ais.access import Access
from ..source.ais.store import AisStore
from ..source.inventory import list_folders, list_source
from ..source.store import ManifestStore
from .progress import working

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine

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
    group.add_argument("source", nargs="?", help="a folder or ais://bucket/prefix; or use --config")
    group.add_argument(
        "--suffix",
        action="append",
        default=[],
        help="take only names that end with this; may be repeated",
    )
    group.add_argument("--config", type=Path, help=config)
    group.add_argument("--stream", help=stream)


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
    """List a source, and keep nothing."""
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        return list_with_progress(settings, source, Path(folder))


def list_with_progress(settings: Settings, source: Source, root: Path) -> Manifest:
    """List a source, with a line of progress on a terminal.

    Args:
        settings: Say where the cluster is, if the source is a bucket.
        source: What to list.
        root: Where manifests are written while they are made.
    """
    with working(f"listing {source.title}") as say:

        def show(found: int) -> None:
            say(f"{found:,} objects")

        if not source.has_bucket:
            return list_folders(source, root, show)
        with ThreadPoolExecutor(1, thread_name_prefix="headrace") as executor:
            return ask_store(
                settings,
                lambda ais: list_source(source, root, ais=ais, executor=executor, progress=show),
            )


def ask_store(settings: Settings, ask: Callable[[AisStore], Coroutine[Any, Any, _T]]) -> _T:
    """Run something that asks the cluster of a configuration, in an event loop of its own."""

    async def main() -> _T:
        with ThreadPoolExecutor(1, thread_name_prefix="headrace") as executor:
            async with AisStore(settings.store, Access(settings.store), executor) as ais:
                return await ask(ais)

    return uvloop.run(main())
