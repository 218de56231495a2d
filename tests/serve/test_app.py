"""The application on a real Ray Serve, asked over HTTP."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.geometry import Grid

pytestmark = [pytest.mark.ray, pytest.mark.torch]

GRID = Grid.from_spacing((10, 24, 20), (18.0, 9.0, 9.0))


@pytest.fixture(scope="module")
def address(local_ray: None, tiny_specialist: Path) -> Iterator[str]:
    from ray import serve

    from tutelage.cluster.serving import ServeJob, served
    from tutelage.cluster.settings import ClusterSettings

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = ServeJob(str(tiny_specialist), "127.0.0.1", port, replicas=1, max_bytes=10**5, max_voxels=2**20)
    with served(job, ClusterSettings()) as address:
        yield address
    serve.shutdown()  # type: ignore[no-untyped-call]


def test_a_scan_comes_back_as_the_mask_that_predict_writes(
    address: str, tiny_specialist: Path, tmp_path: Path
) -> None:
    from tutelage.casework.predicting import orders, predict
    from tutelage.specialist.predictor import Predictor

    noise = np.random.default_rng(0).integers(0, 255, GRID.shape).astype(np.uint8)
    image = tmp_path / "a.nii.gz"
    formats.write_image(str(image), noise, GRID)
    (done,) = predict(Predictor(str(tiny_specialist)), orders(image, tmp_path / "out"), 2**20)
    with urlopen(Request(f"{address}/v1/segment", data=image.read_bytes()), timeout=120) as answer:
        assert done.mask is not None
        assert answer.read() == Path(done.mask).read_bytes()


def test_a_bad_upload_is_told_and_the_next_one_is_answered(address: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{address}/v1/segment", data=b"hello"), timeout=120)
    assert refused.value.code == 415
    assert json.load(refused.value)["type"] == "urn:tutelage:unknown-format"
    with urlopen(f"{address}/health", timeout=120) as answer:
        assert json.load(answer)["status"] == "ok"


def test_a_taken_port_is_refused_before_anything_starts(address: str) -> None:
    from tutelage.cluster.serving import check_port
    from tutelage.errors import SettingsError

    host, port = address.removeprefix("http://").split(":")
    with pytest.raises(SettingsError, match="choose another --port"):
        check_port(host, int(port))
