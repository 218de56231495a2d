"""`tutelage ledger`, `review` and `rollback`, as a person or a program meets them."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., tuple[int, str, str]]

COMMANDS = [
    *(("ledger", name) for name in ("show", "diff", "trace")),
    *(("review", name) for name in ("list", "export", "import")),
    ("rollback",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(call: Call, command: tuple[str, ...]) -> None:
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert f"Example: tutelage {' '.join(command)}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ledger", "diff", "{}", "first", "r01"], "'first' is no round, expected r00"),
        (["ledger", "show", "{}", "--round", "x"], "'x' is no round"),
        (["ledger", "show", "{}", "--json", "--csv"], "choose one"),
        (["rollback", "{}"], "name a round to go back to"),
        (["rollback", "{}", "r00", "--undo", "001"], "name a round to go back to"),
    ],
)
def test_a_command_line_that_makes_no_sense_exits_2(
    call: Call, tiny_config: Callable[[str], Path], arguments: list[str], told: str
) -> None:
    config = tiny_config("ws")
    code, out, err = call(*(str(config) if word == "{}" else word for word in arguments))
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize("command", [["ledger", "show"], ["ledger", "trace"], ["review", "list"]])
def test_a_workspace_that_is_not_there_yet_is_told_without_a_traceback(
    call: Call, tiny_config: Callable[[str], Path], command: list[str]
) -> None:
    more = ["patient_000"] if command[1] == "trace" else []
    code, _, err = call(*command, tiny_config("none"), *more)
    assert code == 1
    assert "does not exist, expected a catalog" in err or "no ledger yet" in err
    assert "Traceback" not in err


# --- with a campaign ----------------------------------------------------------------------


@pytest.mark.torch
def test_rows_come_as_json_as_csv_and_as_a_table_and_are_the_same(call: Call, tiny_campaign: Path) -> None:
    which = ("--structure", "liver", "--round", "0")
    code, out, err = call("ledger", "show", tiny_campaign, *which, "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["count"] == len(told["rows"]) == 4
    _, out, _ = call("ledger", "show", tiny_campaign, *which, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["case"] for row in rows] == [row["case"] for row in told["rows"]]
    assert json.loads(rows[0]["reasons"]) == told["rows"][0]["reasons"]
    _, out, _ = call("ledger", "show", tiny_campaign, *which, "--limit", "3")
    assert "4 rows, 1 of them not shown" in out


@pytest.mark.torch
def test_nothing_found_is_an_empty_answer_in_every_form(call: Call, tiny_campaign: Path) -> None:
    which = ("--verdict", "corrected")
    assert json.loads(call("ledger", "show", tiny_campaign, *which, "--json")[1]) == {"rows": [], "count": 0}
    assert call("ledger", "show", tiny_campaign, *which, "--csv")[:2] == (0, "")
    assert "0 rows" in call("ledger", "show", tiny_campaign, *which)[1]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("which", "code", "told"),
    [
        (("--structure", "heart"), 2, "the archive has liver, spleen"),
        (("--verdict", "good"), 2, "expected one of accept"),
        (("--case", "nobody"), 1, "knows no case 'nobody'"),
        (("--round", "5"), 1, "no r05, it has r00"),
    ],
)
def test_names_that_nothing_has_are_refused(
    call: Call, tiny_campaign: Path, which: tuple[str, str], code: int, told: str
) -> None:
    got, _, err = call("ledger", "show", tiny_campaign, *which)
    assert got == code
    assert told in err


@pytest.mark.torch
def test_a_round_differs_in_nothing_from_itself(call: Call, tiny_campaign: Path) -> None:
    code, out, _ = call("ledger", "diff", tiny_campaign, "r00", "r00", "--json")
    assert code == 0
    assert json.loads(out)["counts"] == {"same": 40}
    assert call("ledger", "diff", tiny_campaign, "r00", "r00", "--csv")[1] == ""


@pytest.mark.torch
def test_a_story_names_who_asked_who_answered_and_who_learned(call: Call, tiny_campaign: Path) -> None:
    _, out, _ = call("ledger", "show", tiny_campaign, "--verdict", "accept", "--json")
    row = json.loads(out)["rows"][0]
    code, out, err = call("ledger", "trace", tiny_campaign, row["case"], "--json")
    story = json.loads(out)
    assert code == 0
    assert story["asked"][0]["prompted_by"] == "labels-only"
    assert story["asked"][0]["specialist"] == story["learned"][0]["specialist"] == row["specialist"]
    assert story["learned"][0]["saw"] == "nothing"
    assert story["learned"][1]["saw"] == "its pseudo-label"
    assert story["learned"][1]["label"] == row["label"]
    assert row["structure"] in story["learned"][1]["structures"]
    assert sum(learned["champion"] for learned in story["learned"]) == 1
    for told in (row["image"], row["generalist"], row["label"], "who learned from it"):
        assert told in err


@pytest.mark.torch
def test_a_label_that_was_made_anew_is_not_said_to_have_been_learned_from(
    call: Call, tiny_campaign: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "ws")
    manifest = tmp_path / "ws/rounds/r00/curate.manifest.json"
    told = json.loads(manifest.read_text())
    told["outputs"]["labels"] = "another digest"
    manifest.write_text(json.dumps(told))
    row = json.loads(call("ledger", "show", tiny_campaign, "--verdict", "accept", "--json")[1])["rows"][0]
    here = f"workspace={tmp_path}/ws"
    story = json.loads(call("ledger", "trace", tiny_campaign, row["case"], here, "--json")[1])
    assert "made anew since" in story["learned"][1]["saw"]
    assert story["learned"][1]["label"] is None


@pytest.mark.torch
def test_a_story_says_whose_weights_a_training_started_from(
    call: Call, tiny_campaign: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "ws")
    here, case = f"workspace={tmp_path}/ws", "patient_000"
    learn = [here, "archive.rescan=false", "train.method=knowledge_mining", "train.steps=2"]
    assert call("train", tiny_campaign, "--round", "0", *learn)[0] == 0
    _, out, err = call("ledger", "trace", tiny_campaign, case, here, "--json")
    first, second = json.loads(out)["learned"]
    assert (first["start"], first["start_stage"]) == (None, None)
    assert (second["start"], second["start_stage"]) == (first["specialist"], "labels-only")
    assert f"knowledge_mining, started from labels-only's weights {first['specialist']}" in err
    manifest = tmp_path / "ws/rounds/labels-only/train.manifest.json"
    manifest.write_text(manifest.read_text().replace(first["specialist"], "another"))
    _, out, err = call("ledger", "trace", tiny_campaign, case, here, "--json")
    assert json.loads(out)["learned"][1]["start_stage"] is None
    assert "started from weights made anew since, " in err


@pytest.mark.torch
@pytest.mark.parametrize("role", ["gold", "validation", "test"])
def test_a_story_of_a_case_that_nobody_asked_about_says_what_it_is_for(
    call: Call, tiny_campaign: Path, role: str
) -> None:
    from tutelage.archive.catalog import load
    from tutelage.records import Role
    from tutelage.storage import Place

    catalog = load(Place.of(tiny_campaign.parent / "workspace" / "catalog"))
    story = json.loads(call("ledger", "trace", tiny_campaign, catalog.of(Role(role))[0].case, "--json")[1])
    assert story["asked"] == []
    saw = story["learned"][-1]["saw"]
    assert saw.startswith("its label by people" if role == "gold" else f"nothing: it is for {role}")


@pytest.mark.torch
def test_cases_are_listed_handed_out_and_taken_in(call: Call, tiny_campaign: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "ws")
    here, out_ = f"workspace={tmp_path}/ws", tmp_path / "out"
    code, out, _ = call("review", "list", tiny_campaign, here, "--count", "2", "--json")
    listed = [case["gain"]["case"] for case in json.loads(out)["cases"]]
    assert (code, len(listed)) == (0, 2)
    code, out, _ = call("review", "export", tiny_campaign, here, "--count", "2", "--out", out_, "--json")
    assert (code, json.loads(out)["cases"]) == (0, listed)
    code, out, _ = call("review", "import", tiny_campaign, here, "--from", out_, "--by", "Ada", "--json")
    assert (code, json.loads(out)["waiting"]) == (0, listed)
    shutil.copy(out_ / f"labels/original/{listed[0]}.nii.gz", out_ / "labels/final")
    (out_ / f"labels/final/{listed[1]}.nii.gz").write_text("nothing")
    code, out, err = call("review", "import", tiny_campaign, here, "--from", out_, "--by", "Ada", "--json")
    told = json.loads(out)
    assert code == 3
    assert [(one["case"], one["by"], one["changed"]) for one in told["taken"]] == [(listed[0], "Ada", [])]
    assert "annotated by Ada from r01 on" in err
    (out_ / f"labels/final/{listed[0]}.nii.gz").unlink()
    assert call("review", "import", tiny_campaign, here, "--from", out_, "--by", "Ada")[0] == 2


@pytest.mark.torch
def test_a_campaign_goes_back_and_says_how_to_undo_it(
    call: Call, tiny_campaign: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "ws")
    here = f"workspace={tmp_path}/ws"
    code, out, _ = call("rollback", tiny_campaign, "labels-only", here, "--dry-run")
    assert code == 0
    assert "would have been set aside" in out
    assert (tmp_path / "ws/rounds/r00").exists()
    code, out, _ = call("rollback", tiny_campaign, "labels-only", here)
    assert code == 0
    assert f"rollback {tiny_campaign} --undo 001" in out
    assert not (tmp_path / "ws/rounds/r00").exists()
    assert json.loads((tmp_path / "ws/champion.json").read_text())["stage"] == "labels-only"
    code, out, _ = call("rollback", tiny_campaign, here, "--undo", "001", "--json")
    assert (code, json.loads(out)["stages"]) == (0, ["r00"])
    assert (tmp_path / "ws/rounds/r00/specialist").exists()
    assert call("rollback", tiny_campaign, "r00", here)[0] == 2
