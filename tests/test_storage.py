"""Places, local and through pyarrow: whole writes, listing, removing.

The remote half runs against pyarrow's own local filesystem, reached by an address with a
scheme, which a Place hands over as it is.
"""

import pickle
import resource
from pathlib import Path

import pytest

from tutelage.storage import Place

pytestmark = pytest.mark.files


@pytest.fixture(params=["local", "through pyarrow"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.of(tmp_path) if request.param == "local" else Place(f"file://{tmp_path}")


def test_what_is_written_is_read_back(place: Place) -> None:
    file = place / "a.bin"
    assert not file.exists()
    file.write_bytes(b"one")
    file.write_bytes(b"three")
    assert file.exists()
    assert file.read_bytes() == b"three"
    assert file.stamp()[0] == 5
    (place / "b.txt").write_text("Größe")
    assert (place / "b.txt").read_text() == "Größe"


def test_an_open_file_can_seek(place: Place) -> None:
    (place / "a.bin").write_bytes(b"0123456789")
    with (place / "a.bin").open() as stream:
        stream.seek(7)
        assert stream.read() == b"789"


def test_a_stamp_changes_with_the_file(place: Place) -> None:
    (place / "a.bin").write_bytes(b"one")
    before = (place / "a.bin").stamp()
    (place / "a.bin").write_bytes(b"other")
    assert (place / "a.bin").stamp() != before
    with pytest.raises(FileNotFoundError):
        (place / "nothing").stamp()


def test_files_are_listed_by_name_and_folders_and_unfinished_writes_are_not(
    place: Place, tmp_path: Path
) -> None:
    for name in ("b.txt", "a.txt", "c.json", ".writing-123"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.txt").mkdir()
    assert [f.name for f in place.files()] == ["a.txt", "b.txt", "c.json"]
    assert [f.name for f in place.files(".txt")] == ["a.txt", "b.txt"]
    assert place.names(".txt") == ["a.txt", "b.txt"]
    assert [f.name for f in place.folders()] == ["folder.txt"]
    assert (place / "nowhere").files() == (place / "nowhere").folders() == []


def test_removing_takes_a_file_or_a_folder_or_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "a").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file", "nothing"):
        (place / name).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_picklable_even_after_it_was_used(place: Place) -> None:
    place.exists()
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    assert again.exists()


def test_names_and_parents() -> None:
    place = Place.of("s3://bucket/folder/") / "file.txt"
    assert (place.uri, place.name, place.parent.uri, place.local) == (
        "s3://bucket/folder/file.txt",
        "file.txt",
        "s3://bucket/folder",
        None,
    )


def test_relative_paths_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Place.of("runs/first").local == tmp_path / "runs" / "first"
    assert Place.of(f"file://{tmp_path}") == Place.of(tmp_path) == Place.of(Place.of(tmp_path))


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Place.of(tmp_path) / "a.txt"
    file.write_text("old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        file.write_text("new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folders_above_a_local_file_are_made(tmp_path: Path) -> None:
    (Place.of(tmp_path) / "a" / "b" / "c.txt").write_text("x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"
    (Place.of(tmp_path) / "d").make_folder()
    assert (tmp_path / "d").is_dir()


def test_files_beneath_are_found_at_any_depth_with_size_and_time(place: Place, tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b/c", 0), ("b/d/e.txt", 5), ("b/.writing-1", 7)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    found = {path: (size, changed_ns) for path, size, changed_ns in place.beneath()}
    assert {path: size for path, (size, _) in found.items()} == {
        "a": 3,
        "b/c": 0,
        "b/d/e.txt": 5,
        "b/.writing-1": 7,
    }
    assert found["a"][1] == (tmp_path / "a").stat().st_mtime_ns
    assert list((place / "nowhere").beneath()) == []


def test_folders_above_are_made_and_half_a_file_is_never_seen(place: Place, tmp_path: Path) -> None:
    file = place / "deep" / "down" / "a.bin"
    file.write_bytes(b"one", lasting=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.write_bytes(bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == b"one"
    assert [p.name for p in (tmp_path / "deep" / "down").iterdir()] == ["a.bin"]


def test_only_what_should_last_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    (Place.of(tmp_path) / "a").write_bytes(b"x", lasting=False)
    assert not waits
    (Place.of(tmp_path) / "a").write_bytes(b"x")
    assert len(waits) == 1


def test_a_stream_replaces_the_file_when_all_of_it_is_written_or_not_at_all(place: Place) -> None:
    file = place / "folder" / "a.bin"
    with file.writing() as stream:
        stream.write(b"first ")
        assert not file.exists()
        stream.write(b"all")
    assert file.read_bytes() == b"first all"

    def half() -> None:
        with file.writing() as stream:
            stream.write(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        half()
    assert file.read_bytes() == b"first all"
    assert [name for name, _, _ in place.beneath()] == ["folder/a.bin"]


def test_a_file_and_a_folder_are_moved_with_everything_in_it(place: Place) -> None:
    for name in ("a/1.txt", "a/deep/2.txt", "b.txt"):
        target = place
        for part in name.split("/"):
            target = target / part
        target.write_text(name)
    (place / "a").move(place / "new" / "a")
    (place / "b.txt").move(place / "new" / "b.txt")
    assert sorted(name for name, _, _ in place.beneath()) == ["new/a/1.txt", "new/a/deep/2.txt", "new/b.txt"]
    assert (place / "new" / "a" / "deep" / "2.txt").read_text() == "a/deep/2.txt"
    assert not (place / "a").exists()
