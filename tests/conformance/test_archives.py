"""Archives: a file out of one, the files that match, and what a list shows of them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from http.client import RemoteDisconnected
from typing import TYPE_CHECKING, Any, Final

import lz4.frame
import pytest

from tests.support.ais import object_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.support.ais import Ais

FILES: Final = {
    "d/1.jpg": b"one",
    "d/2.jpg": b"two",
    "d/1.txt": b"text",
    "./k.jpg": b"dot",
    "x//y.txt": b"slashes",
    "/abs.txt": b"abs",
    "empty": b"",
}
CLEANED: Final = ["abs.txt", "d/1.jpg", "d/1.txt", "d/2.jpg", "empty", "k.jpg", "x/y.txt"]
ARCHIVES: Final = ["s.tar", "s.tgz", "s.tar.gz", "s.tar.lz4", "s.zip"]


def tar(files: Mapping[str, bytes], *, folder: str = "") -> bytes:
    """Return an archive of files, with a folder before them."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        if folder:
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of files."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


TAR: Final = tar(FILES, folder="dir")


@pytest.fixture(scope="module")
def filled(ais: Ais, bucket: str) -> str:
    """Return a bucket with archives of each kind, and with what is none."""
    kinds = {
        "s.tar": TAR,
        "s.tgz": gzip.compress(TAR),
        "s.tar.gz": gzip.compress(TAR),
        "s.tar.lz4": lz4.frame.compress(TAR),
        "s.zip": zipped(FILES),
        "without-extension": TAR,
        "other.bin": TAR,
        "text": b"no archive" * 100,
        "text.tar": b"no archive" * 100,
        "zip.tar": zipped(FILES),
        "cut.tar": TAR[:2600],
        "empty.tar": b"",
    }
    ais.put_all(bucket, kinds)
    return bucket


# --- One file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", [*ARCHIVES, "without-extension", "other.bin", "cut.tar"])
def test_a_file_comes_out_of_an_archive(ais: Ais, filled: str, archive: str) -> None:
    direct = ais.get(filled, archive, archpath="d/1.jpg")
    followed = ais.follow("GET", object_path(filled, archive, archpath="d/1.jpg"))
    for answer in (direct, followed):
        assert (answer.status, answer.body) == (200, b"one")
        assert answer.headers["Content-Length"] == "3"
        assert answer.headers["Content-Type"] == "application/octet-stream"


def test_a_file_in_an_archive_has_no_checksum_and_no_version(ais: Ais, filled: str) -> None:
    headers = ais.get(filled, "s.tar", archpath="d/1.jpg").headers
    assert not [name for name in headers if name.lower().startswith("ais-")]


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/d/2.jpg", b"two"),
        ("s.tar/d/2.jpg", b"two"),
        ("x//y.txt", b"slashes"),
        ("/abs.txt", b"abs"),
        ("abs.txt", b"abs"),
        ("empty", b""),
    ],
)
def test_a_path_names_a_file(ais: Ais, filled: str, path: str, content: bytes) -> None:
    answer = ais.get(filled, "s.tar", archpath=path)
    assert (answer.status, answer.body) == (200, content)
    assert answer.headers["Content-Length"] == str(len(content))


@pytest.mark.parametrize("path", ["missing", "d/1.JPG", "d", "dir", "k.jpg", "x/y.txt", "d/1"])
def test_a_path_that_names_no_file_is_a_missing_object(ais: Ais, filled: str, path: str) -> None:
    answer = ais.get(filled, "s.tar", archpath=path)
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")
    assert f"{path} in ais://{filled}/s.tar does not exist" in answer.error["message"]


@pytest.mark.parametrize("path", ["./k.jpg", "../k.jpg", "d/../k.jpg", "d/", "."])
def test_a_path_that_is_not_clean_is_refused(ais: Ais, filled: str, path: str) -> None:
    answer = ais.get(filled, "s.tar", archpath=path)
    assert answer.status == 400
    assert "invalid archpath" in answer.error["message"]


def test_a_missing_archive_is_a_missing_object(ais: Ais, filled: str) -> None:
    answer = ais.get(filled, "missing.tar", archpath="d/1.jpg")
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")
    assert f": ais://{filled}/missing.tar does not exist" in answer.error["message"]


@pytest.mark.parametrize("archive", ["text", "text.tar", "zip.tar"])
def test_what_is_no_archive_is_refused(ais: Ais, filled: str, archive: str) -> None:
    answer = ais.get(filled, archive, archpath="d/1.jpg")
    assert (answer.status, answer.tcode) == (400, "")


def test_an_empty_archive_has_no_files(ais: Ais, filled: str) -> None:
    assert ais.get(filled, "empty.tar", archpath="d/1.jpg").status == 404


@pytest.mark.parametrize(
    ("mime", "status"),
    [(".tar", 200), ("tar", 200), ("application/x-tar", 200), ("", 200), (".zip", 400), ("x", 400)],
)
def test_the_kind_of_archive_may_be_said(ais: Ais, filled: str, mime: str, status: int) -> None:
    answer = ais.get(filled, "other.bin", archpath="d/1.jpg", archmime=mime)
    assert answer.status == status


@pytest.mark.parametrize("query", [{"archpath": ""}, {"archmime": ".tar"}, {"archregx": "d/"}])
def test_half_a_question_means_the_whole_object(
    ais: Ais, filled: str, query: dict[str, str]
) -> None:
    answer = ais.ask(
        "GET", object_path(filled, "s.tar", **query), at=ais.owner_url(filled, "s.tar")
    )
    assert (answer.status, answer.body) == (200, TAR)
    assert answer.headers["Ais-Version"] == "1"


@pytest.mark.parametrize(
    "query", [{"archpath": "d/1.jpg"}, {"archregx": "d/", "archmode": "prefix"}]
)
def test_there_are_no_ranges_inside_of_archives(
    ais: Ais, filled: str, query: dict[str, str]
) -> None:
    path = object_path(filled, "s.tar", **query)
    at = ais.owner_url(filled, "s.tar")
    answer = ais.ask("GET", path, at=at, headers={"Range": "bytes=0-1"})
    assert (answer.status, answer.tcode) == (400, "ErrUnsupp")
    assert "cannot range-read archived content" in answer.error["message"]


def test_head_tells_of_the_archive_and_not_of_the_file(ais: Ais, filled: str) -> None:
    headers = ais.head(filled, "s.tar", archpath="d/1.jpg").headers
    assert headers["Content-Length"] == str(len(TAR))


# --- The files that match -------------------------------------------------------------------------


def matching(ais: Ais, bucket: str, archive: str, **query: str) -> list[str]:
    """Return the names of the files that match, in the order in which they come."""
    path = object_path(bucket, archive, **query)
    answer = ais.ask("GET", path, at=ais.owner_url(bucket, archive))
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.body), mode="r:") as found:
        for member in found.getmembers():
            if member.isfile():
                data = found.extractfile(member)
                assert data is not None
                assert data.read() == FILES[member.name]
        return found.getnames()


@pytest.mark.parametrize("archive", ["s.tar", "s.tgz", "s.tar.lz4"])
@pytest.mark.parametrize(
    ("mode", "asked", "found"),
    [
        ("prefix", "d/", ["d/1.jpg", "d/2.jpg", "d/1.txt"]),
        ("", "d/", ["d/1.jpg", "d/2.jpg", "d/1.txt"]),
        ("suffix", "jpg", ["d/1.jpg", "d/2.jpg", "./k.jpg"]),
        ("substr", "/1", ["d/1.jpg", "d/1.txt"]),
        ("regexp", "[12].jpg$", ["d/1.jpg", "d/2.jpg"]),
        ("wdskey", "d/1", ["d/1.jpg", "d/1.txt"]),
        ("wdskey", "./k", ["./k.jpg"]),
        ("prefix", "", ["dir", *FILES]),
    ],
)
def test_files_that_match_come_as_a_tar_in_their_order(
    ais: Ais, filled: str, archive: str, mode: str, asked: str, found: list[str]
) -> None:
    assert matching(ais, filled, archive, archregx=asked, archmode=mode) == found


def test_a_mode_alone_means_all_files(ais: Ais, filled: str) -> None:
    assert matching(ais, filled, "s.tar", archmode="prefix") == ["dir", *FILES]


def test_that_nothing_matches_is_a_missing_object(ais: Ais, filled: str) -> None:
    answer = ais.get(filled, "s.tar", archregx="z", archmode="prefix")
    assert (answer.status, answer.tcode) == (404, "ErrNotFound")


@pytest.mark.parametrize(("mode", "asked"), [("nonsense", "d/"), ("regexp", "(")])
def test_a_bad_question_is_refused(ais: Ais, filled: str, mode: str, asked: str) -> None:
    assert ais.get(filled, "s.tar", archregx=asked, archmode=mode).status == 400


def test_one_file_and_many_exclude_each_other(ais: Ais, filled: str) -> None:
    answer = ais.get(filled, "s.tar", archpath="d/1.jpg", archmode="prefix")
    assert answer.status == 400
    assert "mutually exclusive" in answer.error["message"]


def test_many_files_of_a_zip_end_the_connection(ais: Ais, filled: str) -> None:
    path = object_path(filled, "s.zip", archregx="d/", archmode="prefix")
    with pytest.raises(RemoteDisconnected):
        ais.wire.ask("GET", ais.owner_url(filled, "s.zip") + path, fresh=True)
    assert ais.get(filled, "s.zip").status == 200


# --- Lists ----------------------------------------------------------------------------------------


def entries(ais: Ais, bucket: str, **value: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Return what a list shows with archives as folders."""
    answer = ais.page(bucket, flags="8", **value)
    assert answer.status == 200, answer
    return answer.content["entries"] or []


@pytest.fixture(scope="module")
def listed(ais: Ais, new_bucket: Callable[[], str]) -> str:
    """Return a bucket in which everything can be read."""
    bucket = new_bucket()
    ais.put_all(bucket, {"s.tar": TAR, "without-extension": TAR, "text": b"text"})
    return bucket


def test_a_list_shows_files_by_their_cleaned_paths(ais: Ais, listed: str) -> None:
    found = entries(ais, listed)
    sizes = {path.lstrip("./").replace("//", "/"): str(len(data)) for path, data in FILES.items()}
    assert found == [
        {"name": "s.tar", "size": str(len(TAR)), "flags": 576},
        *(
            {"name": f"s.tar/{path}", "flags": 192}
            | ({"size": sizes[path]} if sizes[path] != "0" else {})
            for path in CLEANED
        ),
        {"name": "text", "size": "4", "flags": 64},
        {"name": "without-extension", "size": str(len(TAR)), "flags": 64},
    ]


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_list_looks_into_every_kind(ais: Ais, filled: str, archive: str) -> None:
    names = [entry["name"] for entry in entries(ais, filled, prefix=archive)]
    # The names of other archives begin with that of this one.
    inside = [name for name in names if name.startswith(f"{archive}/")]
    assert archive in names
    assert inside == [f"{archive}/{path}" for path in CLEANED]


def test_a_prefix_does_not_reach_into_an_archive(ais: Ais, listed: str) -> None:
    assert entries(ais, listed, prefix="s.tar/") == []
    assert entries(ais, listed, prefix="s.tar/d/") == []
    assert len(entries(ais, listed, prefix="s.ta")) == 1 + len(CLEANED)


def pages(ais: Ais, bucket: str, size: int) -> list[str]:
    """Return what a list shows with archives as folders, page by page."""
    found: list[str] = []
    uuid = token = ""
    while True:
        page = ais.page(
            bucket, flags="8", pagesize=size, uuid=uuid, continuation_token=token
        ).content
        found += [entry["name"] for entry in page["entries"] or []]
        uuid, token = page["uuid"], page["continuation_token"]
        if not token:
            return found


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_pages_may_end_within_an_archive(
    ais: Ais, new_bucket: Callable[[], str], size: int
) -> None:
    bucket = new_bucket()
    inside = ["d1", "d2", "d0", "k", "x9", "x1", "a", "e/5", "e/4"]
    archives = ["r.tar", "s.tar", "t.tar"]
    ais.put_all(bucket, dict.fromkeys(archives, tar(dict.fromkeys(inside, b"1"))))
    assert pages(ais, bucket, size) == [
        name
        for archive in archives
        for name in (archive, *(f"{archive}/{n}" for n in sorted(inside)))
    ]


def test_pages_lose_what_lies_before_a_path_that_was_cleaned(ais: Ais, listed: str) -> None:
    # The pages are cut by ``./k.jpg`` and ``/abs.txt``, which come first, and then sorted.
    assert pages(ais, listed, 3) == [
        *("s.tar", "s.tar/abs.txt", "s.tar/k.jpg", "s.tar/x/y.txt", "text", "without-extension")
    ]


def test_without_its_uuid_a_list_loses_the_rest_of_an_archive(ais: Ais, listed: str) -> None:
    found = entries(ais, listed, continuation_token="s.tar/d/1.txt")
    assert [entry["name"] for entry in found] == ["text", "without-extension"]


def test_an_unreadable_archive_ends_the_list_of_its_disk(
    ais: Ais, new_bucket: Callable[[], str]
) -> None:
    bucket = new_bucket()
    names = [f"{index:03}.tar" for index in range(40)]
    ais.put_all(bucket, dict.fromkeys(names, tar({"f": b"1"})))
    ais.put(bucket, "000.tar", b"no archive" * 100)
    found = [entry["name"] for entry in entries(ais, bucket)]
    assert {"name": "000.tar", "size": "1000", "flags": 64} in entries(ais, bucket)
    owner = ais.owner(bucket, "000.tar")
    for name in names[1:]:
        if ais.owner(bucket, name) != owner:
            assert f"{name}/f" in found
    assert len(found) < 2 * len(names) - 1
    # Without the flag all of them are there.
    assert ais.names(bucket) == names


def test_a_page_has_ten_thousand_entries_unless_more_are_asked_for(
    ais: Ais, new_bucket: Callable[[], str]
) -> None:
    bucket = new_bucket()
    ais.put(bucket, "s.tar", tar({f"{index:05}": b"1" for index in range(10_001)}))
    page = ais.page(bucket, flags="8").content
    assert len(page["entries"]) == 10_000
    assert page["continuation_token"] == page["entries"][-1]["name"] == "s.tar/09998"
    rest = entries(ais, bucket, uuid=page["uuid"], continuation_token="s.tar/09998")
    assert [entry["name"] for entry in rest] == ["s.tar/09999", "s.tar/10000"]
    assert len(entries(ais, bucket, pagesize=25_000)) == 10_002
