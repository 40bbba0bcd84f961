"""The picture of a range of steps: one panel for each thing that varies from batch to batch.

matplotlib is an extra (``headrace[plot]``), imported when a picture is wanted and not before.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from headrace.plans import ByteBudget, Interleaved

from ...errors import SettingsError
from .rows import num_bytes, weight
from .subject import streams_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.plans.engine import PlannedBatch

    from .subject import Subject

MAX_POINTS: Final = 1 << 15
"""Batches in a picture; when there are more, every other one is left out."""

_TITLE: Final = 160


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be made, before anything is computed.

    Raises:
        SettingsError: If matplotlib is not installed, or the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"--plot {path}: the picture is a PNG: give a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise SettingsError(f"--plot {path}: its folder does not exist: make it first")
    try:
        import matplotlib.figure  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--plot needs {error.name}, which is not installed: pip install 'headrace[plot]'"
        ) from None


class _Point(NamedTuple):
    at: int
    """Steps of the run before it."""

    rank: int
    stream: str
    values: dict[str, float]


class Points:
    """What a picture shows of some batches.

    Args:
        subject: What is planned.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._budgets = {
            name: plan.budget
            for name, plan in streams_of(subject.plan).items()
            if isinstance(plan, ByteBudget)
        }
        self._is_run = isinstance(subject.plan, Interleaved)
        self.points: list[_Point] = []
        self._stride = 1
        self._seen = 0

    def add(self, batches: list[PlannedBatch]) -> None:
        """Take some batches."""
        for batch in batches:
            self._seen += 1
            if (self._seen - 1) % self._stride:
                continue
            # An interleaved run is one epoch; its global step counts the steps of the main plan.
            at = batch.step if self._is_run else batch.global_step
            self.points.append(_Point(at, batch.rank, batch.stream, self._values(batch)))
            if len(self.points) >= MAX_POINTS:
                self.points, self._stride = self.points[::2], self._stride * 2

    def _values(self, batch: PlannedBatch) -> dict[str, float]:
        values: dict[str, float] = {}
        total = weight(batch)
        if total is not None:
            values["fill"] = 100 * total / self._budgets[batch.stream]
        size = num_bytes(batch, self._subject)
        if size is not None:
            values["bytes"] = size
        values["samples"] = len(batch.indices)
        for name in ("height", "width", "frames", "clips"):
            if name in batch.meta:
                values[name] = batch.meta[name]
        return values

    def draw(self, path: Path, about: str) -> None:
        """Write the picture; it is there whole or not at all.

        Args:
            path: The PNG.
            about: What is shown, for the title.

        Raises:
            SettingsError: If there is nothing to show, or the file cannot be written.
        """
        if not self.points:
            raise SettingsError(
                f"--plot {path}: the range has no step, so there is nothing to show"
            )
        from matplotlib.figure import Figure

        panels = self._panels()
        figure = Figure(figsize=(9, 1.2 + 2.1 * len(panels)), layout="constrained")
        title = f"{self._subject.plan!r}"
        short = title if len(title) <= _TITLE else f"{title[:_TITLE]}…"
        figure.suptitle(f"{_wrapped(short)}\n{about}", fontsize=9, parse_math=False)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (label, names, scale) in zip(axes, panels, strict=True):
            self._draw_panel(axis, names, scale)
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
            axis.grid(visible=True, alpha=0.3)
        axes[-1].set_xlabel("step of the run")
        with warnings.catch_warnings():
            # A name may have letters that the font lacks; the picture has boxes for them.
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            _save(path, lambda file: figure.savefig(file, format="png", dpi=120))

    def _panels(self) -> list[tuple[str, list[str], float]]:
        """Return label, values and unit of each panel."""
        has = {name for point in self.points for name in point.values}
        largest = max((point.values.get("bytes", 0) for point in self.points), default=0)
        unit, name = _byte_unit(largest)
        panels: list[tuple[str, list[str], float]] = [
            ("fill of the budget [%]", ["fill"], 1),
            (f"bytes of a batch [{name}]", ["bytes"], unit),
            ("batch size [samples]", ["samples"], 1),
            ("image size [pixels]", ["height", "width"], 1),
            ("frames and clips [number]", ["frames", "clips"], 1),
        ]
        return [panel for panel in panels if has.intersection(panel[1])]

    def _draw_panel(self, axis: Any, names: list[str], unit: float) -> None:  # noqa: ANN401 - of matplotlib
        streams = list(dict.fromkeys(point.stream for point in self.points))
        for stream in streams:
            for name in names:
                found = [
                    (point.at, point.values[name] / unit)
                    for point in self.points
                    if point.stream == stream and name in point.values
                ]
                if not found:
                    continue
                label = " ".join(filter(None, (stream, name if len(names) > 1 else "")))
                steps, values = np.array(found).T
                marker = "+" if name in ("width", "clips") else "."
                axis.plot(steps, values, marker, markersize=3, label=label or None)
        if names == ["fill"]:
            axis.axhline(100, color="black", linewidth=0.8, linestyle="--")
        if len(streams) > 1 or len(names) > 1:
            axis.legend(fontsize=8, loc="lower right")


def _byte_unit(largest: float) -> tuple[float, str]:
    for power, name in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if largest >= 1000**power:
            return 1000.0**power, name
    return 1.0, "bytes"


def _wrapped(text: str) -> str:
    middle = text.find(", ", len(text) // 2)
    return text if len(text) < 90 or middle < 0 else f"{text[: middle + 1]}\n{text[middle + 2 :]}"


def _save(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file aside and rename it, so that a half-written one is never found."""
    aside = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as file:
            aside = Path(file.name)
            write(file)
        # As the user's umask would have it: the temporary file is the user's alone.
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)
        aside.replace(path)
        aside = None
    except OSError as error:
        raise SettingsError(f"--plot {path} cannot be written: {error.strerror or error}") from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
