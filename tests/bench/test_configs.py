"""Settings that come with the checkout: every campaign can be used as it stands, and names what is there."""

from pathlib import Path
from typing import get_args

import pytest

from tutelage import priors
from tutelage.archive.synthetic import STRUCTURES
from tutelage.bench import sets
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

ROOT = Path(__file__).parents[2]
CAMPAIGNS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if "archive:" in path.read_text()]
METHODS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
SHELVES = sorted((ROOT / "configs" / "priors").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a campaign start where a person stands: at the top of the checkout."""
    monkeypatch.chdir(ROOT)


def test_the_four_papers_and_ours_have_a_campaign() -> None:
    wanted = {"llm_segnet", "tak", "knowledge_mining", "semisam_plus", "tutelage"}
    assert {path.stem for path in METHODS} >= wanted
    assert wanted <= set(get_args(MethodName))


@pytest.mark.parametrize("path", [*METHODS, *CAMPAIGNS], ids=lambda path: path.stem)
def test_a_campaign_can_be_used_as_it_stands(path: Path) -> None:
    """But for scans that a person has to fetch first."""
    settings = load(path, RunSettings, elsewhere=True)
    assert not [where for where, _ in settings.problems() if where != "archive.root"]
    assert settings.workspace == f"runs/{path.stem}"
    if settings.priors.shelf:
        assert Path(settings.priors.shelf).exists()


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_runs_by_its_own_name_on_made_up_patients(path: Path) -> None:
    settings = load(path, RunSettings)
    assert settings.train.method == path.stem
    assert settings.archive.importer == "synthetic"
    assert settings.rounds >= 1
    if NEEDS[settings.train.method].text:
        known = priors.read(Path(settings.priors.shelf or ""))
        assert all({"shape", "position"} <= set(known[name].text) for name in STRUCTURES)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_says_what_is_published_and_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert f"tutelage run configs/methods/{path.name}" in text
    assert "Published" in text or path.stem == "tutelage"


@pytest.mark.parametrize("one", sets.SETS.values(), ids=lambda one: one.name)
def test_every_set_has_a_shelf_about_its_structures(one: sets.Set) -> None:
    shelf = sets.shelf(one.settings["priors"]["shelf"])
    assert shelf is not None
    known = priors.read(Path(shelf))
    for name in one.structures or STRUCTURES:
        low, high = known[name].volume_ml
        assert 0 < low < high / 2, "ranges are wide: they refuse the impossible, not the unusual"
        assert all(len(known[name].text[topic]) > 10 for topic in ("shape", "position"))


@pytest.mark.parametrize("path", SHELVES, ids=lambda path: path.stem)
def test_a_shelf_says_who_wrote_it(path: Path) -> None:
    assert {prior.source for prior in priors.read(path).values()} != {"unknown"}
