"""The ``headrace`` command: reads arguments, runs one of `headrace_daemon.commands`.

What goes wrong becomes one sentence on standard error and an exit status: 2 for arguments and
configuration, 1 for everything else; a traceback is a bug.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Final, NoReturn

from headrace.errors import HeadraceError

COMMANDS: Final = {
    "serve": "run the daemon",
    "status": "show what a running daemon does and whom it waits for",
    "check": "try a configuration without serving it",
    "plan": "show what a rank gets at which step",
    "index": "list a source into a manifest, or list it anew",
    "demo": "train on real data through a daemon, with both of them killed on the way",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Training data, read ahead of need, in an order that can be resumed anywhere.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # Only the module of the command at hand is imported: `--help` and `status` stay quick.
    wanted = next((word for word in arguments if word in COMMANDS), None)
    run = None
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            module = _load(name)
            module.add_arguments(command)
            run = module.run
    options = parser.parse_args(arguments)
    if options.version:
        from . import __version__

        print(f"headrace {__version__}")
        raise SystemExit(0)
    if run is None:
        parser.print_help()
        raise SystemExit(2)
    try:
        status: int = run(options)
    except HeadraceError as error:
        print(f"headrace {options.command}: {error}", file=sys.stderr)
        status = 2 if error.code in ("settings", "plan", "cursor", "topology") else 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    raise SystemExit(status)


def _load(name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a module
    try:
        return importlib.import_module(f".commands.{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("headrace"):
            raise
        extra = "demo" if name == "demo" else "daemon"
        print(
            f"headrace {name}: needs {error.name}, which is not installed: "
            f"pip install 'headrace[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
