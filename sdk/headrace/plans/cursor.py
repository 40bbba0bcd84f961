"""Cursors: where a whole stream stands, as a few numbers.

A cursor is global: it is the same on all ranks and loads on any of them, also under another
world size.  It stands *between* batches: the cursor of a batch is the one that follows it.  It
has one canonical form, in which the end of epoch e is the start of epoch e+1.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ..checks import check_integer
from ..conversion import prepare
from ..errors import CursorError

FORMAT: Final = 1
"""Version of the layout of a cursor."""

PLAN_VERSION: Final = 1
"""Version of the meaning of plans: any change of an order bumps it."""


MAX_SKIPS: Final = 1000
"""Samples that a stream may leave out: they travel with each batch."""


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """A position in a stream; plain data, constant size but for `skips`."""

    format: int = FORMAT
    """Version of this layout."""

    plan_version: int = PLAN_VERSION
    """Version of the plan semantics that made the position."""

    plan: str
    """Digest of the plan."""

    manifest: str
    """Digest of the manifest."""

    epoch: int = 0
    """Epoch of the next batch."""

    step: int = 0
    """Index, within its epoch, of the next batch of each rank."""

    position: int = 0
    """Entries of the epoch's global order that are consumed; fillers do not count."""

    update: int = 0
    """Steps consumed since the start of the run; of `Interleaved`, updates of the main plan."""

    sample: int = 0
    """Samples consumed by all ranks since the start of the run; fillers do not count."""

    world_size: int = 1
    """World size that made the position: recorded, never checked."""

    skips: tuple[int, ...] = ()
    """Samples that the stream has left out as bad, ascending: indices into the manifest, plus
    2**48 times the number of the source in streams that have several."""

    child: dict[str, Any] | None = None
    """Position of the nested plans; None for the plans that have none."""

    about: str = ""
    """The plan in short, for telling a difference by name; nothing depends on it."""

    def to_state(self) -> dict[str, Any]:
        """Return the cursor as JSON-ready plain data."""
        state: dict[str, Any] = msgspec.structs.asdict(self)
        state["skips"] = list(self.skips)
        if not self.about:
            del state["about"]
        return state

    @classmethod
    def from_state(cls, state: object) -> Cursor:
        """Read what `to_state` returned, from this or an older version.

        Raises:
            CursorError: If it is no cursor, has a field that is out of range, or was written
                by a newer version.
        """
        if not isinstance(state, dict):
            raise CursorError(
                f"a state is a dict as state_dict() returns it, not {type(state).__name__}"
            )
        written = state.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise CursorError(
                f"the state has format {written}, this version of Headrace reads up to "
                f"{FORMAT}: upgrade Headrace to load it"
            )
        try:
            cursor = msgspec.convert(state, cls)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, CursorError):
                raise error.__cause__ from None
            raise CursorError(f"the state is not a Headrace cursor: {error}") from None
        return cursor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cursor) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts()[:-1])

    def _facts(self) -> tuple[object, ...]:
        # All but `about`; what may be a dict comes last.
        return (
            self.format,
            self.plan_version,
            self.plan,
            self.manifest,
            self.epoch,
            self.step,
            self.position,
            self.update,
            self.sample,
            self.world_size,
            self.skips,
            self.child,
        )

    def __post_init__(self) -> None:
        for name in ("epoch", "step", "position", "update", "sample"):
            check_integer(f"cursor {name}", getattr(self, name), 0, 2**63, CursorError)
        check_integer("cursor world_size", self.world_size, 1, 2**31, CursorError)
        check_integer("cursor format", self.format, 1, 2**31, CursorError)
        check_integer("cursor plan_version", self.plan_version, 1, 2**31, CursorError)
        if self.plan_version > PLAN_VERSION:
            raise CursorError(
                f"the cursor was made by plan version {self.plan_version}, this Headrace has "
                f"{PLAN_VERSION}: upgrade Headrace to continue it"
            )
        if len(self.skips) > MAX_SKIPS:
            raise CursorError(
                f"cursor skips has {len(self.skips)} samples: at most {MAX_SKIPS} can be left out"
            )
        for index in self.skips:
            check_integer("cursor skips entry", index, 0, 2**63, CursorError)


class Seek(msgspec.Struct, frozen=True, kw_only=True):
    """A place to go to, counted from the start of the run; exactly one field is set."""

    epoch: int | None = None
    """Start of this epoch."""

    update: int | None = None
    """After this many steps; of `Interleaved`, after so many updates and the extras due there."""

    sample: int | None = None
    """After this many samples of all ranks; must be the edge of a batch."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) != 1:
            raise CursorError(
                f"seek takes exactly one of epoch=, update=, sample=; got {named or 'none'}"
            )
        ((name, value),) = named.items()
        check_integer(f"seek {name}", value, 0, 2**63, CursorError)


prepare(Cursor, Seek)
