"""A local folder as a source: its listing and its reader, of whole files and of ranges.

Detects that a file is gone or has another size than when it was listed; of a file that is a sample,
a change that keeps the size goes unnoticed, of a shard the time of the change tells.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from threading import Event
from typing import TYPE_CHECKING, Final

from headrace.manifest import Manifest

from ..errors import (
    LIST_ANEW,
    ObjectChangedError,
    ObjectError,
    ObjectMissingError,
    ObjectUnreadableError,
    SourceEmptyError,
    SourceError,
    SourceMissingError,
)
from .openfiles import NotRegularError, OpenFiles, Scatter, open_file
from .reader import RangeRequest, leave_out
from .together import wait_for_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from headrace.selections import Selection

    from .reader import ReadRequest, Request

_PROGRESS_EVERY: Final = 10_000


def list_folder(
    selection: Selection, progress: Callable[[int], None] = lambda found: None
) -> Manifest:
    """List a folder, or given files in it, into a manifest; blocks, and may take long.

    Regular files and links to them are samples, hidden ones too; links to folders are followed,
    each folder once.

    Args:
        selection: What to list, of a folder.
        progress: Called now and then with the number of files found so far.

    Raises:
        SourceMissingError: If the folder is missing or unreadable.
        SourceEmptyError: If it has no file that matches.
        ObjectMissingError: If a given file is not there.
    """
    if selection.names is not None:
        return _look_up(selection.path, selection.names, progress)
    root = selection.path
    suffixes = tuple(os.fsencode(suffix) for suffix in selection.suffix)
    prefix = os.fsencode(selection.prefix)
    entries: list[tuple[bytes, int]] = []
    try:
        for name, size in _walk(os.fsencode(root), prefix, recursive=selection.recursive):
            if suffixes and not name.endswith(suffixes):
                continue
            try:
                name.decode()
            except UnicodeDecodeError:
                raise SourceMissingError(
                    root, f"file name {name!r} in {root} is not UTF-8: rename it"
                ) from None
            entries.append((name, size))
            if len(entries) % _PROGRESS_EVERY == 0:
                progress(len(entries))
    except FileNotFoundError as error:
        raise SourceMissingError(
            root, f"folder {root} does not exist ({_path(error)} is missing): check the path"
        ) from error
    except NotADirectoryError as error:
        raise SourceMissingError(root, f"{root} is not a folder: give the folder") from error
    except OSError as error:
        raise SourceMissingError(
            root, f"folder {root} cannot be listed: {error.strerror} ({_path(error)})"
        ) from error
    if not entries:
        limits = [f"begins with {selection.prefix!r}"] if prefix else []
        if any(suffixes):
            limits.append(f"ends with {' or '.join(selection.suffix)}")
        wanted = f" whose name {' and '.join(limits)}" if limits else ""
        deeper = "" if selection.recursive else ", not looking into folders (recursive = false)"
        raise SourceEmptyError(
            root, f"folder {root} has no file{wanted}{deeper}: a stream needs at least one sample"
        )
    entries.sort()
    return Manifest.build(entries)


def _path(error: OSError) -> str:
    return os.fsdecode(error.filename) if error.filename else "?"


def _look_up(root: str, names: Sequence[str], progress: Callable[[int], None]) -> Manifest:
    """Return the manifest of given files, in their order."""
    entries: list[tuple[bytes, int]] = []
    for name in names:
        path = f"{root}/{name}"
        try:
            facts = os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ObjectMissingError(
                path, f"file {path} is given by its name and not there: check the name"
            ) from error
        except OSError as error:
            raise ObjectUnreadableError(
                path, f"file {path} cannot be read: {error.strerror}"
            ) from error
        if not stat.S_ISREG(facts.st_mode):
            folder = ", or write a '/' behind a folder" if stat.S_ISDIR(facts.st_mode) else ""
            raise ObjectUnreadableError(
                path, f"{path} is given by its name and no file: leave it out{folder}"
            )
        entries.append((name.encode(), facts.st_size))
        if len(entries) % _PROGRESS_EVERY == 0:
            progress(len(entries))
    return Manifest.build(entries)


def _walk(root: bytes, prefix: bytes, *, recursive: bool) -> Iterator[tuple[bytes, int]]:
    """Yield (relative name, size) of the files below `root` with a prefix, in no particular order.

    Folders are visited in the order of their names, so that of several names of one folder the
    same one counts on every machine.
    """
    seen: set[tuple[int, int]] = set()
    # All names with the prefix lie in this folder.
    start = prefix[: prefix.rfind(b"/")] if b"/" in prefix else b""
    folders = [start]
    if start and not os.path.isdir(os.path.join(root, start)):
        os.stat(root)  # to tell one that is missing from one that has no such names
        return
    while folders:
        folder = folders.pop()
        here = os.path.join(root, folder) if folder else root
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in seen:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        below = []
        with os.scandir(here) as listing:
            for entry in listing:
                name = folder + b"/" + entry.name if folder else entry.name
                if not name.startswith(prefix):
                    continue
                try:
                    if entry.is_dir():
                        below.append(name)
                        continue
                    facts = entry.stat()
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP):
                        continue  # vanished while listing, or a link to nothing or to itself
                    raise
                if stat.S_ISREG(facts.st_mode):
                    yield name, facts.st_size
        if recursive:
            folders.extend(sorted(below, reverse=True))


class LocalReader:
    """Reads files of one folder with the threads of an executor."""

    def __init__(self, root: str, executor: Executor) -> None:
        self._root = root
        self._executor = executor
        self._scatter = Scatter()

    paces_itself = False

    @property
    def location(self) -> str:
        """The folder."""
        return self._root

    async def read(self, requests: Sequence[Request]) -> None:
        """Fill the targets and places of all requests (see `Reader.read`)."""
        stop = Event()
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, self._read_files, requests, stop
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            # A thread cannot be interrupted: the memory is ours again when it has returned.
            await wait_for_thread(work)
            raise

    def _read_files(self, requests: Sequence[Request], stop: Event) -> None:
        with OpenFiles() as files:
            for request in requests:
                if stop.is_set():
                    return
                try:
                    if isinstance(request, RangeRequest):
                        self._read_range(request, files)
                    else:
                        self._read_file(request)
                except ObjectError as error:
                    leave_out(request, error)

    def _read_file(self, request: ReadRequest) -> None:
        path = f"{self._root}/{request.name}"
        wanted = len(request.target)
        try:
            file = open_file(path)
            try:
                size, done = file.facts().size, 0
                while size == wanted and done < wanted:
                    got = os.readv(file.descriptor, [request.target[done:]])
                    if not got:
                        size = done  # truncated while it was read
                    done += got
            finally:
                file.close()
        except NotRegularError:
            raise _no_file(path) from None
        except OSError as error:
            raise _explain(path, f"file {path}", error) from error
        if size != wanted:
            raise _changed(path, f"file {path}", size, wanted)

    def _read_range(self, request: RangeRequest, files: OpenFiles) -> None:
        path = f"{self._root}/{request.name}"
        told = f"bytes {request.start}-{request.stop - 1} of file {path}: it"
        try:
            file = files.open(path)
            size, version = file.facts()
            if request.version and version != request.version and size == request.object_bytes:
                raise ObjectChangedError(
                    path, f"{told} was changed after the listing, at the same size; {LIST_ANEW}"
                )
            if size == request.object_bytes:
                end = self._scatter.read(file, request.places)
                if end is not None:
                    size = end  # truncated while it was read
        except NotRegularError:
            raise _no_file(path) from None
        except OSError as error:
            raise _explain(path, told, error) from error
        if size != request.object_bytes:
            raise _changed(path, told, size, request.object_bytes)


def _no_file(path: str) -> ObjectChangedError:
    return ObjectChangedError(
        path, f"{path} is no file any more: it was changed after the listing; {LIST_ANEW}"
    )


def _changed(path: str, told: str, size: int, was: int) -> ObjectChangedError:
    return ObjectChangedError(
        path,
        f"{told} has {size} bytes, the manifest says {was}: it was changed after the listing; "
        f"{LIST_ANEW}",
    )


def _explain(path: str, told: str, error: OSError) -> SourceError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ObjectMissingError(
            path, f"{told} is in the manifest but not there any more: {LIST_ANEW}"
        )
    return ObjectUnreadableError(path, f"{told} cannot be read: {error.strerror}")
