"""``headrace serve``: run the daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .. import lifecycle
from ..errors import SettingsError
from ..observe import logs
from ..settings import Settings, TrustSettings, load, parse_size
from ..transport import listener

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--config", type=Path, help="configuration file (TOML)")
    parser.add_argument("--socket", help="path of the socket; wins over the configuration")
    parser.add_argument("--memory", help="memory for batches, such as 2GiB; wins likewise")
    parser.add_argument("--state-dir", help="where manifests are kept; wins likewise")
    parser.add_argument(
        "--allow-source",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder below which clients may open streams of their own; may be repeated",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    parser.add_argument(
        "--private",
        type=Path,
        metavar="FOLDER",
        help="serve the process that holds the other end of standard input, from a folder that "
        "is removed at the end",
    )


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    logs.configure(options.log_level)
    settings = _settings(options)
    path = Path(settings.daemon.socket)
    sock = listener.bind(path, settings.daemon.group)
    identity = os.stat(path).st_ino
    with _private(options.private):
        try:
            lifeline = sys.stdin.fileno() if options.private is not None else None
            lifecycle.run(settings, sock, lifeline=lifeline)
        finally:
            # Only our own: another daemon may have replaced the file meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == identity:
                    path.unlink()
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    settings = load(options.config) if options.config is not None else Settings()
    daemon, trust = settings.daemon, settings.trust
    changes = {"socket": options.socket, "memory": options.memory, "state_dir": options.state_dir}
    if options.private is not None:
        changes["socket"] = str(options.private / "headrace.sock")
        changes["state_dir"] = str(options.private / "state")
        trust = TrustSettings(allow_sources=("*",))
    given = {name: value for name, value in changes.items() if value is not None}
    if options.memory is not None:
        try:
            parse_size(options.memory)
        except ValueError as error:
            raise SettingsError(f"--memory: {error}") from None
    daemon = msgspec.structs.replace(daemon, **given)
    if options.allow_source:
        allowed = (*trust.allow_sources, *options.allow_source)
        trust = msgspec.structs.replace(trust, allow_sources=allowed)
    return msgspec.structs.replace(settings, daemon=daemon, trust=trust)


@contextlib.contextmanager
def _private(folder: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
