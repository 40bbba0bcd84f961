"""The program of `Interleaved`: a main program, and extras that run as a whole between its steps.

The run is a sequence of segments: steps of the main program up to the next one after which
something may happen, and runs of extras.  Whether an extra is due follows from counters, never from
a live object: so any place can be reached, counted and continued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import CursorError
from .program import CHUNK_ENTRIES, EpochProgram, Largest, Place, Program, Share, weighs

if TYPE_CHECKING:
    from .composite import Every, Interleaved
    from .cursor import Seek
    from .data import Data
    from .exact import ExactOrder
    from .program import Weighing


_EXTRA_ROLES: Final = 256
"""What tells the orders of extras from those of a chain, whose parts have the roles below."""


class _Extra(NamedTuple):
    name: str
    every: Every
    program: Program
    role: int


class _Run(NamedTuple):
    """Where an interleaved stream stands: the next thing is the phase, or a main step."""

    steps: int
    """Steps of all streams so far."""

    update: int
    counted: int
    """Samples that intervals and limits count."""

    last: int
    """`counted` at the update before the one whose extras are running."""

    main: Place
    phase: tuple[int, Place] | None
    """Which extra is running, and where it is."""

    runs: tuple[int, ...]
    """Finished runs of each extra."""

    is_silent: bool = False
    """True while extras run because a change of the world size ended an epoch without a step."""

    has_evaluated: bool = False
    """True when the extras have run once because of a limit of 0."""


class InterleavedProgram(Program):
    """Runs until its limits, in one pass; then the epoch of its places is 1."""

    ends = True

    def __init__(self, plan: Interleaved, data: Data) -> None:
        self.plan = plan
        self.main = plan.train.program(data.part("train"))
        self.extras = tuple(
            _Extra(
                name,
                every,
                every.effective_plan.program(data.part(name), role=_EXTRA_ROLES + role),
                role,
            )
            for role, (name, every) in enumerate(plan.extras.items(), 1)
        )
        limits = plan.limits
        self._evaluates = 0 in (limits.epochs, limits.updates, limits.samples)
        # Steps of a whole run by world size.
        self._totals: dict[int, int] = {}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the main stream, or of its parts, and of the extras."""
        return (*(self.main.streams or ("train",)), *(extra.name for extra in self.extras))

    # ---- where steps are -----------------------------------------------------------------------

    def steps(self, epoch: int, world_size: int) -> int:
        """Return the steps of the whole run, extras included."""
        if epoch:
            return 0
        if world_size not in self._totals:
            start = self.settle(Place(), world_size)
            self._totals[world_size] = self.remaining(start, world_size)
        return self._totals[world_size]

    def samples(self, epoch: int, world_size: int) -> int:
        """Return the samples of the main program in the whole run."""
        run = self._settled(self._run(Place()), world_size)
        return self._walk(run, world_size).main.sample

    def settle(self, place: Place, world_size: int) -> Place:
        """Return the canonical form of a place."""
        return self._place(self._settled(self._run(place), world_size))

    def remaining(self, place: Place, world_size: int) -> int:
        """Return the steps to the end of the run."""
        run = self._run(place)
        return self._walk(run, world_size).steps - run.steps

    def has_steps(self, place: Place, world_size: int) -> bool:
        """Return whether the run goes on."""
        return not self.is_finished(self.settle(place, world_size))

    def is_finished(self, place: Place) -> bool:
        """Return whether a settled place is the end of the run."""
        return place.epoch > 0

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        """Return the place some steps later."""
        run = self._run(place)
        return self._place(self._walk(run, world_size, steps=run.steps + steps))

    def seek(self, where: Seek, world_size: int) -> Place:
        """Return the place after an update and its extras; the end where the limits come first."""
        run = self._settled(self._run(Place()), world_size)
        if 0 in (where.epoch, where.update, where.sample):
            return self._place(run)
        if where.sample is None:
            found = self._walk(run, world_size, update=where.update, epoch=where.epoch)
            return self._place(found)
        found = self._walk(run, world_size, sample=where.sample)
        if found.counted != where.sample and not self._is_over(found):
            upper = self._walk(found, world_size, update=found.update + 1)
            raise CursorError(
                f"seek sample={where.sample} is not the edge of a batch: the nearest are "
                f"{found.counted} and {upper.counted}"
            )
        return self._place(found)

    def check(self, place: Place) -> None:
        """Refuse a place of other streams, or outside of one."""
        if place.child is None and (place.step or place.position or place.epoch):
            raise CursorError("the cursor is that of a single plan, this one is interleaved")
        run = self._run(place)
        self.main.check(run.main)
        if run.phase is not None:
            self.extras[run.phase[0]].program.check(run.phase[1])

    def segment(self, place: Place) -> int:
        """Return the epoch of the main program, or that of the edge whose extras are running."""
        child = place.child
        if child is None:
            return 0
        return _segment(_unlisted(child["main"]), is_extra="extra" in child)

    @property
    def exact_orders(self) -> tuple[ExactOrder, ...]:
        """The orders that are made as a whole for each epoch."""
        programs = (self.main, *(extra.program for extra in self.extras))
        return tuple(order for program in programs for order in program.exact_orders)

    def batch_samples(self, world_size: int) -> int | None:
        """Return the samples of the largest batch of a rank."""
        programs = (self.main, *(extra.program for extra in self.extras))
        found = [program.batch_samples(world_size) for program in programs]
        known = [samples for samples in found if samples is not None]
        return max(known) if len(known) == len(found) else None

    @property
    def is_heavy(self) -> bool:
        """Whether the main program or an extra has something to prepare."""
        return self.main.is_heavy or any(extra.program.is_heavy for extra in self.extras)

    def prepare(self, epoch: int) -> None:
        """Prepare an epoch of the main program, and the run of that number of the extras."""
        self.main.prepare(epoch)
        for extra in self.extras:
            extra.program.prepare(0 if extra.every.same_order else epoch)

    # ---- what steps have -----------------------------------------------------------------------

    def largest(self, place: Place, rank: int, world_size: int, weigh: Weighing) -> Largest:
        """Return the largest weight of an epoch of the main program, and of the extras in it."""
        run, segment, weight = self._run(place), self.segment(place), 0
        end = self._walk(run, world_size, segment=segment)
        if run.main.epoch == segment and self.main.has_steps(run.main, world_size):
            measure = weigh if self.main.streams else weighs(weigh, "train")
            weight = self.main.largest(run.main, rank, world_size, measure).weight
        begun = list(run.runs)
        if run.phase is not None:
            # Begun under another world size, what is left of it may be cut into other batches.
            number, at = run.phase
            begun[number] += 1
            extra = self.extras[number]
            measure = weighs(weigh, extra.name)
            weight = max(weight, extra.program.largest(at, rank, world_size, measure).weight)
        for extra, first, last in zip(self.extras, begun, end.runs, strict=True):
            program = extra.program
            is_same = isinstance(program, EpochProgram) and program.is_repeating
            runs = range(1) if is_same or extra.every.same_order else range(first, last)
            for epoch in runs if last > first else ():
                if program.steps(epoch, world_size):
                    measure = weighs(weigh, extra.name)
                    found = program.largest(Place(epoch), rank, world_size, measure)
                    weight = max(weight, found.weight)
        return Largest(weight, self._place(end))

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        """Return the next steps of one rank, of one segment or more."""
        run = self._run(place)
        shares: list[Share] = []
        entries = 0
        while not self._is_over(run) and len(shares) < max_batches and entries < CHUNK_ENTRIES:
            wanted = max_batches - len(shares) if stride == 1 else 1
            found, run = self._segment(run, rank, world_size, wanted)
            if stride > 1:
                run = self._walk(run, world_size, steps=run.steps + stride - 1)
            shares += found
            entries += sum(len(share.indices) for share in found) or 1
        return shares

    def _segment(
        self, run: _Run, rank: int, world_size: int, max_batches: int
    ) -> tuple[list[Share], _Run]:
        """Return steps up to the next event at most, and the run after them."""
        shares: list[Share] = []
        if run.phase is not None:
            number, at = run.phase
            extra = self.extras[number]
            left = extra.program.remaining(at, world_size)
            for inner in extra.program.shares(
                at, rank, world_size, max_batches=min(max_batches, left)
            ):
                left -= 1
                before = run
                if left:
                    run = run._replace(steps=run.steps + 1, phase=(number, inner.after))
                else:
                    run = self._after_extra(run, run.steps + 1, world_size)
                shares.append(self._share(inner, before, run, extra.name, extra.role))
            return shares, run
        event = self._event_steps(run, world_size)
        first, samples = run, 0
        for number, inner in enumerate(
            self.main.shares(run.main, rank, world_size, max_batches=min(max_batches, event)), 1
        ):
            before = run
            samples += len(inner.indices)
            run = self._moved(first, inner.after, number, samples)
            if number == event:
                run = self._next_phase(run, 0, world_size)
            shares.append(self._share(inner, before, run, inner.stream or "train", 0))
        return shares, run

    def _share(self, inner: Share, before: _Run, after: _Run, stream: str, role: int) -> Share:
        origin = inner.origin or (inner.before.epoch, inner.before.step)
        return inner._replace(
            before=self._place(before),
            after=self._place(after),
            stream=stream,
            role=role,
            origin=origin,
        )

    # ---- what happens --------------------------------------------------------------------------

    def _walk(
        self,
        run: _Run,
        world_size: int,
        *,
        steps: int | None = None,
        update: int | None = None,
        epoch: int | None = None,
        sample: int | None = None,
        segment: int | None = None,
    ) -> _Run:
        """Return the run where something is reached, or at its end.

        Args:
            run: Where it is.
            world_size: Number of ranks.
            steps: A number of steps of all streams.
            update: An update, and its extras.
            epoch: The start of an epoch of the main program, after the extras before it.
            sample: A number of samples that count, and the extras of their update.
            segment: The end of a segment.
        """
        while not self._is_over(run):
            if segment is not None and _segment(run.main, is_extra=run.phase is not None) > segment:
                return run
            if steps is not None and run.steps >= steps:
                return run
            if run.phase is not None:
                number, at = run.phase
                extra = self.extras[number].program
                left = extra.remaining(at, world_size)
                if steps is not None and run.steps + left > steps:
                    at = extra.advance(at, world_size, steps - run.steps)
                    return run._replace(steps=steps, phase=(number, at))
                run = self._after_extra(run, run.steps + left, world_size)
                continue
            if (
                (update is not None and run.update >= update)
                or (epoch is not None and run.main.epoch >= epoch)
                or (sample is not None and run.counted >= sample)
            ):
                return run
            event = self._event_steps(run, world_size)
            quiet = event
            if steps is not None:
                quiet = min(quiet, steps - run.steps)
            elif update is not None:
                quiet = min(quiet, self._update_steps(run, update - run.update))
            elif sample is not None:
                quiet = min(quiet, self._edge_steps(run, world_size, sample - run.counted))
                if not quiet:
                    return run
            run = self._forward(run, quiet, world_size)
            if quiet == event:
                run = self._next_phase(run, 0, world_size)
        return run

    def _event_steps(self, run: _Run, world_size: int) -> int:
        """Return after how many main steps an extra may be due, or a limit or edge be reached."""
        left = self.main.remaining(run.main, world_size)
        found = left
        limits = self.plan.limits
        for extra in self.extras:
            every = extra.every
            if every.updates is not None:
                found = min(
                    found, self._update_steps(run, every.updates - run.update % every.updates)
                )
            elif every.samples is not None:
                edge = (run.last // every.samples + 1) * every.samples
                found = min(found, self._sample_steps(run, world_size, edge - run.counted, left))
        if limits.updates is not None:
            found = min(found, self._update_steps(run, limits.updates - run.update))
        if limits.samples is not None:
            needed = limits.samples - run.counted
            found = min(found, self._sample_steps(run, world_size, needed, left))
        return found

    def _update_steps(self, run: _Run, updates: int) -> int:
        """Return the main steps of so many more updates, if the epoch does not end before."""
        return updates * self.plan.accumulate - run.main.step % self.plan.accumulate

    def _sample_steps(self, run: _Run, world_size: int, needed: int, left: int) -> int:
        """Return the main steps after which an update has so many more samples; at most `left`."""
        low, high = 0, left  # the answer is in low < n <= high
        if needed > 0:
            while high - low > 1:
                middle = (low + high) // 2
                if self._samples(run.main, middle, world_size) >= needed:
                    high = middle
                else:
                    low = middle
        else:
            high = 1
        accumulate, done = self.plan.accumulate, run.main.step
        return min(left, -(-(done + high) // accumulate) * accumulate - done)

    def _edge_steps(self, run: _Run, world_size: int, samples: int) -> int:
        """Return the main steps to the last update of the epoch within so many more samples."""
        left = self.main.remaining(run.main, world_size)
        if self._samples(run.main, left, world_size) <= samples:
            return left
        low, high = 0, left
        while high - low > 1:
            middle = (low + high) // 2
            if self._samples(run.main, middle, world_size) <= samples:
                low = middle
            else:
                high = middle
        accumulate, done = self.plan.accumulate, run.main.step
        return max(0, (done + low) // accumulate * accumulate - done)

    def _samples(self, main: Place, steps: int, world_size: int) -> int:
        """Return the samples that count, of some main steps of an epoch."""
        if self.plan.samples_of == "rank":
            return self.main.rank_samples(main, world_size, steps) if steps else 0
        return self.main.advance(main, world_size, steps).sample - main.sample

    def _forward(self, run: _Run, steps: int, world_size: int) -> _Run:
        """Return the run some main steps of its epoch later, before anything happens."""
        by_rank = self.plan.samples_of == "rank"
        samples = self._samples(run.main, steps, world_size) if by_rank else 0
        return self._moved(run, self.main.advance(run.main, world_size, steps), steps, samples)

    def _moved(self, run: _Run, main: Place, steps: int, rank_samples: int) -> _Run:
        accumulate, done = self.plan.accumulate, run.main.step
        updates = (done + steps) // accumulate - done // accumulate
        if main.epoch != run.main.epoch and (done + steps) % accumulate:
            updates += 1  # the end of an epoch completes an update
        by_rank = self.plan.samples_of == "rank"
        return run._replace(
            steps=run.steps + steps,
            update=run.update + updates,
            counted=run.counted + (rank_samples if by_rank else main.sample - run.main.sample),
            main=main,
        )

    def _next_phase(self, run: _Run, first: int, world_size: int) -> _Run:
        """Return the run with the next extra from `first` on that is due, or without one."""
        runs = run.runs
        for number in range(first, len(self.extras)):
            extra = self.extras[number]
            if not self._is_due(run, extra.every):
                continue
            at = Place(0 if extra.every.same_order else runs[number])
            if extra.program.steps(at.epoch, world_size):
                return run._replace(runs=runs, phase=(number, at))
            runs = (*runs[:number], runs[number] + 1, *runs[number + 1 :])
        return run._replace(
            runs=runs,
            phase=None,
            last=run.counted,
            is_silent=False,
            has_evaluated=run.has_evaluated or self._evaluates,
        )

    def _after_extra(self, run: _Run, steps: int, world_size: int) -> _Run:
        """Return the run after the extra that is running."""
        assert run.phase is not None
        number = run.phase[0]
        runs = (*run.runs[:number], run.runs[number] + 1, *run.runs[number + 1 :])
        run = self._next_phase(run._replace(steps=steps, runs=runs), number + 1, world_size)
        # Where the world size has changed since, the rest of the main epoch may make no step.
        return run if run.phase is not None else self._settled(run, world_size)

    def _is_due(self, run: _Run, every: Every) -> bool:
        if self._evaluates:
            return True
        if every.epochs is not None:
            has_ended = run.main.step == 0 and run.main.epoch > 0
            return has_ended and run.main.epoch % every.epochs == 0
        if every.updates is not None:
            return not run.is_silent and run.update % every.updates == 0
        assert every.samples is not None
        return run.last // every.samples < run.counted // every.samples

    def _is_over(self, run: _Run) -> bool:
        if run.phase is not None:
            return False
        if self._evaluates:
            return run.has_evaluated
        if run.main.step % self.plan.accumulate:
            return False  # within an update
        limits = self.plan.limits
        return (
            (limits.epochs is not None and run.main.epoch >= limits.epochs)
            or (limits.updates is not None and run.update >= limits.updates)
            or (limits.samples is not None and run.counted >= limits.samples)
        )

    def _settled(self, run: _Run, world_size: int) -> _Run:
        """Return the canonical form of a run under a world size."""
        if run.phase is not None:
            number, at = run.phase
            if self.extras[number].program.has_steps(at, world_size):
                return run
            return self._after_extra(run, run.steps, world_size)
        if self._is_over(run):
            return run
        if self._evaluates:
            return self._next_phase(run, 0, world_size)
        main = self.main.settle(run.main, world_size)
        if main.epoch == run.main.epoch:
            return run._replace(main=main)
        # This world size makes no step of what the other one left of the epoch.
        is_partial = run.main.step % self.plan.accumulate > 0
        run = run._replace(main=main, update=run.update + is_partial, is_silent=not is_partial)
        return self._next_phase(run, 0, world_size)

    # ---- runs and places -----------------------------------------------------------------------

    def _place(self, run: _Run) -> Place:
        child: dict[str, Any] = {
            "main": _listed(run.main),
            "count": run.counted,
            "last": run.last,
            "runs": list(run.runs),
        }
        if run.phase is not None:
            child["extra"] = [run.phase[0], _listed(run.phase[1])]
        if run.is_silent:
            child["silent"] = True
        if run.has_evaluated:
            child["evaluated"] = True
        epoch = int(self._is_over(run))
        return Place(epoch, run.steps, 0, run.update, run.main.sample, child)

    def _run(self, place: Place) -> _Run:
        child = place.child
        if child is None:
            return _Run(0, 0, 0, 0, Place(), None, (0,) * len(self.extras))
        try:
            runs = tuple(int(number) for number in child["runs"])
            phase = None
            if "extra" in child:
                phase = (int(child["extra"][0]), _unlisted(child["extra"][1]))
            run = _Run(
                steps=place.step,
                update=place.update,
                counted=int(child["count"]),
                last=int(child["last"]),
                main=_unlisted(child["main"]),
                phase=phase,
                runs=runs,
                is_silent=bool(child.get("silent")),
                has_evaluated=bool(child.get("evaluated")),
            )
            if len(runs) == len(self.extras) and (
                phase is None or 0 <= phase[0] < len(self.extras)
            ):
                return run
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise CursorError(
            f"the cursor does not say where the main plan and the {len(self.extras)} extras are"
        )


def _segment(main: Place, *, is_extra: bool) -> int:
    is_edge = is_extra and main.step == 0 and main.epoch > 0
    return main.epoch - is_edge


def _listed(place: Place) -> list[Any]:
    return list(place if place.child is not None else place[:5])


def _unlisted(listed: list[Any]) -> Place:
    *numbers, child = (*listed, None)[:6]
    if len(numbers) != 5 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("not a place")
    epoch, step, position, update, sample = numbers
    return Place(epoch, step, position, update, sample, child)
