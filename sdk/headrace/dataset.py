"""`DaemonDataset`: batches of a stream, in the order of its plan, resumable after any of them.

Two positions are kept apart: *received*, where the receiver reconnects, and *delivered*, what
`DaemonDataset.state_dict` returns.  Reading ahead moves the first only, so a checkpoint never
skips a batch that the training loop has not been given.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import weakref
from collections.abc import Mapping
from multiprocessing.context import get_spawning_popen
from operator import index
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import msgspec
import numpy.random  # noqa: F401 - a DataLoader worker needs it, and would import it after its fork
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from . import errors
from .batch import Batch
from .board import END, Board, Record, epoch_of, epoch_start
from .checks import check_flag, check_integer
from .client import default_socket
from .dictation import Dictator, dictated
from .link import Link, unwired, wire_start
from .loader import Loader
from .manifestview import ManifestView
from .passes import FeedPass, PartPass, PartState, Pass, read_part_state, ticket
from .plans.composite import parts_of
from .plans.cursor import Cursor, Seek
from .plans.engine import check_plan
from .private import PrivateDaemon
from .protocol import messages as m
from .ranks import Facts, Meeting, compare, meeting, stay_away
from .receiver import CLOSE_S, Buffers, Receiver
from .sources import Stream
from .topology import Siblings, Topology, check_sources, resolve, siblings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from .collate import Collate, Transform

_COPIED: Final = (
    "_socket",
    "_stream",
    "_dictated",
    "_transform",
    "_collate_fn",
    "_prefetch_batches",
    "_topology",
    "_is_explicit",
    "_name",
    "_deadline_s",
    "_check_ranks",
    "_has_peers",
)
"""What a copy of a dataset takes over, beside its position."""


class DaemonDataset(IterableDataset[Any]):
    """An iterable dataset whose batches come from a Headrace daemon.

    Each pass over it is the next epoch; leaving a loop early abandons the rest of its epoch.  Use
    it directly: the daemon reads ahead in a process of its own, and the plan cuts the batches.
    Where `transform` and `collate_fn` need more than one processor, use `loader`, or a
    ``DataLoader(dataset, batch_size=None, num_workers=W)``.

    Args:
        socket: Path of the daemon's socket; by default ``$HEADRACE_SOCKET``, then that of the
            service.
        stream: A `Stream`, the name of one that the daemon's configuration has, or nothing for
            its default one.
        decode: Only None so far: values are ``bytes``.
        transform: Called with each sample as ``{"__key__": name, field: bytes}``.  What it raises
            gets a note with the name of the sample.
        collate_fn: Called with the list of a batch's transformed samples; the loop gets what it
            returns.  Without it, dicts with the same keys become the columns of a `Batch`, tuples
            a tuple of columns, anything else one column: a tensor where type, shape and dtype are
            the same, else a list.  For a composition, `transform` and `collate_fn` may be dicts by
            name of the part (``batch.meta["stream"]``; that of a main plan is ``"train"``); parts
            that are not in it have none.
        prefetch_batches: Batches to keep ready in this process, and as many in the daemon.
        topology: Rank and world size; by default those of torch.distributed or torchrun, which
            are asked when the first pass begins.
        process_group: The process group whose ranks share the data, if that is not all of them.
        mesh: The same as a device mesh of one dimension, ``mesh["dp"]`` for example.
        deadline_s: Seconds that a daemon may be away before iterating raises, and that ranks wait
            for each other before the first batch.
        check_ranks: Whether the ranks of torch.distributed compare plan, data and position before
            the first batch, and again after a state was loaded; never with `topology`.

    Raises:
        PlanError: If an argument is out of range or of the wrong kind.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        stream: Stream | str | None = None,
        *,
        decode: None = None,
        transform: Transform | Mapping[str, Transform] | None = None,
        collate_fn: Collate | Mapping[str, Collate] | None = None,
        prefetch_batches: int = 4,
        topology: Topology | None = None,
        process_group: Any = None,  # noqa: ANN401 - a ProcessGroup
        mesh: Any = None,  # noqa: ANN401 - a DeviceMesh
        deadline_s: float = 300.0,
        check_ranks: bool = True,
    ) -> None:
        if socket is not None and not isinstance(socket, str | os.PathLike):
            raise errors.PlanError(
                f"socket={socket!r} is no path: give that of the daemon's socket first, then the "
                "stream; DaemonDataset.local(stream) starts a daemon of its own"
            )
        if decode is not None:
            raise errors.PlanError(
                f"decode={decode!r} is not available: use None and decode in transform="
            )
        if stream is not None and not isinstance(stream, Stream | str):
            raise errors.PlanError(
                f"stream={stream!r} is no stream: give Stream(source, plan), the name of a "
                "configured one, or nothing for the default one"
            )
        check_sources(topology, process_group, mesh)
        for name, function in (("transform", transform), ("collate_fn", collate_fn)):
            _check_function(name, function, stream)
        check_integer("prefetch_batches", prefetch_batches, 1, 4097, errors.PlanError)
        check_flag("check_ranks", check_ranks, errors.PlanError)
        is_number = isinstance(deadline_s, int | float) and not isinstance(deadline_s, bool)
        if not is_number or not 0 < deadline_s < float("inf"):
            raise errors.PlanError(f"deadline_s={deadline_s!r} must be above 0 seconds and finite")
        self._socket = os.fspath(socket) if socket is not None else default_socket()
        self._stream = stream
        # What travels in place of a plan that runs in this process; None for one that does not.
        self._dictated = dictated(stream)
        self._transform = transform
        self._collate_fn = collate_fn
        self._prefetch_batches = prefetch_batches
        # Settled when the first pass begins, if it was not said.
        self._topology = topology
        # Whether it was said: then nothing is known of other ranks.
        self._is_explicit = topology is not None
        # What says it otherwise; a copy has neither, but what they said.
        self._process_group, self._mesh = process_group, mesh
        # Whether ranks have to compare where they begin, and have done so since the last jump.
        self._check_ranks, self._is_compared = check_ranks, False
        # Whether there were other ranks to compare with.
        self._has_peers = False
        # What this dataset is called in the daemon where it has several feeds.
        self._name = secrets.token_hex(8)
        self._deadline_s = deadline_s
        # Where the next pass begins if that was said; None: it follows from the last pass.
        self._next: Cursor | Seek | None = Seek(epoch=0)
        # Tells copies in DataLoader workers where their next pass begins.
        self._board = Board(epoch_start(0))
        self._forget()

    def _forget(self) -> None:
        """Begin without a feed, a pass, or a daemon of its own: as a new dataset or a copy."""
        self._link = Link(self._socket, self._stream, self._dictated, self._deadline_s)
        # The cursor after the last batch that was handed out; None before the first.
        self._delivered: Cursor | None = None
        # The latest pass, while somebody holds it; where it began; the epoch of its last batch.
        self._pass: weakref.ref[Pass] | None = None
        self._pass_start: Cursor | Seek = Seek(epoch=0)
        self._epoch = 0
        # Whether the stream is one pass that ends: the next one goes on where it was left.
        self._ends = False
        # The feed of the latest pass; None before the first and after a seek.
        self._receiver: Receiver | None = None
        # In a DataLoader worker: the latest pass; a state for the next one; whether there was none.
        self._part: weakref.ref[PartPass] | None = None
        self._restored: PartState | None = None
        self._is_new = True

    @classmethod
    def local(cls, stream: Stream, *, memory: str = "1GiB", **options: Any) -> Self:  # noqa: ANN401
        """Return a dataset with a daemon of its own, on a temporary socket.

        The daemon ends with this process, whatever ends it, and is restarted if it dies first.

        Args:
            stream: What to read.
            memory: The daemon's memory for batches: a size such as ``"512MiB"``.
            **options: As for the constructor.

        Raises:
            PlanError: If an argument is out of range or of the wrong kind.
            DaemonUnavailableError: If the daemon cannot be started.
        """
        if not isinstance(stream, Stream):
            raise errors.PlanError(f"stream={stream!r}: local() takes Stream(source, plan)")
        if not isinstance(memory, str):
            raise errors.PlanError(f"memory={memory!r} is no size: give text, such as '512MiB'")
        private = PrivateDaemon(memory)
        try:
            dataset = cls(private.socket, stream, **options)
            private.ensure_running()
        except BaseException:
            private.close()
            raise
        dataset._link.private = private
        weakref.finalize(dataset, private.close)
        return dataset

    # ---- iterating ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Return a pass.  It begins with its first batch; until then it has no effect."""
        _refuse_batching(sys._getframe(1))
        if get_worker_info() is None:
            return FeedPass(self)
        self._refuse_workers()
        part = PartPass(self, self._board, restored=self._restored)
        self._restored = None
        self._part = weakref.ref(part)
        return part

    def loader(
        self,
        num_workers: int = 0,
        *,
        pin_memory: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> Loader:
        """Return a loader that transforms and collates in worker processes.

        It yields what the dataset itself would, in the same order, and moves the position of this
        dataset: `state_dict` and all else go on as without workers.

        Args:
            num_workers: Processes; 0 for none.
            pin_memory: Whether tensors are copied into pinned memory.
            **options: ``prefetch_factor``, ``persistent_workers``, ``timeout``,
                ``worker_init_fn``, ``multiprocessing_context`` and ``generator``, as in a
                ``DataLoader``.

        Raises:
            PlanError: If an option is one that the plan decides, or that would change the order.
        """
        return Loader(self, num_workers, pin_memory=pin_memory, **options)

    def __len__(self) -> int:
        """Return the steps of this rank in the whole current epoch, whatever the position."""
        record = self._worked()
        if self._active() is not None:
            where = self._pass_start
        elif record is not None and not record.is_over:
            assert record.current is not None
            where = unwired(record.current)
        else:
            where = self._upcoming()
        return self._counted(self._describe(where).steps)

    @property
    def remaining(self) -> int:
        """Steps that the pass in progress still has; between passes, those of the next one.

        Raises:
            FeedError: If workers of a plain ``DataLoader`` have begun a pass: how much of it the
                loop was given is not known here.
        """
        self._refuse_worked("remaining")
        if self._active() is None or self._next is not None:
            return self._counted(self._describe(self._upcoming()).remaining)
        assert self._delivered is not None
        if self._delivered.epoch != self._epoch:
            return 0  # the last batch was handed out, the loop has not asked for another yet
        return self._counted(self._describe(self._delivered).remaining)

    def _counted(self, steps: int) -> int:
        if steps < 0 and self._dictated is None:
            raise TypeError(
                "the stream has no length: its shards are streamed without an index, so an epoch "
                "ends where they end; give Stream(…, steps_per_epoch=…), or index them (plain .tar)"
            )
        if steps < 0:
            raise TypeError(
                f"the stream has no length: the sampler of {self._label} has none; give it __len__"
            )
        return steps

    # ---- positions ---------------------------------------------------------------------------

    def state_dict(self, *, after: Batch | Cursor | None = None) -> dict[str, Any]:
        """Return the position as small plain data, ready for JSON; it loads on any rank.

        Args:
            after: The batch after which to continue; by default the last one handed out.

        In a worker of a ``DataLoader`` it is that of the worker's part, for
        ``StatefulDataLoader``.

        Raises:
            DaemonUnavailableError: If nothing was handed out yet and the daemon, which knows the
                manifest, cannot be asked.
            FeedError: If workers of a plain ``DataLoader`` have begun a pass: how much of it the
                loop was given is not known here.
        """
        if isinstance(after, Batch):
            return after.cursor.to_state()
        if isinstance(after, Cursor):
            return after.to_state()
        if after is not None:
            raise errors.CursorError(
                f"after={after!r}: give a batch of this dataset, or its cursor"
            )
        if get_worker_info() is not None:
            return self._part_state()
        self._refuse_worked("state_dict()")
        position = self._delivered if self._next is None else self._next
        if isinstance(position, Cursor):
            return position.to_state()
        assert position is not None
        return dict(self._describe(position).cursor)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass continue where `state_dict` was taken; a pass in progress ends.

        Raises:
            CursorError: If it is no state, a newer one, or that of another plan.  Whether it
                belongs to the data is seen when the next pass begins.
        """
        if get_worker_info() is not None:
            self._restore_part(state)
            return
        if isinstance(state, dict) and "num_parts" in state:
            raise errors.CursorError(
                f"this is the state of DataLoader worker {state.get('part')} of "
                f"{state['num_parts']}: load that of the StatefulDataLoader into one; a dataset "
                "takes what its own state_dict() returned"
            )
        cursor = Cursor.from_state(state)
        if isinstance(self._stream, Stream):
            check_plan(self._stream.checked_plan, cursor)
        self._jump(cursor)

    def seek(
        self, *, epoch: int | None = None, update: int | None = None, sample: int | None = None
    ) -> None:
        """Make the next pass begin elsewhere, in constant time; a pass in progress ends.

        Args:
            epoch: At the start of this epoch.
            update: After this many steps, counted from the start of the run; of `Interleaved`,
                after so many updates of the main plan and the extras that are due there.
            sample: After this many samples of all ranks; must be the edge of a batch.

        Raises:
            CursorError: If not exactly one is given, or it is no place to begin at.
        """
        where = Seek(epoch=epoch, update=update, sample=sample)
        if epoch is not None:
            self._jump(where)
        else:
            self._jump(Cursor.from_state(self._describe(where).cursor))

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass that of an epoch; does nothing if it is already.

        Raises:
            CursorError: If a pass through another epoch is in progress.
        """
        where = Seek(epoch=epoch)
        record = self._worked()
        if record is not None and not record.is_over:
            assert record.current is not None
            # Whether the loop has left that pass is not known here.
            if epoch == epoch_of(record.current):
                return
        active = self._active()
        if active is not None:
            current = self._epoch if self._next is None else self._next.epoch
            if current != epoch:
                raise errors.CursorError(
                    f"set_epoch({epoch}) in the middle of epoch {current}: call it before the "
                    "loop, or leave the loop first"
                )
        elif self._upcoming().epoch != epoch:
            self._jump(where)

    def _jump(self, where: Cursor | Seek) -> None:
        if get_worker_info() is not None:
            raise errors.FeedError(
                "this is a copy of the dataset in a DataLoader worker: set positions in the main "
                "process",
                code="workers",
                fault="client",
            )
        self._end_pass()
        self._next = where
        self._is_compared = False
        self._board.put(wire_start(where))

    def _upcoming(self) -> Cursor | Seek:
        """Return where the next pass begins; a `Seek` names an epoch."""
        record = self._worked()
        if record is not None:
            return unwired(record.next)
        if self._next is not None:
            return self._next
        assert self._delivered is not None
        if self._ends or self._delivered.epoch > self._epoch:
            return self._delivered
        return Seek(epoch=self._epoch + 1)

    def _worked(self) -> Record | None:
        """Return what DataLoader workers have begun since this process last moved the position."""
        record = self._board.read()
        return record if record.current is not None else None

    def _refuse_worked(self, what: str) -> None:
        if self._worked() is not None:
            raise errors.FeedError(
                f"{what} is not known in the main process while the workers of a plain DataLoader "
                "iterate: use dataset.loader(num_workers=…), which keeps the position here, or a "
                "StatefulDataLoader and its own state_dict()",
                code="workers",
                fault="client",
            )

    def _refuse_workers(self) -> None:
        if self._dictated is not None:
            raise errors.PlanError(
                f"{self._label} runs in the process of the trainer, which DataLoader workers are "
                "not: use num_workers=0, or a plan of headrace.plans, which the daemon executes"
            )

    @property
    def _label(self) -> str:
        return self._dictated.name if self._dictated is not None else repr(self._stream)

    def _active(self) -> Pass | None:
        """Return the pass that is in progress: begun, not over, and still held by somebody."""
        if self._worked() is not None:
            return None  # what was in progress here is overtaken
        current = self._pass() if self._pass is not None else None
        return current if current is not None and not current.is_over else None

    # ---- the feed of a pass ------------------------------------------------------------------

    def _begin(self, new: Pass) -> Receiver:
        """Make a pass the current one and return where its batches come from."""
        start = self._upcoming()
        continues = self._next is None and isinstance(start, Cursor)
        receiver = self._receiver
        if receiver is None or not receiver.is_ours or not continues:
            self._end_feed()
            self._agree(start, 1)
            receiver = self._open_feed(self._start(start), dictator=self._dictator(start))
        self._make_current(new, start)
        receiver.begin_pass()
        return receiver

    def _start(self, start: Cursor | Seek) -> dict[str, Any]:
        """Return what a feed is asked to begin at."""
        if self._dictated is None:
            return wire_start(start, self._skips)
        known = self._describe(start).cursor
        return {**known, "skips": sorted({*known["skips"], *self._skips})}

    @property
    def _skips(self) -> tuple[int, ...]:
        """What the run has left out so far."""
        return () if self._delivered is None else self._delivered.skips

    def _dictator(self, start: Cursor | Seek) -> Dictator | None:
        """Return what draws the batches of a plan that runs here."""
        if self._dictated is None:
            return None
        known = self._describe(start)
        script = self._link.script(known, self._resolve())
        run = script.run(Cursor.from_state(known.cursor))
        # Those that are ready here, those that are ready there, and those that are being read.
        return Dictator(run, 2 * self._prefetch_batches + 2, ends=self._dictated.ends)

    def _begin_elsewhere(self, new: Pass, workers: int) -> Cursor | Seek:
        """Make a pass the current one whose feeds others open; return where it begins."""
        self._refuse_workers()
        start = self._upcoming()
        self._end_feed()
        self._agree(start, workers)
        self._make_current(new, start)
        return start

    @property
    def _is_raw(self) -> bool:
        """Whether the loop gets batches as they come."""
        return self._transform is None and self._collate_fn is None

    def _resolve(self) -> Topology:
        return resolve(self._topology, process_group=self._process_group, mesh=self._mesh)

    def _agree(self, start: Cursor | Seek, workers: int) -> None:
        """Settle who this rank is, have its memory reserved, and see that all ranks read the same.

        The ranks compare what they are about to read once after each jump.
        """
        is_main = threading.current_thread() is threading.main_thread()
        met: Meeting | None = None
        if not self._is_compared and not self._is_explicit and self._check_ranks and is_main:
            met = meeting(self._process_group if self._mesh is None else self._mesh.get_group())
            self._has_peers = met is not None
        try:
            self._topology = self._resolve()
            self._admit(start, workers)
            if met is None:
                return
            entries = self._describe(start)
        except errors.HeadraceError as error:
            if met is not None:
                stay_away(met, str(error))
            raise
        place = {name: entries.cursor[name] for name in ("epoch", "step", "position")}
        if self._dictated is not None:
            place["position"] = 0  # samplers of their own may give ranks unequal batches
        facts = Facts(
            stream=_label(entries.stream, self._stream),
            world_size=self._topology.world_size,
            plan=entries.plan,
            manifest=entries.manifest,
            length=entries.length,
            **place,
        )
        compare(met, facts, entries.blocks, deadline_s=self._deadline_s)
        self._is_compared = True

    def _admit(self, start: Cursor | Seek, workers: int) -> None:
        """Have the memory of all feeds of this run on this node reserved, or be refused."""
        members = self._members(workers)
        if members is None:
            return
        topology = self._resolve()
        self._link.ask(
            m.Lookup(
                stream=self._link.wire_stream,
                rank=topology.rank,
                world_size=topology.world_size,
                start=wire_start(start),
                **members,
            )
        )

    def _members(self, workers: int) -> dict[str, Any] | None:
        """Return what says which feeds get their memory together; None if one is all there is.

        One feed of a run of several nodes is reserved before the ranks compare, too: what is
        refused is refused before another rank waits for this one.
        """
        if self._dictated is not None:
            return None  # how large its batches are is seen when they come
        run = Siblings("", 1) if self._is_explicit else siblings()
        if run.ranks * workers == 1 and not self._has_peers:
            return None
        return {"group": run.name or self._name, "ranks": run.ranks, "workers": workers}

    def _make_current(self, new: Pass, start: Cursor | Seek) -> None:
        self._next = self._pass_start = start  # the position until the first batch
        self._pass = weakref.ref(new)
        self._board.put(wire_start(start, self._skips))

    def _open_feed(
        self,
        start: dict[str, Any],
        *,
        first: int = 0,
        stride: int = 1,
        epochs: int | None = None,
        buffers: Buffers | None = None,
        dictator: Dictator | None = None,
    ) -> Receiver:
        """Open a feed, in place of the one before; with a stride, one of as many."""
        self._end_feed()
        self._topology = topology = self._resolve()
        self._receiver = Receiver(
            self._link.connector(),
            m.Open(
                stream=self._link.wire_stream,
                rank=topology.rank,
                world_size=topology.world_size,
                start=start,
                first=first,
                stride=stride,
                epochs=epochs,
                prefetch=self._prefetch_batches,
                **self._members(stride) or {},
            ),
            window=self._prefetch_batches,
            deadline_s=self._deadline_s,
            buffers=buffers,
            dictator=dictator,
        )
        # The receiver's thread outlives us unless it is told.
        self._hang_up = weakref.finalize(self, self._receiver.abandon)
        return self._receiver

    def _end_feed(self, wait_s: float = CLOSE_S) -> bool:
        """End the feed if there is one; say whether its buffers are ours again."""
        receiver, self._receiver = self._receiver, None
        if receiver is None:
            return True
        self._hang_up.detach()
        return receiver.stop(wait_s)

    def _end_pass(self) -> None:
        current = self._pass() if self._pass is not None else None
        if current is not None:
            current._end(CLOSE_S)
        self._pass = None
        self._end_feed()

    def _deliver(self, cursor: Cursor, epoch: int, *, ends: bool) -> None:
        """Take note that the loop is given a batch of an epoch, after which the cursor stands."""
        if self._next is not None or epoch != self._epoch:
            self._board.put(END if ends else epoch_start(epoch + 1))
        self._delivered = cursor
        self._link.was_reached = True
        self._epoch, self._ends = epoch, ends
        self._next = None

    def close(self) -> None:
        """End the feed, and the daemon if it is a private one; the position stays."""
        self._end_pass()
        if self._link.private is not None:
            self._link.private.close()

    # ---- asking the daemon -------------------------------------------------------------------

    @property
    def manifest(self) -> ManifestView:
        """Names and sizes of the samples by index; they stay in the daemon."""
        return ManifestView(self._describe)

    def read(self, indices: Iterable[int]) -> list[tuple[str, Any]]:
        """Return single samples by index, as iterating over a batch does; undecoded.

        Raises:
            HeadraceError: If an index is outside the manifest or a sample cannot be read.
        """
        return self._link.read(tuple(map(index, indices)))

    def _describe(self, where: Cursor | Seek, indices: tuple[int, ...] = ()) -> m.Entries:
        """Return what the daemon knows of a position, and of some samples."""
        # Not kept: the process group may be made later than the first question.
        return self._link.describe(where, self._resolve(), indices)

    # ---- copies ------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, in a DataLoader worker or elsewhere: no feed, no daemon."""
        if self._link.dial is not None:
            raise TypeError(
                "the dataset of a FakeDaemon cannot be pickled: its daemon is in this process; use "
                "DataLoader workers that are forked"
            )
        self._topology = self._resolve()
        state = {name: vars(self)[name] for name in _COPIED}
        worked = self._worked()
        state["_next"] = self._upcoming() if worked is None else unwired(worked.next)
        # Elsewhere than in a worker the copy goes its own way.
        state["_board"] = self._board if get_spawning_popen() is not None else None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        board: Board | None = state.pop("_board")
        self.__dict__.update(state)
        self._board = board or Board(wire_start(state["_next"]))
        self._process_group = self._mesh = None  # `_topology` has what they said
        self._is_compared = False
        self._forget()

    # ---- in a DataLoader worker --------------------------------------------------------------

    def _part_state(self) -> dict[str, Any]:
        """Return where this worker stands in its part; before the first batch, where it begins."""
        world_size = self._resolve().world_size
        if self._restored is not None:
            return dict(msgspec.to_builtins(self._restored))
        part = self._part() if self._part is not None else None
        if part is not None and part.has_begun:
            return dict(msgspec.to_builtins(part.state(world_size)))
        mine = ticket()
        start = self._board.peek(mine, is_new=self._is_new)
        state = PartState(
            part=mine.worker,
            num_parts=mine.num_workers,
            world_size=world_size,
            start=dict(self._describe(unwired(start)).cursor),
        )
        return dict(msgspec.to_builtins(state))

    def _restore_part(self, state: dict[str, Any]) -> None:
        """Make the next pass of this worker continue where its state was taken."""
        mine = ticket()
        self._restored = read_part_state(state, mine, self._resolve().world_size)
        start = self._restored.start
        self._board.restore(mine, start, ends=self._describe(unwired(start)).ends)
        self._is_new = False


def _check_function(name: str, function: object, stream: Stream | str | None) -> None:
    if function is None or callable(function):
        return
    if not isinstance(function, Mapping):
        raise errors.PlanError(f"{name}={function!r} cannot be called: give a function")
    known = parts_of(stream.plan) if isinstance(stream, Stream) else None
    for part, one in function.items():
        if not callable(one):
            raise errors.PlanError(f"{name}[{part!r}]={one!r} cannot be called: give a function")
        if known is not None and part not in known:
            raise errors.PlanError(
                f"{name}[{part!r}]: the plan has no part of that name; its parts: "
                f"{', '.join(known) or 'none'}"
            )


def _refuse_batching(caller: FrameType) -> None:
    """Refuse a DataLoader that would batch batches; its fetcher is what calls `iter` then.

    Where a `collate_fn` returns tensors, torch would stack them without a word.
    """
    is_fetcher = caller.f_code.co_qualname.startswith("_IterableDatasetFetcher.")
    if is_fetcher and caller.f_locals.get("auto_collation"):
        _refuse_collation([])


def _refuse_collation(batches: list[Batch], **options: object) -> NoReturn:
    raise TypeError(
        "a DaemonDataset yields whole batches, which a DataLoader must not batch once more: use "
        "DataLoader(dataset, batch_size=None)"
    )


default_collate_fn_map[Batch] = _refuse_collation


def _label(stream: dict[str, Any], wanted: Stream | str | None) -> str:
    """Return what a message calls a stream."""
    plan, source = stream["plan"], stream["source"]
    streams = source.get("streams", {"": source})
    uri = " with ".join(str(one["uri"]) for one in streams.values())
    name = f"{wanted!r}: " if isinstance(wanted, str) else ""
    return f"{name}{plan.get('type', 'a plan')} over {uri}"
