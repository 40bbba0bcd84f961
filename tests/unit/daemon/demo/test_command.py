from __future__ import annotations

import importlib.util

import pytest

from headrace_daemon import cli


def run(*arguments: str) -> object:
    """Run the command line; return the exit status."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", *arguments])
    return caught.value.code


@pytest.mark.parametrize("missing", ["torch", "sklearn"])
def test_missing_extra_is_named_before_anything_is_started(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert run() == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == (
        f"headrace demo: needs {missing}, which is not installed: pip install 'headrace[demo]'\n"
    )


@pytest.mark.parametrize("epochs", ["1", "-3", "1001"])
def test_number_of_epochs_is_checked(epochs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--epochs", epochs) == 2
    assert f"--epochs {epochs} is out of range, allowed: 2..1000" in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", ["", "10.0.0.1:51080", "ftp://10.0.0.1", "http://host:port"])
def test_endpoint_that_is_no_address_is_said_before_anything_is_started(
    endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--endpoint", endpoint) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("headrace demo: --endpoint")
    assert errors.endswith("write the address of a proxy, such as http://10.0.0.1:51080\n")
