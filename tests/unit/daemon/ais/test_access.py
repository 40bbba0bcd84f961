"""Access: the configuration, then the variables that AIStore's own tools know."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.errors import SettingsError
from headrace_daemon.settings import StoreSettings
from headrace_daemon.source.ais.access import Access

if TYPE_CHECKING:
    from pathlib import Path


def test_the_configuration_wins_over_the_environment() -> None:
    environ = {"AIS_ENDPOINT": "http://env:1, https://env:2/"}
    assert Access(StoreSettings(), environ).endpoints == ("http://env:1", "https://env:2")
    given = StoreSettings(endpoints=("http://a:1/", "http://b:2"))
    assert Access(given, environ).endpoints == ("http://a:1", "http://b:2")
    assert Access(StoreSettings(), {}).endpoints == ()


@pytest.mark.parametrize(
    "url",
    [
        "foo",
        "ftp://a:1",
        "http://",
        "http://a:b",
        "//a:1",
        "http://[::1",
        "http://a b",
        "http://a:1?x=1",
        "http://a:1/#x",
        "http://a:70000",
        f"http://{'a' * 300}",
        "http://a..b",
    ],
)
def test_what_is_no_endpoint_is_named_with_where_it_stands(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Access(StoreSettings(endpoints=(url,)), {})
    assert f"[store] endpoints: {url!r} is no endpoint" in str(raised.value)
    with pytest.raises(SettingsError, match=r"\$AIS_ENDPOINT: "):
        Access(StoreSettings(), {"AIS_ENDPOINT": url})


def test_an_endpoint_with_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as raised:
        Access(StoreSettings(endpoints=("http://me:secret@a:1",)), {})
    assert "has a name or password before '@'" in str(raised.value)
    assert "token_file" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_endpoint_may_have_a_path_and_any_kind_of_host() -> None:
    urls = ("http://gate/ais/", "https://[::1]:51080", "http://ais_proxy:1", "http://h")
    assert Access(StoreSettings(endpoints=urls), {}).endpoints == (
        "http://gate/ais",
        *urls[1:],
    )


@pytest.mark.parametrize("token", ["secret\n", " secret", "secret\r\n"])
def test_a_token_of_the_environment_may_have_space_around_it(token: str) -> None:
    access = Access(StoreSettings(), {"AIS_AUTHN_TOKEN": token})
    assert access.headers == {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("token", ["two words", "a\nb", "a\x00b", "ключ"])
def test_a_token_of_the_environment_that_is_none_is_refused_without_its_content(token: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Access(StoreSettings(), {"AIS_AUTHN_TOKEN": token})
    assert "$AIS_AUTHN_TOKEN is no token" in str(raised.value)
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["secret", "secret\n", '{"token": "secret"}', ' {"token":" secret "}']
)
def test_a_token_file_is_bare_or_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    assert Access(StoreSettings(token_file=str(path)), {}).headers == {
        "Authorization": "Bearer secret"
    }
    environ = {"AIS_AUTHN_TOKEN_FILE": str(path)}
    assert Access(StoreSettings(), environ).headers == {"Authorization": "Bearer secret"}
    environ["AIS_AUTHN_TOKEN"] = "other"
    assert Access(StoreSettings(), environ).headers == {"Authorization": "Bearer other"}


@pytest.mark.parametrize(
    "text", ["", "two words", "ключ", '{"x": 1}', '{"token": 7}', "{", "a\x00b"]
)
def test_a_file_without_a_token_is_refused_without_its_content(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        Access(StoreSettings(token_file=str(path)), {})
    assert str(path) in str(raised.value)
    assert "two words" not in str(raised.value)


def test_a_token_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    told = re.escape(f": token file {path} cannot be read: No such file or directory")
    with pytest.raises(SettingsError, match=rf"^\[store\] token_file{told}$"):
        Access(StoreSettings(token_file=path), {})
    with pytest.raises(SettingsError, match=rf"^\$AIS_AUTHN_TOKEN_FILE{told}$"):
        Access(StoreSettings(), {"AIS_AUTHN_TOKEN_FILE": path})


def test_a_renewed_token_is_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text("old")
    access = Access(StoreSettings(token_file=str(path)), {})
    refused = access.headers
    assert not access.renew_token(refused)
    path.write_text("new")
    assert access.renew_token(refused)
    assert access.renew_token(refused), "another reader has renewed it"
    path.unlink()
    assert not access.renew_token(access.headers)
    assert "token not renewed" in caplog.text
    assert "new" not in caplog.text.replace("renewed", "")


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "set [store] token_file, or $AIS_AUTHN_TOKEN"),
        ({"AIS_AUTHN_TOKEN": "x"}, "the token of $AIS_AUTHN_TOKEN was refused"),
    ],
)
def test_a_refused_token_is_named_by_its_place(environ: dict[str, str], told: str) -> None:
    assert told in Access(StoreSettings(), environ).explain_token()


def test_tls_is_set_up_only_where_it_is_used(tmp_path: Path) -> None:
    assert Access(StoreSettings(endpoints=("http://a:1",), ca_file="/none"), {}).ssl is None
    secure = StoreSettings(endpoints=("https://a:1",))
    context = Access(secure, {}).ssl
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED
    for name in ("AIS_SKIP_VERIFY_CRT", "AIS_SKIP_VERIFY"):
        context = Access(secure, {name: "true"}).ssl
        assert context is not None
        assert context.verify_mode is ssl.CERT_NONE
    with pytest.raises(SettingsError, match="/none cannot be used"):
        Access(StoreSettings(endpoints=("https://a:1",), ca_file="/none"), {})
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(SettingsError, match="ca cannot be used"):
        Access(secure, {"AIS_CLIENT_CA": str(tmp_path / "ca")})
