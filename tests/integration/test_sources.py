"""Sources of several buckets, folders, prefixes and names: what the SDK yields for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from aistore.pytorch import AISIterDataset, AISMapDataset

from headrace import DaemonDataset, Objects, Stream, errors
from headrace.plans import Sequential, Shuffled
from headrace.testing import Ledger, ledger_of
from tests.support.commands import headrace_here
from tests.support.files import content

if TYPE_CHECKING:
    from pathlib import Path

    from aistore.sdk import AISSource

    from tests.support.stores import Store

OBJECTS: Final = {
    name: content(name, 37 * number)
    for number, name in enumerate(f"{folder}/{n:02}" for folder in "abc" for n in range(8))
}
MORE: Final = {name: content(f"more {name}", 50) for name in ("a/00", "a/07", "z", "é/ü")}


def read(dataset: DaemonDataset) -> list[tuple[str, bytes]]:
    return [sample for batch in dataset for sample in batch]


def ours(app: Any, source: Objects) -> list[tuple[str, bytes]]:  # noqa: ANN401 - an AppThread
    """Return names and bytes in the order of the manifest, as a pass, `read` and `manifest` do."""
    dataset = DaemonDataset(app.socket, Stream(source, Sequential(batch_size=5)))
    found = read(dataset)
    indices = list(range(len(found)))
    assert [dataset.manifest[index].name for index in indices] == [name for name, _ in found]
    assert dataset.read(indices) == found
    dataset.close()
    return found


def of_the_sdk(sources: list[AISSource], prefixes: dict[AISSource, Any]) -> list[tuple[str, bytes]]:
    """Return what the SDK yields, which its two datasets agree on."""
    by_index = AISMapDataset(sources, prefixes)
    found = [by_index[index] for index in range(len(by_index))]
    assert list(AISIterDataset(sources, prefixes)) == found
    return found


@pytest.mark.parametrize("prefixes", [None, "b/", ["c/", "a/"], ["b/0", "a/05"], ["c/07"]], ids=str)
def test_prefixes_of_one_bucket_are_those_of_the_sdk(store: Store, prefixes: Any) -> None:  # noqa: ANN401
    store.put(OBJECTS)
    bucket = store.client.bucket(store.bucket)
    with store.daemon() as app:
        found = ours(app, Objects(store.uri(), prefixes=prefixes))
    assert found == of_the_sdk([bucket], {bucket: prefixes})


def test_several_buckets_are_one_after_the_other_and_lead_their_names(store: Store) -> None:
    store.put(OBJECTS)
    other = store.another_bucket(MORE)
    mine, more = store.client.bucket(store.bucket), store.client.bucket(other)
    source = Objects(
        [f"ais://{other}", store.uri()],
        prefixes={f"ais://{other}": None, store.uri(): ["c/", "a/"]},
    )
    with store.daemon() as app:
        found = ours(app, source)
    expected = of_the_sdk([more, mine], {mine: ["c/", "a/"]})
    assert [value for _, value in found] == [value for _, value in expected]
    # The SDK's names alone do not say whose they are: both buckets have `a/00`.
    buckets = [other] * len(MORE) + [store.bucket] * 16
    assert [name for name, _ in found] == [
        f"{bucket}/{name}" for bucket, (name, _) in zip(buckets, expected, strict=True)
    ]
    assert len({name for name, _ in found}) == len(found)


def test_a_source_without_prefixes_is_left_out(store: Store) -> None:
    store.put(OBJECTS)
    other = store.another_bucket(MORE)
    mine, more = store.client.bucket(store.bucket), store.client.bucket(other)
    source = Objects([f"ais://{other}", store.uri()], prefixes={f"ais://{other}": []})
    with store.daemon() as app:
        assert ours(app, source) == of_the_sdk([more, mine], {more: []})


def test_given_names_are_read_in_their_order(store: Store) -> None:
    store.put(OBJECTS)
    names = ["c/03", "a/00", "b/07"]
    group = store.client.bucket(store.bucket).objects(obj_names=names)
    with store.daemon() as app:
        found = ours(app, Objects(store.uri(), names=names))
    assert found == of_the_sdk([group], {})
    assert [name for name, _ in found] == names


def test_many_names_are_found_as_the_sdk_finds_them(store: Store) -> None:
    objects = {f"m/{number:03}": content(f"{number}", number) for number in range(400)}
    store.put(objects)
    names = sorted(objects)[100:]
    names = names[1::2] + names[::2]
    with store.daemon() as app:
        dataset = DaemonDataset(
            app.socket, Stream(Objects(store.uri(), names=names), Sequential(batch_size=50))
        )
        assert read(dataset) == [(name, objects[name]) for name in names]
        dataset.close()


@pytest.mark.parametrize("template", ["b/{00..07}", "c/0{1..7..3}", "a/0{6..4}", "b/01"])
def test_a_template_of_names_is_that_of_the_sdk(store: Store, template: str) -> None:
    store.put(OBJECTS)
    group = store.client.bucket(store.bucket).objects(obj_template=template)
    with store.daemon() as app:
        assert ours(app, Objects(store.uri(), names=template)) == of_the_sdk([group], {})


def test_a_template_in_a_uri_is_each_of_its_prefixes(store: Store) -> None:
    store.put({f"train-{number:03}/x{n}": b"%d" % n for number in range(12) for n in range(2)})
    bucket = store.client.bucket(store.bucket)
    prefixes = [f"train-{number:03}" for number in range(2, 11, 4)]
    with store.daemon() as app:
        found = ours(app, Objects(store.uri("train-{002..010..4}")))
    assert found == of_the_sdk([bucket], {bucket: prefixes})


def test_folders_and_buckets_may_be_mixed(store: Store, tmp_path: Path) -> None:
    store.put(OBJECTS)
    folder = tmp_path / "extra"
    write(folder, MORE)
    source = Objects(
        [str(folder), store.uri(), str(tmp_path / "more")],
        prefixes={str(folder): ["z", "a/"]},
        names={store.uri(): ["b/01"]},
    )
    write(tmp_path / "more", {"x": b"1"})
    with store.daemon() as app:
        found = ours(app, source)
    assert found == [
        ("extra/z", MORE["z"]),
        ("extra/a/00", MORE["a/00"]),
        ("extra/a/07", MORE["a/07"]),
        (f"{store.bucket}/b/01", OBJECTS["b/01"]),
        ("more/x", b"1"),
    ]


def write(folder: Path, objects: dict[str, bytes]) -> None:
    for name, data in objects.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_a_shuffled_epoch_of_several_sources_resumes_exactly(store: Store, tmp_path: Path) -> None:
    store.put(OBJECTS)
    write(tmp_path / "extra", MORE)
    stream = Stream(
        Objects([store.uri("a/"), str(tmp_path / "extra"), store.uri("c/")]),
        Shuffled(batch_size=3, seed=5),
    )
    ledger = Ledger()
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, stream)
        whole = ledger_of(dataset)
        dataset.seek(epoch=0)
        batches = iter(dataset)
        for _ in range(3):
            ledger.record(next(batches))
        state = dataset.state_dict()
        dataset.close()
    with store.daemon() as app:  # has an empty state folder: it lists anew, to the same digest
        dataset = DaemonDataset(app.socket, stream)
        dataset.load_state_dict(state)
        for batch in dataset:
            ledger.record(batch)
        dataset.close()
    assert ledger.difference(whole) is None


@pytest.mark.parametrize("kind", ["name", "prefix", "bucket"])
def test_what_is_not_there_is_named(store: Store, kind: str) -> None:
    store.put(OBJECTS)
    uri = store.uri()
    source, told = {
        "name": (Objects(uri, names=["a/00", "a/99"]), f"object ais://{store.bucket}/a/99 is in"),
        "prefix": (Objects(uri, prefixes=["a/", "zz"]), "no object whose name begins with 'zz'"),
        "bucket": (Objects([uri, "ais://nowhere"]), "bucket ais://nowhere does not exist"),
    }[kind]
    with store.daemon() as app:
        dataset = DaemonDataset(app.socket, Stream(source, Sequential(batch_size=1)))
        with pytest.raises(errors.FeedError) as raised:
            next(iter(dataset))
        assert told in str(raised.value)
        assert raised.value.fault == "data"
        dataset.close()


@pytest.mark.slow
def test_commands_know_several_sources(store: Store, tmp_path: Path) -> None:
    store.put(OBJECTS)
    other = store.another_bucket(MORE)
    path = tmp_path / "headrace.toml"
    path.write_text(
        f'default_stream = "train"\n[store]\nendpoints = ["{store.endpoint}"]\n'
        f'[daemon]\nstate_dir = "{tmp_path}/state"\n'
        f'[streams.train]\nplan = {{ type = "Sequential", batch_size = 10 }}\n'
        f'[streams.train.source]\ntype = "Objects"\nuri = ["{store.uri()}", "ais://{other}"]\n'
        f'prefixes = {{ "{store.uri()}" = ["a/", "b/"] }}\nnames = {{ "ais://{other}" = ["z"] }}\n'
    )
    shown = f"{store.uri()} and 1 more"
    for command in (
        ("check", path),
        ("index", "--config", path),
        ("plan", "--config", path, "--steps", "0:2"),
    ):
        done = headrace_here(*command)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert shown in done.stdout
        assert "17 samples" in done.stdout
    store.put({"a/99": b"1"})
    lines = headrace_here("index", "--config", path, "--refresh").stdout
    assert f"added    1: {store.bucket}/a/99" in lines
