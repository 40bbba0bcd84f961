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
    # Only the module of the command at hand is imported: `--help` and `status` stay quick.
    wanted = next((word for word in arguments if word in COMMANDS), None)
    try:
        try:
            status = _run(arguments, wanted)
        finally:
            if sys.stdout is not None:  # it may be closed
                sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("headrace"):
            raise
        extra = "demo" if wanted == "demo" else "daemon"
        print(
            f"headrace {wanted}: needs {error.name}, which is not installed: "
            f"pip install 'headrace[{extra}]'",
            file=sys.stderr,
        )
        status = 1
    except KeyboardInterrupt:
        print(f"headrace {wanted}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        _drop_output()  # its reader has gone
        status = 1
    except OSError as error:
        print(f"headrace {wanted}: {error}", file=sys.stderr)
        _drop_output()
        status = 1
    raise SystemExit(status)


def _drop_output() -> None:
    """Let nothing be left to be written at exit, where Python would complain about it."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], wanted: str | None) -> int:
    # Not at the top: it takes part of a second, in which Ctrl-C would not find us ready.
    from headrace.errors import HeadraceError

    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Training data, read ahead of need, in an order that can be resumed anywhere.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = None
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            module = importlib.import_module(f".commands.{name}", __package__)
            module.add_arguments(command)
            run = module.run
    options = parser.parse_args(arguments)
    if options.version:
        from . import __version__

        print(f"headrace {__version__}")
        return 0
    if run is None:
        parser.print_help()
        return 2
    try:
        status: int = run(options)
    except HeadraceError as error:
        print(f"headrace {wanted}: {error}", file=sys.stderr)
        status = 2 if error.code in ("settings", "plan", "steps", "cursor", "topology") else 1
    return status
