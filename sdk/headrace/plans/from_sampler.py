"""Any torch sampler or batch sampler as a plan, which runs in the trainer.

The sampler is drawn from in the trainer, batch by batch; a window of drawn batches is what is read
ahead.  Its state is taken after each drawn batch and travels with it, so that reading ahead does
not move the checkpoint.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import numpy as np

from ..checks import check_flag, check_integer
from ..errors import CursorError, ManifestMismatchError, PlanError
from .base import FixedBatches
from .cursor import Cursor, Seek
from .engine import PlannedBatch
from .exact import ExactOrder, Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..topology import Topology
    from .data import Data
    from .order import Indices
    from .program import Program

_TORCH: Final = ("torch.utils.data", "torchdata.")

# Samplers of torch whose order comes from a live generator: skipping cannot find back into it.
_LIVE: Final = frozenset({"RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler"})


class Drawn(FixedBatches, frozen=True, kw_only=True, tag="Drawn"):
    """A plan whose order is what a sampler object yields; for compositions in this process.

    Each epoch is drawn as a whole, ``len(sampler)`` indices, after ``set_epoch(epoch)`` if the
    sampler has it.  The order of a sampler with a live generator cannot be drawn again: a cursor
    of it belongs to this process.  It never travels; `FromSampler` does, by its batches.
    """

    NOT_IN_DIGEST: ClassVar[frozenset[str]] = frozenset({"sampler"})

    sampler: Any
    """Yields indices, and has a length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.sampler, "__iter__") or not hasattr(self.sampler, "__len__"):
            raise PlanError(
                f"sampler={self.sampler!r} is no sampler with a length: its iteration must yield "
                "indices"
            )

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def is_local(self) -> bool:
        """True: it holds the sampler."""
        return True

    def canonical(self) -> dict[str, Any]:
        """Return the fields that the digest covers; of the sampler, its class."""
        facts = super().canonical()
        return {**facts, "sampler": type(self.sampler).__qualname__}

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return what executes this plan over some data."""
        from .cut import Constant
        from .entries import Entries
        from .flat import FlatProgram

        length = len(self.sampler)

        def draw(epoch: int) -> Made:
            set_epoch = _method(self.sampler, "set_epoch")
            if set_epoch is not None:
                set_epoch(epoch)
            # Exactly so many, so that a sampler that would draw for another pass does not.
            drawn = checked(list(islice(iter(self.sampler), length)), data.length, repr(self))
            if len(drawn) != length:
                raise PlanError(
                    f"{self!r} yields {len(drawn)} indices in epoch {epoch}, its length is {length}"
                )
            return Made(drawn.astype(np.uint32))

        order = ExactOrder(length, "drawn", draw)
        entries = Entries(self, length, "sequential", order=order)
        return FlatProgram(self, entries, Constant, is_constant=True, role=role)


class FromSampler:
    """A plan whose order is that of a sampler object; it runs in the trainer.

    Resume is exact if the sampler has ``state_dict`` and ``load_state_dict``, or if its order is a
    function of ``set_epoch``.  A state belongs to one rank of one world size: the exception from
    the rule that any rank's state loads on any rank.

    Args:
        sampler: Yields indices, or batches of indices if `batch_size` is None.  It deals to the
            ranks itself.
        batch_size: Samples per batch, for a sampler that yields single indices.
        drop_last: Whether a last batch that is smaller is left out.
        name: What tells it from others in a state; by default the name of its class.

    Raises:
        PlanError: If it cannot be iterated, or an argument is out of range.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        *,
        batch_size: int | None = None,
        drop_last: bool = False,
        name: str | None = None,
    ) -> None:
        if not hasattr(sampler, "__iter__") or isinstance(sampler, str | bytes | dict):
            raise PlanError(
                f"sampler={sampler!r} is no sampler: give an object whose iteration yields "
                "indices (with batch_size=), or batches of them"
            )
        # What cannot be an iterator is not asked: it may count how often it is iterated.
        if hasattr(sampler, "__next__") and iter(sampler) is sampler:
            raise PlanError(
                f"sampler={type(sampler).__name__} can be iterated only once: give an object that "
                "begins anew in each epoch"
            )
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1, 2**31, PlanError)
        check_flag("drop_last", drop_last, PlanError)
        if drop_last and batch_size is None:
            raise PlanError("drop_last=True goes with batch_size=: the batches are the sampler's")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.name = name or type(sampler).__qualname__

    def __repr__(self) -> str:
        size = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        last = ", drop_last=True" if self.drop_last else ""
        return f"FromSampler({self.name}{size}{last})"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of name, batch size and drop_last, in hex."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    @property
    def description(self) -> str:
        """What the digest covers, as JSON."""
        facts = {
            "type": "FromSampler",
            "name": self.name,
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
        }
        return msgspec.json.encode(facts, order="sorted").decode()

    @property
    def steps(self) -> int | None:
        """Batches of an epoch as the sampler says it; None if it has no length."""
        try:
            length = len(self.sampler)  # type: ignore[arg-type]
        except TypeError:
            return None
        if self.batch_size is None:
            return length
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def seek(self, manifest: str, topology: Topology, where: Seek) -> Cursor:
        """Return the cursor of a place.

        Raises:
            CursorError: If it is not the start of an epoch.
        """
        if where.epoch is None:
            raise CursorError(
                f"{self!r} can only be sought to the start of an epoch: use seek(epoch=…), or load "
                "the state that was taken there"
            )
        return self.start(manifest, topology, epoch=where.epoch)

    def start(self, manifest: str, topology: Topology, *, epoch: int = 0) -> Cursor:
        """Return the cursor before the first batch of an epoch of a fresh sampler."""
        return Cursor(
            plan=self.digest,
            manifest=manifest,
            epoch=epoch,
            world_size=topology.world_size,
            child={"rank": topology.rank, "state": None},
        )

    def run(self, length: int, manifest: str, topology: Topology, cursor: Cursor) -> SamplerRun:
        """Return a run that begins at a cursor; the sampler must not be used by anybody else.

        Raises:
            CursorError: If the cursor is that of another sampler, rank or world size, or the
                sampler cannot find back to it.
            ManifestMismatchError: If it belongs to other data.
        """
        return SamplerRun(self, length, manifest, topology, cursor)


class SamplerRun:
    """Draws batches from a sampler, a window at a time."""

    def __init__(
        self, plan: FromSampler, length: int, manifest: str, topology: Topology, cursor: Cursor
    ) -> None:
        self._plan = plan
        self._length = length
        self._topology = topology
        self._check(cursor, manifest)
        self._cursor = cursor
        # Batches of the epoch in progress; None between epochs.
        self._drawing: Iterator[tuple[Indices, Any]] | None = None
        # The next batch, drawn already because only then it is known that the one before was not
        # the last of its epoch; with the state of the sampler after it.
        self._ahead: tuple[Indices, Any] | None = None
        # What the sampler raised when the next batch was drawn ahead; raised when it is due.
        self._failure: Exception | None = None
        # Whether a state was loaded since the sampler was last iterated.
        self._is_loaded = False
        self._resume(cursor)

    @property
    def cursor(self) -> Cursor:
        """Where the next batch stands."""
        return self._cursor

    def draw(self, max_batches: int) -> list[PlannedBatch]:
        """Return the next window: at most so many batches, all of one epoch.

        Raises:
            PlanError: If the sampler yields something else than indices of samples, or an epoch
                without a batch.
        """
        if self._failure is not None:
            raise self._failure
        if self._ahead is None:
            self._begin_epoch()
        window: list[PlannedBatch] = []
        while self._ahead is not None and len(window) < max_batches:
            assert self._drawing is not None
            indices, state = self._ahead
            before = self._cursor
            try:
                self._ahead = next(self._drawing, None)
            except Exception as error:  # noqa: BLE001 - what was drawn before is right
                self._ahead, self._failure = None, error
            is_last = self._ahead is None and self._failure is None
            self._cursor = msgspec.structs.replace(
                before,
                epoch=before.epoch + 1 if is_last else before.epoch,
                step=0 if is_last else before.step + 1,
                position=0 if is_last else before.position + len(indices),
                update=before.update + 1,
                sample=before.sample + len(indices),
                child={"rank": self._topology.rank, "state": self._state() if is_last else state},
            )
            window.append(
                PlannedBatch(
                    epoch=before.epoch,
                    step=before.step,
                    global_step=before.update,
                    rank=self._topology.rank,
                    world_size=self._topology.world_size,
                    indices=indices,
                    flags=np.zeros(len(indices), dtype=np.uint8),
                    after=self._cursor,
                )
            )
        return window

    def _check(self, cursor: Cursor, manifest: str) -> None:
        if cursor.plan != self._plan.digest:
            raise CursorError(
                f"the cursor belongs to plan {cursor.plan[:12]}…, this stream runs plan "
                f"{self._plan.digest[:12]}… ({self._plan!r})"
            )
        if cursor.manifest != manifest:
            raise ManifestMismatchError(
                f"the cursor belongs to manifest {cursor.manifest[:12]}…, the source has manifest "
                f"{manifest[:12]}… ({self._length} samples)"
            )
        rank = (cursor.child or {}).get("rank")
        if (rank, cursor.world_size) != (self._topology.rank, self._topology.world_size):
            raise CursorError(
                f"the state of a sampler belongs to rank {rank} of {cursor.world_size}, this is "
                f"rank {self._topology.rank} of {self._topology.world_size}: load the state that "
                "this rank saved, on the same number of ranks"
            )

    def _resume(self, cursor: Cursor) -> None:
        state = (cursor.child or {}).get("state")
        load = _method(self._plan.sampler, "load_state_dict")
        if state is not None and load is not None:
            self._set_epoch(cursor.epoch)
            load(state)
            self._is_loaded = not cursor.step
            if cursor.step:
                self._begin(skip=0)
        elif cursor.step:
            live = live_class(self._plan.sampler)
            if live:
                raise CursorError(
                    f"step {cursor.step} of {live} cannot be found again, its order comes from a "
                    "live generator: give the sampler state_dict and load_state_dict, or use "
                    "plans.Shuffled"
                )
            self._set_epoch(cursor.epoch)
            self._begin(skip=cursor.step)
        if cursor.step and self._ahead is None:
            raise CursorError(
                f"the sampler ends before step {cursor.step} of epoch {cursor.epoch}: it is not "
                "the one that made the state"
            )

    def _begin_epoch(self) -> None:
        self._set_epoch(self._cursor.epoch)
        self._begin(skip=0)
        if self._ahead is None and self._is_loaded:
            self._begin(skip=0)  # the state was that of an iterator at its end
        self._is_loaded = False
        if self._ahead is None:
            raise PlanError(f"{self._plan!r} yields no batch in epoch {self._cursor.epoch}")

    def _begin(self, *, skip: int) -> None:
        self._drawing = islice(self._batches(), skip, None)
        self._ahead = next(self._drawing, None)

    def _batches(self) -> Iterator[tuple[Indices, Any]]:
        plan = self._plan
        if plan.batch_size is None:
            for batch in plan.sampler:
                yield self._indices(batch), self._state()
            return
        items = iter(plan.sampler)
        while batch := list(islice(items, plan.batch_size)):
            if plan.drop_last and len(batch) < plan.batch_size:
                return
            yield self._indices(batch), self._state()

    def _indices(self, batch: object) -> Indices:
        hint = "" if self._plan.batch_size is not None else " (for single indices give batch_size=)"
        return checked(batch, self._length, repr(self._plan), hint)

    def _state(self) -> Any:  # noqa: ANN401 - of the sampler
        take = _method(self._plan.sampler, "state_dict")
        return None if take is None else take()

    def _set_epoch(self, epoch: int) -> None:
        set_epoch = _method(self._plan.sampler, "set_epoch")
        if set_epoch is not None:
            set_epoch(epoch)


def checked(batch: object, length: int, name: str, hint: str = "") -> Indices:
    """Return what a sampler yields as sample indices, u64[n].

    Raises:
        PlanError: If it is no list of indices below `length`.
    """
    try:
        found = np.asarray(batch)
    except (TypeError, ValueError):
        found = np.empty((0, 0))
    if found.ndim == 1 and not found.size:
        return np.empty(0, dtype=np.uint64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise PlanError(f"{name} yields {batch!r}, which is no list of sample indices{hint}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= length:
        raise PlanError(
            f"{name} yields index {low if low < 0 else high}, the source has samples "
            f"0..{length - 1}"
        )
    return found.astype(np.uint64)


def _layers(sampler: object) -> Iterator[object]:
    # A batch sampler of torch holds the sampler that has the epoch.
    for _ in range(8):
        yield sampler
        inner = getattr(sampler, "sampler", None)
        if inner is None:
            return
        sampler = inner


def _method(sampler: object, name: str) -> Any:  # noqa: ANN401 - of the sampler
    for layer in _layers(sampler):
        method = getattr(layer, name, None)
        if callable(method):
            return method
    return None


def live_class(sampler: object) -> str:
    """Return the class of a sampler whose order comes from a live generator; else nothing."""
    for layer in _layers(sampler):
        kind = type(layer)
        if kind.__module__.startswith(_TORCH) and kind.__name__ in _LIVE:
            return kind.__name__
    return ""
