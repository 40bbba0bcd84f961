"""Access: where the cluster is and with which rights, from the configuration and the environment.

The configuration wins over the variables that AIStore's own tools know.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...errors import SettingsError
from .addresses import is_node_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...settings import StoreSettings

logger = logging.getLogger(__name__)

NO_ENDPOINT: Final = (
    "the address of the AIStore cluster is not known: set [store] endpoints in the configuration, "
    "or $AIS_ENDPOINT, to http://host:port of a proxy"
)
"""What is wrong where a bucket is to be read and there is no endpoint."""

_YES: Final = ("1", "true", "yes", "on", "y", "t")


class Access:
    """Endpoints, token and TLS of a cluster.

    Args:
        settings: ``[store]`` of the configuration.
        environ: The environment.
        origin: What the endpoints of the settings come from, for messages.

    Raises:
        SettingsError: If an endpoint is no address, or a file cannot be read.
    """

    def __init__(
        self,
        settings: StoreSettings,
        environ: Mapping[str, str] = os.environ,
        *,
        origin: str = "[store] endpoints",
    ) -> None:
        told = environ.get("AIS_ENDPOINT", "")
        self.origin = origin if settings.endpoints else "$AIS_ENDPOINT"
        """Where the endpoints come from, for messages."""
        given = settings.endpoints or tuple(
            part.strip() for part in told.split(",") if part.strip()
        )
        self.endpoints = tuple(_endpoint(url, self.origin) for url in given)
        """Addresses of proxies, in the order in which they are tried; empty if none was given."""
        self.ssl = _ssl_context(settings, environ) if self._has_https else None
        """For ``https://`` endpoints; None where there is none."""
        self._token = environ.get("AIS_AUTHN_TOKEN", "").strip()
        if self._token and not _is_token(self._token):
            raise SettingsError("$AIS_AUTHN_TOKEN is no token: one word of ASCII")
        path = settings.token_file or (
            "" if self._token else environ.get("AIS_AUTHN_TOKEN_FILE", "")
        )
        self._token_path = Path(path) if path else None
        if self._token_path is not None:
            told_by = "[store] token_file" if settings.token_file else "$AIS_AUTHN_TOKEN_FILE"
            try:
                self._token = _read_token(self._token_path)
            except SettingsError as error:
                raise SettingsError(f"{told_by}: {error}") from error

    @property
    def _has_https(self) -> bool:
        return any(url.startswith("https://") for url in self.endpoints)

    @property
    def headers(self) -> dict[str, str]:
        """What a proxy is sent beside the request.  Never for a target, which does not need it."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def renew_token(self, refused: Mapping[str, str]) -> bool:
        """Read the token file again; tell whether there is another token than the refused one.

        Args:
            refused: The `headers` that were sent.
        """
        if self._token_path is not None:
            try:
                self._token = _read_token(self._token_path)
            except SettingsError as error:
                logger.warning("token not renewed: %s", error)
        return self.headers != refused

    def explain_token(self) -> str:
        """Say in words where the token comes from, for a message about its refusal."""
        if self._token_path is not None:
            return f"the token of {self._token_path} was refused: put a valid one there"
        if self._token:
            return "the token of $AIS_AUTHN_TOKEN was refused: give a valid one"
        return "no token was given: set [store] token_file, or $AIS_AUTHN_TOKEN"


def _endpoint(url: str, origin: str) -> str:
    if "@" in url:
        raise SettingsError(
            f"{origin}: an endpoint has a name or password before '@', which the store does not "
            "know and a log would show: give a token by [store] token_file instead"
        )
    if not is_node_url(url):
        raise SettingsError(
            f"{origin}: {url!r} is no endpoint: write the address of a proxy, such as "
            "http://10.0.0.1:51080"
        )
    return url.rstrip("/")


def _read_token(path: Path) -> str:
    """Return the token in a file: bare, or a field ``token``, as the store's CLI writes it."""
    try:
        text = path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"token file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"token file {path} is not text") from error
    if text.startswith("{"):
        try:
            token = json.loads(text)["token"]
        except (ValueError, KeyError) as error:
            raise SettingsError(f"token file {path} is JSON without a field 'token'") from error
        text = token.strip() if isinstance(token, str) else ""
    if not _is_token(text):
        raise SettingsError(
            f'token file {path} has no token in it: write one word, or {{"token": "…"}}'
        )
    return text


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _ssl_context(settings: StoreSettings, environ: Mapping[str, str]) -> ssl.SSLContext:
    ca_file = settings.ca_file or environ.get("AIS_CLIENT_CA", "")
    cert, key = environ.get("AIS_CRT", ""), environ.get("AIS_CRT_KEY", "")
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert and key:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (ca_file, cert, key)))
        raise SettingsError(f"TLS of the store: {files} cannot be used: {error}") from error
    skip = environ.get("AIS_SKIP_VERIFY_CRT", environ.get("AIS_SKIP_VERIFY", ""))
    if skip.lower() in _YES:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
