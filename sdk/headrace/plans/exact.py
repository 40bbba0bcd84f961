"""The permutations of torch and of Python, bit for bit, without torch.

They are defined by a sequence of draws and swaps, so they cost O(n) time and memory for each epoch.
The permutation of the last epochs is kept; it is a function of seed and epoch, so that does not
show.
"""

from __future__ import annotations

import random
from array import array
from collections import OrderedDict
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import numpy as np

from ..errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .order import Indices

Kind = Literal["torch", "torch-continued", "python"]
"""``"torch"``: a torch generator that is seeded with seed + epoch; ``"torch-continued"``: one that
is seeded once and goes on from epoch to epoch; ``"python"``: ``random.Random(seed + epoch)``."""

MAX_EXACT: Final = 1 << 25
"""Samples that an exact permutation has at most: 128 MiB and some ten seconds for each epoch."""

_KEPT_BYTES: Final = 128 << 20
"""Permutations of one order that are kept in any case: of jobs that are in different epochs."""

_MIN_KEPT: Final = 3
"""However long they are: where one rank is about to end an epoch, another has begun the next one
and looks at the one after that."""

_MAX_KEPT: Final = 8

_DRAWS: Final = 1 << 16
"""Random numbers that are drawn in one go."""


def torch_permutation(length: int, seed: int, *, skip: int = 0) -> NDArray[np.uint32]:
    """Return ``torch.randperm(length)`` of a CPU generator after ``manual_seed(seed)``, u32[n].

    A Fisher-Yates shuffle from the front, driven by the 32-bit outputs of MT19937.

    Args:
        length: Number of samples.
        seed: Any integer; only its value modulo 2**32 counts.
        skip: Permutations of the same length that the generator has made before.
    """
    permutation = array("I", range(length))
    if length < 2:
        return np.array(permutation, dtype=np.uint32)
    generator = np.random.MT19937()
    # The classic seeding by one integer; numpy's own would hash it.
    generator._legacy_seeding(seed & 0xFFFFFFFF)
    left = skip * (length - 1)
    while left:
        left -= len(generator.random_raw(min(left, _DRAWS)))
    for first in range(0, length - 1, _DRAWS):
        last = min(first + _DRAWS, length - 1)
        spans = length - np.arange(first, last, dtype=np.uint64)
        steps = generator.random_raw(last - first).astype(np.uint64) % spans
        for here, step in enumerate(steps.tolist(), first):
            there = here + step
            permutation[here], permutation[there] = permutation[there], permutation[here]
    return np.array(permutation, dtype=np.uint32)


def python_generator(seed: int) -> random.Random:
    """Return a private ``random.Random``, seeded with an integer."""
    return random.Random(seed)


def below(generator: random.Random, limit: int) -> int:
    """Return a number below a limit, as Python's ``random`` draws it: pinned here, not there."""
    bits = limit.bit_length()
    draw = generator.getrandbits
    value = draw(bits)
    while value >= limit:
        value = draw(bits)
    return value


def python_permutation(length: int, generator: random.Random) -> NDArray[np.uint32]:
    """Return what ``generator.shuffle(list(range(length)))`` makes, u32[n]; moves the generator."""
    permutation = array("I", range(length))
    draw = generator.getrandbits
    for here in range(length - 1, 0, -1):
        # `below(generator, here + 1)`, written out: the call would take longer than the draw.
        bits = (here + 1).bit_length()
        there = draw(bits)
        while there > here:
            there = draw(bits)
        permutation[here], permutation[there] = permutation[there], permutation[here]
    return np.array(permutation, dtype=np.uint32)


class Made(NamedTuple):
    """The order of one epoch, made as a whole."""

    permutation: NDArray[np.uint32]
    """u32[n]."""

    state: Any = None
    """What ``getstate()`` of Python's generator returns after the shuffle; None for other kinds."""


class Recipe(NamedTuple):
    """How the order of an epoch is made, as plain data: it can be made in another process."""

    kind: Kind
    length: int
    seed: int

    def make(self, epoch: int) -> Made:
        """Make the order of an epoch; takes 0.3 us for each sample."""
        if self.kind == "torch":
            return Made(torch_permutation(self.length, self.seed + epoch))
        if self.kind == "torch-continued":
            return Made(torch_permutation(self.length, self.seed, skip=epoch))
        generator = python_generator(self.seed + epoch)
        permutation = python_permutation(self.length, generator)
        return Made(permutation, generator.getstate())


class ExactOrder:
    """A permutation that is made as a whole for each epoch; safe for threads.

    Args:
        length: Number of samples.
        name: What it is called in errors.
        make: Makes the order of an epoch.

    Raises:
        PlanError: If there are more samples than `MAX_EXACT`.
    """

    def __init__(self, length: int, name: str, make: Callable[[int], Made]) -> None:
        if length > MAX_EXACT:
            raise PlanError(
                f"order={name!r} is made as a whole for each epoch and is limited to {MAX_EXACT} "
                f"samples, the data has {length}: use order='keyed', which is computed"
            )
        self.length = length
        self.make = make
        """May be replaced by something that makes the same in another process."""
        self.recipe: Recipe | None = None
        """What `make` does, where that can be said."""
        self._max_kept = min(max(_MIN_KEPT, _KEPT_BYTES // (4 * max(1, length))), _MAX_KEPT)
        # The last epochs, those that are being made included.
        self._epochs: OrderedDict[int, Future[Made]] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def of(cls, kind: Kind, length: int, seed: int) -> Self:
        """Return the order of a recipe."""
        recipe = Recipe(kind, length, seed)
        order = cls(length, kind, recipe.make)
        order.recipe = recipe
        return order

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Return the sample indices at some positions of an epoch (see `Order.at`)."""
        return self.permutation(epoch)[positions].astype(np.uint64)

    def permutation(self, epoch: int) -> NDArray[np.uint32]:
        """Return the permutation of an epoch; blocks for a while the first time."""
        return self.made(epoch).permutation

    def made(self, epoch: int) -> Made:
        """Return the order of an epoch; of several who ask for it, one makes it."""
        with self._lock:
            found = self._epochs.get(epoch)
            if found is not None:
                self._epochs.move_to_end(epoch)
            else:
                mine = self._epochs[epoch] = Future()
                while len(self._epochs) > self._max_kept:
                    self._epochs.popitem(last=False)
        if found is not None:
            return found.result()
        try:
            made = self.make(epoch)
        except BaseException as error:
            with self._lock:
                if self._epochs.get(epoch) is mine:
                    del self._epochs[epoch]
            mine.set_exception(error)
            raise
        mine.set_result(made)
        return made
