"""Run recorded cases; see the package."""

from __future__ import annotations

import sys
from pathlib import Path

from .cases import DamagedFileError
from .runner import run_file


def main(names: list[str]) -> int:
    """Run the files; return the exit status: 1 for mismatches, 2 for what is no file of cases."""
    if not names or any(name in ("-h", "--help") for name in names):
        print("usage: python -m tests.golden FILE…", file=sys.stderr)  # noqa: T201
        return 0 if names else 2
    status = 0
    for name in names:
        try:
            report = run_file(Path(name))
        except DamagedFileError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            status = 2
            continue
        print(report, flush=True)  # noqa: T201
        for sentence in report.mismatches:
            print(f"  {sentence}", file=sys.stderr, flush=True)  # noqa: T201
        if report.mismatches:
            status = max(status, 1)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
