"""A specialist's network in forms that run without this package: TorchScript and ONNX.

It decides how a network is written down and proves that what was written answers as the network
does, at two sizes; ONNX only where onnxruntime is installed, and else it warns. Both forms take
(B, C, D, H, W) at the plan's spacing, normalized as in `preprocess`, each side a multiple of the
plan's, and give logits: what a network sees and what becomes of its answer is told beside it, not
done by it. See `bundle` for a form that does.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.errors import MissingExtraError, TrainingError
from tutelage.specialist.artifact import describe, load
from tutelage.specialist.base import Specialist
from tutelage.specialist.plan import Plan
from tutelage.storage import Place

_log = logging.getLogger(__name__)

METADATA = "metadata.json"
"""Name of what is told beside a network within a TorchScript file, where MONAI looks for it."""

_TOLERANCE = {"TorchScript": 1e-5, "ONNX": 1e-3}
"""Of a difference, as a share of the largest logit if that is more than 1.

Another engine adds up in another order: 4e-5 was measured. What is written wrong is off by far more.
"""

_OPSET = 17
"""The first with everything that these networks are made of, so that old engines read it too."""


def torchscript(folder: Place, out: Place) -> dict[str, Any]:
    """Write a specialist as one TorchScript file and return what is told beside it.

    Raises:
        TrainingError: the folder holds no specialist, or what was written answers differently.
    """
    network, plan, _ = load(folder)
    told = about(folder, plan)
    traced = trace(network, plan)
    with out.writing() as stream, _silent():
        torch.jit.save(traced, stream, {METADATA: json.dumps(told).encode()})
    return told


def trace(network: Specialist, plan: Plan) -> Any:
    """Record a network as TorchScript.

    Raises:
        TrainingError: the record answers differently at another size.
    """
    with torch.no_grad(), _silent():
        traced = torch.jit.trace(network, next(_images(plan)), check_trace=False)  # type: ignore[no-untyped-call]
        for image_BCDHW in _images(plan):
            _compare("TorchScript", network(image_BCDHW), traced(image_BCDHW))
    return traced


def onnx(folder: Place, out: Place) -> dict[str, Any]:
    """Write a specialist as one ONNX file and return what is told beside it.

    Raises:
        MissingExtraError: the package onnx is not installed.
        TrainingError: the folder holds no specialist, or what was written answers differently.
    """
    package = _package()
    network, plan, _ = load(folder)
    told = about(folder, plan)
    model = graph(network, plan)
    package.helper.set_model_props(model, {name: json.dumps(value) for name, value in told.items()})
    out.write_bytes(model.SerializeToString())
    return told


def graph(network: Specialist, plan: Plan) -> Any:
    """Record a network as an ONNX model.

    Raises:
        MissingExtraError: the package onnx is not installed.
        TrainingError: the record answers differently.
    """
    package = _package()
    free = {0: "batch", 2: "D", 3: "H", 4: "W"}
    with tempfile.TemporaryDirectory() as near, torch.no_grad(), _silent():
        written = Path(near) / "network.onnx"
        # The newer exporter asks for a second package and takes ten times as long for the same graph.
        torch.onnx.export(
            network.requires_grad_(False),
            (next(_images(plan)),),
            written,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": free, "logits": free},
        )
        model = package.load(written)
    package.checker.check_model(model)
    _try(model, network, plan)
    return model


def _package() -> Any:
    try:
        import onnx as package
    except ImportError:
        raise MissingExtraError(
            "writing ONNX needs the package onnx, which is not installed; pip install 'tutelage[onnx]'"
        ) from None
    return package


def _try(model: Any, network: Specialist, plan: Plan) -> None:
    """Compare what an ONNX model answers with what its network does, if something here can run it."""
    try:
        import onnxruntime
    except ImportError:
        _log.warning(
            "onnxruntime is not installed, so nobody tried whether the ONNX file answers as the specialist "
            "does; pip install 'tutelage[onnx]' and export again to know"
        )
        return
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for image_BCDHW in _images(plan):
            [found] = session.run(None, {"image": image_BCDHW.numpy()})
            _compare("ONNX", network(image_BCDHW), torch.from_numpy(found))


def about(folder: Place, plan: Plan) -> dict[str, Any]:
    """Return what somebody must know to use a network without its plan."""
    described = describe(folder)
    return {
        "specialist": described["digest"],
        "plan_sha256": described["plan_sha256"],
        "version": described["version"],
        "axes": ["batch", "channel", "D (toward the head)", "H (toward the back)", "W (toward the left)"],
        "channels": plan.channels_in,
        "classes": ["background", *plan.structures],
        "spacing_DHW_mm": list(plan.spacing),
        "patch_DHW": list(plan.patch),
        "multiple_DHW": list(plan.multiple),
    }


def _images(plan: Plan) -> Iterator[Tensor]:
    """What a network may be shown: a patch, and two that are larger along every axis."""
    noise = torch.Generator().manual_seed(0)
    larger = [n + m for n, m in zip(plan.patch, plan.multiple, strict=True)]
    for count, shape in ((1, plan.patch), (2, larger)):
        yield torch.randn(count, plan.channels_in, *shape, generator=noise)


def _compare(form: str, expected: Tensor, found: Tensor) -> None:
    difference = float((expected - found).abs().max())
    allowed = _TOLERANCE[form] * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise TrainingError(
            f"as {form} the network's logits {tuple(expected.shape)} differ by {difference:.2g}, "
            f"expected at most {allowed:.2g}; use the specialist's own folder"
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Torch warns that both exporters are old, and of every number that a trace takes for fixed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
