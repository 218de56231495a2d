"""The HTTP around the segmenter, without Ray: addresses, limits, and how failures are told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.geometry import Grid

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.torch

GRID = Grid.from_spacing((10, 24, 20), (18.0, 9.0, 9.0))
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def client(tiny_specialist: Path) -> "Iterator[TestClient]":
    from starlette.testclient import TestClient

    from serve.routes import application
    from serve.segmenter import Segmenter

    with TestClient(application(Segmenter(str(tiny_specialist), 2**15), MAX_BYTES)) as client:
        yield client


@pytest.fixture
def scan(tmp_path: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, GRID.shape).astype(np.uint8)
    formats.write_image(str(tmp_path / "a.nii.gz"), noise, GRID)
    return (tmp_path / "a.nii.gz").read_bytes()


def test_a_scan_comes_back_as_a_mask_on_its_own_grid(
    client: "TestClient", scan: bytes, tmp_path: Path
) -> None:
    answer = client.post("/v1/segment", content=scan, params={"name": "päckchen.nii.gz"})
    assert answer.status_code == 200
    (tmp_path / "mask.nii.gz").write_bytes(answer.content)
    assert formats.header(str(tmp_path / "mask.nii.gz")).grid.difference(GRID) is None
    assert answer.headers["content-disposition"].endswith("p%C3%A4ckchen.nii.gz")
    assert list(json.loads(answer.headers["x-tutelage-volumes-ml"])) == ["liver", "spleen"]
    assert answer.headers["x-tutelage-specialist"] == client.get("/health").json()["specialist"]


def test_label_values_can_be_looked_up(client: "TestClient") -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert model["structures"] == [
        {"value": 1, "structure": "liver"},
        {"value": 2, "structure": "spleen"},
    ]


@pytest.mark.parametrize(
    ("content", "name", "status", "kind"),
    [
        (b"", "", 400, "unreadable-scan"),
        (b"\x1f\x8b and then nothing of use", "", 400, "unreadable-scan"),
        (b"hello", "", 415, "unknown-format"),
        (b"hello", "a.docx", 415, "unknown-format"),
        (b"x" * (MAX_BYTES + 1), "a.nii", 413, "too-large"),
    ],
    ids=["empty", "damaged", "unknown", "unknown by name", "too large"],
)
def test_failures_are_told_as_problems(
    client: "TestClient", content: bytes, name: str, status: int, kind: str
) -> None:
    answer = client.post("/v1/segment", content=content, params={"name": name})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:tutelage:{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]


def test_an_upload_of_unknown_length_is_stopped_where_it_becomes_too_large(client: "TestClient") -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 10_000

    assert client.post("/v1/segment", content=endless()).status_code == 413


def test_a_scan_with_too_many_voxels_says_so(client: "TestClient", tmp_path: Path) -> None:
    formats.write_image(
        str(tmp_path / "big.nii.gz"),
        np.zeros((40, 40, 40), np.uint8),
        Grid.from_spacing((40, 40, 40), (1, 1, 1)),
    )
    answer = client.post("/v1/segment", content=(tmp_path / "big.nii.gz").read_bytes())
    assert answer.status_code == 400
    assert "64000 voxels" in answer.json()["detail"]
