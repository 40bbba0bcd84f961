"""What a plan has to know of the data: how much it is, how large, and in which shards."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import check_integer
from ..errors import PlanError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """The facts of one source, and of those that parts of a composition have for themselves.

    Raises:
        PlanError: If a column has another length, or shards do not add up.
    """

    length: int
    """Number of samples."""

    digest: str = ""
    """Digest of the manifest; by default one of all that stands here."""

    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Numeric columns by name, each of `length` entries; ``sizes`` is bytes."""

    shards: NDArray[np.uint64] | None = None
    """u64[S+1]: where each shard begins, and the length; None for data without shards."""

    parts: Mapping[str, Data] = field(default_factory=dict)
    """The data of the parts of a composition that have their own, by name."""

    def __post_init__(self) -> None:
        check_integer("length", self.length, 0, 2**63, PlanError)
        for name, column in self.columns.items():
            if column.shape != (self.length,) or column.dtype.kind not in "iuf":
                raise PlanError(
                    f"column {name!r} has {column.dtype} of shape {column.shape}: it must have a "
                    f"number for each of the {self.length} samples"
                )
        if self.shards is not None and (
            len(self.shards) < 1
            or self.shards[0] != 0
            or self.shards[-1] != self.length
            or bool((self.shards[1:] < self.shards[:-1]).any())
        ):
            raise PlanError(
                f"shards must ascend from 0 to the length of {self.length} samples: where each "
                "begins, and the end"
            )
        if not self.digest:
            object.__setattr__(self, "digest", self._own_digest())
        if self.parts:
            parts = {name: part.digest for name, part in self.parts.items()}
            object.__setattr__(self, "digest", combined_digest({"": self.digest, **parts}))

    @classmethod
    def of(cls, value: int | Any | Data | Mapping[str, Any]) -> Data:  # noqa: ANN401 - any array
        """Make the facts of a map-style dataset.

        Args:
            value: Its length, the sizes of its samples, a `Data`, or a map of these by the name of
                the part; the first entry is the data of all parts that the map does not name.
        """
        if isinstance(value, Data):
            return value
        if isinstance(value, Mapping):
            if not value:
                raise PlanError("the map of data is empty: give the length of each part by name")
            parts = {name: cls.of(item) for name, item in value.items()}
            first = next(iter(parts.values()))
            return cls(first.length, first.digest, first.columns, first.shards, parts)
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        try:
            sizes = np.asarray(value)
        except (TypeError, ValueError):
            sizes = np.empty((0, 0))
        if sizes.ndim != 1 or sizes.dtype.kind not in "iuf":
            raise PlanError(
                f"{value!r} is neither the length of a dataset nor the sizes of its samples"
            )
        return cls(len(sizes), columns={"sizes": sizes})

    def part(self, name: str) -> Data:
        """Return the data of a part: its own, or that of the whole."""
        return self.parts.get(name, self)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column.

        Raises:
            PlanError: If there is none of that name.
        """
        if name not in self.columns:
            known = ", ".join(sorted(self.columns)) or "none"
            raise PlanError(f"column={name!r} is not in the data, which has: {known}")
        return self.columns[name]

    def _own_digest(self) -> str:
        whole = hashlib.sha256(b"headrace.data.v1" + self.length.to_bytes(8, "big"))
        columns = dict(self.columns)
        if self.shards is not None:
            columns["\0shards"] = self.shards
        for name in sorted(columns):
            column = np.ascontiguousarray(columns[name])
            whole.update(name.encode() + b"\0" + column.dtype.str.encode() + column.data)
        return whole.hexdigest()


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of several sources together.

    Args:
        digests: Of each by name of the part; that of the whole first, whatever its name.
    """
    (_, first), *parts = digests.items()
    whole = hashlib.sha256(b"headrace.data.parts.v1" + first.encode())
    for name, digest in parts:
        whole.update(name.encode() + b"\0" + digest.encode())
    return whole.hexdigest()
