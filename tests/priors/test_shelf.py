from pathlib import Path

import pytest

from tutelage import priors
from tutelage.archive.synthetic import STRUCTURES
from tutelage.errors import SettingsError

TORSO = Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"


def test_the_torso_shelf_knows_every_structure_of_the_phantom() -> None:
    assert set(priors.read(TORSO)) == set(STRUCTURES)


def test_no_shelf_means_no_priors() -> None:
    assert priors.read(None) == {}


def test_every_problem_of_a_shelf_is_told_at_once(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf.yaml"
    shelf.write_text("source: me\nstructures:\n  liver: {volume_ml: [9, 3]}\n  spleen: {volume: [1, 2]}\n")
    with pytest.raises(SettingsError) as caught:
        priors.read(shelf)
    message = str(caught.value)
    assert "structures.liver.volume_ml" in message
    assert "write [3, 9]" in message
    assert "did you mean volume_ml" in message
