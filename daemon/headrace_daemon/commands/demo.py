"""``headrace demo``: train on real data through a daemon, with both of them killed on the way."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from rich.console import Console

from ..demo import run as demo
from ..demo.errors import DemoError
from ..demo.screen import Screen
from ..demo.signals import Stopped
from ..errors import SettingsError
from ..settings import StoreSettings
from ..source.ais.access import Access

if TYPE_CHECKING:
    import argparse

_DEFAULT_EPOCHS: Final = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--epochs",
        type=int,
        default=_DEFAULT_EPOCHS,
        help="how long to train, at least 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the folder with the data, the checkpoint, the ledgers and the logs; with "
        "--endpoint, the bucket too",
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="run it on the AIStore cluster with this proxy (http://host:port), in a bucket that "
        "is made for it and removed at the end",
    )


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    if not 2 <= options.epochs <= 1000:
        raise SettingsError(f"--epochs {options.epochs} is out of range, allowed: 2..1000")
    for name in ("torch", "sklearn"):  # what its processes need beside what this one does
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if options.endpoint == "":
        raise SettingsError(
            "--endpoint is empty: write the address of a proxy, such as http://10.0.0.1:51080"
        )
    if options.endpoint is not None:
        Access(StoreSettings(endpoints=(options.endpoint,)), origin="--endpoint")  # is it one?
    screen = Screen(Console(highlight=False))
    try:
        demo.run(
            screen,
            epochs=options.epochs,
            keep=options.keep,
            endpoint=options.endpoint or "",
        )
    except Stopped as stop:
        files = "kept" if options.keep else "removed"
        print_error = Console(stderr=True, highlight=False, soft_wrap=True).print
        print_error(f"headrace demo: stopped by {stop}; processes ended, files {files}")
        return stop.status
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise DemoError(f"the system refuses something: {error}") from error
    return 0
