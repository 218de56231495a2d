"""The command line, as a person or a program meets it: words, results, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.geometry import Grid

STEPS = ("label", "curate", "train", "evaluate", "promote")
COMMANDS = (
    *(
        "doctor",
        "catalog",
        "plan",
        "run",
        *STEPS,
        "report",
        "priors",
        "predict",
        "export",
        "serve",
        "table",
        "bench",
    ),
)

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert f"Example: tutelage {command}" in " ".join(out.split())


def test_help_lists_every_command(call: Call) -> None:
    _, out, _ = call("--help")
    assert [command for command in COMMANDS if f" {command} " not in out] == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.stepz=3"], "train.stepz: unknown key; did you mean steps?"),
        (["train.steps=many"], "train.steps: found 'many'"),
        (["train.steps"], "write for example train.steps=200"),
        (["archive.importer=msd"], "archive.root: missing"),
    ],
    ids=["unknown key", "wrong value", "no value", "what the world says"],
)
def test_unusable_settings_exit_2_without_a_traceback(
    call: Call, tiny_config: Callable[[str], Path], tmp_path: Path, overrides: list[str], told: str
) -> None:
    code, out, err = call("run", tiny_config("ws"), *overrides)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("command", "round_", "told"),
    [
        ("label", "-1", "labels-only has no step 'label'"),
        ("curate", "labels-only", "labels-only has no step 'curate'"),
        ("train", "1", "a number below rounds, which is 1"),
        ("train", "first", "--round is first"),
        ("train", "-2", "--round is -2"),
    ],
)
def test_a_stage_that_is_not_there_exits_2(
    call: Call, tiny_config: Callable[[str], Path], command: str, round_: str, told: str
) -> None:
    code, _, err = call(command, tiny_config("ws"), "--round", round_)
    assert code == 2
    assert told in err


@pytest.mark.parametrize("arguments", [["run"], ["run", "a.yaml", "--nonsense"], ["nonsense"]])
def test_a_command_line_that_makes_no_sense_exits_2(call: Call, arguments: list[str]) -> None:
    assert call(*arguments)[0] == 2


@pytest.mark.parametrize("command", ["run", "catalog", "report", *STEPS])
def test_a_dry_run_says_what_it_would_do_and_starts_nothing(
    call: Call, tiny_config: Callable[[str], Path], tmp_path: Path, command: str
) -> None:
    stage = ["--round", "0"] if command in STEPS else []
    code, out, err = call(command, tiny_config("ws"), "--dry-run", "--json", *stage)
    assert code == 0
    assert "nothing was started" in err
    assert json.loads(out)["steps"]
    assert not (tmp_path / "ws").exists()


def test_a_dry_run_finds_a_workspace_that_cannot_be_written(
    call: Call, tiny_config: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call("run", tiny_config("ws"), f"workspace={tmp_path}/file/ws", "--dry-run")
    assert code == 2
    assert "set another" in err


@pytest.mark.parametrize("command", ["run", "catalog", "plan"])
def test_a_workspace_that_cannot_be_is_told_before_anything_is_done(
    call: Call, tiny_config: Callable[[str], Path], tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(command, tiny_config("ws"), f"workspace={tmp_path}/file")
    assert code == 2
    assert "is no folder that can be written to; set another" in err


def test_a_file_that_cannot_be_had_is_told_without_a_traceback(call: Call) -> None:
    code, _, err = call("tokens", "add", "x", "--file", "/proc/nowhere/tokens")
    assert (code, err) == (1, "/proc/nowhere: No such file or directory; what was finished is kept\n")


@pytest.mark.parametrize("stage", ["²", "r²", "r", "x"])
def test_a_round_that_is_no_number_is_told_what_is_one(
    call: Call, tiny_config: Callable[[str], Path], stage: str
) -> None:
    for command in (("label",), ("ledger", "show")):
        code, _, err = call(*command, tiny_config("ws"), "--round", stage)
        assert code == 2
        assert "expected" in err


def test_rounds_on_the_command_line_win(call: Call, tiny_config: Callable[[str], Path]) -> None:
    _, out, _ = call("run", tiny_config("ws"), "--rounds", "3", "--dry-run", "--json")
    assert "r02 promote" in json.loads(out)["steps"]


def test_an_unknown_bench_is_told_the_known_ones(call: Call) -> None:
    code, _, err = call("bench", "nothing")
    assert code == 2
    assert "label" in err


# --- with a campaign ----------------------------------------------------------------------


@pytest.mark.torch
def test_a_run_shows_results_and_says_where_everything_is(call: Call, tiny_campaign: Path) -> None:
    workspace = tiny_campaign.parent / "workspace"
    code, out, _ = call("run", tiny_campaign)
    assert code == 0
    for told in (
        "nothing to do", "labels-only", "HD95", "spleen", str(workspace / "report.html"),
        f"tutelage serve {tiny_campaign}", str(workspace / "rounds"),
    ):  # fmt: skip
        assert told in out


@pytest.mark.torch
def test_json_is_alone_on_stdout(call: Call, tiny_campaign: Path) -> None:
    code, out, err = call("report", tiny_campaign, "--json")
    result = json.loads(out)
    assert result["exit_code"] == code == 0
    assert set(result["test"]) == {"labels-only", "r00"}
    assert "serve it" in err


@pytest.mark.torch
def test_what_is_not_tested_is_told_on_validation_with_the_command_that_tests_it(
    call: Call, tiny_campaign: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "copy")
    for left in (tmp_path / "copy" / "rounds").glob("*/test.manifest.json"):
        left.unlink()
    place = f"workspace={tmp_path / 'copy'}"
    code, out, _ = call("run", tiny_campaign, place)
    assert code == 0
    assert "on the validation split" in out
    assert f"evaluate {tiny_campaign} --split test" in out
    code, out, _ = call("evaluate", tiny_campaign, place, "--split", "test")
    assert code == 0
    assert "on the test split" in out
    assert "test it" not in out


@pytest.mark.torch
@pytest.mark.parametrize("command", [name for name in STEPS if name != "label"])
def test_a_single_step_that_is_done_is_not_done_again(call: Call, tiny_campaign: Path, command: str) -> None:
    code, out, err = call(command, tiny_campaign, "--round", "0", "--json")
    assert code == 0
    assert json.loads(out)["step"] == command
    assert f"r00 {command}: done before" in err


@pytest.mark.torch
def test_pseudo_labels_are_told_with_what_was_believed_and_how_true_it_is(
    call: Call, tiny_campaign: Path
) -> None:
    code, out, err = call("label", tiny_campaign, "--round", "0", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["volumes"] == 4
    assert told["failed"] == 0
    everything = told["rulings"][-1]
    assert (
        everything["accepted"] + everything["rejected"] + everything["partial"] + everything["absent"] == 40
    )
    assert 0 <= everything["rejected_dice"] <= 1
    assert "r00 label: done before" in err
    assert "pseudo-labels" in err


@pytest.mark.torch
def test_a_step_whose_predecessor_is_missing_names_it(call: Call, tiny_config: Callable[[str], Path]) -> None:
    code, _, err = call("evaluate", tiny_config("fresh"), "--round", "labels-only")
    assert code == 1
    assert "no finished `train` step" in " ".join(err.split())


@pytest.mark.torch
def test_where_nothing_is_trained_nothing_is_scored(call: Call, tiny_config: Callable[[str], Path]) -> None:
    code, _, err = call("evaluate", tiny_config("fresh"), "--split", "test")
    assert code == 1
    assert "has no finished stage to score" in " ".join(err.split())


def test_a_catalog_is_told_by_modality_and_role(call: Call, tiny_config: Callable[[str], Path]) -> None:
    code, out, _ = call("catalog", tiny_config("ws"), "--json")
    assert code == 0
    told = json.loads(out)
    assert list(told["cases"].values()) == [{"gold": 2, "validation": 1, "test": 1, "unlabeled": 4}]


@pytest.mark.torch
def test_campaigns_are_joined_into_one_table(call: Call, tiny_campaign: Path) -> None:
    workspace = tiny_campaign.parent / "workspace"
    _, out, _ = call("table", workspace, workspace, "--json")
    first, second = json.loads(out)["stages"]
    assert (first["stage"], second["stage"]) == ("labels-only", "r00")
    assert first["gain"] == [0.0, 0.0]
    assert second["gain"] == [100 * (second["dice"][0] - first["dice"][0])] * 2
    _, markdown, _ = call("table", workspace, workspace, "--markdown")
    assert f"| r00 | 2 | {second['dice'][0]:.3f} ± 0.000 |" in markdown


def test_a_table_of_nothing_says_so(call: Call, tmp_path: Path) -> None:
    code, _, err = call("table", tmp_path)
    assert code == 1
    assert "no test scores" in err


@pytest.mark.torch
def test_predictions_that_fail_in_part_exit_3_and_all_of_them_1(
    call: Call, tiny_specialist: Path, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "bad.nii.gz").write_bytes(b"no scan")
    told = ("predict", "-i", scans, "-m", tiny_specialist, "-o")
    assert call(*told, tmp_path / "none")[0] == 1
    grid = Grid.from_spacing((8, 16, 16), (18.0, 9.0, 9.0))
    formats.write_image(str(scans / "good.nii.gz"), np.ones(grid.shape, np.uint8), grid)
    code, out, err = call(*told, tmp_path / "some", "--json")
    assert code == 3
    assert [p["mask"] is None for p in json.loads(out)["predictions"]] == [True, False]
    assert "1 masks written, 1 scans failed" in err


@pytest.mark.torch
def test_a_scan_that_is_named_alone_has_its_mask_beside_it(
    call: Call, tiny_specialist: Path, tmp_path: Path
) -> None:
    grid = Grid.from_spacing((8, 16, 16), (18.0, 9.0, 9.0))
    formats.write_image(str(tmp_path / "scan.nii.gz"), np.ones(grid.shape, np.uint8), grid)
    code, out, _ = call("predict", tmp_path / "scan.nii.gz", "-m", tiny_specialist, "--json")
    assert code == 0
    assert json.loads(out)["predictions"][0]["mask"] == str(tmp_path / "scan_mask.nii.gz")
    assert (tmp_path / "scan_mask.nii.gz").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ((), "name a scan, as `tutelage predict scan.nii.gz`"),
        (("scan.nii.gz", "-i", "scans"), "name a scan, as `tutelage predict scan.nii.gz`"),
        ((".",), ". is a folder; say with --output where its masks go"),
    ],
    ids=["nothing", "two things", "a folder"],
)
def test_what_is_segmented_has_to_be_said_once(call: Call, told: tuple[str, ...], message: str) -> None:
    code, _, err = call("predict", *told)
    assert code == 2
    assert message in " ".join(err.split())


@pytest.mark.torch
def test_a_dry_prediction_names_the_champion_and_the_masks(
    call: Call, tiny_campaign: Path, tmp_path: Path
) -> None:
    workspace = tiny_campaign.parent / "workspace"
    out = tmp_path / "out"
    _, told, _ = call(
        "predict", "-i", workspace / "archive/imagesTr", "-o", out, "-m", workspace, "--dry-run", "--json"
    )
    result = json.loads(told)
    assert result["specialist"].endswith("/specialist")
    assert len(result["masks"]) == 8
    assert not out.exists()


@pytest.mark.torch
def test_serving_is_checked_before_it_starts(call: Call, tiny_campaign: Path) -> None:
    code, out, _ = call("serve", tiny_campaign, "--open", "--port", "8765", "--dry-run", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["address"] == "http://127.0.0.1:8765"
    assert list(told["models"]) == ["tiny"]
    assert told["models"]["tiny"].endswith("/specialist")


@pytest.mark.torch
def test_other_models_are_served_beside_the_champion(call: Call, tiny_campaign: Path) -> None:
    workspace = tiny_campaign.parent / "workspace"
    told = ("serve", tiny_campaign, "--open", "--port", "8765", "--dry-run", "--json", "--model")
    _, out, _ = call(*told, f"old={workspace}/rounds/labels-only/specialist")
    assert list(json.loads(out)["models"]) == ["tiny", "old"]
    for model, complaint in (
        ("old", "expected NAME=ADDRESS"),
        (f"tiny={workspace}", "two models are called"),
    ):
        code, _, err = call(*told, model)
        assert code == 2
        assert complaint in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "make a file of tokens with `tutelage tokens`"),
        (["--open", "--tokens", "tokens.json"], "found both tokens and --open"),
        (["--open", "--host", "0.0.0.0"], "would let everybody in the network ask"),
        (["--open", "--host", "example.org"], "would let everybody in the network ask"),
        (["--open", "--replicas", "2", "serving.replicas=[2,1]"], ""),
        (["serving.open=true", "serving.champion=registry"], "tracking.enabled is false"),
    ],
    ids=["nobody named", "both", "network", "name", "options win", "registry"],
)
def test_who_may_ask_has_to_be_said(
    call: Call, tiny_config: Callable[[str], Path], options: list[str], told: str
) -> None:
    code, out, err = call("serve", tiny_config("ws"), *options, "--dry-run")
    assert (code, out) == (2 if told else 1, "")
    assert told in err
    assert told or "does not exist; `tutelage run` makes" in err


@pytest.mark.torch
def test_a_run_stopped_by_hand_says_how_to_go_on(tiny_config: Callable[[str], Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tutelage.cli", "run", str(tiny_config("ws")), "train.steps=5000"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A shell starts what runs in the background deaf to interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not any((tmp_path / "ws").glob("rounds/*/checkpoint")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


@pytest.mark.torch
def test_a_damaged_specialist_is_not_served(call: Call, tiny_campaign: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_campaign.parent / "workspace", tmp_path / "ws")
    for weights in tmp_path.glob("ws/rounds/*/specialist/weights.pt"):
        weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = call("serve", tiny_campaign, f"workspace={tmp_path}/ws", "--open", "--port", "8765")
    assert code == 1
    assert "changed or cut" in err
