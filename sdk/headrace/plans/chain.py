"""The program of `Chain`: the steps of several programs in one stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import CursorError
from .program import EpochProgram, Largest, Place, Program, Share, weighs

if TYPE_CHECKING:
    from .composite import Chain
    from .data import Data
    from .exact import ExactOrder
    from .program import Weighing


class _State(NamedTuple):
    """Where the parts stand within an epoch."""

    parts: tuple[Place | None, ...]
    """The place of each part in this epoch; None: it has reached its end."""

    turn: int
    """The part from which on the next step is looked for."""


class ChainProgram(EpochProgram):
    """Runs the epoch of each part, one after the other or a step of each in turn."""

    def __init__(self, plan: Chain, data: Data) -> None:
        self.plan = plan
        self.names = tuple(plan.links)
        self.parts: tuple[Program, ...] = tuple(
            link.plan.program(data.part(name), role=role)
            for role, (name, link) in enumerate(plan.links.items())
        )
        self.is_constant = all(
            part.is_constant for part in self.parts if isinstance(part, EpochProgram)
        )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the parts."""
        return self.names

    # ---- where steps are -----------------------------------------------------------------------

    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of one epoch of all parts."""
        return sum(part.steps(epoch, world_size) for part in self.parts)

    def samples(self, epoch: int, world_size: int) -> int:
        """Return the samples of one epoch of all parts."""
        return sum(part.samples(epoch, world_size) for part in self.parts)

    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps that are left of the epoch of a place."""
        return sum(self._left(place, world_size))

    def has_steps(self, place: Place, world_size: int) -> bool:
        """Return whether a part has a step left."""
        parts = self._state(place).parts
        return any(
            at is not None and part.has_steps(at, world_size)
            for part, at in zip(self.parts, parts, strict=True)
        )

    def settle(self, place: Place, world_size: int) -> Place:
        """Return the canonical form of a place."""
        settled = super().settle(place, world_size)
        if settled is not place or place.child is None:
            return settled
        state = self._state(place)
        parts = tuple(
            at if at is not None and part.has_steps(at, world_size) else None
            for part, at in zip(self.parts, state.parts, strict=True)
        )
        return self._place(place, _State(parts, self._next(parts, state.turn)))

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return the place some steps later, in O(number of parts)."""
        if not steps:
            return self.settle(place, world_size)
        state = self._state(place)
        left = self._left(place, world_size)
        taken, turn = self._deal(left, state.turn, steps)
        samples = 0
        parts = list(state.parts)
        for number, count in enumerate(taken):
            at = parts[number]
            if count and at is not None:
                moved = self.parts[number].advance(at, world_size, count)
                samples += moved.sample - at.sample
                parts[number] = moved if count < left[number] else None
            elif not left[number]:
                parts[number] = None
        moved = place._replace(
            step=place.step + steps, update=place.update + steps, sample=place.sample + samples
        )
        return self._settled(moved, _State(tuple(parts), turn), world_size)

    def rank_samples(self, place: Place, world_size: int, steps: int) -> int:
        """Return the entries, fillers included, that each rank gets in some steps."""
        state = self._state(place)
        taken, _ = self._deal(self._left(place, world_size), state.turn, steps)
        return sum(
            part.rank_samples(at, world_size, count)
            for part, at, count in zip(self.parts, state.parts, taken, strict=True)
            if at is not None and count
        )

    def check(self, place: Place) -> None:
        """Refuse a place of other parts, or outside of the epoch of one."""
        if place.child is None and (place.step or place.position):
            raise CursorError("the cursor is that of a single plan, this one is a chain")
        for part, at in zip(self.parts, self._state(place).parts, strict=True):
            if at is not None:
                part.check(at)

    def batch_samples(self, world_size: int) -> int | None:
        """Return the samples of the largest batch of a rank."""
        found = [part.batch_samples(world_size) for part in self.parts]
        known = [samples for samples in found if samples is not None]
        return max(known) if len(known) == len(found) else None

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The orders that are made as a whole for each epoch."""
        return tuple(order for part in self.parts for order in part.exact_orders)

    @property
    def is_heavy(self) -> bool:
        """Whether a part has something to prepare."""
        return any(part.is_heavy for part in self.parts)

    def prepare(self, epoch: int) -> None:
        """Prepare an epoch of all parts."""
        for part in self.parts:
            part.prepare(epoch)

    # ---- what steps have -----------------------------------------------------------------------

    def largest(self, place: Place, rank: int, world_size: int, weigh: Weighing) -> Largest:
        """Return the largest weight of all parts up to the end of the epoch."""
        weight = 0
        parts = zip(self.names, self.parts, self._state(place).parts, strict=True)
        for name, part, at in parts:
            if at is not None and part.has_steps(at, world_size):
                measure = weighs(weigh, name)
                weight = max(weight, part.largest(at, rank, world_size, measure).weight)
        left = self.remaining(place, world_size)
        return Largest(weight, self.advance(place, world_size, left))

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Return the next steps of one rank."""
        if stride == 1:
            return self._run(place, rank, world_size, max_batches)
        shares: list[Share] = []
        epoch = place.epoch
        while place.epoch == epoch and len(shares) < max_batches:
            shares += self._run(place, rank, world_size, 1)
            left = self.remaining(place, world_size)
            place = self.advance(place, world_size, min(stride, left))
            if len(shares) >= _STRIDED_SHARES:
                break
        return shares

    def _run(self, place: Place, rank: int, world_size: int, max_batches: int) -> list[Share]:
        state, left = self._state(place), self._left(place, world_size)
        count = min(max_batches, sum(left))
        taken, _ = self._deal(left, state.turn, count)
        # What each part has to give; a part may give less at a time.
        ready = [
            iter(part.shares(at, rank, world_size, max_batches=wanted))
            if at is not None and wanted
            else iter(())
            for part, at, wanted in zip(self.parts, state.parts, taken, strict=True)
        ]
        state = state._replace(
            parts=tuple(at if more else None for at, more in zip(state.parts, left, strict=True))
        )
        shares: list[Share] = []
        for _ in range(count):
            number = self._next(state.parts, state.turn)
            inner = next(ready[number], None)
            if inner is None:
                break
            left[number] -= 1
            at = inner.after if left[number] else None
            parts = (*state.parts[:number], at, *state.parts[number + 1 :])
            state = _State(parts, self._after(number))
            after = place._replace(
                step=place.step + 1,
                update=place.update + 1,
                sample=place.sample + inner.after.sample - inner.before.sample,
            )
            after = (
                self._settled(after, state, world_size)
                if not any(left)
                else self._place(after, _State(parts, self._next(parts, state.turn)))
            )
            origin = (inner.before.epoch, inner.before.step)
            shares.append(
                inner._replace(before=place, after=after, stream=self.names[number], origin=origin)
            )
            place = after
        return shares

    # ---- the parts -----------------------------------------------------------------------------

    def _state(self, place: Place) -> _State:
        if place.child is None:
            return _State((Place(place.epoch),) * len(self.parts), 0)
        try:
            listed, turn = place.child["parts"], place.child["turn"]
            parts = tuple(
                None if found is None else Place(place.epoch, int(found[0]), int(found[1]))
                for found in listed
            )
            if len(parts) == len(self.parts) and 0 <= int(turn) < len(parts):
                return _State(parts, int(turn))
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise CursorError(
            f"the cursor does not say where the {len(self.parts)} parts of the chain are"
        )

    def _place(self, place: Place, state: _State) -> Place:
        listed = [None if at is None else [at.step, at.position] for at in state.parts]
        position = sum(at.position for at in state.parts if at is not None)
        return place._replace(position=position, child={"parts": listed, "turn": state.turn})

    def _settled(self, place: Place, state: _State, world_size: int) -> Place:
        return self.settle(self._place(place, state), world_size)

    def _left(self, place: Place, world_size: int) -> list[int]:
        return [
            0 if at is None else part.remaining(at, world_size)
            for part, at in zip(self.parts, self._state(place).parts, strict=True)
        ]

    def _next(self, parts: tuple[Place | None, ...], turn: int) -> int:
        """Return the first part from `turn` on, around the circle, that has not ended."""
        count = len(parts)
        for offset in range(count):
            if parts[(turn + offset) % count] is not None:
                return (turn + offset) % count
        return 0

    def _after(self, number: int) -> int:
        """Return where the next step is looked for after one of a part."""
        return number if self.plan.mode == "sequential" else (number + 1) % len(self.parts)

    def _deal(self, left: list[int], turn: int, steps: int) -> tuple[list[int], int]:
        """Return how many of the next steps each part has, and the turn after them."""
        left, count = list(left), len(left)
        taken = [0] * count
        while steps:
            alive = [at % count for at in range(turn, turn + count) if left[at % count]]
            if self.plan.mode == "sequential":
                rounds, alive = min(left[alive[0]], steps), alive[:1]
            else:
                rounds = min(min(left[at] for at in alive), steps // len(alive))
                if not rounds:
                    rounds, alive = 1, alive[:steps]
            for at in alive:
                taken[at] += rounds
                left[at] -= rounds
            steps -= rounds * len(alive)
            turn = self._after(alive[-1])
        return taken, turn


_STRIDED_SHARES = 64
