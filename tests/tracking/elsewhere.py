"""Segmenting where nothing of ours is installed, nor anything that a model does not ask for."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# -I and -S leave out this checkout, PYTHONPATH and the .pth file by which it is installed.
_PROGRAM = """
import json, sys
from importlib.machinery import PathFinder
libraries, told = sys.argv[1:]
with open(told) as file:
    told = json.load(file)

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)

absent = set(told["absent"])
sys.meta_path = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.append(libraries)
import importlib.util
assert importlib.util.find_spec("tutelage") is None
import mlflow, pandas
model = mlflow.pyfunc.load_model(told["uri"])
scans = pandas.DataFrame({"image": told["scans"]}) if told["scans"] else model.input_example
rows = model.predict(scans, params=told["params"])
import tutelage
print(json.dumps([rows.to_dict("records"), tutelage.__file__]))
"""

Rows = list[dict[str, str]]


def segmented(
    uri: str, required: Iterable[str], scans: list[str], folder: Path, *, tracking: str = "", **params: str
) -> tuple[Rows, Path]:
    """Load a model and call it, without scans with its own example; return rows and where its code lies."""
    program, told = folder / "program.py", folder / "told.json"
    program.write_text(_PROGRAM)
    told.write_text(
        json.dumps({"uri": uri, "scans": scans, "params": params, "absent": sorted(_absent(required))})
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    if tracking:
        environment["MLFLOW_TRACKING_URI"] = tracking
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(program), sysconfig.get_path("purelib"), str(told)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows, code = json.loads(done.stdout.splitlines()[-1])
    return rows, Path(code)


def _absent(required: Iterable[str]) -> set[str]:
    """Modules that are installed here but would not be by these requirements alone."""
    there = _closure(required)
    return {
        module
        for module, owners in packages_distributions().items()
        if not there & {canonicalize_name(owner) for owner in owners}
    }


def _closure(required: Iterable[str]) -> set[str]:
    """Names of packages that come with these."""
    known: set[str] = set()
    waiting = [Requirement(line) for line in required]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in known:
            continue
        known.add(name)
        try:
            needs = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # for another platform
            continue
        waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return known
