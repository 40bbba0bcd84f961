"""What is planned: sources, streams in files, and lengths in their place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from headrace.plans import Chain, Every, Interleaved, Limits, Link, Sequential, Shuffled
from headrace.sources import Objects, Stream
from tests.support.commands import environment, headrace, headrace_here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with 8 files of 10 bytes in ``main`` and 3 of 100 in ``val``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name, count, size in (("main", 8, 10), ("val", 3, 100)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{name}{number}").write_bytes(bytes(size))
    return tmp_path


def document(*arguments: str | Path) -> dict[str, Any]:
    done = headrace_here("plan", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refusal(*arguments: str | Path) -> str:
    done = headrace_here("plan", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_parts_with_sources_of_their_own_are_listed(folders: Path) -> None:
    val = Objects(str(folders / "val"))
    plan = Interleaved(
        train=Shuffled(batch_size=4),
        extras={"val": Every(Sequential(batch_size=2), epochs=1, source=val)},
        limits=Limits(epochs=1),
    )
    path = folders / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    found = document(folders / "main", "--stream", path)
    assert [step["bytes"] for step in found["steps"]] == [40, 40, 200, 100]
    assert [step["names"] for step in found["steps"]][2:] == [["val0", "val1"], ["val2"]]
    assert found["parts"]["val"]["source"] == str(folders / "val")
    table = headrace("plan", folders / "main", "--stream", path, env=environment(
        XDG_STATE_HOME=str(folders / "state")))  # fmt: skip
    assert f"source of val: {folders / 'val'}" in table.stdout
    chain = Chain(plans={"a": Shuffled(batch_size=4), "b": Link(Sequential(batch_size=3), val)})
    path.write_bytes(msgspec.json.encode(chain))
    steps = document(folders / "main", "--stream", path, "--steps", "2")["steps"]
    assert steps[0]["names"] == ["val0", "val1", "val2"]


@pytest.mark.parametrize("form", ["json", "toml", "toml plan"])
def test_a_stream_in_a_file_is_planned(folders: Path, form: str) -> None:
    path = folders / "stream"
    stream = Stream(Objects(str(folders / "main")), Sequential(batch_size=3))
    source: tuple[Path, ...] = ()
    if form == "json":
        path.write_bytes(msgspec.json.encode(stream))
    elif form == "toml":
        path.write_text(
            f'source = {{ type = "Objects", uri = "{folders / "main"}" }}\n'
            'plan = { type = "Sequential", batch_size = 3 }\n'
        )
    else:
        path.write_text('type = "Sequential"\nbatch_size = 3\n')
        source = (folders / "main",)
    found = document(*source, "--stream", path)
    assert found["steps"][0]["names"] == ["main0", "main1", "main2"]


def test_a_composition_of_the_configuration_is_planned(folders: Path) -> None:
    path = folders / "headrace.toml"
    path.write_text(
        f"""
        [daemon]
        state_dir = "{folders}/state"
        [streams.run]
        source = {{ uri = "{folders}/main" }}
        [streams.run.plan]
        type = "Interleaved"
        train = {{ type = "VariableBatch", batch_size = 2, scales = {{ count = 3 }} }}
        limits = {{ epochs = 2 }}
        [streams.run.plan.extras.val]
        plan = {{ type = "Sequential", batch_size = 1 }}
        source = {{ uri = "{folders}/val" }}
        batch_size = 2
        epochs = 1
        """
    )
    found = document("--config", path, "--stream", "run", "--steps", "0:100")
    names = [step["names"] for step in found["steps"] if step["stream"] == "val"]
    assert names == [["val0", "val1"], ["val2"]] * 2
    assert {step["stream"] for step in found["steps"]} == {"train", "val"}
    without = document("--config", path, "--stream", "run", "--length", "8", "--length", "val=3")
    assert [step["ids"] for step in without["steps"]] == [
        step["ids"] for step in found["steps"][: len(without["steps"])]
    ]


def test_a_length_takes_the_place_of_a_source(folders: Path) -> None:
    path = folders / "stream.json"
    stream = Stream(Objects(str(folders / "missing")), Sequential(batch_size=3))
    path.write_bytes(msgspec.json.encode(stream))
    found = document("--stream", path, "--length", "10")
    assert (found["samples"], found["total_bytes"]) == (10, None)
    assert (found["steps"][0]["names"], found["steps"][0]["bytes"]) == (None, None)
    assert found["manifest"] == Sequential(batch_size=3).batch_sampler(10, 0, 1).state_dict()[
        "manifest"
    ]  # fmt: skip


def test_sizes_of_a_source_may_be_replaced(folders: Path) -> None:
    found = document(folders / "main", "--sizes", "7", "--batch-size", "2", "--plan", "Sequential")
    assert found["steps"][0]["bytes"] == 14
    assert found["steps"][0]["names"] == ["main0", "main1"]


def test_what_contradicts_itself_is_refused(folders: Path) -> None:
    stream, broken, half = (folders / name for name in ("stream.json", "broken", "half.toml"))
    stream.write_bytes(
        msgspec.json.encode(Stream(Objects(str(folders / "main")), Sequential(batch_size=3)))
    )
    broken.write_text("{")
    half.write_text("plans = 3")
    (folders / "binary").write_bytes(b"\xff\xfe")
    (folders / "odd.toml").write_text(
        'source = 3\nplan = { type = "Sequential", batch_size = 1 }\n'
    )
    val = {"plan": {"type": "Sequential", "batch_size": 1}, "source": {"uri": "/x"}}
    chain = {"type": "Chain", "plans": {"a": val["plan"], "b": {"type": "Link", **val}}}
    for words, reason in (
        ((folders / "main", "--stream", stream), "give a SOURCE or --stream, not both: "),
        ((folders / "main", "--length", "3"), "give a SOURCE or --length, not both"),
        (("--stream", stream, "--seed", "3"), "--seed belongs to a SOURCE: with --stream the"),
        (("--stream", stream, "-o", "seed=3"), "--option belongs to a SOURCE: with --stream the"),
        (("--stream", broken), "broken is neither JSON nor TOML: "),
        (("--stream", half), "half.toml has the unknown key 'plans': a stream has plan = "),
        (("--stream", folders), "cannot be read: Is a directory"),
        (("--stream", folders / "binary"), "binary is no text: "),
        (("--stream", folders / "odd.toml"), "source = 3: write source = { uri = … }"),
        (("--suffix", ".x"), "--suffix belongs to a SOURCE"),
        (("--length", "val=3"), "the plan has no part 'val'; its parts: none"),
        (("--length", "3", "--plan", json.dumps(chain)), "part 'b' has a source of its own: give "
         "--length b=NUMBER too"),
        (("--length", "b=3", "--plan", json.dumps(chain)), "give --length NUMBER too"),
        (("--length", "3", "--plan", "ByteBudget", "-o", "max_bytes=3"), "needs the column 'sizes'"
         ", which is not known: add --sizes LOW:HIGH"),
        (("--length", "3", "--plan", "ByteBudget", "-o", "max_total=3", "-o", "column=x"),
         "needs the column 'x', which is not known: add --column x=FILE.npy"),
        (("--length", "3", "--plan", "ByteBudget", "-o", "max_bytes=3", "--sizes", "4"),
         "sample 0 has 4 in column 'sizes', above max_bytes=3"),
        (("--length", "3", "--plan", "ShardShuffled"), "give the number of consecutive samples"),
        (("--length", "60000000000", "-o", "order=torch"), "use order='keyed'"),
        (("--length", "3", "--whole"), "--whole goes with --summary or --plot"),
        (("--length", "3", "--rank", "1"), "rank=1 is out of range: --world-size 1 has 0..0"),
        (("--length", "3", "--rank", "x"), "--rank 'x': write a rank, several as 0,3 or 0:4, or"),
        (("--length", "3", "--rank", "1:1"), "'1:1' is no rank"),
        (("--length", "3", "--rank", "all", "--world-size", "5000"), "5000 ranks are too many"),
        (("--length", "3", "--epoch", "1", "--update", "1"), "--epoch and --update each say where"),
        (("--length", "3", "--update", "-1"), "--update -1: updates are counted from 0"),
        (("--length", "30", "--batch-size", "3", "--sample", "4"), "sample=4 is not the edge of a"),
        (("--length", "3", "--state", folders / "no.json"), "no.json does not exist: check the"),
        (("--length", "3", "--state", broken), "broken is not JSON: write what state_dict()"),
        (("--length", "3", "--state", stream), "the state is not a Headrace cursor"),
    ):  # fmt: skip
        assert reason in refusal(*words), words


def test_a_state_of_another_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps(Shuffled(batch_size=3).batch_sampler(10, 0, 1).state_dict()))
    words = ("--length", "10", "--state", state)
    assert document(*words, "--batch-size", "3")["steps"]
    assert "batch_size was 3 and is 4" in refusal(*words, "--batch-size", "4")
    longer = ("--length", "11", "--state", state, "--batch-size", "3")
    done = headrace_here("plan", *longer)
    assert "the cursor belongs to manifest" in done.stderr


def test_a_run_has_no_epochs_and_an_end(tmp_path: Path) -> None:
    plan = Interleaved(train=Shuffled(batch_size=4), limits=Limits(updates=5))
    words = ("--length", "10", "--plan", msgspec.json.encode(plan).decode())
    assert "this plan runs in one pass to its limits" in refusal(*words, "--epoch", "1")
    assert "the run ends before: it has 5 steps" in refusal(*words, "--steps", "5:9")
    assert len(document(*words, "--steps", "3:9")["steps"]) == 2
    assert document(*words, "--steps", "3:9", "--summary")["summary"]["steps"] == 2
