"""A plan that the trainer executes: to the daemon it is a name, its batches come as indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Described
from .program import Program

if TYPE_CHECKING:
    from .cursor import Seek
    from .data import Data
    from .program import Place, Share


class Dictated(Described, frozen=True, kw_only=True, tag="Dictated"):
    """What travels in place of a plan that holds objects of the trainer."""

    name: str
    """What messages call it."""

    plan: str
    """Digest of the plan."""

    about: str = ""
    """The plan in short (see `Described.description`)."""

    ends: bool = False
    """Whether the whole run is one pass that ends."""

    @property
    def digest(self) -> str:
        """The digest of the plan that the trainer executes."""
        return self.plan

    @property
    def description(self) -> str:
        """That of the plan that the trainer executes."""
        return self.about

    def __repr__(self) -> str:
        return self.name

    def program(self, data: Data, *, role: int = 0) -> Program:
        """Return a program that takes every place for right and knows no step."""
        return _Program(ends=self.ends)


class _Program(Program):
    def __init__(self, *, ends: bool) -> None:
        self.ends = ends

    def steps(self, epoch: int, world_size: int) -> int:
        return 0

    def samples(self, epoch: int, world_size: int) -> int:
        return 0

    def settle(self, place: Place, world_size: int) -> Place:
        return place

    def remaining(self, place: Place, world_size: int) -> int:
        return 0

    def advance(self, place: Place, world_size: int, steps: int) -> Place:
        return place

    def seek(self, where: Seek, world_size: int) -> Place:
        return self.start()._replace(epoch=where.epoch or 0)

    def shares(
        self, place: Place, rank: int, world_size: int, *, max_batches: int, stride: int = 1
    ) -> list[Share]:
        return []

    def check(self, place: Place) -> None:
        pass
