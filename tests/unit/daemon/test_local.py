from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.errors import (
    ObjectChangedError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceError,
    SourceMissingError,
)
from headrace_daemon.source import local
from headrace_daemon.source.local import LocalReader, list_folder
from headrace_daemon.source.openfiles import version_of_file
from headrace_daemon.source.reader import Place, RangeRequest, ReadRequest
from tests.support.loops import run, turns
from tests.support.sources import selected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from headrace.manifest import Manifest
    from tests.support.loops import Loop


def reads_everything() -> bool:
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


needs_permissions = pytest.mark.skipif(
    reads_everything(), reason="this user (root?) is never refused to read a file"
)


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def listed(root: Path, **options: Any) -> list[tuple[str, int]]:  # noqa: ANN401 - of Objects
    return entries(list_folder(selected(str(root), **options)))


def entries(manifest: Manifest) -> list[tuple[str, int]]:
    found = [manifest[index] for index in range(len(manifest))]
    return [(entry.name, entry.size) for entry in found]


def names(root: Path, **options: Any) -> list[str]:  # noqa: ANN401 - of Objects
    return [name for name, _ in listed(root, **options)]


def refusal(root: Path, **options: Any) -> str:  # noqa: ANN401 - of Objects
    with pytest.raises(SourceMissingError) as refused:
        listed(root, **options)
    assert refused.value.what == str(root)
    return str(refused.value)


# --- Listing: prefixes and names ------------------------------------------------------------------

TREE = ["a", "a/1", "a/2/x", "a/2/y/z", "ab", "abc/1", "b/1"]


@pytest.mark.parametrize("recursive", [True, False])
@pytest.mark.parametrize(
    "prefix", ["", "a", "a/", "a/2", "a/2/", "a/2/x", "ab", "ab/", "b/1", "b/1/", "z/", "z"]
)
def test_a_prefix_is_the_beginning_of_names(tmp_path: Path, prefix: str, recursive: bool) -> None:
    files = [name for name in TREE if name != "a"]
    write(tmp_path, dict.fromkeys(files, b""))
    wanted = [
        name
        for name in sorted(files)
        if name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
    ]
    if wanted:
        assert names(tmp_path, prefixes=prefix, recursive=recursive) == wanted
    else:
        text = refusal(tmp_path, prefixes=prefix, recursive=recursive)
        assert (f"whose name begins with {prefix!r}" in text) is bool(prefix)


def test_only_folders_that_a_prefix_leads_to_are_looked_into(tmp_path: Path) -> None:
    write(tmp_path, {"a/1": b"", "b/1": b""})
    (tmp_path / "b" / b"\xff".decode(errors="surrogateescape")).write_bytes(b"")
    assert names(tmp_path, prefixes="a") == ["a/1"]
    assert "is not UTF-8" in refusal(tmp_path)


def test_a_prefix_in_a_folder_that_is_missing_says_so(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none", prefixes="a/")


def test_given_names_are_looked_up_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, {"a/x": b"123", "b": b"12", "c": b""})
    assert listed(tmp_path, names=["c", "a/x", "b"], suffix=".jpg") == [
        ("c", 0),
        ("a/x", 3),
        ("b", 2),
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [("z", "by its name and not there"), ("b/x", "and not there"), ("a", "name and no file")],
)
def test_a_given_name_that_is_no_file_is_named(tmp_path: Path, name: str, told: str) -> None:
    write(tmp_path, {"a/x": b"123", "b": b"12"})
    with pytest.raises(SourceError) as refused:
        listed(tmp_path, names=["b", name])
    assert told in str(refused.value)
    assert refused.value.what == f"{tmp_path}/{name}"


# --- Listing: what is a sample --------------------------------------------------------------------


def test_files_are_listed_with_their_sizes_by_relative_name(tmp_path: Path) -> None:
    write(tmp_path, {"b": b"12", "a/x": b"123", "a/y/z": b"", "c": b"1"})
    assert listed(tmp_path) == [("a/x", 3), ("a/y/z", 0), ("b", 2), ("c", 1)]


def test_names_are_sorted_by_their_utf8_bytes(tmp_path: Path) -> None:
    files = ["a/x", "a-x", "a.x", "a0", "B", "b", "10", "9", "z", "ä", "é", "Ω", "中", "\U0001f600"]
    write(tmp_path, dict.fromkeys(files, b""))
    # As whole strings, not folder by folder: "-" and "." come before "/", and "0" after it.
    assert names(tmp_path) == sorted(files, key=str.encode)
    assert names(tmp_path)[:7] == ["10", "9", "B", "a-x", "a.x", "a/x", "a0"]


@given(
    files=st.sets(
        st.lists(
            st.text(
                st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"),
                min_size=1,
                max_size=4,
            ).filter(lambda part: part not in {".", ".."}),
            min_size=1,
            max_size=3,
        ).map(lambda parts: "/".join(["f", *parts, "f"])),
        min_size=1,
        max_size=8,
    )
)
def test_any_tree_is_listed_in_the_order_of_its_utf8_bytes(
    tmp_path_factory: pytest.TempPathFactory, files: set[str]
) -> None:
    root = tmp_path_factory.mktemp("data")
    made = set()
    for name in files:
        try:
            write(root, {name: b"x"})
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a name cannot be a file and a folder
        made.add(name)
    assert listed(root) == [(name, 1) for name in sorted(made, key=str.encode)]


def test_hidden_files_and_odd_names_are_samples(tmp_path: Path) -> None:
    odd = [".hidden", ".git/config", "with space", "new\nline", "quote'\"", "ümläut", "%41", "-x"]
    write(tmp_path, dict.fromkeys(odd, b"x"))
    assert names(tmp_path) == sorted(odd, key=str.encode)


def test_two_spellings_of_one_letter_are_two_names(tmp_path: Path) -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    write(tmp_path, {composed: b"1", decomposed: b"22"})
    assert listed(tmp_path) == [(decomposed, 2), (composed, 1)]


def test_only_the_folder_itself_is_listed_if_asked_to(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"", "b/c": b"", "b/d/e": b""})
    assert names(tmp_path, recursive=False) == ["a"]


@pytest.mark.parametrize(
    ("suffix", "found"),
    [
        (".jpg", ["a.jpg", "b/c.jpg"]),
        ((".jpg", ".png"), ["a.jpg", "b/c.jpg", "d.png"]),
        (".JPG", ["e.JPG"]),
        ("jpg", ["a.jpg", "b/c.jpg", "jpg"]),
        ("/c.jpg", ["b/c.jpg"]),
        (".ü", ["f.ü"]),
        ((), ["a.jpg", "b/c.jpg", "d.png", "e.JPG", "f.ü", "jpg"]),
        ("", ["a.jpg", "b/c.jpg", "d.png", "e.JPG", "f.ü", "jpg"]),
    ],
)
def test_names_are_chosen_by_their_end(
    tmp_path: Path, suffix: str | tuple[str, ...], found: list[str]
) -> None:
    write(tmp_path, dict.fromkeys(["a.jpg", "b/c.jpg", "d.png", "e.JPG", "f.ü", "jpg"], b""))
    assert names(tmp_path, suffix=suffix) == found


def test_what_is_neither_file_nor_folder_is_no_sample(tmp_path: Path) -> None:
    write(tmp_path, {"file": b"x"})
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert names(tmp_path) == ["file"]


def test_the_manifest_depends_neither_on_the_folder_nor_on_times(tmp_path: Path) -> None:
    files = {"a": b"12", "b/c": b"345"}
    here, there = write(tmp_path / "here", files), write(tmp_path / "there", files)
    for path in there.rglob("*"):
        os.utime(path, (0, 0))
    digest = list_folder(selected(str(here))).digest
    assert list_folder(selected(str(there))).digest == digest
    assert list_folder(selected(f"file://{there}")).digest == digest
    (there / "b/c").write_bytes(b"3456")
    assert list_folder(selected(str(there))).digest != digest


def test_progress_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PROGRESS_EVERY", 3)
    write(tmp_path, {f"{number}.bin": b"" for number in range(8)} | {"no": b""})
    told: list[int] = []
    list_folder(selected(str(tmp_path), suffix=".bin"), told.append)
    assert told == [3, 6]


# --- Listing: links -------------------------------------------------------------------------------


def test_links_to_files_are_samples_of_the_size_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"data/a": b"12345", "out/b": b"1"})
    (tmp_path / "data/link").symlink_to("../out/b")
    (tmp_path / "data/again").symlink_to("a")
    assert listed(tmp_path / "data") == [("a", 5), ("again", 5), ("link", 1)]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path, {"data/a": b"", "out/b/c": b""})
    (tmp_path / "data/link").symlink_to("../out")
    assert names(tmp_path / "data") == ["a", "link/b/c"]


@pytest.mark.parametrize("target", [".", "..", "../data", "../data/sub"])
def test_a_loop_of_folders_ends(tmp_path: Path, target: str) -> None:
    write(tmp_path, {"data/a": b"", "data/sub/b": b""})
    (tmp_path / "data/sub/loop").symlink_to(Path(target) if target == "." else Path("..") / target)
    found = names(tmp_path / "data")
    assert len(found) == len(set(found)) == 2
    assert found == ["a", "sub/b"]


def test_links_to_nothing_and_to_themselves_are_no_samples(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"x"})
    (tmp_path / "nothing").symlink_to("gone")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "ping").symlink_to("pong")
    (tmp_path / "pong").symlink_to("ping")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_a_folder_with_two_names_is_listed_by_the_same_one_whatever_order_the_system_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    write(tmp_path, {"m/x": b"", "z": b""})
    (tmp_path / "a").symlink_to("m")
    (tmp_path / "n").symlink_to("m")
    scandir = os.scandir

    class Listing:
        def __init__(self, path: bytes) -> None:
            with scandir(path) as listing:
                self.found = sorted(listing, key=lambda e: e.name, reverse=order == "backward")

        def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
            return iter(self.found)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Listing)
    assert names(tmp_path) == ["a/x", "z"]


# --- Listing: refusals ----------------------------------------------------------------------------


def test_a_missing_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    text = refusal(tmp_path / "gone" / "deeper")
    assert f"folder {tmp_path}/gone/deeper does not exist" in text
    assert "check the path" in text


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path, {"file": b"x"})
    text = refusal(tmp_path / "file")
    assert text == f"{tmp_path}/file is not a folder: give the folder"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = refusal(tmp_path)
    assert text == f"folder {tmp_path} has no file: a stream needs at least one sample"


def test_a_folder_without_a_file_that_matches_is_refused_with_what_was_wanted(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"a.txt": b"", "sub/b.jpg": b""})
    text = refusal(tmp_path, suffix=(".jpg", ".png"), recursive=False)
    assert "has no file whose name ends with .jpg or .png" in text
    assert "recursive = false" in text


@pytest.mark.parametrize("name", [b"\xe9t\xe9.jpg", b"\xff/a.jpg"])
def test_a_name_that_is_not_utf8_is_refused_by_its_name(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    text = refusal(tmp_path)
    assert repr(name) in text
    assert "is not UTF-8: rename it" in text


def test_a_name_that_is_not_utf8_does_not_matter_where_its_suffix_is_not_wanted(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"a.jpg": b""})
    with open(os.fsencode(tmp_path) + b"/\xe9t\xe9.tmp", "wb"):
        pass
    assert names(tmp_path, suffix=".jpg") == ["a.jpg"]


@needs_permissions
def test_a_folder_without_permission_is_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"", "secret/b": b""})
    (tmp_path / "secret").chmod(0)
    try:
        text = refusal(tmp_path)
    finally:
        (tmp_path / "secret").chmod(stat.S_IRWXU)
    assert "Permission denied" in text
    assert f"{tmp_path}/secret" in text


def test_what_the_system_refuses_to_list_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == (
        f"folder {tmp_path} cannot be listed: Permission denied ({tmp_path})"
    )


def test_a_link_that_the_system_refuses_to_follow_is_named_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Link:
        name = b"link"

        def is_dir(self) -> bool:
            raise PermissionError(13, "Permission denied", os.fsencode(tmp_path / "link"))

    write(tmp_path, {"a": b""})
    monkeypatch.setattr(os, "scandir", lambda _: nullcontext([Link()]))
    assert refusal(tmp_path) == (
        f"folder {tmp_path} cannot be listed: Permission denied ({tmp_path}/link)"
    )


def test_a_file_that_vanishes_while_it_is_listed_is_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a": b"", "b": b""})
    scandir = os.scandir

    class Listing:
        def __init__(self, path: bytes) -> None:
            with scandir(path) as listing:
                self.found = list(listing)
            (tmp_path / "a").unlink()

        def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
            return iter(self.found)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Listing)
    assert names(tmp_path) == ["b"]


# --- Reading --------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def requests_of(sizes: Mapping[str, int]) -> tuple[list[ReadRequest], list[bytearray]]:
    targets = [bytearray(b"?" * size) for size in sizes.values()]
    pairs = zip(sizes, targets, strict=True)
    return [ReadRequest(name, memoryview(target)) for name, target in pairs], targets


def read(
    root: Path, threads: ThreadPoolExecutor, sizes: Mapping[str, int], loop: Loop = "asyncio"
) -> list[bytes]:
    requests, targets = requests_of(sizes)
    run(LocalReader(str(root), threads).read(requests), loop)
    return [bytes(target) for target in targets]


def test_files_are_read_into_their_targets(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    files = {"b": b"bb", "a/ü x": b"a" * 100_000, "empty": b"", "c": b"c"}
    write(tmp_path, files)
    sizes = {name: len(content) for name, content in files.items()}
    assert read(tmp_path, threads, sizes, loop) == list(files.values())


def test_nothing_is_read_for_no_requests(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    assert read(tmp_path, threads, {}, loop) == []


def test_a_read_may_come_in_pieces(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, targets: readv(fd, [targets[0][:3]]))
    write(tmp_path, {"a": b"0123456789"})
    assert read(tmp_path, threads, {"a": 10}) == [b"0123456789"]


@pytest.mark.parametrize(("now", "told"), [(b"123456", 6), (b"12345678901", 11), (b"", 0)])
def test_a_file_of_another_size_is_refused_with_both_sizes(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop, now: bytes, told: int
) -> None:
    write(tmp_path, {"a": b"ok", "b": now})
    with pytest.raises(ObjectChangedError) as refused:
        read(tmp_path, threads, {"a": 2, "b": 10}, loop)
    assert refused.value.what == f"{tmp_path}/b"
    text = str(refused.value)
    assert f"file {tmp_path}/b has {told} bytes, the manifest says 10" in text
    assert "restore it, or list anew with 'headrace index SOURCE --refresh'" in text


def test_a_file_that_shrinks_while_it_is_read_is_refused_with_what_was_left(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    readv = os.readv
    path = write(tmp_path, {"a": b"0123456789"}) / "a"

    def read_and_truncate(descriptor: int, targets: Sequence[memoryview]) -> int:
        got = readv(descriptor, [targets[0][:4]])
        os.truncate(path, 4)
        return got

    monkeypatch.setattr(os, "readv", read_and_truncate)
    with pytest.raises(ObjectChangedError, match="has 4 bytes, the manifest says 10"):
        read(tmp_path, threads, {"a": 10})


@pytest.mark.parametrize("name", ["gone", "gone/deeper", "file/below"])
def test_a_file_that_vanished_is_named(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop, name: str
) -> None:
    write(tmp_path, {"file": b"x"})
    with pytest.raises(ObjectMissingError) as refused:
        read(tmp_path, threads, {name: 10}, loop)
    assert refused.value.what == f"{tmp_path}/{name}"
    text = str(refused.value)
    assert f"file {tmp_path}/{name} is in the manifest but not there any more" in text
    assert "restore it, or list anew" in text


@pytest.mark.parametrize("size", [0, 10, "of the folder"])
def test_a_file_that_became_a_folder_is_refused(
    tmp_path: Path, threads: ThreadPoolExecutor, size: int | str
) -> None:
    (tmp_path / "a").mkdir()
    wanted = size if isinstance(size, int) else (tmp_path / "a").stat().st_size
    with pytest.raises(ObjectChangedError, match=f"{tmp_path}/a is no file any more"):
        read(tmp_path, threads, {"a": wanted})


def test_a_file_that_became_a_pipe_is_refused_and_not_waited_for(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    os.mkfifo(tmp_path / "a")
    # Who opens a pipe waits for a writer: without this one a failure would hang the whole run.
    waited: list[int] = []
    writer = threading.Timer(
        10, lambda: waited.append(os.open(tmp_path / "a", os.O_RDWR | os.O_NONBLOCK))
    )
    writer.start()
    try:
        for size in (0, 10):
            with pytest.raises(ObjectChangedError, match=f"{tmp_path}/a is no file any more"):
                read(tmp_path, threads, {"a": size})
    finally:
        writer.cancel()
        writer.join()
    assert waited == []


def test_what_the_system_refuses_to_open_is_named_with_the_reason(
    tmp_path: Path, threads: ThreadPoolExecutor, loop: Loop
) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ObjectUnreadableError) as refused:
        read(tmp_path, threads, {"a": 10}, loop)
    assert refused.value.what == f"{tmp_path}/a"
    assert str(refused.value) == (
        f"file {tmp_path}/a cannot be read: {os.strerror(40)}"  # ELOOP
    )


@needs_permissions
def test_a_file_without_permission_is_named_with_the_reason(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    (write(tmp_path, {"a": b"x"}) / "a").chmod(0)
    with pytest.raises(ObjectUnreadableError, match=f"{tmp_path}/a cannot be read: Permission"):
        read(tmp_path, threads, {"a": 1})


def test_reading_leaves_no_descriptor_open(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    write(tmp_path, {"good": b"12", "changed": b"1"})
    (tmp_path / "folder").mkdir()
    read(tmp_path, threads, {"good": 2})  # the threads are there from now on
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for name in ["good", "changed", "gone", "folder"] * 3:
        try:
            read(tmp_path, threads, {name: 2})
        except (ObjectChangedError, ObjectMissingError):
            continue
    assert len(os.listdir("/proc/self/fd")) == before


# --- Cancellation ---------------------------------------------------------------------------------


class Gate:
    """Holds every read at its start until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._readv = os.readv
        self._open = threading.Event()
        self.entered = threading.Event()
        self.num_reads = 0
        monkeypatch.setattr(os, "readv", self._read)

    def _read(self, descriptor: int, targets: Sequence[memoryview]) -> int:
        self.num_reads += 1
        self.entered.set()
        assert self._open.wait(timeout=30)
        return self._readv(descriptor, targets)

    async def wait_until_entered(self) -> None:
        assert await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 30)

    def open(self) -> None:
        self._open.set()


def test_a_cancelled_read_ends_only_when_no_thread_writes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    write(tmp_path, {"a": b"aaaa", "b": b"bbbb"})
    requests, (first, second) = requests_of({"a": 4, "b": 4})
    gate = Gate(monkeypatch)

    async def cancel_in_the_middle() -> None:
        reader = LocalReader(str(tmp_path), pool)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(reader.read(requests), name="read")
            await gate.wait_until_entered()
            for _ in range(2):  # also who is impatient waits for the memory
                task.cancel()
                await turns(5)
                assert not task.done()
            gate.open()
            await asyncio.wait([task])
            assert task.cancelled()
        assert first == b"aaaa"
        first[:] = b"mine"  # the memory is ours again

    with ThreadPoolExecutor(1) as pool:
        run(cancel_in_the_middle(), loop)
    assert (bytes(first), bytes(second)) == (b"mine", b"????")
    assert gate.num_reads == 1


def test_a_read_that_is_cancelled_before_its_turn_never_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    write(tmp_path, {"a": b"aaaa", "b": b"bbbb"})
    gate = Gate(monkeypatch)
    (busy, (first,)), (waiting, (second,)) = requests_of({"a": 4}), requests_of({"b": 4})

    async def cancel_the_second() -> None:
        reader = LocalReader(str(tmp_path), pool)
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.read(busy), name="busy")
            await gate.wait_until_entered()
            task = group.create_task(reader.read(waiting), name="waiting")
            await turns(3)
            task.cancel()
            await turns(3)
            gate.open()
            await asyncio.wait([task])
            assert task.cancelled()
            second[:] = b"mine"

    with ThreadPoolExecutor(1) as pool:
        run(cancel_the_second(), loop)
    assert (bytes(first), bytes(second)) == (b"aaaa", b"mine")
    assert gate.num_reads == 1


def test_a_deadline_that_passes_is_a_timeout_and_not_a_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    write(tmp_path, {"a": b"aaaa"})
    requests, (target,) = requests_of({"a": 4})
    gate = Gate(monkeypatch)

    async def read_with_a_deadline() -> None:
        async with asyncio.timeout(None) as deadline:
            async with asyncio.TaskGroup() as group:
                group.create_task(LocalReader(str(tmp_path), pool).read(requests), name="read")
                await gate.wait_until_entered()
                deadline.reschedule(asyncio.get_running_loop().time())
                try:
                    await asyncio.Event().wait()
                finally:
                    gate.open()

    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
        run(read_with_a_deadline(), loop)
    assert target == b"aaaa"


def test_a_read_that_fails_after_its_cancellation_is_still_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    path = write(tmp_path, {"a": b"aaaa"}) / "a"
    requests, _ = requests_of({"a": 4})
    gate = Gate(monkeypatch)

    async def cancel_and_fail() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(LocalReader(str(tmp_path), pool).read(requests), name="r")
            await gate.wait_until_entered()
            task.cancel()
            await turns(3)
            os.truncate(path, 1)
            gate.open()
            await asyncio.wait([task])
            assert task.cancelled()

    with ThreadPoolExecutor(1) as pool:
        run(cancel_and_fail(), loop)  # which fails where an exception is nobody's


def test_after_a_cancellation_the_reader_reads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    write(tmp_path, {"a": b"aaaa"})
    requests, (target,) = requests_of({"a": 4})
    gate = Gate(monkeypatch)

    async def cancel_and_read_again() -> None:
        reader = LocalReader(str(tmp_path), pool)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(reader.read(requests), name="read")
            await gate.wait_until_entered()
            task.cancel()
            gate.open()
        target[:] = b"????"
        await reader.read(requests)

    with ThreadPoolExecutor(1) as pool:
        run(cancel_and_read_again(), loop)
    assert target == b"aaaa"


# ---- shards --------------------------------------------------------------------------------------


def test_a_shard_that_was_overwritten_at_the_same_size_is_noticed(
    tmp_path: Path, loop: Loop
) -> None:
    """By the time of its change; without a version, and by whole files, it is not."""
    path = tmp_path / "s.tar"
    path.write_bytes(b"old " * 100)
    version = version_of_file(path.stat().st_mtime_ns)

    async def read(version: bytes, told: list[str] | None = None) -> bytes:
        target = bytearray(8)
        request = RangeRequest(
            "s.tar",
            4,
            12,
            400,
            (Place(4, memoryview(target)),),
            version=version,
            on_bad=None if told is None else lambda error: told.append(str(error)),
        )
        with ThreadPoolExecutor(1) as executor:
            await LocalReader(str(tmp_path), executor).read([request])
        return bytes(target)

    assert run(read(version), loop) == b"old old "
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"new " * 100)
    os.utime(path, ns=(stamp + 1, stamp + 1))
    with pytest.raises(ObjectChangedError, match="changed after the listing, at the same size"):
        run(read(version), loop)
    told: list[str] = []
    assert run(read(version, told), loop) == bytes(8)
    assert len(told) == 1
    assert run(read(b""), loop) == b"new new "
    assert run(read(version_of_file(stamp + 1)), loop) == b"new new "
    path.write_bytes(b"new " * 101)
    with pytest.raises(ObjectChangedError, match="has 404 bytes, the manifest says 400"):
        run(read(version), loop)
