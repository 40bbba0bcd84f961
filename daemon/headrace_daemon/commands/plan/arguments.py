"""The options of ``headrace plan``, and what their texts mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import SettingsError
from ..sources import add_source_arguments

if TYPE_CHECKING:
    import argparse

DEFAULT_STEPS: Final = 10
MAX_RANKS: Final = 4096
"""Ranks that are looked at together at most: each has its chunk of batches."""


class Range(NamedTuple):
    """Steps from `first` on and before `last`, counted from where one begins."""

    first: int
    last: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    what = parser.add_argument_group("what is read")
    add_source_arguments(
        what,
        config="configuration file (TOML)",
        stream="name of a stream of --config, by default the default one; without --config a file "
        "with a stream or a plan (TOML or JSON)",
    )
    made = parser.add_argument_group("without a source")
    made.add_argument(
        "--length",
        action="append",
        default=[],
        metavar="[PART=]N",
        help="plan N samples that nobody has listed; for parts of a plan that have data of their "
        "own, may be repeated",
    )
    made.add_argument(
        "--sizes",
        action="append",
        default=[],
        metavar="[PART=]SIZES",
        help="bytes of each sample: FILE.npy, a size such as 64KiB, or LOW:HIGH (made up, "
        "log-uniform)",
    )
    made.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="[PART.]NAME=FILE.npy",
        help="another number of each sample, for ByteBudget with max_total",
    )
    how = parser.add_argument_group("the plan, if no stream names it")
    how.add_argument(
        "--plan",
        help="name of a plan, or all of it as JSON or as an inline table of TOML; default Shuffled",
    )
    how.add_argument(
        "-o",
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the plan, such as max_bytes=8MiB, order=torch or scales.height=224; may "
        "be repeated",
    )
    how.add_argument("--batch-size", type=int, help="samples per step of each rank; default 32")
    how.add_argument("--global-batch-size", type=int, help="samples per step of all ranks")
    how.add_argument("--seed", type=int, help="seed of the plan")
    how.add_argument("--tail", help="short, drop or wrap; the default is that of the plan")
    where = parser.add_argument_group("which part of it")
    where.add_argument(
        "--rank",
        help="whose batches: a rank, several as 0,3 or 0:4, or all; default 0, and all for a "
        "summary",
    )
    where.add_argument(
        "--world-size", type=int, default=1, help="number of ranks; default %(default)s"
    )
    where.add_argument("--epoch", type=int, help="begin at an epoch, counted from 0; default 0")
    where.add_argument("--update", type=int, help="begin after so many updates of the run instead")
    where.add_argument("--sample", type=int, help="begin after so many samples of the run instead")
    where.add_argument(
        "--state", type=Path, help="begin where a state stands: a JSON file of state_dict()"
    )
    where.add_argument(
        "--steps",
        "--step",
        metavar="FIRST[:LAST]",
        help="step, or range FIRST:LAST, counted from there (LAST excluded; may reach into later "
        f"epochs); default 0:{DEFAULT_STEPS}, and for a summary or a plot the epoch",
    )
    show = parser.add_argument_group("what is shown")
    show.add_argument(
        "--summary", action="store_true", help="totals and distributions in place of the steps"
    )
    show.add_argument(
        "--whole",
        action="store_true",
        help="count each step of a summary or a plot, however long it takes",
    )
    show.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw fill, bytes and sizes of the batches"
    )
    show.add_argument("--json", action="store_true", help="print JSON, with all sample ids")


def step_range(text: str) -> Range:
    """Return the range that a text means.

    Raises:
        SettingsError: If it means none.
    """
    first, colon, last = text.partition(":")
    try:
        begin = int(first or 0)
        end = int(last) if colon and last else begin + (DEFAULT_STEPS if colon else 1)
    except ValueError:
        raise SettingsError(f"--steps {text!r}: write a step such as 7, or a range 0:10") from None
    if not 0 <= begin <= end < 2**63:
        raise SettingsError(
            f"--steps {text!r}: the range must begin at 0 or later and not end before"
        )
    return Range(begin, end)


def ranks(text: str, world_size: int) -> list[int]:
    """Return the ranks that a text means, in ascending order.

    Raises:
        SettingsError: If it means none.
    """
    found: set[int] = set()
    try:
        for piece in ["0:"] if text == "all" else text.split(","):
            first, colon, last = piece.partition(":")
            low = int(first or 0) if colon else int(first)
            high = (int(last) if last else world_size) if colon else low + 1
            if high - low > MAX_RANKS:
                raise SettingsError(
                    f"--rank {text}: {high - low} ranks are too many to look at, give {MAX_RANKS} "
                    f"at most: 0:{MAX_RANKS}, say"
                )
            found.update(range(low, high))
    except ValueError:
        raise SettingsError(
            f"--rank {text!r}: write a rank, several as 0,3 or 0:4, or all"
        ) from None
    wrong = [rank for rank in found if not 0 <= rank < world_size]
    if wrong or not found:
        named = f"rank={wrong[0]} is out of range" if wrong else f"{text!r} is no rank"
        raise SettingsError(f"--rank: {named}: --world-size {world_size} has 0..{world_size - 1}")
    return sorted(found)
