"""`headrace demo` from end to end.

How it is stopped is seen in test_demo_ais.py, where a bucket has to go as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.demo import Demo, assert_tells_the_story

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_demo_survives_both_kills_proves_it_and_leaves_nothing(
    folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--epochs", "5")  # enough to learn, and quick
    demos.append(demo)
    status, errors = demo.finish(timeout_s=120)
    assert (status, errors) == (0, ""), demo.output

    assert_tells_the_story(demo)
    assert re.search(r"daemon / best native = \d+\.\d\d", demo.output)
    assert demo.descendants() == []
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(100)
def test_too_short_training_is_a_sentence_and_kept_files_are_named(
    folder: Path, demos: list[Demo]
) -> None:
    demo = Demo(folder, "--epochs", "2", "--keep")
    demos.append(demo)
    status, errors = demo.finish(timeout_s=90)
    assert status == 1, demo.output
    assert re.fullmatch(
        r"headrace demo: the model gets [\d.]+% of the test images right after 2 epochs, at least "
        r"95% are due: train for longer with --epochs\n",
        errors,
    )
    (kept,) = folder.iterdir()
    assert {path.name for path in kept.iterdir()} >= {"train", "test", "interrupted.jsonl"}
    assert str(kept) in demo.output
    assert demo.descendants() == []
