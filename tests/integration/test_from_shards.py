"""House rule: every block of docs/from-shards.md runs, and both of a pair give the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.files import content
from tests.support.shards import tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stores import Store

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "from-shards.md").read_text()
SECTIONS: Final = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
PAIRS: Final = {title: found for title, found in SECTIONS.items() if found}
SHUFFLED: Final = "WebDataset: shuffled, decoded, in batches"

RUNNER: Final = """
import json, os, sys, traceback

def plain(value):
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else str(value)

def run(block):
    given = []
    names = {"train_on": lambda batch: given.append([plain(sample) for sample in batch])}
    exec(compile(block, "the page", "exec"), names)
    for name in ("train", "again", "reader", "joined"):
        if hasattr(names.get(name), "close"):
            names[name].close()
    return given

for line in sys.stdin:
    socket, blocks = json.loads(line)
    os.environ["HEADRACE_SOCKET"] = socket
    try:
        answer = [run(block) for block in blocks]
    except Exception:
        answer = traceback.format_exc()
    print(json.dumps(answer), flush=True)
"""
"""Runs lists of blocks, one after the other: importing what they import takes longest."""


def shards() -> dict[str, bytes]:
    """Return the shards that the page reads, of unequal sizes."""
    found: dict[str, bytes] = {}
    for number, size in enumerate((7, 12, 1, 10)):
        keys = [f"{number}-{one:02}" for one in range(size)]
        found[f"train-{number:03}.tar"] = tar_of(
            member
            for key in keys
            for member in ((f"{key}.jpg", content(key, 40)), (f"{key}.cls", b"%d" % number))
        )
    for kind, field, cuts in (("images", "jpg", (0, 9, 17)), ("masks", "png", (0, 4, 17))):
        for number in range(2):
            found[f"{kind}-{number}.tar"] = tar_of(
                (f"{one:02}.{field}", content(f"{field} {one}", 20))
                for one in range(cuts[number], cuts[number + 1])
            )
    return found


def test_the_page_has_pairs_for_each_of_the_three() -> None:
    assert len(PAIRS) == 7
    for title, found in PAIRS.items():
        assert len(found) == 2, title
        theirs = "webdataset" if "WebDataset" in title or "Stopping" in title else "aistore.pytorch"
        assert theirs in found[0], title
        assert "from headrace" in found[1], title
        assert theirs not in found[1], title


def test_the_documents_that_it_names_are_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / name).is_file(), name


@pytest.fixture(scope="module")
def interpreter() -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs blocks: a line of JSON in, and one out."""
    command = [sys.executable, "-c", RUNNER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_both_blocks_of_each_pair_give_the_same(
    store: Store, interpreter: subprocess.Popen[str]
) -> None:
    store.put(shards())
    blocks = [
        re.sub(r'(?<=[/"])imagenet(?=[/"])', store.bucket, block).replace(
            "http://aistore:51080", store.endpoint
        )
        for pair in PAIRS.values()
        for block in pair
    ]
    with store.daemon() as app:
        assert interpreter.stdin is not None
        assert interpreter.stdout is not None
        print(json.dumps([app.socket, blocks]), file=interpreter.stdin, flush=True)
        answer = json.loads(interpreter.stdout.readline())
    assert isinstance(answer, list), answer
    results = iter(answer)
    for title in PAIRS:
        theirs, ours = next(results), next(results)
        assert theirs, title
        if title == SHUFFLED:
            theirs, ours = (sorted(chain.from_iterable(found)) for found in (theirs, ours))
        assert ours == theirs, title
