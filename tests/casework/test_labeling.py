"""One case through specialist, prompts and generalists into a candidate."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.torch

from tutelage.archive import formats  # noqa: E402
from tutelage.casework.labeling import Labeler, LabelJob  # noqa: E402
from tutelage.errors import SettingsError  # noqa: E402
from tutelage.generalists import GeneralistSettings  # noqa: E402
from tutelage.generalists.settings import CacheSettings  # noqa: E402
from tutelage.geometry import Grid  # noqa: E402
from tutelage.labels import arrays  # noqa: E402
from tutelage.prompts import PromptSettings  # noqa: E402
from tutelage.records import Case, Role  # noqa: E402
from tutelage.storage import Place  # noqa: E402

GRID = Grid.from_spacing((12, 32, 40), (18.0, 9.0, 9.0))
THRESHOLD = GeneralistSettings(name="threshold", cache=CacheSettings(when="always"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    image = tmp_path / "image.nii.gz"
    rng = np.random.default_rng(0)
    formats.write_image(image, rng.normal(0, 100, GRID.shape).astype(np.float32), GRID)
    return Case("a", "p", Role.UNLABELED, str(image), None, None, "CT", GRID, 1, "")


@pytest.fixture
def job(tmp_path: Path, tiny_specialist: Path) -> LabelJob:
    return LabelJob(
        generalist=THRESHOLD,
        prompts=PromptSettings(),
        specialist=str(tiny_specialist),
        candidates=str(tmp_path / "candidates"),
        embeddings=str(tmp_path / "embeddings"),
        structures=("liver", "spleen"),
        max_voxels=10**6,
        seed=0,
    )


def test_a_case_becomes_a_candidate_and_a_row(job: LabelJob, case: Case) -> None:
    row = Labeler(job)(case)
    assert row["outcome"] == "done", row["reason"]
    candidate = arrays.read_candidate(Place.of(job.candidates), "a")
    assert len(candidate.regions) == len(candidate.pooled_KC) == 3
    assert row["prompts"] > 0
    assert any(region.mean_DHW.size for region in candidate.regions)
    assert row["consensus"] == [1.0, 1.0]
    assert row["generalist"] == "none-threshold"
    again = Labeler(job)(case)
    assert (again["cache_hits"], again["slices_embedded"]) == (row["slices_embedded"], 0)
    assert again["candidate"] == row["candidate"]


def test_everything_at_once_still_is_one_candidate(job: LabelJob, case: Case) -> None:
    other = GeneralistSettings(name="threshold", window=(5.0, 95.0))
    generalist = THRESHOLD.model_copy(update={"second_opinions": (other,), "keep_grid": True})
    prompts = PromptSettings(kinds="boxes+points", axes=(0, 1, 2), variants=2, propagate=True)
    row = Labeler(replace(job, generalist=generalist, prompts=prompts))(case)
    assert row["outcome"] == "done", row["reason"]
    candidate = arrays.read_candidate(Place.of(job.candidates), "a")
    assert candidate.grid_DCHW is not None
    assert candidate.grid_DCHW.shape == (12, 1, 8, 8)
    assert row["generalist"] == "none-threshold+none-threshold"
    assert all(0 <= share <= 1 for share in row["consensus"])
    assert min(row["consensus"]) < 1


def test_what_notes_call_absent_is_not_asked_about_in_that_case_alone(
    job: LabelJob, case: Case, tmp_path: Path
) -> None:
    plain = Labeler(job)(case)
    place = tmp_path / "cases.parquet"
    words = json.dumps({"liver": "absent", "spleen": "expected"})
    pq.write_table(pa.table({"case": ["a"], "outcome": ["done"], "expected": [words]}), place)
    labeler = Labeler(replace(job, expected=str(place)))
    assert labeler(case)["outcome"] == "done"
    candidate = arrays.read_candidate(Place.of(job.candidates), "a")
    assert not candidate.regions[1].mean_DHW.size
    assert candidate.regions[2].mean_DHW.size
    assert (candidate.specialist_DHW == 1).any()  # what the specialist said stays said
    assert labeler(replace(case, case="b"))["prompts"] == plain["prompts"]


def test_no_more_pieces_are_asked_about_than_a_structure_has(job: LabelJob, case: Case) -> None:
    many = replace(job, prompts=PromptSettings(min_volume_share=0.0, min_pixels=1, min_component_share=0.0))
    plain, fewer = Labeler(many)(case), Labeler(replace(many, most={"liver": 1, "spleen": 1}))(case)
    assert 0 < fewer["prompts"] < plain["prompts"]


def test_prompts_that_nobody_can_answer_are_refused_before_any_case(job: LabelJob) -> None:
    with pytest.raises(SettingsError, match=r"prompts\.kinds: found mask, but threshold takes"):
        Labeler(replace(job, prompts=PromptSettings(kinds="mask")))
