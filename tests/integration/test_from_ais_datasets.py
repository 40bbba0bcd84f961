"""House rule: every block of docs/from-ais-datasets.md runs, and both of a pair give the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.files import content

if TYPE_CHECKING:
    from tests.support.stores import Store

PAGE: Final = (Path(__file__).parents[2] / "docs" / "from-ais-datasets.md").read_text()
SECTIONS: Final = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
WITHOUT_ORDER: Final = ("An iterable dataset with workers",)
"""Where theirs depends on the number of workers."""

PHOTOS: Final = {
    f"{animal}/{number:02}.jpg": content(f"{animal} {number}", 20 + number)
    for animal in ("birds", "cats", "dogs")
    for number in range(12)
}
DRAWINGS: Final = {f"cats/{number:02}.jpg": content(f"drawn {number}", 9) for number in range(3)}

RUNNER: Final = """
import json, sys
script = json.load(sys.stdin)
results = []
for block in script:
    given = []
    names = {
        "train_on": lambda batch: given.append([(name, str(value)) for name, value in batch]),
        "rank": 1, "world_size": 2,
    }
    exec(compile(block, "the page", "exec"), names)
    for name in ("train", "again"):
        if name in names:
            names[name].close()
    results.append(given)
json.dump(results, sys.stdout)
"""


def blocks(store: Store, other: str) -> list[str]:
    """Return all blocks of the page, with the addresses of a cluster."""
    found = [block for pair in SECTIONS.values() for block in pair]
    return [
        re.sub(
            r"\bdrawings(?=[\"])", other, re.sub(r"\bphotos(?=[\"/])", store.bucket, block)
        ).replace("http://aistore:51080", store.endpoint)
        for block in found
    ]


def test_the_page_has_pairs_of_blocks() -> None:
    pairs = {title: found for title, found in SECTIONS.items() if found}
    assert len(pairs) == 9
    for title, found in pairs.items():
        assert len(found) == 2, title
        assert "aistore" in found[0], title
        assert "from headrace import" in found[1], title
        assert "aistore.pytorch" not in found[1], title


@pytest.mark.slow
def test_both_blocks_of_each_pair_give_the_same(store: Store) -> None:
    store.put(PHOTOS)
    other = store.another_bucket(DRAWINGS)
    with store.daemon() as app:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps(blocks(store, other)),
            env=os.environ | {"HEADRACE_SOCKET": app.socket},
            capture_output=True,
            text=True,
            timeout=55,
        )
    assert done.returncode == 0, done.stderr
    results = iter(json.loads(done.stdout))
    for title in (title for title, found in SECTIONS.items() if found):
        theirs, ours = next(results), next(results)
        assert theirs, title
        if title in WITHOUT_ORDER:
            assert sorted(chain.from_iterable(theirs)) == list(chain.from_iterable(ours)), title
        elif title == "Several buckets, and prefixes":
            assert without_labels(ours, store.bucket, other) == theirs
            assert ours[0][0][0] == f"{store.bucket}/cats/00.jpg"
            assert ours[-1][-1][0] == f"{other}/cats/02.jpg"
        else:
            assert ours == theirs, title


def without_labels(batches: Any, *labels: str) -> Any:  # noqa: ANN401 - JSON
    found = []
    for batch in batches:
        parts = [(name.partition("/"), value) for name, value in batch]
        assert {label for (label, _, _), _ in parts} <= set(labels)
        found.append([[name, value] for (_, _, name), value in parts])
    return found
