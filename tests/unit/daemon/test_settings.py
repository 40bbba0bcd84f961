"""Settings: every mistake is named with its path, its value and what is allowed."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.client import DEFAULT_SOCKET
from headrace.errors import PlanError
from headrace.plans import Plan, Sequential, Shuffled
from headrace.sources import Objects, Stream
from headrace_daemon.errors import SettingsError
from headrace_daemon.settings import Settings, load, parse, parse_size, part

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
default_stream = "train"

[daemon]
socket = "/run/x.sock"
group = "trainers"
memory = "512MiB"
state_dir = "/var/lib/x"
max_connections = 3
grace_s = 1.5
drain_s = 0

[fetch]
max_in_flight = 4

[trust]
allow_sources = ["/data", "~/more"]
allow_uids = [0, 1000]

[streams.train]
source = { type = "Objects", uri = "/data/train", suffix = [".jpg", ".png"], recursive = false }
plan = { type = "Shuffled", global_batch_size = 64, seed = 17, tail = "drop" }

[streams."with a-name.of its own"]
source = { uri = "file:///data/eval" }
plan = { type = "Sequential", batch_size = 8 }
"""


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as error:
        parse(tomllib.loads(text), origin="headrace.toml")
    assert error.value.code == "settings"
    return str(error.value)


def test_a_whole_configuration_is_read() -> None:
    settings = parse(tomllib.loads(WHOLE), origin="headrace.toml")
    daemon = settings.daemon
    assert (daemon.socket, daemon.group, daemon.memory_bytes) == ("/run/x.sock", "trainers", 2**29)
    assert (daemon.state_dir, daemon.max_connections) == ("/var/lib/x", 3)
    assert (daemon.grace_s, daemon.drain_s) == (1.5, 0)
    assert settings.fetch.max_in_flight == 4
    assert settings.trust.allow_sources == ("/data", "~/more")
    assert settings.trust.allow_uids == (0, 1000)
    assert settings.default_stream == "train"
    assert settings.streams == {
        "train": Stream(
            Objects("/data/train", (".jpg", ".png"), recursive=False),
            Shuffled(global_batch_size=64, seed=17, tail="drop"),
        ),
        "with a-name.of its own": Stream(Objects("file:///data/eval"), Sequential(batch_size=8)),
    }


def test_nothing_has_to_be_configured() -> None:
    settings = parse({}, origin="headrace.toml")
    assert settings == Settings()
    assert settings.daemon.socket == DEFAULT_SOCKET
    assert settings.daemon.memory_bytes == 2**30
    assert settings.trust.allow_sources == ()
    assert settings.trust.allow_uids is None


# ---- what is wrong, and where --------------------------------------------------------------------


TRAIN = "[streams.train]\n"
SOURCE = 'source = { uri = "/data" }\n'
PLAN = 'plan = { type = "Shuffled", batch_size = 2 }\n'


def plan(fields: str) -> str:
    return f"{TRAIN}{SOURCE}plan = {{ {fields} }}"


def source(fields: str) -> str:
    return f"{TRAIN}source = {{ {fields} }}\n{PLAN}"


@pytest.mark.parametrize(
    ("text", "where", "reasons"),
    [
        # misspelt keys, at every depth
        (
            "[deamon]",
            "deamon = {}",
            ["unknown key (did you mean 'daemon'?)", "allowed here: daemo"],
        ),
        ("[daemon]\nmemroy = 1", "daemon.memroy = 1", ["(did you mean 'memory'?)", "state_dir"]),
        ('[daemon]\n"a-b" = 1', "daemon.a-b = 1", ["unknown key; allowed here: drain_s, grace_s"]),
        ("[fetch]\nin_flight = 1", "fetch.in_flight = 1", ["(did you mean 'max_in_flight'?)"]),
        ("[trust]\nallow_uid = 1", "trust.allow_uid = 1", ["(did you mean 'allow_uids'?)"]),
        ("[manifests]\npublish = 1", "manifests = {'publish': 1}", ["unknown key; allowed here"]),
        (f"{TRAIN}{SOURCE}{PLAN}on_bed = 1", "streams.train.on_bed = 1", ["'on_bad'"]),
        (source('url = "/x"'), "streams.train.source.url = '/x'", ["(did you mean 'uri'?)"]),
        (
            plan('type = "Shuffled", batch_sise = 2'),
            "streams.train.plan.batch_sise = 2",
            [
                "(did you mean 'batch_size'?)",
                "batch_size, global_batch_size, node_blocks, order",
            ],
        ),
        (
            plan('type = "Sequential", batch_size = 2, seed = 1'),
            "streams.train.plan.seed = 1",
            ["unknown key; allowed here: batch_size, global_batch_size, node_blocks"],
        ),
        (
            plan('type = "Shufled", batch_size = 2'),
            "streams.train.plan.type = 'Shufled'",
            ["unknown (did you mean 'Shuffled'?)", "allowed: ByteBudget, Chain, Interleaved, "],
        ),
        # wrong types
        ("daemon = 5", "daemon = 5", ["got `int`"]),
        ("streams = 5", "streams = 5", ["got `int`"]),
        ("streams.train = 5", "streams.train = 5", ["got `int`"]),
        ("[[streams]]\nx = 1", "streams = [{'x': 1}]", ["got `array`"]),
        ("default_stream = 3", "default_stream = 3", ["Expected `str`"]),
        ("[daemon]\nsocket = 5", "daemon.socket = 5", ["Expected `str`"]),
        ("[daemon]\nmemory = true", "daemon.memory = True", ["Expected `int | str`"]),
        ("[daemon]\nmax_connections = 1.0", "daemon.max_connections = 1.0", ["Expected `int`"]),
        ('[daemon]\ngrace_s = "5"', "daemon.grace_s = '5'", ["Expected `float`"]),
        ("[fetch]\nmax_in_flight = 1979-05-27", "fetch.max_in_flight = ", ["got `date`"]),
        ('[trust]\nallow_sources = "/x"', "trust.allow_sources = '/x'", ["Expected `array`"]),
        ('[trust]\nallow_uids = [0, "a"]', "trust.allow_uids.1 = 'a'", ["Expected `int`"]),
        (f'{TRAIN}source = "/data"\n{PLAN}', "streams.train.source = '/data'", ["`object`"]),
        (f'{TRAIN}{SOURCE}plan = "Shuffled"', "streams.train.plan = 'Shuffled'", ["`object`"]),
        (source('uri = "/x", suffix = 3'), "streams.train.source.suffix = 3", ["got `int`"]),
        (source('uri = "/x", suffix = [3]'), "streams.train.source.suffix.0 = 3", ["got `int`"]),
        (source('uri = ["/x", 3]'), "streams.train.source.uri.1 = 3", ["got `int`"]),
        (source('uri = "/x", prefixes = 3'), "streams.train.source.prefixes = 3", ["got `int`"]),
        (source('uri = "/x", names = ["../y"]'), "streams.train.source", ["'../y'", "no name"]),
        (source('uri = ["/x", "/x"]'), "streams.train.source", ["there twice", "leave one out"]),
        (plan('type = "Shuffled", batch_size = "2"'), "plan.batch_size = '2'", ["got `str`"]),
        # missing keys
        (f"{TRAIN}{SOURCE}", "streams.train.plan", ["is missing"]),
        (f"{TRAIN}{PLAN}", "streams.train.source", ["is missing"]),
        (source('suffix = ".jpg"'), "streams.train.source.uri", ["is missing"]),
        (plan("batch_size = 2"), "plan.type", ["is missing; allowed: ByteBudget, Chain"]),
        # values that are not allowed
        ('[daemon]\nmemory = "1 parsec"', "daemon.memory = '1 parsec'", ["512MiB", "KiB, MiB"]),
        ('[store]\nreader = "fast"', "store.reader = 'fast'", ["allowed: aiohttp, auto, lean"]),
        (
            '[store]\nreader = "lean"\ndirect = "off"',
            "store.reader = 'lean'",
            ["reads straight from targets, which direct = 'off' forbids"],
        ),
        ("[daemon]\nmemory = 0", "daemon.memory = 0", ["out of range", "1 byte at least"]),
        ("[daemon]\nmemory = -1", "daemon.memory = -1", ["no size"]),
        (f"[daemon]\nmemory = {'9' * 400}", "daemon.memory = 999", ["out of range"]),
        ('[daemon]\nsocket = ""', "daemon.socket = ''", ["is no path"]),
        ("[daemon]\nmax_connections = 0", "daemon.max_connections = 0", ["allowed: 1..100000"]),
        ("[daemon]\ngrace_s = -1", "daemon.grace_s = -1", ["allowed: 0..3600"]),
        ("[daemon]\ngrace_s = nan", "daemon.grace_s = nan", ["allowed: 0..3600"]),
        ("[daemon]\ndrain_s = inf", "daemon.drain_s = inf", ["allowed: 0..3600"]),
        ("[fetch]\nmax_in_flight = 0", "fetch.max_in_flight = 0", ["allowed: 1..1024"]),
        ("[fetch]\nmax_in_flight = 99999999999999999999", "fetch.max_in_flight", ["1..1024"]),
        ("[trust]\nallow_uids = [-1]", "trust.allow_uids = [-1]", ["allowed: 0..4294967294"]),
        ('[trust]\nallow_sources = [""]', "trust.allow_sources = ['']", ["'*' to allow all"]),
        (
            '[trust]\nallow_sources = ["/data", "aiss://scratch"]',
            "trust.allow_sources = ['/data', 'aiss://scratch']",
            ["uri='aiss://scratch' has scheme 'aiss'", "ais://"],
        ),
        (source('uri = ""'), "streams.train.source", ["uri=''", "give a folder"]),
        (
            source('uri = "ftp://x"'),
            "streams.train.source",
            ["uri='ftp://x'", "supported are file://"],
        ),
        (
            source('type = "Obj", uri = "/"'),
            "source.type = 'Obj'",
            ["allowed: MultiShard, Objects, Shards"],
        ),
        (
            plan('type = "Shuffeld", batch_size = 2'),
            "plan.type = 'Shuffeld'",
            ["Sequential, ShardShuffled, Shuff"],
        ),
        (plan("type = 5, batch_size = 2"), "plan.type = 5", ["allowed: ByteBudget, Chain"]),
        (plan('type = "Shuffled"'), "streams.train.plan", ["exactly one of batch_size="]),
        (
            plan('type = "Shuffled", batch_size = 2, global_batch_size = 4'),
            "streams.train.plan",
            ["exactly one of", "'batch_size': 2, 'global_batch_size': 4"],
        ),
        (
            plan('type = "Shuffled", batch_size = 0'),
            "streams.train.plan",
            ["batch_size=0", "1..21"],
        ),
        (plan('type = "Shuffled", batch_size = 1, seed = -1'), "streams.train.plan", ["seed=-1"]),
        (
            plan('type = "Shuffled", batch_size = 2, tail = "long"'),
            "streams.train.plan.tail = 'long'",
            ["allowed: drop, short, wrap, wrap-once"],
        ),
        (f'{TRAIN}{SOURCE}{PLAN}on_bad = "warn"', "train.on_bad", ["fail", "skip"]),
        (
            f"{TRAIN}{SOURCE}{PLAN}on_bad = {{ limit = -1 }}",
            "train.on_bad",
            ["limit=-1", "0..1000"],
        ),
        ('default_stream = "x"', "default_stream = 'x'", ["not configured", "no [streams.NAME]"]),
        (f'default_stream = "x"\n{TRAIN}{SOURCE}{PLAN}', "default_stream", ["allowed: train"]),
        (f'[streams.""]\n{SOURCE}{PLAN}', "streams", ["'' is no name"]),
    ],
)
def test_a_mistake_is_named(text: str, where: str, reasons: list[str]) -> None:
    message = refusal(text)
    assert message.startswith("headrace.toml: ")
    head, found, reason = message.partition(where)
    assert found
    assert len(head) < 60
    for piece in reasons:
        assert piece in reason
    assert "\n" not in message


def test_of_several_streams_the_wrong_one_is_named() -> None:
    text = f'[streams.first]\n{SOURCE}{PLAN}\n[streams."sec.ond"]\n{SOURCE}plan = 3'
    assert "streams.sec.ond.plan = 3" in refusal(text)


WORDS = ["daemon", "streams", "trust", "fetch", "train", "source", "plan", "type", "uri", "memory"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(data=st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), VALUES, max_size=5))
def test_whatever_is_written_is_accepted_or_explained(data: dict[str, Any]) -> None:
    try:
        settings = parse(data, origin="headrace.toml")
    except SettingsError as error:
        assert str(error).startswith("headrace.toml: ")
    else:
        assert isinstance(settings, Settings)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        (4096, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("1KiB", 1024),
        ("512MiB", 512 * 1024**2),
        ("2 GiB", 2 * 1024**3),
        ("1TiB", 1024**4),
        ("1kB", 1000),
        ("1.5MB", 1_500_000),
        ("2GB", 2 * 1000**3),
        (" 3 TB ", 3 * 1000**4),
        ("0.5KiB", 512),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "MiB", "-1", "1e9", "1,5GB", "1 m", "1mib", "1MiBs", "0", "0.1B", "0.0", "nan"),
        *("1PiB", "9" * 400, "9" * 5000),
    ],
)
def test_what_is_no_size_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|is out of range") as error:
        parse_size(text)
    assert repr(text) in str(error.value)


# ---- files ---------------------------------------------------------------------------------------


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text(WHOLE)
    assert load(path) == parse(tomllib.loads(WHOLE), origin="")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[daemon\n", "is not TOML: "),
        (b"x = \xff", "is not TOML: "),
        (b"x = " + b"9" * 5000, "is not TOML: "),
        (b"x = " + b"[" * 5000, "is not TOML: "),
        (b"[daemon]\nmemory = 0", "daemon.memory = 0: "),
    ],
)
def test_a_file_that_is_broken_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "headrace.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml does not exist: check the path"):
        load(tmp_path / "missing.toml")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)


# ---- the state folder ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/headrace"}, "/var/lib/headrace"),
        ({"STATE_DIRECTORY": "/a:/b", "XDG_STATE_HOME": "/x"}, "/a"),
        ({"XDG_STATE_HOME": "/x"}, "/x/headrace"),
        ({"HOME": "/home/me"}, "/home/me/.local/state/headrace"),
    ],
)
def test_the_state_folder_follows_the_rules_of_the_system(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert Settings().daemon.state_dir == expected


def test_names_of_parts_are_no_keys() -> None:
    extras = {"val": {"plan": {"type": "Sequential", "batch_size": 2}, "epochs": 1}}
    train = {"type": "Shuffled", "batch_size": 4}
    written: dict[str, Any] = {
        "type": "Interleaved",
        "train": train,
        "limits": {"epochs": 2},
        "extras": extras,
    }
    assert part(written, Plan, origin="a file").extras["val"].epochs == 1
    extras["val"]["epoch"] = 1
    with pytest.raises(SettingsError, match=r"^a file: extras\.val\.epoch = 1: unknown key \(did"):
        part(written, Plan, origin="a file")
    chain = {"type": "Chain", "plans": {"a": {**train, "batchsize": 1}}}
    with pytest.raises(SettingsError, match=r"^a file: plans\.a\.batchsize = 1: unknown key"):
        part(chain, Plan, origin="a file")


def test_a_part_is_refused_as_a_whole_configuration_is() -> None:
    with pytest.raises(SettingsError, match=r"^a file: order = 'x': unknown; allowed: keyed, py"):
        part({"type": "Shuffled", "batch_size": 1, "order": "x"}, Plan, origin="a file")
    with pytest.raises(PlanError, match=r"^batch_size=0 is out of range"):
        part({"type": "Shuffled", "batch_size": 0}, Plan, origin="a file")
