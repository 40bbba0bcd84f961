"""The keeper of the demo's bucket, a process of its own: ``python -m headrace_daemon.demo.keeper``.

It makes the bucket and removes it when the demo is gone, however that came about: the end of
standard input says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final

from headrace.buckets import Bucket
from headrace.errors import HeadraceError

from . import bucket as demo
from . import reports, signals

if TYPE_CHECKING:
    from collections.abc import Coroutine

_STDIN: Final = 0
_STDOUT: Final = 1


def main() -> None:
    """Make the bucket, wait, remove it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bucket", help="its URI; the cluster is that of $AIS_ENDPOINT")
    parser.add_argument("--keep", action="store_true", help="do not remove it")
    options = parser.parse_args()
    bucket = Bucket.parse(options.bucket)
    # Who stops a demo stops all its processes; the bucket has to go after that.
    signals.ignore()
    made = _do(_make(bucket))
    if made is None:
        return
    _report(reports.Made(version=made.version, num_targets=made.num_targets))
    while os.read(_STDIN, 64):
        pass
    if not options.keep:
        _do(_remove(bucket))


def _do(job: Coroutine[None, None, demo.Cluster | None]) -> demo.Cluster | None:
    """Run a job and return its result; report its error instead, if it has one."""
    try:
        return asyncio.run(job)
    except HeadraceError as error:
        _report(reports.Failed(text=str(error)))
        return None


async def _make(bucket: Bucket) -> demo.Cluster:
    async with demo.client() as client:
        cluster = await demo.look(client)
        await demo.make(client, bucket)
        return cluster


async def _remove(bucket: Bucket) -> None:
    async with demo.client() as client:
        await demo.remove(client, bucket)


def _report(report: reports.Report) -> None:
    # Without a demo that reads it there is all the more to tidy up.
    with contextlib.suppress(BrokenPipeError):
        os.write(_STDOUT, reports.encode(report))


if __name__ == "__main__":
    main()
