"""Heads of answers, parsed by httptools; bodies never pass through here.

A block of bytes that ends with the first empty line goes in, the few values that matter come out.
"""

from __future__ import annotations

from typing import Final

import httptools

from ..transfer import Head

MAX_HEAD_BYTES: Final = 16 << 10
"""A head of this size is refused: those of the store have some 400 bytes."""

END: Final = b"\r\n\r\n"


class NoHeadError(Exception):
    """A block is not the head of an answer."""


class _Callbacks:
    """What httptools calls: ``on_header`` is a method of a dictionary, which costs no frame."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self.on_header = fields.__setitem__

    def on_body(self, body: bytes) -> None:
        raise NoHeadError(f"{len(body)} bytes of it stand behind its end")


class Heads:
    """Parses one head after the other; what it found holds until the next."""

    def __init__(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._callbacks = _Callbacks(self._fields)
        self.goes_on = False
        """Whether the connection stays open behind this answer."""
        self.retry_after = ""
        """Its header ``Retry-After``, where it is an error."""

    def parse(self, block: bytes) -> Head:
        """Return what a head says; its length is None where the answer does not tell in advance.

        Raises:
            NoHeadError: If it is none.
        """
        fields = self._fields
        fields.clear()
        # A parser of its own for each: one that waits for a body has to be fed with it.
        parser = httptools.HttpResponseParser(self._callbacks)
        try:
            parser.feed_data(block)
        except (httptools.HttpParserError, NoHeadError) as error:
            raise NoHeadError(str(error)) from error
        status = parser.get_status_code()
        if not status:
            raise NoHeadError("it has no status")
        length = fields.get(b"Content-Length")
        kind = fields.get(b"Ais-Checksum-Type")
        if length is None or kind is None:  # or they are written in another way
            fields = {name.title(): value for name, value in fields.items()}
            length = fields.get(b"Content-Length")
            kind = fields.get(b"Ais-Checksum-Type", b"")
        if status >= 400:
            told = next((fields[name] for name in fields if name.title() == b"Retry-After"), b"")
            self.retry_after = told.decode("latin-1")
        # The parser's own word on this is wrong once it has seen the end of an empty body.
        self.goes_on = (
            block.startswith(b"HTTP/1.1 ")
            and b"close" not in fields.get(b"Connection", b"").lower()
        )
        is_told = length is not None and b"Transfer-Encoding" not in fields
        return Head(
            status,
            int(length) if is_told and length is not None else None,
            kind,
            fields.get(b"Ais-Checksum-Value", b""),
            fields.get(b"Ais-Version", b""),
            fields.get(b"Content-Range", b""),
        )
