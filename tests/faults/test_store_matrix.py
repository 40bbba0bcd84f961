"""F1, F4: every fault that the stand-in knows, on every path from a store into a daemon.

A share of the requests meets the fault, 1 %, 10 % and 50 % of them, chosen by a seed.  The trainer
gets the ledger of a store without faults, or the beginning of it and an error that names the
object.  ``HEADRACE_STORMS=200 pytest tests/faults/test_store_matrix.py`` takes 200 seeds.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

import pytest
from hypothesis import settings

from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais import faults as store_faults
from headrace_daemon.source.ais.lean.lane import DEPTH
from headrace_daemon.source.ais.pieces import Piece
from headrace_daemon.source.ais.ranges import RangeTransfer
from headrace_daemon.source.ais.transfer import Transfer
from headrace_daemon.source.ais.wires import Choice
from tests.support import standin
from tests.support.standin import (
    BUSY,
    DIRECT_DENIED,
    LIST_FAILED,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    Change,
    Corrupt,
    Crash,
    Cut,
    Delay,
    DropIdle,
    Effect,
    Hangup,
    Redirect,
    Reset,
    Slow,
    Stall,
    StandIn,
    Status,
    WrongLength,
    WrongRange,
)
from tests.support.standin.effects import BatchEffect, Scene
from tests.support.storms import BUCKET, LARGE, NUM_PIECES, OBJECTS, SMALL, Path, Storms, shrink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.testing import Ledger
    from tests.support.storms import Outcome

RATES: Final = (0.01, 0.1, 0.5)
SEED: Final = 25
"""With it 1 % is one request on each path to objects; of lists and maps some meet the fault."""
IS_THOROUGH: Final = settings.get_current_profile_name() == "thorough"
NUM_SEEDS: Final = int(os.environ.get("HEADRACE_STORMS", 20 if IS_THOROUGH else 1))

# ---- the columns ---------------------------------------------------------------------------------

_SMALL: Final[dict[str, Any]] = {"num_needed": len(SMALL)}
_LARGE: Final[dict[str, Any]] = {"prefix": "l", "num_needed": NUM_PIECES * len(LARGE)}
PATHS: Final = {
    "lean": Path(**_SMALL),
    "lean pieces": Path(reader="lean", **_LARGE),
    "aiohttp": Path(reader="aiohttp", **_SMALL),
    "aiohttp pieces": Path(reader="aiohttp", **_LARGE),
    # By way of a proxy, which redirects: the fault is at the target, or at the proxy.
    "redirected": Path(direct="off", **_SMALL),
    "proxy": Path(direct="off", at="proxy", **_SMALL),
    # What is known of objects.
    "inquiry": Path(method="HEAD", is_named=True, **_SMALL),
    "list": Path(at="proxy", paths="/v1/buckets/*"),
    "map": Path(at="proxy", paths="/v1/daemon*"),
}
OF_OBJECTS: Final = ("lean", "lean pieces", "aiohttp", "aiohttp pieces", "redirected", "proxy")
OF_BYTES: Final = OF_OBJECTS[:-1]
OF_BODIES: Final = tuple(path for path in PATHS if path != "inquiry")

# ---- the rows ------------------------------------------------------------------------------------

MISSING: Final = "not in the store"
CORRUPT: Final = "arrived 3 times with bytes that do not have its checksum"
CHANGED: Final = "it was changed after the listing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault.

    Args:
        effect: What it does.
        ends: What an error may say that ends the stream; nothing: the fault passes.
        is_silent: Whether the fault is that nothing comes.
        is_kept: Whether the answer comes, so that nothing is asked again.
        is_exact: Whether each time costs one retry; not where nobody is to blame for what happens
            to a connection that was kept, nor where pieces are given up for the whole.
        only: The paths on which there is such a thing; all of them by default.
    """

    effect: Effect
    ends: tuple[str, ...] = ()
    is_silent: bool = False
    is_kept: bool = False
    is_exact: bool = True
    only: tuple[str, ...] = tuple(PATHS)


class Rewrite(Effect):
    """The object is stored again just before it is read: the same bytes, as another version."""

    def prepare(self, scene: Scene) -> None:
        name = scene.call.path.removeprefix(f"/v1/objects/{BUCKET}/")
        scene.change(OBJECTS[name], False)


ROWS: Final = {
    "slow": Row(effect=Slow(200_000.0), is_kept=True, only=OF_BODIES),
    "late": Row(effect=Delay(0.01), is_kept=True),
    "no answer": Row(effect=Delay(None), is_silent=True),
    "stall at the first byte": Row(effect=Stall("first"), is_silent=True, only=OF_BODIES),
    "stall in the middle": Row(effect=Stall("middle"), is_silent=True, only=OF_BODIES),
    "stall at the last byte": Row(effect=Stall("last"), is_silent=True, only=OF_BODIES),
    "cut at the first byte": Row(effect=Cut("first"), only=OF_BODIES),
    "cut in the middle": Row(effect=Cut("middle"), only=OF_BODIES),
    "cut at the last byte": Row(effect=Cut("last"), only=OF_BODIES),
    "reset before the answer": Row(effect=Reset(), is_exact=False),
    "reset at the first byte": Row(effect=Reset("first"), only=OF_BODIES),
    "reset in the middle": Row(effect=Reset("middle"), only=OF_BODIES),
    "reset at the last byte": Row(effect=Reset("last"), only=OF_BODIES),
    "closed without an answer": Row(effect=Hangup(), is_exact=False),
    "closed behind the answer": Row(effect=DropIdle(), is_exact=False),
    "reset behind the answer": Row(effect=DropIdle(reset=True), is_exact=False),
    "another length, less": Row(
        effect=WrongLength(-1),
        ends=(CHANGED, CORRUPT),
        is_silent=True,
        only=OF_BODIES,
        is_exact=False,
    ),
    "another length, more": Row(
        effect=WrongLength(1),
        ends=(CHANGED, CORRUPT),
        is_silent=True,
        only=OF_BODIES,
        is_exact=False,
    ),
    "another range": Row(
        effect=WrongRange(), ends=(CHANGED, CORRUPT), only=OF_BYTES, is_exact=False
    ),
    "a flipped first byte": Row(
        effect=Corrupt("first"), ends=(CORRUPT,), only=OF_BYTES, is_exact=False
    ),
    "a flipped byte in the middle": Row(
        effect=Corrupt("middle"), ends=(CORRUPT,), only=OF_BYTES, is_exact=False
    ),
    "a flipped last byte": Row(
        effect=Corrupt("last"), ends=(CORRUPT,), only=OF_BYTES, is_exact=False
    ),
    "another object": Row(effect=Change(os.urandom(2_000)), ends=(CHANGED,), only=OF_OBJECTS),
    "another object, same version": Row(
        effect=Change(os.urandom(100), keep_version=True),
        ends=(CHANGED,),
        only=OF_OBJECTS,
    ),
    "the same object, another version": Row(
        effect=Rewrite(), is_kept=True, only=tuple(path for path in OF_OBJECTS if "pie" not in path)
    ),
    "the same object, another version for other pieces": Row(
        effect=Rewrite(), only=("lean pieces", "aiohttp pieces"), is_exact=False
    ),
    "307 in circles": Row(effect=Redirect(), ends=("answered 30", "redirects")),
    "301 in circles": Row(effect=Redirect(status=301), ends=("answered 30", "redirects")),
    "400": Row(effect=Status(400, "bad request"), ends=("400 (bad request)",)),
    "400, a node is down": Row(effect=LIST_FAILED),
    "401": Row(effect=Status(401), ends=("401",)),
    "403": Row(effect=DIRECT_DENIED, ends=("403 (direct target access denied)",)),
    "404": Row(
        effect=Status(404, "ais://b/x does not exist", "ErrNotFound"),
        ends=(MISSING, "answered 404"),
    ),
    "404, no bucket": Row(
        effect=Status(404, 'bucket "ais://b" does not exist', "ErrBckNotFound"),
        ends=("does not exist",),
    ),
    "408": Row(effect=Status(408)),
    "409": Row(effect=BUSY),
    "410": Row(effect=Status(410), ends=(MISSING, "answered 410")),
    "416": Row(effect=Status(416), ends=("answered 416",), is_exact=False),
    "423": Row(effect=Status(423)),
    "429": Row(effect=TOO_MANY_REQUESTS),
    "429, to be tried again later": Row(effect=Status(429, retry_after="1")),
    "500": Row(effect=Status(500)),
    "501": Row(effect=Status(501, "no ETL", "ErrUnsupp"), ends=("501 (ErrUnsupp: no ETL)",)),
    "502": Row(effect=Status(502)),
    "503": Row(effect=UNAVAILABLE),
    "504": Row(effect=Status(504)),
    "507": Row(effect=Status(507, "out of space"), ends=("507 (out of space)",)),
}
CASES: Final = [(row, path) for row, path in product(ROWS, PATHS) if path in ROWS[row].only]

ELSEWHERE: Final[dict[type[Effect], tuple[str, str]]] = {
    Crash: ("test_store_reads.py", "test_a_target_that_is_away_for_a_moment_is_waited_for"),
}
"""Effects that are not of a share of the requests, and the tests that are about them."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield


@pytest.fixture(scope="module")
def ais(small: None) -> Iterator[StandIn]:
    with StandIn(num_proxies=2) as ais:
        ais.create_bucket(BUCKET)
        yield ais


@pytest.fixture(scope="module")
def truths(ais: StandIn) -> dict[str, Ledger]:
    """What a trainer gets of the objects with a prefix where nothing goes wrong."""
    found: dict[str, Ledger] = {}
    for path in (PATHS["aiohttp"], PATHS["aiohttp pieces"]):
        with Storms(ais, path) as storms:
            found[path.prefix] = storms.run(None).ledger
    return found


@pytest.mark.parametrize("path", PATHS)
def test_without_a_fault_each_path_gives_the_same_at_no_more_than_it_takes(
    ais: StandIn, truths: dict[str, Ledger], path: str
) -> None:
    with Storms(ais, PATHS[path]) as storms:
        done = storms.run(None)
    assert done.error is None
    truth = truths[PATHS[path].prefix]
    assert done.ledger.difference(truth) is None
    indices = [index for entry in truth.entries for index in entry.ids]
    assert sorted(indices) == list(range(len(PATHS[path].objects)))
    assert PATHS[path].num_needed in (None, done.num_asked)
    assert (done.num_retries, done.last_fault) == (0, "")


@pytest.mark.parametrize(("row", "path"), CASES, ids=lambda word: str(word))
def test_a_storm_changes_nothing_or_is_an_error_that_names_the_object(
    ais: StandIn, truths: dict[str, Ledger], row: str, path: str
) -> None:
    fault, way = ROWS[row], PATHS[path]
    num_fired = 0
    # What is known of objects is asked for once by a daemon.
    num_each = NUM_SEEDS * len(RATES) if path in OF_OBJECTS else 1
    for lot in batched(product(RATES, range(SEED, SEED + NUM_SEEDS)), num_each):
        with Storms(ais, way, is_silent=fault.is_silent) as storms:
            for rate, seed in lot:
                done = storms.run(fault.effect, rate=rate, seed=seed)
                try:
                    judge(done, fault, way, truths[way.prefix])
                except AssertionError as wrong:
                    wrong.add_note(f"{rate:.0%} of the requests, seed {seed}: {done.last_fault}")
                    raise
                num_fired += done.num_fired
    assert num_fired, "a storm"


def batched(cases: Iterable[tuple[float, int]], num: int) -> list[list[tuple[float, int]]]:
    """Return lots of some cases each."""
    found = list(cases)
    return [found[start : start + num] for start in range(0, len(found), num)]


def judge(done: Outcome, fault: Row, path: Path, truth: Ledger) -> None:
    """Fail if a run is neither right nor ended as is documented, or asked too much."""
    if done.error is None:
        assert done.ledger.difference(truth) is None
    else:
        assert done.ledger.entries == truth.entries[: len(done.ledger.entries)], "the beginning"
        text = str(done.error)
        assert any(words in text for words in fault.ends), text
        assert (done.error.code, done.error.retryable) == ("source", False)
        assert done.error.fault in ("data", "source")
        named = re.search(rf"(object|bucket) ais://{BUCKET}", text) or "the cluster map" in text
        assert named or f"the list of ais://{BUCKET}" in text, text
    num_fired, num_retries = done.num_fired, done.num_retries
    # Each retry follows a fault that was counted and is told of, of its own or of the target.
    assert num_retries <= done.num_faults + done.num_turned_away
    assert done.last_fault or not num_retries
    if path.num_needed is None:
        return
    num_more = done.num_asked - path.num_needed
    # What waits on a connection behind a request that is given up is asked again.
    num_behind = DEPTH if path.is_lean else 1
    if fault.is_silent:
        # A slow machine may be silent, too.
        most = num_behind * num_fired + 2 * path.num_needed
        assert num_retries <= most + done.num_turned_away
        assert num_more <= num_behind * max(num_fired, num_retries)
        return
    assert num_more <= num_behind * num_fired
    if fault.is_kept:
        assert (num_more, num_retries, done.last_fault) == (0, 0, "")
        return
    assert num_retries <= num_fired + done.num_turned_away
    if fault.is_exact and done.error is None:
        assert num_more == num_fired
        assert num_retries >= num_fired


# ---- the matrix is whole -------------------------------------------------------------------------


def effects() -> set[type[Effect]]:
    """Return all effects of the stand-in."""
    named = {getattr(standin, name) for name in standin.__all__}
    kinds = {one for one in named if isinstance(one, type) and issubclass(one, Effect)}
    return kinds - {Effect}


def test_each_fault_of_the_stand_in_has_a_row() -> None:
    rows = {type(row.effect) for row in ROWS.values()}
    of_batches = {kind for kind in effects() if issubclass(kind, BatchEffect)}
    assert not any(path.paths.startswith("/v1/ml") for path in PATHS.values()), (
        "batches are read: their faults need rows"
    )
    assert effects() - of_batches - set(ELSEWHERE) == rows - {Rewrite}
    kinds = {getattr(standin, name) for name in standin.__all__ if name.isupper()}
    assert {one for one in kinds if isinstance(one, Effect)} <= {
        row.effect for row in ROWS.values()
    }


@pytest.mark.parametrize("kind", sorted(effects(), key=repr), ids=lambda kind: kind.__name__)
def test_what_happens_at_a_byte_happens_at_the_first_the_middle_and_the_last(
    kind: type[Any],
) -> None:
    if issubclass(kind, BatchEffect) or kind in ELSEWHERE:
        return
    places = [field.name for field in fields(kind) if "Position" in str(field.type)]
    for place in places:
        told = {getattr(row.effect, place) for row in ROWS.values() if type(row.effect) is kind}
        assert {"first", "middle", "last"} <= told


def test_each_status_that_the_product_knows_has_a_row() -> None:
    told = {row.effect.status for row in ROWS.values() if isinstance(row.effect, Status)}
    assert set(store_faults._STATUS) | {400, 416, 501, 507} <= told


def kinds_of(base: type[Any]) -> set[type[Any]]:
    """Return all classes below one."""
    kinds = set(base.__subclasses__())
    return kinds.union(*map(kinds_of, kinds))


def test_each_path_of_the_product_has_a_column() -> None:
    """A path is a reader, a way to the owner, and a kind of what is on its way.

    Ranges of shards meet all of it in test_store_ranges.py, one fault for each object.
    """
    direct = get_args(get_type_hints(StoreSettings)["direct"])
    assert {path.reader for path in PATHS.values()} == set(get_args(Choice))
    assert {path.direct for path in PATHS.values()} == set(direct)
    assert kinds_of(Transfer) == {Piece, RangeTransfer}, "another kind of transfer needs a column"


def test_what_is_proved_elsewhere_is_there() -> None:
    for file, test in ELSEWHERE.values():
        assert f"\ndef {test}(" in (FilePath(__file__).parent / file).read_text()
