"""The samplers of cvnets once more, as plain loops: the oracle of `headrace.compat.cvnets`.

Written from the description of the originals; it shares no code with the product but the tables of
sizes, which are given to it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

Batch = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One epoch of one rank."""

    n: int
    epoch: int = 0
    batch_size: int = 4
    is_training: bool = True
    is_distributed: bool = False
    ranks: int = 1
    rank: int = 0
    gpus: int = 1
    repeats: int = 1
    truncate: bool = False
    shards: bool = False
    keep_order: bool = False
    indices: tuple[int, ...] | None = None
    """What `update_indices` was given."""


def order(run: Run) -> tuple[list[int], random.Random]:
    """Return the indices of the rank, and the generator that shuffled them.

    Raises:
        AssertionError: If there are too few samples to pad.
    """
    multiple = run.ranks if run.is_distributed else run.gpus
    padding = -run.n % multiple
    assert padding <= run.n
    everything = [*range(run.n), *range(padding)] if run.indices is None else [*run.indices]
    generator = random.Random(run.epoch)
    step, first = (run.ranks, run.rank) if run.is_distributed else (1, 0)
    if not run.is_training:
        return everything[first::step], generator
    if run.shards:
        nodes = max(1, run.ranks // run.gpus)
        each = -(-len(everything) // nodes)
        node = run.rank // run.gpus
        everything = everything[node * each : (node + 1) * each]
        everything += everything[: each - len(everything)]
        step, first = run.gpus, run.rank % run.gpus
    if not (run.shards and run.keep_order):
        generator.shuffle(everything)
    repeated = [index for index in everything for _ in range(run.repeats)]
    if run.truncate:
        repeated = repeated[: len(everything)]
    return repeated[first::step], generator


def fixed(run: Run, height: int, width: int) -> list[Batch]:
    """Return batches of one size; a process of several fills up its last one."""
    mine, _ = order(run)
    size = run.batch_size
    batches = [mine[first : first + size] for first in range(0, len(mine), size)]
    if run.is_distributed and batches:
        batches[-1] += mine[: size - len(batches[-1])]
    return [[(height, width, index) for index in batch] for batch in batches]


def variable(run: Run, table: list[tuple[int, int, int]]) -> list[Batch]:
    """Return batches with a row (height, width, samples) of the table each."""
    mine, generator = order(run)
    batches: list[Batch] = []
    at = 0
    while at < len(mine):
        height, width, size = generator.choice(table)
        ids = mine[at : at + size]
        ids += mine[: size - len(ids)]
        batches.append([(height, width, index) for index in ids])
        at += size
    return batches


def video(
    run: Run, table: list[tuple[int, int, int]], clips: int, drawn: tuple[int, int] | None
) -> list[Batch]:
    """Return batches with a row (height, width, frames) of the table each."""
    mine, generator = order(run)
    batches: list[Batch] = []
    at = 0
    while at < len(mine):
        number, size = clips, run.batch_size
        if drawn is not None:
            number = max(1, generator.randint(*drawn))
            size = max(size, size * (clips // number))
        height, width, frames = generator.choice(table)
        ids = mine[at : at + size]
        ids += mine[: size - len(ids)]
        batches.append([(height, width, index, frames, number) for index in ids])
        at += size
    return batches
