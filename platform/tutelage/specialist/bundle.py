"""A specialist as a MONAI Bundle: a folder that `monai.bundle`, and what is built on it, runs by itself.

It decides how what `preprocess` and `predictor` do is said in MONAI's transforms: the same axes,
intensities, spacing, windows and way back. Where spacing changes MONAI aligns the middles of
voxels, so masks agree but for borders. The network is TorchScript; its weights lie beside it for
whoever wants to go on.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from tutelage.archive.volume import FRAME
from tutelage.errors import SettingsError
from tutelage.specialist.artifact import WEIGHTS
from tutelage.specialist.export import torchscript
from tutelage.specialist.preprocess import PERCENTILES
from tutelage.specialist.windows import OVERLAP, SIGMA
from tutelage.storage import Place

Settings = dict[str, Any]

_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)

_IGNITE = "0.5.4"
"""Of pytorch-ignite, on which MONAI's evaluator runs; this package has no use for it."""

_README = """\
# Specialist {specialist}

Segments {classes}. Exported by tutelage {version}.

    pip install monai nibabel pytorch-ignite fire
    cd THIS_FOLDER
    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
      --bundle_root . --dataset_dir SCANS --output_dir MASKS

`models/model.ts` is the network: logits for an image at {spacing_DHW_mm} mm, axes D (toward the head),
H (toward the back), W (toward the left), each side a multiple of {multiple_DHW}. `models/model.pt`
holds its weights by name.
"""


def bundle(folder: Place, out: Place) -> Settings:
    """Write a specialist as a bundle's folder and return what is told beside its network.

    Raises:
        SettingsError: there is something already.
        TrainingError: the folder holds no specialist, or as TorchScript it answers differently.
    """
    if out.exists():
        raise SettingsError(f"{out} exists already, expected a new folder for the bundle; name another")
    told = torchscript(folder, out / "models" / "model.ts")
    (out / "models" / "model.pt").write_bytes((folder / WEIGHTS).read_bytes())
    for name, content in (("inference", inference(told)), ("metadata", metadata(told))):
        (out / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    readable = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in told.items()}
    (out / "docs" / "README.md").write_text(_README.format(**readable))
    return told


def metadata(told: Mapping[str, Any]) -> Settings:
    """Return the file that says what a bundle is, after MONAI's specification."""
    classes = told["classes"]
    form = {"type": "image", "dtype": "float32", "is_patch_data": True, "value_range": []}
    shape = [f"{multiple}*n" for multiple in told["multiple_DHW"]]
    image = form | {
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": told["channels"],
        "spatial_shape": shape,
        "channel_def": {str(n): "image" for n in range(told["channels"])},
    }
    pred = form | {
        "format": "segmentation",
        "num_channels": len(classes),
        "spatial_shape": shape,
        "channel_def": {str(value): name for value, name in enumerate(classes)},
    }
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {"nibabel": _version("nibabel"), "pytorch-ignite": _IGNITE},
        "name": f"specialist-{told['specialist']}",
        "task": f"Segmentation of {', '.join(classes[1:])}",
        "description": f"Specialist {told['specialist']}, trained by tutelage {told['version']}.",
        "authors": "not told",
        "copyright": "not told",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def inference(told: Mapping[str, Any]) -> Settings:
    """Return the file that says how a bundle segments a folder of scans."""
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/masks'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "datalist": "$[{'image': name} for name in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts', map_location='cpu')",
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _before(told)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": told["patch_DHW"],
            "overlap": OVERLAP,
            "mode": "gaussian",
            "sigma_scale": SIGMA,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after()},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def _before(told: Mapping[str, Any]) -> list[Settings]:
    """From a file to what the network sees."""
    low, high = PERCENTILES
    clipped: Settings = {"lower": low, "upper": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    return [
        _step("LoadImaged", ensure_channel_first=True),
        _step("Orientationd", axcodes="".join(FRAME), labels=[["L", "R"], ["P", "A"], ["I", "S"]]),
        _step("ScaleIntensityRangePercentilesd", channel_wise=True, **clipped),
        _step("NormalizeIntensityd", channel_wise=True),
        _step("Spacingd", pixdim=told["spacing_DHW_mm"], mode="bilinear"),
        _step("SpatialPadd", spatial_size=told["patch_DHW"], method="end", mode="minimum"),
    ]


def _after() -> list[Settings]:
    """From logits to a mask on the scan's own grid."""
    return [
        _step("Activationsd", keys="pred", softmax=True),
        _step(
            "Invertd",
            keys="pred",
            transform="@preprocessing",
            orig_keys="image",
            nearest_interp=False,
            to_tensor=True,
        ),
        _step("AsDiscreted", keys="pred", argmax=True),
        _step(
            "SaveImaged",
            keys="pred",
            output_dir="@output_dir",
            output_postfix="mask",
            output_dtype="uint8",
            separate_folder=False,
        ),
    ]


def _step(name: str, keys: str = "image", **settings: Any) -> Settings:
    return {"_target_": name, "keys": keys, **settings}


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]
