"""Storms: a share of the requests to a stand-in meets a fault, while a daemon feeds a trainer.

A *path* is a way in which bytes, or what is known of them, come from the store into the daemon; a
storm is let loose on one.  What has come of it says all that there is to judge: what the trainer
got, how the stream ended, how often the store was asked, and how often that was counted.  A daemon
that does not get back to rest behind it is a failure at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from headrace import DaemonDataset, Objects, Stream
from headrace.errors import FeedError
from headrace.plans import Interleaved, Limits, Shuffled
from headrace.testing import Ledger
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais import breaker, client, faults, pages, pieces, retry

from .app import AppThread

if TYPE_CHECKING:
    from types import TracebackType

    import pytest

    from .standin import Effect, Fault, StandIn

BUCKET: Final = "b"
PIECE_BYTES: Final = 500
NUM_PIECES: Final = 8
SMALL: Final = {f"d{number % 3}/{number:02}": os.urandom(2_000) for number in range(24)}
LARGE: Final = {f"l/{number}": os.urandom(NUM_PIECES * PIECE_BYTES - number) for number in range(3)}
OBJECTS: Final = SMALL | LARGE
PAGE_OBJECTS: Final = 6

STALL_S: Final = 0.08
"""How long a node may say nothing in a storm of silence; in others that is not to matter."""
PATIENCE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A way from the store into the daemon, and the requests on it that meet faults.

    Args:
        reader: ``[store] reader``.
        direct: ``[store] direct``.
        at: Whose answers they are.
        method: Of the requests.
        prefix: The objects that are read.
        paths: A glob for the paths of the requests; by default those to these objects.
        num_needed: How many it takes when nothing goes wrong; None where that does not matter.
        is_named: Whether objects are given by name, so that each is asked for before it is read.
    """

    reader: Literal["auto", "lean", "aiohttp"] = "auto"
    direct: Literal["auto", "off"] = "auto"
    at: Literal["target", "proxy"] = "target"
    method: str = "GET"
    prefix: Literal["d", "l"] = "d"
    paths: str = ""
    num_needed: int | None = None
    is_named: bool = False

    @property
    def objects(self) -> dict[str, bytes]:
        """Those that are read."""
        return SMALL if self.prefix == "d" else LARGE

    @property
    def glob(self) -> str:
        """For the paths of the requests."""
        return self.paths or f"{BUCKET}/{self.prefix}*"

    @property
    def stream(self) -> Stream:
        """One pass over the objects, the same on every path to them."""
        uri = f"ais://{BUCKET}"
        source = (
            Objects(uri, names=sorted(self.objects))
            if self.is_named
            else Objects(f"{uri}/{self.prefix}")
        )
        plan = Interleaved(
            train=Shuffled(batch_size=6 if self.objects is SMALL else 2, seed=1),
            limits=Limits(epochs=1),
        )
        return Stream(source, plan)

    @property
    def is_lean(self) -> bool:
        """Whether several requests may be under way on one connection."""
        return self.reader != "aiohttp" and self.direct == "auto" and self.method == "GET"

    def settings(self, ais: StandIn, *, is_silent: bool) -> StoreSettings:
        """Return the settings of a daemon that reads this way."""
        settings = StoreSettings(
            endpoints=tuple(ais.endpoints),
            deadline_s=PATIENCE_S,
            reader=self.reader,
            direct=self.direct,
        )
        # Shorter than makes sense outside of tests, and than the settings allow.
        msgspec.structs.force_setattr(settings, "stall_s", STALL_S if is_silent else PATIENCE_S)
        return settings

    def num_asked(self, ais: StandIn) -> int:
        """Return how many requests there were that might have met a fault."""
        nodes = {node.port for node in (ais.targets if self.at == "target" else ais.proxies)}
        glob = self.glob.removesuffix("*")
        lead = glob if glob.startswith("/") else f"/v1/objects/{glob}"
        return sum(
            request.port in nodes
            and request.method == self.method
            and request.path.startswith(lead)
            for request in ais.requests
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What has come of a storm.

    Args:
        ledger: What the trainer was given.
        error: How the stream ended; None: with its last batch.
        num_fired: How often the fault has fired.
        num_asked: Requests that might have met it.
        num_retries: By ``status``.
        num_faults: By ``status``.
        num_turned_away: By ``status``: reads that did not ask a target since it had failed others.
        last_fault: By ``status``, in words.
    """

    ledger: Ledger
    error: FeedError | None
    num_fired: int
    num_asked: int
    num_retries: int
    num_faults: int
    num_turned_away: int
    last_fault: str


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what is large some KB, pages some objects, and pauses some milliseconds."""
    asked_s = faults._seconds
    for module, name, value in (
        (pieces, "LARGE_BYTES", (NUM_PIECES - 1) * PIECE_BYTES),
        (pieces, "MIN_BYTES", PIECE_BYTES),
        (pieces, "MAX_BYTES", PIECE_BYTES),
        (pieces, "AT_ONCE", len(LARGE)),
        (pages, "PAGE_OBJECTS", PAGE_OBJECTS),
        (retry, "FIRST_PAUSE_S", 0.002),
        (retry, "LONGEST_PAUSE_S", 0.01),
        (breaker, "FIRST_PAUSE_S", 0.002),
        (breaker, "LONGEST_PAUSE_S", 0.01),
        # What a header `Retry-After` asks for, which is a second at least.
        (faults, "_seconds", lambda text: asked_s(text) / 100),
        # How long a proxy may be silent, which no setting says.
        (client, "PAGE_STALL_S", 2 * STALL_S),
    ):
        monkeypatch.setattr(module, name, value)


class Storms:
    """A daemon that is read through in one storm after the other.  A context manager.

    Args:
        ais: Has a bucket for all objects.
        path: Which requests may meet what befalls them.
        is_silent: Whether that is that nothing comes.
    """

    def __init__(self, ais: StandIn, path: Path, *, is_silent: bool = False) -> None:
        self._ais = ais
        self._path = path
        self._app = AppThread().configure(store=path.settings(ais, is_silent=is_silent))

    def __enter__(self) -> Storms:
        self._app.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._app.__exit__(kind, error, traceback)

    def run(self, effect: Effect | None, *, rate: float = 1.0, seed: int = 0) -> Outcome:
        """Read everything in a storm, and return what has come of it.

        Args:
            effect: What befalls requests; None: nothing.
            rate: The share of them.
            seed: Which.

        Raises:
            AssertionError: If something is left of it in the daemon.
        """
        ais, path, app = self._ais, self._path, self._app
        ais.put_many(BUCKET, path.objects)
        ais.forget_requests()
        before = self._report()
        fault: Fault | None = None
        if effect is not None:
            fault = ais.fault(
                effect,
                target="any" if path.at == "target" else None,
                proxy="any" if path.at == "proxy" else None,
                path=path.glob,
                method=path.method,
                times=None,
                rate=rate,
                seed=seed,
            )
        ledger, error = Ledger(), None
        dataset = DaemonDataset(app.socket, path.stream)
        try:
            for batch in dataset:
                ledger.record(batch)
        except FeedError as ended:
            error = ended
        finally:
            dataset.close()
            if fault is not None:
                fault.cancel()
        wait_for_rest(app)
        after = self._report()
        return Outcome(
            ledger=ledger,
            error=error,
            num_fired=0 if fault is None else fault.fired,
            num_asked=path.num_asked(ais),
            num_retries=after["retries"] - before["retries"],
            num_faults=_num_faults(after) - _num_faults(before),
            num_turned_away=after["turned_away"] - before["turned_away"],
            last_fault=after["last_fault"],
        )

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = self._app.call(self._app.app.report)["store"]
        return report


def _num_faults(report: dict[str, Any]) -> int:
    return sum(target["faults"] for target in report["targets"].values())


def wait_for_rest(app: AppThread) -> None:
    """Wait until a daemon that has no client any more holds nothing and waits for nothing.

    Connections to the store are kept for the next read; that no task outlives the daemon is what
    its end is about.
    """
    store = app.app.store
    connector = store.client.session.connector
    assert connector is not None

    def is_at_rest() -> bool:
        report = app.app.report()
        lanes = store._lean._lanes.values()
        return not (
            report["feeds"]
            or report["connections"]
            or report["memory"]["held_bytes"]
            or report["memory"]["guaranteed_bytes"]
            or app.app._fetcher.inflight._leads
            or any(lane._waiting or lane._opening or lane._ending for lane in lanes)
            or any(len(one) for lane in lanes for one in lane._connections)
            or connector._acquired
        )

    app.wait_until(is_at_rest)
