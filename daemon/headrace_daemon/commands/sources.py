"""What the commands that work without a daemon share: streams and their manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headrace.errors import PlanError

from ..source.local import list_folder
from ..source.store import ManifestStore

if TYPE_CHECKING:
    from headrace.manifest import Manifest
    from headrace.sources import Source, Stream

    from ..settings import Settings


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
    store = ManifestStore(Path(settings.daemon.state_dir))
    return store.current(source) or list_with_progress(source)


def list_with_progress(source: Source) -> Manifest:
    """List a source, with a line of progress on a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("listing {task.description}: {task.completed} objects", markup=False),
        TimeElapsedColumn(),
        transient=True,
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(source.uri, total=None)
        return list_folder(source, lambda found: progress.update(task, completed=found))
