"""Networks in forms that run without this package give what they gave."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tutelage.archive import formats
from tutelage.errors import MissingExtraError, SettingsError, TrainingError
from tutelage.geometry import Grid
from tutelage.specialist import artifact, export
from tutelage.specialist.artifact import load
from tutelage.specialist.base import Specialist
from tutelage.specialist.bundle import bundle
from tutelage.specialist.network import NETWORKS, build
from tutelage.specialist.plan import Plan, TextPlan, make_plan
from tutelage.specialist.predictor import Predictor
from tutelage.specialist.preprocess import prepare
from tutelage.specialist.settings import SpecialistSettings
from tutelage.storage import Place

pytestmark = pytest.mark.torch

TEXTS = {
    "none": None,
    "bottleneck": TextPlan(kind="bottleneck", topics=2, width=8),
    "head": TextPlan(kind="head", topics=2, width=8),
}


def planned(network: str = "unet", text: str = "none") -> Plan:
    grid = Grid.from_spacing((8, 32, 24), (2.0, 1.0, 1.0))
    plan = make_plan([grid], ["a", "b"], 1, SpecialistSettings(channels=(4, 8, 8)))
    return plan.model_copy(update={"network": network, "text": TEXTS[text]})


def taught(plan: Plan) -> Specialist:
    """A network whose text says something: fresh ones hold zeros, which hide a text that is lost."""
    torch.manual_seed(0)
    network = build(plan).eval()
    for name, tensor in network.state_dict().items():
        if "texts" in name or "scale.weight" in name or "shift.weight" in name:
            tensor.normal_(std=0.5)
    return network


def images(plan: Plan) -> list[Tensor]:
    """Of the patch, and of another size, several at once."""
    noise = torch.Generator().manual_seed(1)
    larger = [n + 2 * m for n, m in zip(plan.patch, plan.multiple, strict=True)]
    return [torch.randn(count, 1, *shape, generator=noise) for count, shape in ((1, plan.patch), (3, larger))]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_torchscript_answers_as_the_network_at_any_size(network: str, text: str) -> None:
    plan = planned(network, text)
    made = taught(plan)
    traced = export.trace(made, plan)
    with torch.no_grad():
        for image in images(plan):
            assert (traced(image) - made(image)).abs().max() <= 1e-5


class Fickle(nn.Module):
    """Goes by the size of what it sees, which a trace cannot."""

    def forward(self, image_BCDHW: Tensor) -> Tensor:
        return image_BCDHW * float(image_BCDHW.shape[2])


def test_a_network_that_a_trace_does_not_catch_is_refused() -> None:
    with pytest.raises(TrainingError, match="as TorchScript the network's logits"):
        export.trace(Fickle(), planned())  # type: ignore[arg-type]


def test_a_torchscript_file_says_what_it_is(tiny_specialist: Path, tmp_path: Path) -> None:
    told = export.torchscript(Place.of(tiny_specialist), Place.of(tmp_path / "network.ts"))
    inside = {export.METADATA: ""}
    loaded = torch.jit.load(str(tmp_path / "network.ts"), _extra_files=inside)  # type: ignore[no-untyped-call]
    network, plan, digest = load(Place.of(tiny_specialist))
    assert json.loads(inside[export.METADATA]) == told
    assert (told["specialist"], told["classes"]) == (digest, ["background", "liver", "spleen"])
    with torch.no_grad():
        for image in images(plan):
            assert (loaded(image) - network(image)).abs().max() <= 1e-5


def test_without_onnx_it_is_named(
    tiny_specialist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tutelage\[onnx\]'"):
        export.onnx(Place.of(tiny_specialist), Place.of(tmp_path / "network.onnx"))
    assert not list(tmp_path.iterdir())


def test_onnx_answers_as_the_network_at_any_size(tiny_specialist: Path, tmp_path: Path) -> None:
    told = export.onnx(Place.of(tiny_specialist), Place.of(tmp_path / "network.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(value) for name, value in properties.items()} == told
    network, plan, _ = load(Place.of(tiny_specialist))
    for image in images(plan):
        with torch.no_grad():
            expected = network(image).numpy()
        [found] = session.run(None, {"image": image.numpy()})
        assert np.abs(found - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_answers_the_same_as_onnx(network: str) -> None:
    """With text in its head: `graph` refuses what answers differently."""
    plan = planned(network, "head")
    assert export.graph(taught(plan), plan).graph.input[0].name == "image"


def test_a_network_that_onnx_does_not_catch_is_refused() -> None:
    with pytest.raises(TrainingError, match="as ONNX the network's logits"):
        export.graph(Fickle(), planned())  # type: ignore[arg-type]


def test_what_nobody_could_try_is_written_with_a_warning(
    tiny_specialist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.WARNING, logger="tutelage"):
        export.onnx(Place.of(tiny_specialist), Place.of(tmp_path / "network.onnx"))
    assert (tmp_path / "network.onnx").exists()
    assert "nobody tried whether the ONNX file answers" in caplog.text


def blobs(shape: tuple[int, int, int]) -> Any:
    """A scan of smooth hills, the same at every spacing."""
    d, h, w = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) / n for n in shape), indexing="ij")
    return 100 * np.sin(6 * d) * np.cos(9 * h) + 50 * np.sin(9 * w + 6 * d)


@pytest.fixture(scope="module")
def trained(tiny_specialist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A specialist that tells hills from valleys: an untrained one is unsure everywhere."""
    network, plan, _ = load(Place.of(tiny_specialist))
    image = blobs(plan.patch)
    label = torch.from_numpy((image > -20).astype(np.int64) + (image > 40))[None]
    normal = torch.from_numpy(prepare(image[None], Grid.from_spacing(plan.patch, plan.spacing), plan))[None]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(normal), label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained")
    artifact.save(Place.of(folder), network.state_dict(), plan, {})
    return folder


@pytest.fixture(scope="module")
def bundled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundled") / "bundle"
    bundle(Place.of(trained), Place.of(folder))
    return folder


def parser(folder: Path, **overrides: Any) -> Any:
    """A bundle's configuration as MONAI reads it."""
    from monai.bundle import ConfigParser

    read = ConfigParser()
    read.read_config(str(folder / "configs" / "inference.json"))
    read.read_meta(str(folder / "configs" / "metadata.json"))
    read.update({"bundle_root": str(folder), **overrides})
    return read


def test_monai_finds_in_a_bundle_all_that_it_asks_for(bundled: Path) -> None:
    from monai.bundle import verify_net_in_out
    from monai.bundle.properties import InferProperties, MetaProperties
    from monai.utils.enums import BundleProperty, BundlePropertyConfig

    read = parser(bundled)
    for properties in (InferProperties, MetaProperties):
        for name, told in properties.items():
            if told[BundleProperty.REQUIRED]:
                assert read.get(told[BundlePropertyConfig.ID]) is not None, name
    configs = bundled / "configs"
    for n in (4, 8):
        verify_net_in_out(
            "network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.json"),
            device="cpu",
            n=n,
            bundle_root=str(bundled),
        )


def test_a_bundles_network_is_the_specialists(bundled: Path, trained: Path) -> None:
    network, plan, _ = load(Place.of(trained))
    theirs = parser(bundled).get_parsed_content("network_def")
    state = torch.load(bundled / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        for image in images(plan):
            assert (theirs(image) - network(image)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("shape", "spacing", "least"),
    [((12, 32, 40), (18.0, 9.0, 9.0), 1.0), ((15, 37, 46), (14.4, 7.8, 7.8), 0.97)],
    ids=["as the specialist looks", "finer"],
)
def test_a_bundle_segments_a_scan_as_predict_does(
    bundled: Path,
    trained: Path,
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    least: float,
) -> None:
    scan = tmp_path / "scan.nii.gz"
    formats.write_image(scan, blobs(shape), Grid.from_spacing(shape, spacing))
    read = parser(bundled, output_dir=str(tmp_path / "masks"))
    before, look, after = (
        read.get_parsed_content(name) for name in ("preprocessing", "inferer", "postprocessing")
    )
    told = before({"image": str(scan)})
    with torch.no_grad():
        told["pred"] = look(told["image"][None], read.get_parsed_content("network_def"))[0]
    after(told)
    volume, predictor = formats.read_image(scan), Predictor(str(trained))
    predictor.dtype = torch.float32
    ours = predictor.mask(volume.image_CDHW, volume.grid)
    theirs = formats.read_label(tmp_path / "masks" / "scan_mask.nii.gz", volume.grid, 2)
    assert np.bincount(ours.ravel(), minlength=3).min() > 0.1 * ours.size
    assert (ours == theirs).mean() >= least


def test_a_bundle_never_mixes_with_what_is_there(bundled: Path, tiny_specialist: Path) -> None:
    with pytest.raises(SettingsError, match="exists already, expected a new folder"):
        bundle(Place.of(tiny_specialist), Place.of(bundled))
