"""Dictation: plans that run in the trainer tell the daemon, batch by batch, what to read.

Batches are drawn a window ahead of what was received, and never past the end of an epoch: a sampler
may change until the next pass begins.  What was drawn is kept until it was received, so that it can
be told again after a lost connection without being drawn again.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from . import errors
from .plans.composite import Interleaved
from .plans.cursor import Cursor
from .plans.data import Data
from .plans.dictated import Dictated
from .plans.engine import BoundPlan, check, epoch_steps, next_batches, remaining_steps, seek, settle
from .plans.from_sampler import FromSampler
from .protocol import messages as m
from .protocol.framing import MAX_CONTROL_BYTES
from .sources import Stream

if TYPE_CHECKING:
    from .plans.base import Described
    from .plans.cursor import Seek
    from .plans.engine import PlannedBatch
    from .topology import Topology

MAX_SAMPLES: Final = 1 << 16
"""Samples of a batch of one rank: half of what one message can name."""

MAX_BYTES: Final = MAX_CONTROL_BYTES - 1024
"""Bytes of a batch as it is told, the state of the sampler included: what one message can hold."""

_MESSAGE_BYTES: Final = 256 << 10
"""Bytes of batches that share a message."""

_AHEAD_BYTES: Final = 8 << 20
"""No further batches are drawn while so many bytes of them wait: half of what the daemon takes."""

_DRAWN: Final = 4
"""Batches that are drawn at a time: of the largest ones, not much more than that."""


class Run(Protocol):
    """A plan that is being executed in this process."""

    def draw(self, max_batches: int) -> list[PlannedBatch]:
        """Return the next batches, all of one epoch; none at the end of a run that ends."""
        ...


class Located(NamedTuple):
    """What is known of a position in a stream."""

    cursor: Cursor
    steps: int
    """Steps of its epoch; below 0 if that is not known."""

    remaining: int
    """Those that are left, likewise."""


class Script:
    """A plan that runs in this process, over data of which only the length is known here.

    Args:
        plan: A plan that holds objects of this process, or `FromSampler`.
        length: Samples in the manifest.
        manifest: Digest of the manifest.
        topology: Which rank of how many.

    Raises:
        PlanError: If the plan needs more than the length.
    """

    def __init__(
        self, plan: Described | FromSampler, length: int, manifest: str, topology: Topology
    ) -> None:
        self._plan = plan
        self._length, self._manifest, self._topology = length, manifest, topology
        self._bound: BoundPlan | None = None
        if not isinstance(plan, FromSampler):
            self._bound = BoundPlan.to(plan, Data(length, manifest))

    def locate(self, where: Cursor | Seek) -> Located:
        """Return the cursor of a position, and how much its epoch has.

        Raises:
            CursorError: If the plan cannot be continued there.
        """
        if self._bound is None:
            assert isinstance(self._plan, FromSampler)
            steps = self._plan.steps
            if not isinstance(where, Cursor):
                where = self._plan.seek(self._manifest, self._topology, where)
            left = -1 if steps is None else max(0, steps - where.step)
            return Located(where, -1 if steps is None else steps, left)
        bound, world_size = self._bound, self._topology.world_size
        if isinstance(where, Cursor):
            check(bound, where)
            cursor = settle(bound, where, world_size)
        else:
            cursor = settle(bound, seek(bound, where, world_size), world_size)
        left = remaining_steps(bound, cursor, world_size)
        whole = epoch_steps(bound, world_size, cursor.epoch) if not cursor.step else 0
        return Located(cursor, whole or cursor.step + left, left)

    def run(self, cursor: Cursor) -> Run:
        """Return what draws the batches from a position on."""
        if self._bound is None:
            assert isinstance(self._plan, FromSampler)
            return self._plan.run(self._length, self._manifest, self._topology, cursor)
        return _EngineRun(self._bound, cursor, self._topology)


class _EngineRun:
    def __init__(self, bound: BoundPlan, cursor: Cursor, topology: Topology) -> None:
        self._bound, self._cursor, self._topology = bound, cursor, topology

    def draw(self, max_batches: int) -> list[PlannedBatch]:
        batches = next_batches(self._bound, self._cursor, self._topology, max_batches=max_batches)
        if batches:
            self._cursor = batches[-1].after
        return batches


def dictated(stream: Stream | str | None) -> Dictated | None:
    """Return what travels in place of a plan that runs in the trainer; None for any other."""
    if not isinstance(stream, Stream):
        return None
    plan = stream.plan
    if not isinstance(plan, FromSampler) and not plan.is_local:
        return None
    own = () if isinstance(plan, FromSampler) else sorted(plan.sources)
    if own:
        raise errors.PlanError(
            f"{', '.join(own)} of {repr(plan)[:500]} has a source of its own, which does not go "
            "with a sampler that runs in the trainer: take that part into a stream of its own, or "
            "a plan of headrace.plans in place of the sampler"
        )
    ends = isinstance(plan, Interleaved)
    return Dictated(name=repr(plan)[:500], plan=plan.digest, about=plan.description, ends=ends)


class _Told(NamedTuple):
    """A batch that waits to be received."""

    dictation: m.Dictation
    num_bytes: int


class Dictator:
    """Draws batches, and keeps them until they were received; for two threads.

    Args:
        run: The plan.
        ahead: Batches to be drawn and not received yet, >= 1.
        ends: Whether the run is one pass that ends.
    """

    def __init__(self, run: Run, ahead: int, *, ends: bool) -> None:
        self._run = run
        self._ahead = ahead
        self._ends = ends
        self._lock = Lock()
        self._waiting: deque[_Told] = deque()
        self._waiting_bytes = 0
        self._num_told = 0  # of those that wait
        self._num_drawn = 0
        self._is_at_edge = False
        self._is_over = self._has_told_end = False
        self.failure: BaseException | None = None
        """What the plan raised; what was drawn before is still delivered."""

    @property
    def num_waiting(self) -> int:
        """Batches that were drawn and not received."""
        return len(self._waiting)

    def has_failed(self, num_consumed: int) -> bool:
        """Return whether the plan has failed, and all that was drawn before was consumed."""
        return self.failure is not None and num_consumed == self._num_drawn

    def begin_pass(self) -> None:
        """Go on after the end of an epoch."""
        self._is_at_edge = False
        self.draw()

    def draw(self) -> None:
        """Draw up to the window, or to the end of the epoch; for the thread of the trainer."""
        while not (self._is_at_edge or self._is_over or self.failure is not None):
            wanted = min(_DRAWN, self._ahead - len(self._waiting))
            if wanted <= 0 or self._waiting_bytes >= _AHEAD_BYTES:
                return
            try:
                batches = self._run.draw(wanted)
                for batch in batches:
                    self._keep(_told(batch, ends=self._ends))
            except Exception as error:  # noqa: BLE001 - raised when the loop has come to it
                self.failure = error
                return
            self._is_over = not batches
            self._is_at_edge = bool(batches) and batches[-1].is_last_of_epoch

    def _keep(self, told: _Told) -> None:
        self._num_drawn += 1
        with self._lock:
            self._waiting.append(told)
            self._waiting_bytes += told.num_bytes

    def untold(self) -> m.Indices | None:
        """Return the next message that is due, which counts as told; None if nothing is."""
        with self._lock:
            part: list[m.Dictation] = []
            num_bytes = 0
            for told in islice(self._waiting, self._num_told, None):
                num_bytes += told.num_bytes
                if part and num_bytes > _MESSAGE_BYTES:
                    break
                part.append(told.dictation)
            self._num_told += len(part)
            is_all = self._num_told == len(self._waiting)
            if not part and (not self._is_over or self._has_told_end):
                return None
            is_last = self._is_over and is_all
            self._has_told_end |= is_last
            return m.Indices(batches=tuple(part), is_last=is_last)

    def begin_anew(self) -> None:
        """Take note that nothing was told yet: of a new connection."""
        with self._lock:
            self._num_told = 0
            self._has_told_end = False

    def received(self, header: m.Batch) -> None:
        """Take note that a batch has come.

        Raises:
            RemoteProtocolError: If it is not the one that was due.
        """
        with self._lock:
            due = None
            if self._waiting:
                due, num_bytes = self._waiting.popleft()
                self._waiting_bytes -= num_bytes
            self._num_told -= 1
        place = header.epoch, header.step, header.ids
        if due is None or (due.epoch, due.step, due.ids) != place:
            raise errors.RemoteProtocolError(
                f"the daemon sent other samples in step {header.step} of epoch {header.epoch} than "
                "it was told"
            )


def _told(batch: PlannedBatch, *, ends: bool) -> _Told:
    if len(batch.indices) > MAX_SAMPLES:
        raise errors.PlanError(
            f"a batch of {len(batch.indices)} samples is above the limit of {MAX_SAMPLES} of plans "
            "that run in the trainer: use a smaller batch, or a plan of headrace.plans"
        )
    meta = dict(batch.meta)
    if batch.origin is not None:
        meta["part_epoch"], meta["part_step"] = batch.origin
    dictation = m.Dictation(
        epoch=batch.epoch,
        step=batch.step,
        global_step=batch.global_step,
        ids=batch.indices.astype("<u8").tobytes(),
        flags=batch.flags.tobytes() if batch.flags.any() else b"",
        stream=batch.stream,
        role="extra" if batch.role and ends else "main",
        meta=meta,
        cursor=_plain(batch.after.to_state()),
    )
    num_bytes = len(msgspec.msgpack.encode(dictation))
    if num_bytes > MAX_BYTES:
        raise errors.PlanError(
            f"a batch of {len(batch.indices)} samples and the state of the sampler after it have "
            f"{num_bytes} bytes, above the limit of {MAX_BYTES}: use a smaller batch, or return "
            "less from state_dict()"
        )
    return _Told(dictation, num_bytes)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    try:
        msgspec.json.encode(state)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise errors.PlanError(
            f"state_dict() of the sampler returns what JSON cannot hold ({error}): return numbers, "
            "text, lists and dicts"
        ) from error
    return state
