"""The link of a dataset: where its daemon is, and what it asks there.

Feeds have connections of their own, which the link makes (see `Link.connector`); each question has
one for itself, and waits for a daemon that is away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from . import errors
from .batch import columns, samples_of
from .client import SILENCE_S, Channel, ConnectionLostError, Retry
from .dictation import Script
from .plans.cursor import Cursor, Seek
from .protocol import Event, Payload
from .protocol import messages as m
from .receiver import FIRST_CONNECT_S
from .sources import Stream

if TYPE_CHECKING:
    import socket as socketlib

    from .plans.dictated import Dictated
    from .private import PrivateDaemon
    from .topology import Topology

_READ_INDICES: Final = 64
"""Samples that are read at a time: the daemon needs memory for all of them."""

Allocate = Callable[[int], memoryview]
Connect = Callable[[Allocate | None], Channel]


class Link:
    """Where the daemon of a dataset is, and what is asked there.

    Args:
        path: Path of its socket.
        stream: The stream of the dataset, the name of one, or None for the default one.
        dictated: What travels in place of a plan that runs in this process; None if it does not.
        deadline_s: How long a daemon that was there may stay away.
    """

    def __init__(
        self,
        path: str,
        stream: Stream | str | None,
        dictated: Dictated | None,
        deadline_s: float,
    ) -> None:
        self._path = path
        self._stream = stream
        self._dictated = dictated
        self._deadline_s = deadline_s
        self.private: PrivateDaemon | None = None
        """The daemon, if it is the dataset's own."""
        self.dial: Callable[[], socketlib.socket] | None = None
        """Makes connected sockets where there is no path to connect to (`headrace.testing`)."""
        self.was_reached = False
        """Whether the daemon was there once: then it is waited for up to the whole deadline."""
        # What it last said of a position, with what it was asked.
        self._known: tuple[Cursor | Seek, Topology, m.Entries] | None = None

    def connector(self) -> Connect:
        """Return what makes connections.

        It holds no reference to the dataset, which the thread of a receiver must not keep alive.
        """
        private, path, dial = self.private, self._path, self.dial
        silence_s = max(self._deadline_s, SILENCE_S)

        def connect(allocate: Allocate | None) -> Channel:
            if private is not None:
                private.ensure_running()
            if dial is not None:
                return Channel(dial(), allocate=allocate, silence_s=silence_s)
            return Channel.dial(path, allocate=allocate, silence_s=silence_s)

        return connect

    @property
    def wire_stream(self) -> str | dict[str, Any]:
        """The stream as it travels."""
        if not isinstance(self._stream, Stream):
            return self._stream or ""
        stream = self._stream
        if self._dictated is not None:
            stream = msgspec.structs.replace(stream, plan=self._dictated)
        return stream.plain()

    def script(self, known: m.Entries, topology: Topology) -> Script:
        """Return the plan that runs in this process, over data of which the daemon has told."""
        assert isinstance(self._stream, Stream)
        return Script(self._stream.plan, known.length, known.manifest, topology)

    def describe(
        self, where: Cursor | Seek, topology: Topology, indices: tuple[int, ...] = ()
    ) -> m.Entries:
        """Return what the daemon knows of a position, and of some samples."""
        if not indices and self._known is not None and self._known[:2] == (where, topology):
            return self._known[2]
        answer = self.ask(
            m.Lookup(
                stream=self.wire_stream,
                rank=topology.rank,
                world_size=topology.world_size,
                start=wire_start(where) if self._dictated is None else None,
                indices=indices,
            )
        )
        assert isinstance(answer, m.Entries)
        if self._dictated is not None:
            cursor, steps, remaining = self.script(answer, topology).locate(where)
            answer = msgspec.structs.replace(
                answer, cursor=cursor.to_state(), steps=steps, remaining=remaining
            )
        self._known = (where, topology, answer)
        self.was_reached = True
        return answer

    def read(self, indices: tuple[int, ...]) -> list[tuple[str, Any]]:
        """Return names and values of samples."""
        samples: list[tuple[str, Any]] = []
        for start in range(0, len(indices), _READ_INDICES):
            part = indices[start : start + _READ_INDICES]
            answer = self.ask(m.Read(stream=self.wire_stream, indices=part))
            assert isinstance(answer, Payload)
            header = answer.header
            assert isinstance(header, m.Samples)
            samples += samples_of(header.keys, columns(header, answer.payload))
        return samples

    def ask(self, message: m.Lookup | m.Read) -> Event:
        """Return the answer to a question.

        Raises:
            DaemonUnavailableError: If there is none within the deadline.
        """
        connect = self.connector()
        within_s = self._deadline_s if self.was_reached else min(self._deadline_s, FIRST_CONNECT_S)
        retry = Retry(within_s, threading.Event().wait)
        while True:
            cause: errors.HeadraceError
            try:
                with connect(None).greeted() as channel:
                    return channel.request(message)
            except ConnectionLostError as error:
                cause = error
            except errors.FeedError as error:
                if not error.retryable or isinstance(error, errors.BudgetError):
                    raise
                cause = error
            if not retry.pause():
                raise errors.DaemonUnavailableError(
                    f"{cause} (tried for {retry.deadline_s:g} s)"
                ) from cause


def wire_start(where: Cursor | Seek, skips: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return a position as it travels.

    Args:
        where: The position.
        skips: What was left out before it, where it does not say so itself.
    """
    if isinstance(where, Cursor):
        return where.to_state()
    named = {name: value for name, value in msgspec.to_builtins(where).items() if value is not None}
    return {"seek": named, "skips": list(skips)} if skips else {"seek": named}


def unwired(start: dict[str, Any]) -> Cursor | Seek:
    """Return what `wire_start` was made of."""
    return Seek(**start["seek"]) if "seek" in start else Cursor.from_state(start)
