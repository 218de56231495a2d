"""Bodies that mean harm or are damaged: each gets a problem of its own fault, and the next scan its mask."""

import gzip
import io
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.geometry import Grid

pytestmark = pytest.mark.torch

LIMITS: dict[str, Any] = {"max_mb": 1.0, "max_unpacked_mb": 8.0, "max_voxels": 2**20, "max_entries": 20}

MAGIC = [
    b"",
    b"\x1f\x8b\x08",
    b"BZh9",
    b"NRRD0005\n",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"PK\x03\x04",
]

NAMES = ["", "a.nii", "a.nii.gz", "a.nii.bz2", "a.nrrd", "a.png", "a.jpg", "a.zip"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from tests.serve.serving import application, listening

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUTELAGE_SPOOL", str(tmp_path_factory.mktemp("spool")))
        with (
            listening(application(**LIMITS)) as address,
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            yield client


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from tests.serve.serving import scan

    return scan(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def alive(client: httpx.Client, good: bytes) -> Iterator[None]:
    """After each test a good scan is answered as if nothing had been."""
    yield
    assert client.post("/v1/segment", content=good).status_code == 200


def refused(client: httpx.Client, body: bytes, name: str = "") -> int:
    """Send a body, and see that it is told what is wrong with it."""
    answer = client.post("/v1/segment", content=body, params={"name": name})
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    return answer.status_code


def nifti(shape: tuple[int, ...], data: bytes = b"", code: int = 16, bits: int = 32, **fields: Any) -> bytes:
    """Return a NIfTI that claims what it is told to."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, fields.get("size", 348))
    struct.pack_into("<8h", header, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<hh", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1, *([fields.get("step", 1.0)] * 7))
    struct.pack_into("<f", header, 108, fields.get("offset", 352.0))
    struct.pack_into("<ff", header, 112, fields.get("slope", 1.0), 0.0)
    header[344:348] = b"n+1\0"
    return bytes(header) + data


def zipped(**files: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return held.getvalue()


@given(tail=st.binary(max_size=400), magic=st.sampled_from(MAGIC), name=st.sampled_from(NAMES))
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_bytes_are_refused(client: httpx.Client, tail: bytes, magic: bytes, name: str) -> None:
    refused(client, magic + tail, name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2", "a.nrrd", "a.png"])
def test_scans_that_are_cut_off_are_refused(client: httpx.Client, tmp_path: Path, name: str) -> None:
    from tests.serve.serving import scan

    flat = Grid.from_spacing((1, 6, 5), (1.0, 1.0, 1.0))
    whole = scan(tmp_path, name, flat if name == "a.png" else Grid.from_spacing((4, 6, 5), (3.0, 2.0, 2.0)))
    assert client.post("/v1/segment", content=whole, params={"name": name}).status_code == 200
    # What a PNG ends with is no voxels.
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, *(() if name == "a.png" else (0.9,))):
        refused(client, whole[: int(len(whole) * share)], name)


@given(place=st.integers(0, 351), value=st.binary(min_size=1, max_size=8))
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_headers_that_are_damaged_are_answered_or_refused(
    client: httpx.Client, place: int, value: bytes
) -> None:
    whole = bytearray(nifti((4, 4, 4), np.arange(64, dtype=np.float32).tobytes()))
    whole[place : place + len(value)] = value
    answer = client.post("/v1/segment", content=bytes(whole), params={"name": "a.nii"})
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    "body",
    [
        nifti((32767, 32767, 32767)),
        nifti((-1, 4, 4)),
        nifti((0, 4, 4)),
        nifti((4, 4, 4), b"\0" * 100),
        nifti((4, 4, 4, 3), b"\0" * 768),
        nifti((4, 4, 4), b"\0" * 256, offset=1e30),
        nifti((4, 4, 4), b"\0" * 256, offset=float("nan")),
        nifti((4, 4, 4), b"\0" * 256, offset=-400.0),
        nifti((4, 4, 4), b"\0" * 256, code=9999),
        nifti((4, 4, 4), b"\0" * 1024, code=1792, bits=128),
        nifti((4, 4, 4), b"\0" * 256, step=float("nan")),
        nifti((4, 4, 4), b"\0" * 256, size=540),
        nifti((4, 4, 4), np.full(64, np.nan, np.float32).tobytes()),
        nifti((4, 4, 4), np.full(64, np.inf, np.float32).tobytes()),
    ],
    ids=[
        *("huge", "negative", "none", "short", "4D", "far away", "nowhere", "before the start", "no type"),
        *("complex", "no spacing", "other size", "NaN", "infinite"),
    ],
)
def test_headers_that_lie_are_refused(client: httpx.Client, body: bytes) -> None:
    began = time.monotonic()
    refused(client, body, "a.nii")
    refused(client, gzip.compress(body), "a.nii.gz")
    assert time.monotonic() - began < 20


def bombs() -> dict[str, tuple[bytes, str]]:
    zeros = gzip.compress(b"\0" * 2**26, 9)
    nested = gzip.compress(zeros, 9)
    huge = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 99999999 99999999 99999999\nencoding: raw\n\n"
    elsewhere = b"NRRD0004\ntype: float\ndimension: 1\nsizes: 4\nencoding: raw\ndata file: /etc/passwd\n\n"
    return {
        "zeros": (zeros, ""),
        "nested": (nested, ""),
        "zip of zeros": (zipped(a=b"\0" * 2**26), "a.zip"),
        "zip of a zip": (zipped(**{"a.zip": zipped(a=b"\0" * 2**20)}), "a.zip"),
        "zip of many": (zipped(**{str(i): b"x" for i in range(50)}), "a.zip"),
        "zip of nothing": (zipped(), "a.zip"),
        "zip upwards": (zipped(**{"../../../../tmp/evil": b"x"}), "a.zip"),
        "zip to the root": (zipped(**{"/tmp/evil": b"x"}), "a.zip"),
        "zip of Windows": (zipped(**{"C:\\evil": b"x", "..\\evil": b"x"}), "a.zip"),
        "huge nrrd": (huge, ""),
        "nrrd of another file": (elsewhere, ""),
    }


@pytest.mark.parametrize("bomb", list(bombs()))
def test_bombs_are_refused_and_take_no_memory(client: httpx.Client, bomb: str, tmp_path: Path) -> None:
    body, name = bombs()[bomb]
    refused(client, body, name)
    before = resident_mb()
    for _ in range(5):
        refused(client, body, name)
    assert resident_mb() - before < 60  # they unpack to 64 MB and more, each
    assert not Path("/tmp/evil").exists()


def test_what_hides_behind_a_scan_is_not_unpacked(client: httpx.Client) -> None:
    zeros = b"\0" * 2**26
    head = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 4 4 4\nencoding: gzip\nendian: little\n\n"
    bodies = (gzip.compress(nifti((4, 4, 4), zeros), 9), head + gzip.compress(zeros, 9))
    before = resident_mb()
    for body in bodies * 3:
        answer = client.post("/v1/segment", content=body)
        assert answer.status_code == 200 or 400 <= answer.status_code < 500
    assert resident_mb() - before < 40


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\r\nx-evil: 1.nii.gz", "\0.nii.gz", "ä" * 500 + ".nii.gz", "."]
)
def test_names_are_only_names(client: httpx.Client, good: bytes, name: str) -> None:
    answer = client.post("/v1/segment", content=good, params={"name": name})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    told = answer.headers["content-disposition"]
    assert "/" not in told
    assert "\\" not in told


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": ",".join(["application/json;q=0.1"] * 500)},
        {"accept": ";;;,q=,=;application/json;q=nan"},
        {"accept": "application/json;q=1e999"},
        {"content-encoding": "gzip"},
        {"x-request-id": "a" * 5000},
        {"authorization": "Bearer " + "x" * 5000},
    ],
)
def test_odd_headers_are_answered_or_refused(
    client: httpx.Client, good: bytes, headers: dict[str, str]
) -> None:
    assert client.post("/v1/segment", content=good, headers=headers).status_code in (200, 400, 406, 415)


@given(
    head=st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    length=st.integers(0, 300).map(str) | st.text("0123456789-+ e", max_size=6),
)
@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_questions_of_the_protocol_are_refused(client: httpx.Client, head: bytes, length: str) -> None:
    headers = {"inference-header-content-length": length.strip()}
    for more in ({}, headers):
        answer = client.post("/v2/models/bright/infer", content=head, headers=more)
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]
