"""Logs: one line per event, in one place, whatever it quotes."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest

from headrace_daemon.observe import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("headrace_daemon.some.module")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger("headrace_daemon")
    before = (root.handlers[:], root.propagate, root.level)
    yield
    root.handlers[:], root.propagate = before[0], before[1]
    root.setLevel(before[2])


def test_a_line_has_the_time_in_utc_the_level_and_the_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    logs.configure("info")
    record = logging.LogRecord("headrace_daemon.x", logging.INFO, "", 0, "feed=%s", ("a",), None)
    record.created, record.msecs = 1_000_000_000.25, 250.0
    logging.getLogger("headrace_daemon").handle(record)
    assert capsys.readouterr().err == "2001-09-09T01:46:40.250Z INFO feed=a\n"


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_only_what_is_asked_for_is_logged(
    capsys: pytest.CaptureFixture[str], level: str, seen: int
) -> None:
    logs.configure(level)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logger.log(number, "something happened n=%d", number)
    assert len(capsys.readouterr().err.splitlines()) == seen


def test_configuring_twice_does_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.configure("info")
    logger.info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_nothing_reaches_the_handlers_of_others(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("info")
    logger.info("ours")
    assert caplog.records == []
    assert "ours" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\0b", "a\x85b", "a\x7fb"])
def test_what_is_quoted_stays_on_its_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    logs.configure("info")
    logger.info("open refused: %s", text)
    line = capsys.readouterr().err
    assert re.fullmatch(r"[^\s]+ INFO open refused: a(\\x[0-9a-f]{2})+(\[2J)?b\n", line)


def test_letters_of_all_languages_stay(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logger.info("feed=%s", "données/写真.jpg")
    assert capsys.readouterr().err.endswith("feed=données/写真.jpg\n")


def test_a_traceback_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logger.exception("feed failed feed=%s", "x\ny")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(r"ERROR feed failed feed=x\x0ay")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2:] == ["RuntimeError: two", "lines"]
