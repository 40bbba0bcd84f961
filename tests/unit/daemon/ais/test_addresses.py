"""Addresses on the wire."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from headrace_daemon.source.ais.addresses import quoted


@given(st.text(max_size=20) | st.text("az09-_.~/%é \n", max_size=20))
def test_names_are_quoted_as_the_sdk_does(name: str) -> None:
    try:
        expected = quote(name, safe="/")
    except UnicodeEncodeError:  # a lone surrogate: no name that a store could list
        return
    assert quoted(name) == expected
    assert quoted(name).isascii()
    assert not set(quoted(name)) & set(" \r\n?#")
