"""Which proxies are asked: those that were given, and those of the map that may see a token."""

from __future__ import annotations

import pytest

from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais.access import Access
from headrace_daemon.source.ais.client import AisClient


@pytest.mark.parametrize(
    ("given", "told", "asked"),
    [
        (
            ["http://a:1"],
            ["http://b:1", "https://c:1"],
            ["http://a:1", "http://b:1", "https://c:1"],
        ),
        (["https://a:1"], ["http://b:1", "https://c:1"], ["https://a:1", "https://c:1"]),
        (["https://a:1"], ["http://a:1", "http://b:1"], ["https://a:1"]),
        (
            ["https://a:1", "http://b:1"],
            ["http://c:1"],
            ["https://a:1", "http://b:1", "http://c:1"],
        ),
    ],
)
def test_a_token_for_encrypted_endpoints_is_not_sent_in_the_clear(
    given: list[str], told: list[str], asked: list[str]
) -> None:
    client = AisClient(Access(StoreSettings(endpoints=tuple(given))), deadline_s=1.0)
    client.learn(told)
    assert list(client.proxies) == asked
