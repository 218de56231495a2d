"""What several rooms' tests share: a campaign that takes seconds, and one Ray for the session."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TINY = """
name: tiny
workspace: {workspace}
rounds: 1
archive:
  importer: synthetic
  synthetic: {{patients: 8, spacing: [18.0, 9.0, 9.0], styles: [ct]}}
  split: {{gold: 2, validation: 1, test: 1}}
generalist: {{name: threshold}}
curation: {{min_agreement: 0.3, partial_agreement: 0.1}}
specialist: {{channels: [8, 16, 16]}}
train: {{steps: 24, checkpoint_every: 8}}
evaluation: {{bootstrap: 20}}
tracking: {{enabled: false}}
"""


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[[str], Path]:
    """Write the YAML of a campaign of seconds; called with the name of its workspace."""

    def write(workspace: str = "workspace") -> Path:
        config = tmp_path / f"{workspace}.yaml"
        config.write_text(TINY.format(workspace=tmp_path / workspace))
        return config

    return write


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Have the one Ray of this test session."""
    from tutelage.cluster.session import session
    from tutelage.cluster.settings import ClusterSettings

    with session(ClusterSettings()):
        yield
