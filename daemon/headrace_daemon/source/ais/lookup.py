"""Look-ups: objects that are given by name, as a manifest in their order.

Pages of the bucket's list tell thousands of objects at the price of a few inquiries.  So where many
names are given, some pages are read first, no more than the names are worth.  These need not be
whole, nor reach all names: what they do not tell is asked for one by one (`inquiry.py`), and that
decides whether an object is missing.
"""

from __future__ import annotations

from itertools import repeat, takewhile
from typing import TYPE_CHECKING, Final

from ..together import run_in_thread
from ..writer import ManifestWriter
from .bucket import is_native
from .inquiry import Facts
from .pages import Pager, UnsureError, Walk, is_object, walk_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from headrace.buckets import Bucket
    from headrace.manifest import Manifest

    from .client import AisClient
    from .inquiry import Inquirer

NAMES_FOR_A_PAGE: Final = 256
"""Names that are worth a page: asking for these one by one takes about as long."""


class Lookup:
    """Looks up objects of a cluster.

    Args:
        client: The session with the cluster.
        pager: Asks for pages.
        inquirer: Asks for what they do not tell.
        executor: A thread of it writes manifests.
    """

    def __init__(
        self, client: AisClient, pager: Pager, inquirer: Inquirer, executor: Executor
    ) -> None:
        self._client = client
        self._pager = pager
        self._inquirer = inquirer
        self._executor = executor

    async def manifest(
        self, bucket: Bucket, names: Sequence[str], root: Path, progress: Callable[[int], None]
    ) -> Manifest:
        """Return the manifest of given objects, in their order, under a folder.

        Args:
            bucket: Where they are; its prefix does not matter.
            names: Their names there.
            root: Where manifests are.
            progress: Called with the number of objects found so far.

        Raises:
            ObjectMissingError: If one is not there.
            SourceError: If the store does not tell in time.
        """
        facts = await self._listed(bucket, names, progress)
        left = [name for name in names if name not in facts]
        num_listed = len(facts)
        asked = await self._inquirer.ask(
            bucket, left, "names=", lambda found: progress(num_listed + found)
        )
        facts.update(zip(left, asked, strict=True))

        def write() -> Manifest:
            with ManifestWriter(root, is_ordered=True) as writer:
                found = [facts[name] for name in names]
                writer.append(
                    [name.encode() for name in names],
                    [one.size for one in found],
                    [one.checksum for one in found],
                    [one.version for one in found],
                )
                return writer.finish()

        return await run_in_thread(self._executor, write)

    async def _listed(
        self, bucket: Bucket, names: Sequence[str], progress: Callable[[int], None]
    ) -> dict[str, Facts]:
        """Return what some pages tell of the names, which may be nothing."""
        facts: dict[str, Facts] = {}
        num_pages = len(names) // NAMES_FOR_A_PAGE
        if not num_pages:
            return facts
        native = await is_native(bucket, self._client)
        wanted = set(names)
        first, last = min(names), max(names)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        prefix = "".join(character for character, _ in same)  # of all that lie between
        walk = walk_of(prefix) if native else Walk(prefix)
        try:
            pages = self._pager.pages(bucket, walk)
            for _ in repeat(None, num_pages):
                page = await anext(pages, None)
                if page is None:
                    break
                entries = page.Entries or []
                for entry in entries:
                    # A size of 0 may be one that a provider's list lacks.
                    if entry.n in wanted and is_object(entry) and (native or entry.s):
                        facts[entry.n] = Facts(entry.s, entry.cs.encode(), entry.v.encode())
                progress(len(facts))
                if len(facts) == len(wanted) or (entries and entries[-1].n > last):
                    break
            await pages.aclose()
        except UnsureError:
            pass  # what there is is right
        return facts
