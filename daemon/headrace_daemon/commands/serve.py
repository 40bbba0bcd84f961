"""``headrace serve``: run the daemon."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.client import DEFAULT_SOCKET

from .. import lifecycle
from ..errors import SettingsError
from ..observe import logs
from ..observe.notify import Notifier
from ..settings import Settings, SettingsValueError, TrustSettings, load
from ..source.ais.access import NO_ENDPOINT, Access
from ..transport import activation, listener

if TYPE_CHECKING:
    import argparse
    import socket
    from collections.abc import Iterator

    from ..transport.activation import Inherited

PRIVATE_MARK: Final = ".headrace-private"
"""A file of this name says that its folder was made to be removed, whatever else is in it."""

_PRIVATE_NAMES: Final = frozenset({"daemon.log", "headrace.sock", "state"})
"""What there may be in the folder of a private daemon."""


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
        metavar="SOURCE",
        help="folder or ais://bucket/prefix below which clients may open streams of their own; may "
        "be repeated, and adds to [trust] allow_sources",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what is logged on standard error, this level and above (default: %(default)s)",
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
    notifier = Notifier.take()
    inherited = activation.take()

    def load_settings() -> Settings:
        settings = _settings(options)
        if inherited is not None:
            settings = _at(settings, inherited.path, options)
        _check_endpoints(settings)
        return settings

    settings = load_settings()
    lifeline = None if options.private is None else _lifeline()
    _make_state_dir(settings.daemon.state_dir)
    with _socket(settings, inherited) as sock, _private(options.private):
        lifecycle.run(
            settings,
            sock,
            lifeline=lifeline,
            notifier=notifier,
            load=None if options.config is None else load_settings,
        )
    return 0


@contextlib.contextmanager
def _socket(settings: Settings, inherited: Inherited | None) -> Iterator[socket.socket]:
    """Give the socket to serve; one that we made is removed at the end."""
    path = Path(settings.daemon.socket)
    if inherited is not None:
        activation.check_group(path, settings.daemon.group)
        yield inherited.sock
        return
    sock = listener.bind(path, settings.daemon.group)
    identity = os.stat(path).st_ino
    try:
        yield sock
    finally:
        # Only our own: another daemon may have replaced the file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == identity:
                path.unlink()


def _at(settings: Settings, path: Path, options: argparse.Namespace) -> Settings:
    """Return settings with the path of the socket that was passed, if they do not want another."""
    wanted = settings.daemon.socket
    if options.private is not None:
        activation.check_path(path, wanted, "the socket of --private")
    elif options.socket is not None:
        activation.check_path(path, wanted, "--socket")
    elif wanted != DEFAULT_SOCKET:
        activation.check_path(path, wanted, "daemon.socket")
    daemon = msgspec.structs.replace(settings.daemon, socket=os.fspath(path))
    return msgspec.structs.replace(settings, daemon=daemon)


def _settings(options: argparse.Namespace) -> Settings:
    settings = load(options.config) if options.config is not None else Settings()
    daemon, trust = settings.daemon, settings.trust
    changes = {"socket": options.socket, "memory": options.memory, "state_dir": options.state_dir}
    if options.private is not None:
        _check_private(options.private)
        changes["socket"] = str(options.private / "headrace.sock")
        changes["state_dir"] = str(options.private / "state")
        trust = TrustSettings(allow_sources=("*",))
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        daemon = msgspec.structs.replace(daemon, **given)
    except SettingsValueError as error:
        option = str(error).replace("_", "-", 1)  # it begins with the key
        raise SettingsError(f"--{option}") from None
    if options.allow_source:
        allowed = (*trust.allow_sources, *options.allow_source)
        try:
            trust = msgspec.structs.replace(trust, allow_sources=allowed)
        except SettingsValueError as error:
            reason = str(error).partition(": ")[2]  # it begins with the key
            raise SettingsError(f"--allow-source: {reason}") from None
    return msgspec.structs.replace(settings, daemon=daemon, trust=trust)


def _check_endpoints(settings: Settings) -> None:
    """Refuse streams of a store whose address nobody has given: none of them could be read."""
    if Access(settings.store).endpoints:
        return
    for name, stream in settings.streams.items():
        for source in stream.sources.values():
            if source.has_bucket:
                raise SettingsError(f"stream {name} reads {source.location}: {NO_ENDPOINT}")


def _make_state_dir(folder: str) -> None:
    """Find out now, and not when the first stream is opened."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"daemon.state_dir = {folder!r} cannot be made: {error.strerror}"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"daemon.state_dir = {folder!r} cannot be written: give another one")


def _check_private(folder: Path) -> None:
    """Refuse a folder with things in it that are not of a private daemon: it will be removed."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise SettingsError(f"--private {folder}: {error.strerror}") from error
    others = names - _PRIVATE_NAMES
    if others and PRIVATE_MARK not in names:
        raise SettingsError(
            f"--private {folder}: it is removed at the end, and has {min(others)!r} in it: give an "
            "empty folder"
        )


def _lifeline() -> int:
    """Return the standard input, whose end means that nobody needs the daemon any more."""
    if sys.stdin is not None:
        kind = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            return sys.stdin.fileno()
    raise SettingsError("--private needs a pipe as standard input: its end stops the daemon")


@contextlib.contextmanager
def _private(folder: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
