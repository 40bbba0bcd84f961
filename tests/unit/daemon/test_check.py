"""``headrace check``: what a configuration would do, without doing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.commands import headrace, headrace_here, headrace_without_rights

if TYPE_CHECKING:
    from pathlib import Path


def files(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(bytes(size))
    return folder


def config(tmp_path: Path, *, data: Path, memory: str = "1MiB", plan: str = "") -> Path:
    path = tmp_path / "headrace.toml"
    plan = plan or 'type = "Sequential", batch_size = 2'
    path.write_text(
        f"""
        default_stream = "train"
        [daemon]
        memory = "{memory}"
        socket = "{tmp_path}/s"
        state_dir = "{tmp_path}/state"
        [streams.train]
        source = {{ uri = "{data}" }}
        plan = {{ {plan} }}
        """
    )
    return path


def test_a_good_configuration_is_shown_with_the_size_of_its_plan(tmp_path: Path) -> None:
    path = config(tmp_path, data=files(tmp_path / "data", [1000] * 5))
    done = headrace("check", path)
    assert (done.returncode, done.stderr) == (0, "")
    for fact in (
        f"{path}: valid",
        f"socket   {tmp_path}/s",
        "stream train (default)",
        f"source {tmp_path}/data",
        "5 samples, 5.0 kB",
        "3 steps on each of 1 rank(s), largest batch 2.0 kB",
        "4.1 kB at least (2 slots on each rank): fits into 1.0 MB",
    ):
        assert fact in done.stdout
    assert not (tmp_path / "state").exists()  # nothing was done
    assert not (tmp_path / "s").exists()


def test_steps_and_memory_are_those_of_a_world_size(tmp_path: Path) -> None:
    path = config(tmp_path, data=files(tmp_path / "data", [1000] * 12))
    done = headrace_here("check", path, "--world-size", "3")
    assert done.returncode == 0
    assert "2 steps on each of 3 rank(s)" in done.stdout
    assert "12.3 kB at least" in done.stdout


def test_a_batch_larger_than_the_budget_is_named_with_what_is_needed(tmp_path: Path) -> None:
    path = config(tmp_path, data=files(tmp_path / "data", [1000] * 5), memory="3KiB")
    done = headrace_here("check", path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "does NOT fit into 3.1 kB" in done.stdout
    assert (
        "error  [daemon] memory = '3KiB' is too small for train: raise it to at least 4096 bytes, "
        "or use a smaller batch" in done.stdout
    )


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("missing", "missing does not exist"),
        ("empty", "empty has no file: a stream needs at least one sample"),
        ("file", "file is not a folder"),
        ("with [daemon] and [/red] :smile:", "with [daemon] and [/red] :smile: does not exist"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, folder: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    done = headrace_here("check", config(tmp_path, data=tmp_path / folder))
    assert (done.returncode, done.stderr) == (1, "")
    assert reason in done.stdout
    assert done.stdout.count("error  ") == 1


def test_a_source_without_permission_is_named(socket_path: Path) -> None:
    folder = socket_path.parent
    folder.chmod(0o711)
    data = files(folder / "data", [1])
    data.chmod(0)
    try:
        done = headrace_without_rights("check", config(folder, data=data))
    finally:
        data.chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"folder {data} cannot be listed: Permission denied" in done.stdout


def test_every_stream_is_tried(tmp_path: Path) -> None:
    path = config(tmp_path, data=tmp_path / "missing")
    good = files(tmp_path / "good", [1])
    path.write_text(
        f"{path.read_text()}\n[streams.good]\nsource = {{ uri = '{good}' }}\n"
        "plan = { type = 'Sequential', batch_size = 1 }\n"
    )
    done = headrace_here("check", path)
    assert done.returncode == 1
    assert "missing does not exist" in done.stdout
    assert "stream good" in done.stdout
    assert "1 samples, 1 byte" in done.stdout


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ('type = "Sequential", global_batch_size = 4', "usable world sizes: 1, 2, 4"),
        ('type = "Sequential", batch_size = 9, tail = "drop"', "tail='drop' leaves no step"),
    ],
)
def test_a_plan_that_does_not_fit_the_world_is_named(
    tmp_path: Path, plan: str, reason: str
) -> None:
    path = config(tmp_path, data=files(tmp_path / "data", [1] * 8), plan=plan)
    done = headrace_here("check", path, "--world-size", "3")
    assert (done.returncode, done.stderr) == (1, "")
    assert reason in done.stdout


def test_without_streams_it_says_what_clients_may_do(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text("")
    done = headrace_here("check", path)
    assert done.returncode == 0
    assert "no [streams.NAME]: clients bring their own, below [trust] allow_sources" in done.stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[daemon", "is not TOML"),
        ("[deamon]", "deamon = {}: unknown key (did you mean 'daemon'?)"),
        ("[daemon]\nmemory = 0", "daemon.memory = 0: "),
        ("x = [" + "[" * 10_000, "is not TOML"),
    ],
)
def test_a_configuration_that_is_wrong_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    done = headrace_here("check", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headrace check: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_configuration_that_is_missing_or_no_file_is_named(tmp_path: Path) -> None:
    done = headrace_here("check", tmp_path / "missing.toml")
    assert (done.returncode, "missing.toml does not exist" in done.stderr) == (2, True)
    done = headrace_here("check", tmp_path)
    assert (done.returncode, "cannot be read: Is a directory" in done.stderr) == (2, True)


def test_a_world_of_no_size_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path, data=files(tmp_path / "data", [1]))
    done = headrace_here("check", path, "--world-size", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "world_size=0 is out of range" in done.stderr


def test_a_store_that_is_down_is_waited_for_once(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    stream = "source = { uri = 'ais://b/' }\nplan = { type = 'Sequential', batch_size = 1 }\n"
    path.write_text(
        "[store]\nendpoints = ['http://127.0.0.1:1']\ndeadline_s = 0.1\n"
        f"[streams.one]\n{stream}[streams.two]\n{stream}"
    )
    done = headrace_here("check", path)
    assert done.returncode == 1
    assert done.stdout.count("within 0.1 s ([store] deadline_s): check the cluster and") == 1
    assert done.stdout.count("error  not listed, since the store could not be asked") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("group = 'no-such-group'", "daemon.group = 'no-such-group': there is no such"),
        ("[store]\nendpoints = ['aistore:51080']", "[store] endpoints: 'aistore:51080' is no end"),
        ("[store]\ntoken_file = '/no/such'", "[store] token_file: token file /no/such cannot be"),
    ],
)
def test_what_serve_refuses_is_not_called_valid(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(f"[daemon]\nsocket = '{tmp_path}/s'\nstate_dir = '{tmp_path}/state'\n{text}")
    for command in (("check", path), ("serve", "--config", path)):
        done = headrace_here(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
