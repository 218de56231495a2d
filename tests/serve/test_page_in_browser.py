"""What somebody with a browser can do with the page: a real server, real models, a real Chromium."""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.browser import Tab, tab
from tutelage.archive import formats
from tutelage.cluster import tokens
from tutelage.cluster.settings import ServingSettings

if TYPE_CHECKING:
    from serve.models import Models

from tests.serve.browsing import (
    CONTRAST,
    GRID,
    ROWS,
    TOO_WIDE,
    WAIT_DONE,
    WAIT_MODELS,
    Served,
    Slow,
    downloaded,
    intensity_at,
    opened,
    read,
    serving,
    until_changed,
)

pytestmark = [pytest.mark.torch, pytest.mark.process]

BUILT = Path(__file__).parents[2] / "serve" / "web" / "dist"


@pytest.fixture(scope="module")
def models(tiny_specialist: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Models]":
    from serve.models import Models

    if not (BUILT / "index.html").is_file():
        pytest.skip("the page is not built: make web, which needs Node's npm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_SPOOL", str(tmp_path_factory.mktemp("spool")))
        served = Models({"tiny": str(tiny_specialist), "other": str(tiny_specialist)}, ServingSettings())
        yield served
        served.close()


@pytest.fixture(scope="module")
def served(models: "Models") -> Iterator[Served]:
    from serve.routes import application

    with serving(application(models, ServingSettings(open=True), None, BUILT)) as server:
        yield server


@pytest.fixture
def shown(models: "Models", tmp_path: Path) -> Iterator[Tab]:
    with tab(tmp_path / "profile") as shown:
        yield shown


@pytest.fixture(scope="module")
def write_scan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = tmp_path_factory.mktemp("scan") / name
        if path.suffix == ".zip":
            from tests.archive.test_dicom import save, series_of, turned
            from tests.archive.test_segmentation import referable

            image_DHW = np.random.default_rng(0).integers(0, 2000, (12, 32, 40)).astype(np.int16)
            files = save(path.parent / "series", referable(series_of(axes=turned(), image_DHW=image_DHW)))
            with zipfile.ZipFile(path, "w") as archive:
                for file in files:
                    archive.write(file, file.name)
        else:
            noise_DHW = np.random.default_rng(0).integers(0, 255, GRID.shape).astype(np.uint8)
            formats.write_image(str(path), noise_DHW, GRID)
        return path

    return write


def test_a_scan_is_sent_and_its_mask_is_shown_measured_and_downloaded(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    image = write_scan("patient 7.nii.gz")
    told = json.loads(served.asked(image, "application/json", "other"))
    opened(shown, served)
    assert "Finds liver, spleen" in shown.text()
    shown.value("document.querySelector('#model').value = 'other'")
    shown.choose("#file", image)
    shown.until(WAIT_DONE)

    rows = {row[0]: row[1:] for row in shown.value(ROWS)}
    assert list(rows) == [one["structure"] for one in told["structures"]] == ["liver", "spleen"]
    for one in told["structures"]:
        volume, parts, confidence = rows[one["structure"]]
        assert (volume == "none") == (one["voxels"] == 0)
        assert volume == "none" or float(volume.replace(",", "")) == pytest.approx(one["volume_ml"], rel=1e-3)
        assert int(parts) == one["components"]
        assert (confidence == "\u2013") == (one["confidence"] is None)
        assert all(reason.replace("_", " ") in shown.text() for reason in one["reasons"])
    assert "other" in shown.value("document.querySelector('#told').textContent")
    assert "intensity" in shown.value("document.querySelector('#place').textContent")
    assert shown.value("document.querySelector('#caveat').hidden")

    found = next(one for one in told["structures"] if one["voxels"])["structure"]
    shown.click(f"tr[data-structure={found}] button")
    shown.until(f"document.querySelector('#place').textContent.includes('{found}')")
    both = until_changed(shown, tmp_path, np.zeros((1, 1, 1), np.int16))
    shown.click(f"tr[data-structure={found}] input")
    without = until_changed(shown, tmp_path, both)
    shown.click(f"tr[data-structure={found}] input")
    again = until_changed(shown, tmp_path, without)
    assert np.abs(again - both).max() <= 20

    mask = downloaded(shown, "#nifti", tmp_path, "patient 7_mask.nii.gz")
    assert mask == served.asked(image, "application/gzip", "other")
    assert shown.complaints() == []
    assert all(address.startswith((served.address, "blob:")) for address in shown.fetched())


def test_the_page_is_whole_in_light_and_dark_on_a_screen_and_on_a_phone(
    shown: Tab, served: Served, write_scan: Callable[[str], Path]
) -> None:
    image = write_scan("a.nii.gz")
    papers = {}
    for width in (1280, 390):
        for dark in (False, True):
            opened(shown, served, width, dark)
            assert shown.value(TOO_WIDE) == []
            shown.choose("#file", image)
            shown.until(WAIT_DONE)
            assert shown.value(TOO_WIDE) == []
            assert shown.complaints() == []
            paper, ink = shown.value(CONTRAST)
            assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) > 7
            papers[dark] = paper
    assert papers[True] < 0.1 < 0.8 < papers[False]


def test_a_file_that_cannot_be_read_is_told_in_the_servers_own_words(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b and then nothing of use")
    opened(shown, served)
    shown.choose("#file", tmp_path / "cut.nii.gz")
    shown.until("!document.querySelector('#problem').hidden")
    assert "The scan cannot be read" in shown.text()
    assert "cannot be decoded" in shown.value("document.querySelector('#problem-detail').textContent")
    assert not shown.value("document.querySelector('#asking').hidden")
    # The next one is answered.
    shown.choose("#file", write_scan("a.nii.gz"))
    shown.until(WAIT_DONE)
    assert shown.value("document.querySelector('#problem').hidden")


def test_without_the_right_token_the_page_asks_for_one(
    shown: Tab, models: "Models", write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    from serve.routes import application
    from serve.tokens import Tokens

    secret, line = tokens.made("ward", ["predict"])
    tokens.write(tmp_path / "tokens", [line])
    app = application(models, ServingSettings(), Tokens(tmp_path / "tokens"), BUILT)
    with serving(app) as served:
        opened(shown, served)
        assert "A token is needed" in shown.text()
        assert shown.value("document.querySelector('#access').open")
        for typed, welcome in (("wrong", False), (secret, True)):
            shown.value(f"document.querySelector('#token').value = '{typed}'")
            shown.value("document.querySelector('#problem').hidden = true")
            shown.click("#access-form button")
            shown.until(WAIT_MODELS)
            assert ("Finds liver" in shown.text()) == welcome
            assert ("unknown token" in shown.text()) != welcome
        shown.choose("#file", write_scan("a.nii.gz"))
        shown.until(WAIT_DONE)
        assert shown.value("localStorage.length + document.cookie.length") == 0
        assert secret not in shown.value("document.documentElement.outerHTML")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "series.zip"])
def test_a_scan_of_any_usual_format_lies_under_its_mask_voxel_by_voxel(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], name: str
) -> None:
    path = write_scan(name)
    volume = read(path)
    opened(shown, served)
    shown.choose("#file", path)
    first = shown.until(WAIT_DONE)
    assert shown.value("document.querySelector('#caveat').textContent") == ""
    # From between voxels into the middle of one.
    shown.click("tr:not(.absent) button")
    shown.until(f"document.querySelector('#place').textContent !== {json.dumps(first)}")
    place = shown.value("document.querySelector('#place').textContent")
    shown.value("document.querySelector('#canvas').focus()")
    for key in ("PageUp", "ArrowLeft", "ArrowLeft", "ArrowUp"):
        told = float(re.findall(r"intensity (-?[0-9.]+)", place)[0])
        assert told == pytest.approx(intensity_at(volume, place), rel=1e-3)
        shown.press(key)
        place = shown.value("document.querySelector('#place').textContent")


def test_of_a_scan_that_the_page_cannot_read_the_mask_is_shown_alone(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    opened(shown, served)
    shown.choose("#file", write_scan("a.nii.bz2"))
    shown.until("document.querySelector('#caveat').textContent.includes('mask is shown alone')")
    assert "intensity" not in shown.until("document.querySelector('#place').textContent")
    until_changed(shown, tmp_path, np.zeros((1, 1, 1), np.int16))


def test_a_series_is_answered_as_a_dicom_seg(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    pydicom = pytest.importorskip("pydicom")
    opened(shown, served)
    shown.choose("#file", write_scan("series.zip"))
    shown.until(WAIT_DONE)
    assert shown.value("!document.querySelector('#seg').hidden")
    data = downloaded(shown, "#seg", tmp_path, "series_seg.dcm")
    assert data[128:132] == b"DICM"
    assert pydicom.dcmread(tmp_path / "series_seg.dcm").Modality == "SEG"


def test_keys_turn_slices_and_nothing_else(
    shown: Tab, served: Served, write_scan: Callable[[str], Path]
) -> None:
    opened(shown, served)
    shown.choose("#file", write_scan("a.nii.gz"))
    place = shown.until(WAIT_DONE)
    shown.value("document.querySelector('#canvas').focus()")
    for key in ("PageUp", "ArrowLeft", "ArrowUp"):
        shown.press(key)
        now = shown.value("document.querySelector('#place').textContent")
        assert now != place
        place = now
    for key in ("v", "c", "m", "d"):
        shown.press(key)
    assert shown.value("document.querySelector('#place').textContent") == place
    shown.press("Tab")
    assert shown.value("document.activeElement.id") != "canvas"


def test_without_webgl_the_table_and_the_mask_are_there(
    shown: Tab, served: Served, write_scan: Callable[[str], Path], tmp_path: Path
) -> None:
    shown.ask(
        "Page.addScriptToEvaluateOnNewDocument",
        source="HTMLCanvasElement.prototype.getContext = () => null",
    )
    opened(shown, served)
    shown.choose("#file", write_scan("a.nii.gz"))
    shown.until("document.querySelector('#caveat').textContent.includes('WebGL2')")
    assert [row[0] for row in shown.value(ROWS)] == ["liver", "spleen"]
    assert downloaded(shown, "#nifti", tmp_path, "a_mask.nii.gz")[:2] == b"\x1f\x8b"
    assert shown.complaints() == []


def test_work_ends_when_somebody_cancels_it_or_leaves(
    shown: Tab, models: "Models", write_scan: Callable[[str], Path]
) -> None:
    from serve.routes import application

    slow: Any = Slow(models)
    with serving(application(slow, ServingSettings(open=True), None, BUILT)) as served:
        for leave in ("document.querySelector('#cancel').click()", "location.assign('about:blank')"):
            slow.began.clear()
            slow.stopped.clear()
            opened(shown, served)
            shown.choose("#file", write_scan("a.nii.gz"))
            shown.until("document.querySelector('#stage').textContent === 'Segmenting'")
            assert slow.began.wait(30)
            shown.value(leave)
            assert slow.stopped.wait(30)


def test_a_server_that_is_gone_is_told_and_the_scan_can_be_sent_again(
    shown: Tab, served: Served, write_scan: Callable[[str], Path]
) -> None:
    opened(shown, served)
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    shown.ask("Network.emulateNetworkConditions", **gone)
    shown.choose("#file", write_scan("a.nii.gz"))
    shown.until("!document.querySelector('#problem').hidden")
    assert "does not answer" in shown.text()
    shown.ask(
        "Network.emulateNetworkConditions",
        **{**gone, "offline": False, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    shown.click("#again")
    shown.until(WAIT_DONE)
