"""A daemon whose reader reads nothing: for `benchmarks.bench_hop`, where only the hop counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace_daemon.cli import main
from headrace_daemon.source import catalog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor

    from headrace_daemon.source.reader import Request


class NoReader:
    """Leaves the slot as it is."""

    location = "nowhere"
    paces_itself = False

    def __init__(self, root: str, executor: Executor) -> None:
        pass

    async def read(self, requests: Sequence[Request]) -> None:
        """Do nothing."""


if __name__ == "__main__":
    vars(catalog)["LocalReader"] = NoReader
    main()
