"""The cutter: cuts the samples of streamed shards into steps, as they come.

Samples in, steps out; no I/O.  It gives the steps that the same plan makes over indexed shards.  At
most one window is held, and the step that is being cut; where an epoch ends with the data, the step
before it too, since whether a step is the last one shows when something follows, or nothing does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ..errors import NoStepError
from .flags import Flag
from .program import Place
from .streamed import Spot, child_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .streamed import StreamedProgram

T = TypeVar("T")


class CutStep(NamedTuple, Generic[T]):
    """What one rank gets in one step."""

    before: Place
    after: Place
    items: list[T]
    flags: list[int]
    """One for each item."""


class Cutter(Generic[T]):
    """Cuts one epoch, or the rest of it, for one rank.

    While `is_hungry`, it is given samples with `add`, and told with `end_lap` that the last shard
    has come to its end; else `pump` makes steps of what it has.

    Args:
        program: What is executed.
        place: Where to begin.
        rank: Rank.
        world_size: Number of ranks.
        first: Steps that are left out at the beginning.
        stride: Of the steps from there on, only every so manieth is wanted.
        drop: Called with each sample that is not wanted.
    """

    def __init__(
        self,
        program: StreamedProgram,
        place: Place,
        rank: int,
        world_size: int,
        *,
        first: int = 0,
        stride: int = 1,
        drop: Callable[[T], None],
    ) -> None:
        self._program = program
        self._ranks = program.ranks(world_size)
        self._rank = rank % self._ranks
        self._step_entries = program.step_entries(world_size)
        self._first, self._stride = place.step + first, stride
        self._drop = drop
        self.steps: deque[CutStep[T]] = deque()
        """Steps of this rank, in their order; the caller takes them."""
        self.is_over = False
        """The epoch has come to its end; `after` is the start of the next one."""
        self.after = place
        # Where the step begins that is being cut, what this rank has of it, and how many entries
        # of it there are, fillers included and not.
        self._place = place
        self._items: list[T] = []
        self._flags: list[int] = []
        self._num_entries = self._num_fresh = 0
        # A whole step of which it is not known whether it is the last one.
        self._pending: tuple[CutStep[T], bool] | None = None
        # Where the present window begins, and where it ends, once it is complete.
        self._spot = Spot.of(place)
        self._end = self._spot
        # Entries of the present window: as they come, and those to be cut once it is complete.
        self._window: list[T] = []
        self._entries: deque[T] = deque()
        # Whether the window is the last one of its lap.
        self._is_lap_over = False
        # Whether the last step is being filled up from the start of the order.
        self._fills = False

    @property
    def lap(self) -> int:
        """How many times the sequence has begun again."""
        return self._spot.lap

    @property
    def is_hungry(self) -> bool:
        """Whether it needs another sample, or to know that the sequence is at its end."""
        return not self._entries and not self.is_over

    @property
    def is_blank(self) -> bool:
        """Whether this lap has had no sample so far."""
        return self._spot.place == self._spot.inside == 0 and not self._window

    @property
    def num_given(self) -> int:
        """How many entries of the present window were given before its samples came again."""
        return 0 if self._entries else self._spot.inside

    # ---- what comes in -------------------------------------------------------------------------

    def add(self, shard: int, number: int, item: T) -> None:
        """Take the next sample of the sequence.

        Args:
            shard: Place of its shard in the order of the epoch.
            number: Its place in the shard.
            item: What stands for it.
        """
        assert self.is_hungry, "what is there has to be cut first"
        self._window.append(item)
        if len(self._window) == self._program.window:
            place = self._spot.place + len(self._window)
            self._complete(Spot(self.lap, shard, number + 1, place))

    def end_lap(self) -> None:
        """Take note that the last shard has come to its end."""
        assert self.is_hungry, "what is there has to be cut first"
        self._is_lap_over = True
        if self._window:
            self._complete(Spot(self.lap + 1))
        else:
            self._end_lap()

    def _complete(self, end: Spot) -> None:
        """Permute a window that is complete."""
        window, self._window = self._window, []
        entries = window
        if len(window) > 1:
            number = self._spot.place // self._program.window
            order = self._program.permuted(self._place.epoch, number, len(window)).tolist()
            entries = [window[place] for place in order]
        for item in entries[: self._spot.inside]:
            self._drop(item)
        self._entries.extend(entries[self._spot.inside :])
        self._end = end
        if not self._entries:
            self._leave_window()

    # ---- what goes out -------------------------------------------------------------------------

    def pump(self) -> None:
        """Cut what is there, up to the end of a step.

        Raises:
            PlanError: If the epoch ends without a step, as its tail is dropped.
        """
        num_entries = -1
        while self._entries and num_entries < self._num_entries:
            num_entries = self._num_entries
            self._enter(self._entries.popleft())

    def _enter(self, item: T) -> None:
        if self._pending is not None and self._program.tail != "drop":
            self._release_pending(is_last=False)
        flag = 0
        if self._fills:
            flag = Flag.PADDING | Flag.WRAPPED
        elif self.lap:
            flag = Flag.WRAPPED
        if self._is_ours and self._num_entries % self._ranks == self._rank:
            self._items.append(item)
            self._flags.append(int(flag))
        else:
            self._drop(item)
        self._num_entries += 1
        self._num_fresh += not self._fills
        self._spot = self._spot._replace(inside=self._spot.inside + 1)
        is_whole = self._num_entries == self._step_entries
        is_last_entry = not self._entries
        if is_whole:
            self._finish(self._end if is_last_entry else self._spot)
        if is_last_entry and not self.is_over:
            self._leave_window()

    def _leave_window(self) -> None:
        """Go on behind the present window."""
        if self._is_lap_over:
            self._end_lap()
        else:
            self._spot = self._end

    @property
    def _is_ours(self) -> bool:
        ahead = self._place.step - self._first
        return ahead >= 0 and ahead % self._stride == 0

    def _finish(self, spot: Spot) -> None:
        """End the step that is being cut, behind whose last entry is a spot."""
        program, before = self._program, self._place
        after = Place(
            before.epoch,
            before.step + 1,
            before.position + self._num_fresh,
            before.update + 1,
            before.sample + self._num_fresh,
            child_of(spot),
        )
        step = CutStep(before, after, self._items, self._flags), self._is_ours
        self._items, self._flags = [], []
        self._num_entries = self._num_fresh = 0
        self._place = after
        if self._pending is not None:
            self._release_pending(is_last=False)
        self._pending = step
        if program.steps_per_epoch is not None:
            self._release_pending(is_last=after.step == program.steps_per_epoch)
        elif self._fills:
            self._release_pending(is_last=True)

    def _release_pending(self, *, is_last: bool) -> None:
        assert self._pending is not None
        (step, is_ours), self._pending = self._pending, None
        if is_last:
            step = step._replace(after=self._program.following(step.after))
            self._end_epoch(step.after)
        if is_ours:
            self.steps.append(step)

    def give_up(self) -> None:
        """Release the step that is complete: nothing more can be read, and what follows is open."""
        if self._pending is not None:
            self._release_pending(is_last=False)

    def _end_lap(self) -> None:
        """Begin the sequence again, or end the epoch."""
        self._is_lap_over = False
        program = self._program
        is_twice = self._fills and program.tail == "wrap-once"  # fillers are there once at most
        if program.steps_per_epoch is not None or (self._fills and not is_twice):
            self._spot = Spot(self.lap + 1)
        elif is_twice:
            self._finish(self._spot)
        elif not self._num_entries:
            self._end_data()
        elif program.tail == "drop":
            for item in self._items:
                self._drop(item)
            self._end_data()
        elif program.tail == "short":
            self._finish(self._spot)
            self._end_data()
        else:
            self._fills = True
            self._spot = Spot(self.lap + 1)

    def _end_data(self) -> None:
        """End the epoch behind the last whole step."""
        if self._pending is not None:
            self._release_pending(is_last=True)
            return
        if not self._place.step and self._num_entries:
            raise NoStepError(
                f"tail='drop' leaves no step: the shards have {self._num_entries} samples, one "
                f"step takes {self._step_entries}; use a smaller batch or tail='short'"
            )
        self._end_epoch(self._program.following(self._place))

    def _end_epoch(self, after: Place) -> None:
        self.is_over, self.after = True, after
        for item in self._entries:
            self._drop(item)
        self._entries.clear()
