"""Pictures: a PNG that shows what varies, or a sentence that says why there is none."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.plans import (
    ByteBudget,
    Data,
    Every,
    Interleaved,
    Limits,
    Plan,
    Sequential,
    Shuffled,
    VariableBatch,
    VideoVariable,
)
from headrace.plans.engine import BoundPlan, settle
from headrace_daemon.commands.plan import plot
from headrace_daemon.commands.plan.plot import Points
from headrace_daemon.commands.plan.subject import Subject
from headrace_daemon.commands.plan.walk import Extent, batches
from headrace_daemon.errors import SettingsError
from tests.support.commands import environment, headrace, headrace_here

if TYPE_CHECKING:
    from pathlib import Path


def is_png(path: Path) -> bool:
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    return content.startswith(b"\x89PNG\r\n\x1a\n") and width > 500 and height > 200


def taken(plan: Any, data: Data, steps: int = 8) -> Points:  # noqa: ANN401 - any plan
    bound = BoundPlan.to(plan, data)
    points = Points(Subject(plan, data, {}, {}))
    first = settle(bound, bound.start(), 1)
    for chunk in batches(bound, Extent(first, steps, steps), [0], 1):
        points.add([batch for step in chunk for batch in step])
    return points


SIZES = Data.of(np.arange(1, 101) * 1000)
BUDGET = ByteBudget(max_bytes=200_000)
RUN = Interleaved(
    train=Shuffled(batch_size=8),
    extras={"val": Every(Sequential(batch_size=50), updates=2)},
    limits=Limits(epochs=1),
)


@pytest.mark.parametrize(
    ("plan", "data", "labels"),
    [
        (
            BUDGET,
            SIZES,
            ["fill of the budget [%]", "bytes of a batch [kB]", "batch size [samples]"],
        ),
        (
            VariableBatch(batch_size=8),
            Data(200),
            ["batch size [samples]", "image size [pixels]"],
        ),
        (
            VideoVariable(batch_size=8),
            Data(200),
            ["batch size [samples]", "image size [pixels]", "frames and clips [number]"],
        ),
        (RUN, Data(100), ["batch size [samples]"]),
    ],
    ids=["budget", "vbs", "video", "interleaved"],
)
def test_each_thing_that_varies_has_a_panel_with_its_unit(
    plan: Plan, data: Data, labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    taken(plan, data).draw(tmp_path / "a.png", "8 steps")
    assert is_png(tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    (figure,) = drawn
    assert [axis.get_ylabel() for axis in figure.axes] == labels
    assert figure.axes[-1].get_xlabel() == "step of the run"
    title = figure.get_suptitle()
    assert title.startswith(f"{type(plan).__name__}(")
    assert title.endswith("\n8 steps")


def test_points_are_the_values_of_the_batches() -> None:
    points = taken(BUDGET, SIZES, steps=4).points
    batches = list(BUDGET.batch_sampler(SIZES, 0, 1).batches())[:4]
    for point, batch in zip(points, batches, strict=True):
        total = int(SIZES.columns["sizes"][batch.indices].sum())
        assert point.values == {
            "fill": total / 2000,
            "bytes": total,
            "samples": len(batch.indices),
        }
    assert [point.at for point in points] == [0, 1, 2, 3]


def test_steps_of_a_run_count_its_extras() -> None:
    found = taken(RUN, Data(100)).points
    assert [point.at for point in found] == list(range(8))
    assert [point.stream for point in found][:5] == ["train", "train", "val", "val", "train"]


def test_a_picture_has_a_bounded_number_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "MAX_POINTS", 16)
    found = taken(Shuffled(batch_size=1), Data(100), steps=100).points
    assert len(found) < 16
    assert [point.at for point in found] == list(range(0, 100, found[1].at))


def test_the_command_draws(tmp_path: Path) -> None:
    path = tmp_path / "fill.png"
    done = headrace(
        "plan", "--length", "1000", "--sizes", "1KiB:1MiB", "--plan", "ByteBudget",
        "-o", "max_bytes=8MiB", "--plot", path,
        env=environment(MPLCONFIGDIR=str(tmp_path / "matplotlib")),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith(f"plot      {path}: ")
    assert is_png(path)


def test_without_matplotlib_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')"
    )
    env = environment(PYTHONPATH=str(tmp_path))
    words = ("plan", "--length", "10", "--summary")
    assert headrace(*words, env=env).returncode == 0
    done = headrace(*words, "--plot", tmp_path / "a.png", env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "headrace plan: --plot needs matplotlib, which is not installed: "
        "pip install 'headrace[plot]'\n"
    )


def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    for name, reason in (
        ("a.pdf", "the picture is a PNG: give a name that ends in .png"),
        ("missing/a.png", "its folder does not exist: make it first"),
    ):
        done = headrace_here("plan", "--length", "10", "--plot", tmp_path / name)
        assert done.returncode == 2
        assert reason in done.stderr
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SettingsError, match=r"folder\.png cannot be written: Is a directory"):
        taken(BUDGET, SIZES).draw(tmp_path / "folder.png", "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]
    with pytest.raises(SettingsError, match="the range has no step"):
        taken(BUDGET, SIZES, steps=0).draw(tmp_path / "a.png", "")
