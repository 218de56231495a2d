"""`tutelage priors`, as a person or a program meets it, with a shelf in the model's place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.archive.synthetic import STRUCTURES
from tutelage.cli import main
from tutelage.priors import shelf
from tutelage.storage import Place

pytestmark = pytest.mark.files

TORSO = Path(__file__).parents[1] / "configs" / "priors" / "torso.yaml"

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tiny_config: Callable[[str], Path]) -> Call:
    """Ask with a tiny campaign; returns exit code, stdout and stderr."""
    config = tiny_config("ws")

    def called(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["priors", str(config), "priors.vectors.encoder=orthogonal", *map(str, arguments)])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return called


@pytest.fixture
def written(tmp_path: Path) -> Place:
    """Where the shelf is."""
    return Place.of(tmp_path / "ws" / "priors" / "shelf.yaml")


def test_a_shelf_for_review_is_written_and_shown(call: Call, written: Place) -> None:
    code, out, _ = call("--recorded", TORSO)
    assert code == 0
    assert all(name in out for name in STRUCTURES)
    assert str(written) in out
    assert set(shelf.opened(written).priors) == set(STRUCTURES)
    assert (written.parent / "vectors.parquet").exists()


def test_a_program_hears_it_as_json(call: Call, written: Place) -> None:
    code, out, _ = call("--recorded", TORSO, "--json", "--structure", "liver")
    told = json.loads(out)
    assert (code, told["exit_code"], told["refused"]) == (0, 0, [])
    assert set(told["priors"]) == {"liver"}
    assert told["shelf"] == str(written)
    assert (told["vectors"], told["no_vectors"]) == (str(written.parent / "vectors.parquet"), "")


def test_asked_again_nothing_is_asked_and_edits_stay(call: Call, written: Place) -> None:
    call("--recorded", TORSO)
    text = written.read_text()
    volume = next(line for line in text.splitlines() if "volume_ml: [" in line)
    written.write_text(text.replace(volume, "    volume_ml: [1, 2]", 1))
    _, out, _ = call("--recorded", TORSO, "--json")
    told = json.loads(out)
    assert (told["answered"], told["kept"]) == (0, len(STRUCTURES))
    first = shelf.opened(written).priors[STRUCTURES[0]]
    assert (first.volume_ml, first.edited) == ((1, 2), ("volume_ml",))


def test_what_the_recording_lacks_is_refused_and_the_rest_is_kept(
    call: Call, written: Place, tmp_path: Path
) -> None:
    (mine := tmp_path / "mine.yaml").write_text(
        "source: me\nstructures:\n  liver:\n    volume_ml: [1, 2]\n"
        "    text: {shape: a wedge, position: on the right, appearance: bright}\n"
    )
    code, out, _ = call("--recorded", mine)
    assert code == 3
    assert "spleen: everything: the recording has no spleen" in " ".join(out.split())
    assert set(shelf.opened(written).priors) == {"liver"}


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "found none"),
        (("--recorded", TORSO, "--endpoint", "http://localhost:1"), 2, "found more than one"),
        (("--recorded", "none.yaml"), 2, "does not exist"),
        (("--recorded", TORSO, "--structure", "heart"), 2, "the archive has no structure 'heart'"),
        (("--model", "none.gguf"), 2, "none.gguf does not exist"),
        (("--model", "nowhere"), 2, "nowhere does not exist"),
    ],
)
def test_nobody_to_ask_and_nothing_to_ask_about_are_told(
    call: Call, arguments: tuple[object, ...], code: int, told: str
) -> None:
    found, _, err = call(*arguments)
    assert found == code
    assert told in err
