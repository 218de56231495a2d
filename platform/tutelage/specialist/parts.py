"""What we take of MONAI, and not what MONAI takes along.

Whatever one imports of MONAI, all of it is imported, and with it what single parts of it can use
where it is installed: transformers, MLflow, TensorBoard, scikit-learn, plots. That is most of five
seconds of computing in every command and every worker that has a specialist, and nothing here uses it.
MONAI takes what is missing for not installed, so those packages look so to it, and to it alone: while it
is imported, in the thread that imports it. Whoever imports MONAI first has it whole.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_SPARED = frozenset(
    {"matplotlib", "mlflow", "pandas", "sklearn", "tensorboard", "tensorboardX", "transformers"}
)


class _Missing(MetaPathFinder):
    """Says of some packages that they are not installed, to one thread."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if threading.get_ident() == self._thread and name.partition(".")[0] in _SPARED:
            raise ModuleNotFoundError(f"{name} is spared while MONAI is imported", name=name)
        return None


@contextlib.contextmanager
def _sparing() -> Iterator[None]:
    missing = _Missing()
    sys.meta_path.insert(0, missing)
    try:
        yield
    finally:
        sys.meta_path.remove(missing)


with _sparing():
    from monai.data.utils import compute_importance_map
    from monai.networks.blocks import Convolution
    from monai.networks.blocks.dynunet_block import UnetResBlock
    from monai.networks.nets import UNet

__all__ = ["Convolution", "UNet", "UnetResBlock", "compute_importance_map"]
