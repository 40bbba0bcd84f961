"""Where the images of the demo are: below its folder, or in a bucket of its own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

from . import bucket, reports, signals
from .children import ReportingChild
from .errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .screen import Screen

_REMOVAL_S: Final = bucket.REMOVE_S + bucket.ANSWER_S + 5.0
"""How long the keeper may take to remove the bucket, seconds; more than it gives itself."""


class Place(NamedTuple):
    """Where the images are."""

    root: str
    """The folder or bucket, as `digits` wants it."""

    words: str
    """As people say it: ``"as files"``."""

    environ: Mapping[str, str]
    """Variables for the processes that go there."""


@contextlib.contextmanager
def prepared(folder: Path, endpoint: str, screen: Screen, *, keep: bool) -> Iterator[Place]:
    """Have a place for the images while the context lasts, and afterwards if it is to be kept.

    Args:
        folder: That of the demo.
        endpoint: Address of a proxy; empty: the images are files.
        screen: Where to show it.
        keep: Whether a bucket stays.

    Raises:
        DemoError: If the bucket cannot be made, or not be removed.
    """
    if not endpoint:
        yield Place(str(folder), "as files", {})
        return
    own = bucket.name_one()
    place = Place(str(own), f"as objects in {own}", {"AIS_ENDPOINT": endpoint})
    keeper = _Keeper(folder, place, keep=keep)
    is_made, trouble = False, ""
    try:
        keeper.start()
        with screen.bar(f"making {own}"):
            made = keeper.expect(reports.Made, keeper.reports())
        is_made = True
        targets = "1 target" if made.num_targets == 1 else f"{made.num_targets} targets"
        store = " ".join(filter(None, ("AIStore", made.version)))
        yield place._replace(words=f"{place.words}, {store}, {targets}")
    finally:
        signals.ignore()
        trouble = keeper.release()
        if trouble:
            screen.say("left", trouble, "red")
        elif is_made and keep:
            screen.say("kept", f"images: {own} at {endpoint}; remove it with: ais bucket rm {own}")
        elif is_made:
            screen.say("removed", str(own))
    if trouble:
        raise DemoError(trouble)


class _Keeper(ReportingChild):
    """The process that makes the bucket, and removes it when its standard input ends."""

    def __init__(self, folder: Path, place: Place, *, keep: bool) -> None:
        option = ("--keep",) if keep else ()
        super().__init__("keeper", folder, place.root, *option, environ=place.environ)

    def release(self) -> str:
        """Let it do its last duty; return what went wrong in words, empty if nothing did."""
        if self._process is None:
            return ""
        trouble = ""
        try:
            assert self._started.stdin is not None
            self._started.stdin.close()
            for report in self.reports(_REMOVAL_S):
                if isinstance(report, reports.Failed):
                    trouble = report.text
            return trouble or (self.explain_end() if self._started.wait() else "")
        except DemoError as error:
            return str(error)
        finally:
            self.close()
