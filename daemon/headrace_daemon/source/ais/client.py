"""The client: one HTTP session of the daemon with a cluster, and questions to its proxies.

A question goes to one proxy after the other until one answers or the deadline has passed.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import aiohttp
from yarl import URL

from ... import __version__
from ...errors import SettingsError, StoreAccessError, StoreUnavailableError
from .access import NO_ENDPOINT
from .faults import TROUBLE, Fault, Kind, of_answer, of_exception
from .retry import Retry
from .targets import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from .access import Access

logger = logging.getLogger(__name__)

CONNECT_S: Final = 3.0
"""How long a node may take to accept a connection, seconds."""

IDLE_S: Final = 20.0
"""How long a connection is kept without use, seconds: the store closes it after 30."""

PAGE_STALL_S: Final = 60.0
"""How long a proxy may send nothing while it answers, seconds: a page of a listing waits for all
targets, and for the provider of a remote bucket."""

ANSWER_S: Final = 10.0
"""How long a proxy may take to answer anything but a listing, seconds: then another is asked."""

MAX_ANSWER_BYTES: Final = 64 << 20
"""Of what a proxy answers: three times the longest page of 10,000 objects."""

_MAX_ERROR_BYTES: Final = 64 << 10
_MAX_ADDRESSES: Final = 16


class Answer(NamedTuple):
    """What a proxy answered with status 200."""

    headers: Mapping[str, str]
    body: bytes


class AisClient:
    """An HTTP session with a cluster; a context manager.

    Args:
        access: Where the cluster is and with which rights.
        deadline_s: How long a question is asked again before it has failed, seconds.
    """

    session: aiohttp.ClientSession
    """Sends no token by itself; there inside of the context only."""

    def __init__(self, access: Access, *, deadline_s: float) -> None:
        self.access = access
        self.deadline_s = deadline_s
        # The one that answered last stands first.
        self._proxies = list(access.endpoints)
        self.places = asyncio.Semaphore(AT_ONCE)
        """One is taken while a proxy is asked where an object is."""
        self.trouble = ""
        """Why no proxy answered the latest question, in words; empty if one did."""

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # Reads are bounded where they begin, by places in the fetcher.
                limit=0,
                keepalive_timeout=IDLE_S,
                ssl=self.access.ssl or True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_S, sock_read=PAGE_STALL_S
            ),
            # Sizes are those of the objects: nothing may be compressed on the way.
            headers={"User-Agent": f"headrace/{__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.session.close()

    @property
    def proxy(self) -> str:
        """The proxy to ask first.

        Raises:
            SettingsError: If no endpoint is known.
        """
        if not self._proxies:
            raise SettingsError(NO_ENDPOINT)
        return self._proxies[0]

    @property
    def proxies(self) -> tuple[str, ...]:
        """All proxies, in the order in which they are asked."""
        return tuple(self._proxies)

    def learn(self, proxies: Sequence[str]) -> None:
        """Take note of the proxies of the cluster map, beside the endpoints that were given.

        Where all of these are ``https://``, so are all that are asked: the map of a cluster behind
        a gateway may have addresses without it, and the token must not travel there.
        """
        given = self.access.endpoints
        if all(url.startswith("https://") for url in given):
            proxies = [url for url in proxies if url.startswith("https://")]
        known = dict.fromkeys([*given, *proxies][:_MAX_ADDRESSES])
        self._proxies = [url for url in self._proxies if url in known] + [
            url for url in known if url not in self._proxies
        ]

    def turn_from(self, proxy: str) -> None:
        """Ask another proxy first from now on."""
        if len(self._proxies) > 1 and self._proxies[0] == proxy:
            self._proxies.append(self._proxies.pop(0))

    async def ask(
        self,
        path: str,
        what: str,
        *,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        accept: str = "application/json",
        patience_s: float | None = None,
    ) -> Answer | Fault:
        """Ask the proxies a question that has a small answer.

        Args:
            path: With its query.
            what: What is asked, for messages: a noun.
            method: ``"GET"`` or ``"HEAD"``.
            body: Sent as JSON.
            accept: Wanted type of the answer.
            patience_s: How long one proxy may take, seconds, `ANSWER_S` by default; one that still
                sends then is left.

        Returns:
            The answer with status 200, or a fault that asking again would not change.

        Raises:
            StoreUnavailableError: If no proxy has answered within the deadline.
            StoreAccessError: If the token is refused.
            SettingsError: If no endpoint is known.
        """
        retry = Retry(self.deadline_s)
        while True:
            for _ in range(max(1, len(self._proxies))):
                proxy = self.proxy
                headers = self.access.headers
                answer = await self.ask_once(
                    proxy,
                    path,
                    method,
                    body,
                    {**headers, "Accept": accept},
                    ANSWER_S if patience_s is None else patience_s,
                )
                if isinstance(answer, Answer):
                    self.trouble = ""
                    return answer
                if answer.kind is Kind.UNAUTHORIZED:
                    if not self.access.renew_token(headers):
                        raise StoreAccessError(
                            what, f"{what}: {answer}: {self.access.explain_token()}"
                        )
                elif answer.kind not in (Kind.NODE, Kind.BUSY):
                    self.trouble = ""
                    return answer
                self.turn_from(proxy)
            is_news, self.trouble = str(answer) != self.trouble, str(answer)
            # Many may ask at the same time, and meet the same.
            if retry.num_tries == 1 and is_news:
                logger.warning(
                    "the store does not answer what=%r deadline_s=%g: %s",
                    what,
                    retry.deadline_s,
                    answer,
                )
            if not await retry.pause():
                raise StoreUnavailableError(
                    what,
                    f"{what}: {answer}; {retry.explain()}: check the cluster and "
                    f"{self.access.origin} ({', '.join(self._proxies)})",
                )

    async def ask_once(
        self,
        proxy: str,
        path: str,
        method: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        patience_s: float,
    ) -> Answer | Fault:
        """Ask one proxy, and take what comes.

        Args:
            proxy: Its address.
            path: With its query.
            method: Of HTTP.
            body: Sent as JSON.
            headers: The whole of them; those of `access` too.
            patience_s: How long it may take, seconds.

        Returns:
            The answer with status 200, or what was wrong.
        """
        where = f"proxy {proxy}"
        try:
            async with (
                asyncio.timeout(patience_s),
                self.session.request(
                    method,
                    URL(proxy + path, encoded=True),
                    json=body,
                    headers=headers,
                    allow_redirects=False,
                ) as answer,
            ):
                if answer.status == 200:
                    content = await start_of(answer, MAX_ANSWER_BYTES + 1)
                    if len(content) > MAX_ANSWER_BYTES:
                        words = f"answered with more than {MAX_ANSWER_BYTES} bytes"
                        return Fault(Kind.FINAL, words, where)
                    return Answer(answer.headers, content)
                return of_answer(answer.status, await told(answer), where)
        except (ssl.SSLCertVerificationError, aiohttp.ClientConnectorCertificateError) as error:
            return Fault(Kind.FINAL, f"has a certificate that is not trusted ({error})", where)
        except TROUBLE as error:
            return of_exception(error, where)


async def start_of(answer: aiohttp.ClientResponse, num_bytes: int = _MAX_ERROR_BYTES) -> bytes:
    """Return a body up to a number of bytes; the rest costs the connection."""
    parts: list[bytes] = []
    while num_bytes > 0 and (part := await answer.content.read(num_bytes)):
        parts.append(part)
        num_bytes -= len(part)
    return b"".join(parts)


async def told(answer: aiohttp.ClientResponse) -> bytes:
    """Return what an answer says of an error: HEAD has no body, and a header for that."""
    return await start_of(answer) or header(answer, "Hdr-Error").encode()


def header(answer: aiohttp.ClientResponse, name: str) -> str:
    """Return a header that can be sent on, whatever bytes it has; empty if it is not there."""
    value = answer.headers.get(name, "")
    if value.isascii():
        return value
    return value.encode(errors="surrogateescape").decode(errors="replace")
