"""The vote of cases that look alike, in a campaign: who votes, once, the same after a kill, and on record."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tutelage.casework.voting import Voter
from tutelage.labels import arrays
from tutelage.labels.rows import Row, Rows
from tutelage.records import Case, Ruling
from tutelage.rounds import recounting
from tutelage.rounds.campaign import opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import step
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.training import believed_cases
from tutelage.rounds.voting import electorate
from tutelage.rounds.workspace import LABELS_ONLY
from tutelage.settings import load

VOTES = (
    *("curation.neighbours.enabled=true", "curation.neighbours.least=1"),
    *("curation.neighbours.count=2", "curation.min_agreement=0.35", "curation.partial_agreement=0.34"),
)
"""Agreement that some answers have and some have not."""


def row(case: str, *accepted: str, rejected: Sequence[str] = ()) -> Row:
    verdicts = [{"structure": name, "ruling": "accept", "features": {}} for name in accepted]
    verdicts += [{"structure": name, "ruling": "reject", "features": {}} for name in rejected]
    return {"case": case, "of": f"answer {case}", "verdicts": verdicts}


def test_those_vote_whose_answer_was_accepted() -> None:
    rows = [row("a", "liver"), row("b", "liver", "spleen"), row("c", rejected=["liver"]), {"case": "d"}]
    assert electorate(rows, 10) == {
        "liver": {"a": "answer a", "b": "answer b"},
        "spleen": {"b": "answer b"},
    }


def test_of_many_the_same_ones_vote_whatever_else_there_is() -> None:
    rows = [row(str(number), "liver", "spleen") for number in range(100)]
    few = electorate(rows, 5)
    assert [len(of) for of in few.values()] == [5, 5]
    assert few["liver"] == few["spleen"] == electorate(rows[::-1], 5)["liver"]
    others = [one for one in rows if one["case"] not in few["liver"]]
    assert not electorate(others, 5)["liver"].keys() & few["liver"].keys()


def curated(config: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    settings, told = load(config, RunSettings, (*VOTES, *more)), Reporter(Console(quiet=True))
    step(settings, told, "train", LABELS_ONLY)
    step(settings, told, "label", 0)
    step(settings, told, "curate", 0)
    with opened(settings, told) as campaign:
        stage = campaign.workspace.stage(0)
        rows = {one["case"]: one for one in Rows(stage / "curate.rows").read()}
        found = list(
            recounting.rows(campaign.workspace, recounting.Wanted(round=0), ("case", "structure", "ruling"))
        )
        labels = {case: arrays.read_label(stage / "labels", case) for case in rows}
        believed = {one.case for one in believed_cases(campaign, stage)}
    return {"rows": rows, "ledger": found, "labels": labels, "believed": believed}


def voted(rows: dict[str, Row]) -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (case, value, verdict)
        for case, one in rows.items()
        for value, verdict in enumerate(one["verdicts"], start=1)
        if "neighbours" in verdict["features"]
    ]


@pytest.mark.torch
def test_a_vote_is_half_believed_once_and_the_same_after_a_kill(
    tiny_config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = curated(tiny_config("plain"), ["curation.neighbours.enabled=false"])
    assert not voted(plain["rows"])
    whole = curated(tiny_config("whole"))
    found = voted(whole["rows"])
    assert found, "the tiny archive has a rejected structure that others have"
    for case, value, verdict in found:
        label = whole["labels"][case]
        assert (verdict["ruling"], verdict["weight"]) == (Ruling.PARTIAL.value, 0.3)
        assert (label.mask_DHW == value).any()
        assert set(label.weight_DHW[label.mask_DHW == value].tolist()) == {round(255 * 0.3)}
        before = plain["labels"][case].mask_DHW
        np.testing.assert_array_equal(label.mask_DHW[before > 0], before[before > 0])
        assert case in whole["believed"]
    told = {(one["case"], one["structure"]): one["ruling"] for one in whole["ledger"]}
    assert all(told[case, verdict["structure"]] == "partial" for case, _, verdict in found)

    done: list[str] = []
    vote = Voter.work

    def killed(self: Voter, case: Case) -> Row:
        if done:
            raise KeyboardInterrupt
        done.append(case.case)
        return vote(self, case)

    monkeypatch.setattr(Voter, "work", killed)
    with pytest.raises(KeyboardInterrupt):
        curated(tiny_config("killed"))

    def counted(self: Voter, case: Case) -> Row:
        done.append(case.case)
        return vote(self, case)

    monkeypatch.setattr(Voter, "work", counted)
    again = curated(tiny_config("killed"))
    assert len(done) == len(set(done)), "nobody is voted on twice"
    assert again["rows"] == whole["rows"]
    assert again["ledger"] == whole["ledger"]
    for case, label in whole["labels"].items():
        np.testing.assert_array_equal(again["labels"][case].mask_DHW, label.mask_DHW)
        np.testing.assert_array_equal(again["labels"][case].weight_DHW, label.weight_DHW)
    done.clear()
    curated(tiny_config("killed"))
    assert not done
