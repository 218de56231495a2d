"""When no further round begins, and what has one begin after all."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.evaluation.settings import PromotionSettings
from tutelage.rounds.stopping import why
from tutelage.rounds.workspace import Workspace, stage_name
from tutelage.storage import Place


def campaign(folder: Path, decisions: str, patience: int = 2, corrected: int | None = None) -> Any:
    """Make a campaign whose stages, from labels-only on, were (p)romoted or (h)eld."""
    for number, decision in enumerate(decisions, start=-1):
        stage = folder / "rounds" / stage_name(number)
        stage.mkdir(parents=True)
        told = {"outputs": {"decision": {"p": "promote", "h": "hold"}[decision]}}
        (stage / "promote.manifest.json").write_text(json.dumps(told))
    settings = SimpleNamespace(promotion=PromotionSettings(patience=patience))
    corrections = None if corrected is None else SimpleNamespace(last_stage=corrected)
    return SimpleNamespace(workspace=Workspace(Place.of(folder)), settings=settings, corrections=corrections)


@pytest.mark.parametrize(
    ("decisions", "patience", "following", "stops"),
    [
        ("phh", 2, 2, True),
        ("ph", 2, 1, False),
        ("ph", 1, 1, True),
        ("phph", 2, 3, False),
        ("phphh", 2, 4, True),
        ("phhhh", 0, 4, False),
        ("h", 1, 0, False),
        ("p", 1, 0, False),
        ("hhh", 3, 2, False),
    ],
    ids=[
        "two in a row",
        "one of two",
        "one is enough",
        "one after a champion",
        "two after a champion",
        "endless patience",
        "labels alone are no round",
        "the first round",
        "labels alone do not count",
    ],
)
def test_rounds_in_a_row_without_a_champion_end_a_campaign(
    tmp_path: Path, decisions: str, patience: int, following: int, stops: bool
) -> None:
    assert bool(why(campaign(tmp_path, decisions, patience), following)) is stops


def test_it_says_which_rounds_and_which_setting(tmp_path: Path) -> None:
    told = why(campaign(tmp_path, "phhh", 3), 3)
    assert told == "r00, r01 and r02 brought no new champion, and promotion.patience is 3"


def test_what_people_corrected_is_learned_from_however_little_rounds_bring(tmp_path: Path) -> None:
    told = campaign(tmp_path, "phh", corrected=2)
    assert why(told, 2) is None
    assert why(campaign(tmp_path / "other", "phhh", corrected=2), 3) is not None


def test_a_round_that_was_finished_before_is_kept_up_to_date(tmp_path: Path) -> None:
    assert why(campaign(tmp_path, "phhh"), 2) is None
