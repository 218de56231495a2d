"""Asking about a case while training goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytestmark = pytest.mark.torch

from tutelage.archive import formats  # noqa: E402
from tutelage.casework import online  # noqa: E402
from tutelage.casework.online import AskJob, asker  # noqa: E402
from tutelage.errors import SettingsError, TrainingError  # noqa: E402
from tutelage.generalists import GeneralistSettings  # noqa: E402
from tutelage.generalists.settings import CacheSettings  # noqa: E402
from tutelage.generalists.threshold import Threshold  # noqa: E402
from tutelage.geometry import Grid  # noqa: E402
from tutelage.prompts import PromptSettings  # noqa: E402
from tutelage.records import Answer, Case, Prompt, Role  # noqa: E402
from tutelage.specialist.plan import Plan, make_plan  # noqa: E402
from tutelage.specialist.preprocess import shape_at  # noqa: E402
from tutelage.specialist.settings import SpecialistSettings  # noqa: E402

GRID = Grid.from_spacing((10, 24, 32), (4.0, 2.0, 2.0))
COARSE = (8.0, 4.0, 4.0)
"""Of the plan: half as fine."""


def volume(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A bright block on a dark ground, and where it is."""
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[2:8, 4:16, 8:20] = 1
    rng = np.random.default_rng(seed)
    return (label_DHW * 100 + rng.normal(0, 3, GRID.shape)).astype(np.float32), label_DHW


def plan_of(spacing: tuple[float, float, float]) -> Plan:
    return make_plan([GRID], ["a", "b"], 1, SpecialistSettings(channels=(8, 16), spacing=spacing))


def job_in(folder: Path, spacing: tuple[float, float, float] = GRID.spacing, cases: int = 2) -> AskJob:
    rows = []
    for number in range(cases):
        image = folder / f"{number}.nii.gz"
        formats.write_image(image, volume(number)[0], GRID)
        rows.append(
            Case(f"c{number}", "p", Role.UNLABELED, str(image), None, "/not/there", "CT", GRID, 1, "")
        )
    return AskJob(
        cases=tuple(rows),
        plan=plan_of(spacing),
        generalist=GeneralistSettings(name="threshold", cache=CacheSettings(when="always")),
        prompts=PromptSettings(variants=2),
        embeddings=str(folder / "embeddings"),
        max_voxels=10**6,
    )


def rough(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> NDArray[np.uint8]:
    """The block's middle, as a specialist that sees too little of it has it."""
    mask_DHW = np.zeros(shape, np.uint8)
    low, high = ([round(v * s / wanted) for v, s, wanted in zip(at, GRID.spacing, spacing, strict=True)]
                 for at in ((4, 6, 10), (6, 14, 18)))  # fmt: skip
    mask_DHW[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return mask_DHW


class Watched(Threshold):
    """Counts the slices that it embeds, and keeps its prompts."""

    def __init__(self) -> None:
        self.embedded = 0
        self.prompts: list[Prompt] = []

    def embed(self, slices_HW):  # type: ignore[no-untyped-def]
        self.embedded += len(slices_HW)
        return super().embed(slices_HW)

    def segment(self, embedding, prompts) -> list[Answer]:  # type: ignore[no-untyped-def]
        self.prompts.extend(prompts)
        return super().segment(embedding, prompts)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr("tutelage.generalists.build", lambda settings: made)
    return made


def test_a_second_question_about_a_case_embeds_nothing_and_reads_nothing(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    whom = asker(job_in(tmp_path))
    first = whom.ask("c0", rough(GRID.shape, GRID.spacing), seed=1)
    embedded = watched.embedded
    assert embedded == 2
    monkeypatch.setattr(formats, "read_image", None)
    again = whom.ask("c0", rough(GRID.shape, GRID.spacing), seed=1)
    assert watched.embedded == embedded
    assert (again.mean_KDHW == first.mean_KDHW).all()
    assert first.calls == again.calls == 4


@pytest.mark.parametrize("spacing", [GRID.spacing, COARSE], ids=["as fine", "coarser"])
def test_prompts_lie_in_the_foreground_they_came_from(
    tmp_path: Path, watched: Watched, spacing: tuple[float, float, float]
) -> None:
    job = job_in(tmp_path, spacing)
    job = replace(job, prompts=PromptSettings(kinds="boxes+points", margin=0.0, variants=2, jitter=0.0))
    mask_DHW = rough(shape_at(GRID, job.plan), spacing)
    asker(job).ask("c0", mask_DHW, seed=1)
    assert {prompt.structure for prompt in watched.prompts} == {1}
    fine_DHW = rough(GRID.shape, GRID.spacing) > 0
    for prompt in watched.prompts:
        assert prompt.box is not None
        rows, columns = (np.flatnonzero(fine_DHW[prompt.index].any(1 - axis)) for axis in (0, 1))
        assert prompt.box.start == (rows[0], columns[0])
        assert prompt.box.stop == (rows[-1] + 1, columns[-1] + 1)
        for point in prompt.points:
            inside = fine_DHW[(prompt.index, *(int(v) for v in point.at))]
            assert inside == point.positive


@pytest.mark.parametrize("spacing", [GRID.spacing, COARSE], ids=["as fine", "coarser"])
def test_answers_come_on_the_grid_of_the_plan(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    job = replace(job_in(tmp_path, spacing), prompts=PromptSettings(margin=0.3, variants=2))
    shape = shape_at(GRID, job.plan)
    answers = asker(job).ask("c0", rough(shape, spacing), seed=1)
    assert answers.mean_KDHW.shape == answers.variance_KDHW.shape == (2, *shape)
    assert answers.asked_K.tolist() == [True, False]
    found = answers.mean_KDHW[0] > 0.5
    inside = shape[0] // 2
    expected = volume()[1][GRID.shape[0] // 2]
    step = tuple(n // m for n, m in zip(GRID.shape[1:], shape[1:], strict=True))
    whole = expected[:: step[0], :: step[1]] > 0
    assert (found[inside] & whole).sum() / (found[inside] | whole).sum() > 0.8
    assert found[inside].sum() > 1.2 * (rough(shape, spacing)[inside] > 0).sum()


def test_where_nothing_was_said_there_is_nothing_but_doubt(tmp_path: Path) -> None:
    answers = asker(job_in(tmp_path)).ask("c0", rough(GRID.shape, GRID.spacing), seed=1)
    asked = [4, 5]
    silent = [0, 1, 2, 3, 6, 7, 8, 9]
    assert (answers.mean_KDHW[0, silent] == 0.5).all()
    assert (answers.variance_KDHW[0, silent] == 0.25).all()
    assert (answers.mean_KDHW[0, asked, 0, 0] == 0).all()
    assert (answers.variance_KDHW[0, asked, 0, 0] == 0).all()
    assert (answers.mean_KDHW[1] == 0.5).all()
    assert (answers.variance_KDHW[1] == 0.25).all()


def test_variance_is_that_of_the_variants(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    wobbly = replace(job, prompts=PromptSettings(variants=4, jitter=0.4))
    mask_DHW = rough(GRID.shape, GRID.spacing)
    answers, same = (asker(one).ask("c0", mask_DHW, seed=3) for one in (wobbly, wobbly))
    assert 0.05 < answers.variance_KDHW[0, 4:6].max() <= 0.25
    assert (answers.variance_KDHW == same.variance_KDHW).all()
    other = asker(wobbly).ask("c0", mask_DHW, seed=4)
    assert (answers.variance_KDHW != other.variance_KDHW).any()
    alone = asker(replace(job, prompts=PromptSettings())).ask("c0", mask_DHW, seed=3)
    assert alone.variance_KDHW[0, 4:6].max() == 0


class Multiplies(Threshold):
    """Says the same by way of a matrix product, in which half precision would lose what is said."""

    def segment(self, embedding, prompts) -> list[Answer]:  # type: ignore[no-untyped-def]
        answers = super().segment(embedding, prompts)
        return [replace(one, logits_HW=self._multiplied(one.logits_HW)) for one in answers]

    def _multiplied(self, logits_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        far_HW = torch.from_numpy(logits_HW) + 1000
        return ((far_HW @ torch.eye(far_HW.shape[1])).float() - 1000).numpy()


def test_a_generalist_keeps_its_own_precision_while_training_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.generalists.build", lambda settings: Multiplies())
    mask_DHW = rough(GRID.shape, GRID.spacing)
    outside = asker(job_in(tmp_path)).ask("c0", mask_DHW, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = asker(job_in(tmp_path)).ask("c0", mask_DHW, seed=1)
        assert torch.is_autocast_enabled("cpu")
    assert (outside.mean_KDHW[0, 4:6] > 0.5).any()
    assert (inside.mean_KDHW == outside.mean_KDHW).all()
    assert (inside.variance_KDHW == outside.variance_KDHW).all()


def test_an_empty_mask_asks_nothing(tmp_path: Path) -> None:
    answers = asker(job_in(tmp_path)).ask("c0", np.zeros(GRID.shape, np.uint8), seed=1)
    assert answers.calls == 0
    assert not answers.asked_K.any()


def test_only_the_latest_images_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "_MOST_VOXELS", 2 * volume()[0].size)
    whom = asker(job_in(tmp_path, cases=3))
    read: list[str] = []
    real = formats.read_image

    def noted(image: str, most: int) -> formats.Volume:
        read.append(image)
        return real(image, most)

    monkeypatch.setattr(formats, "read_image", noted)
    for case in ("c0", "c1", "c0", "c2", "c0", "c1"):
        whom.ask(case, rough(GRID.shape, GRID.spacing), seed=1)
    assert [Path(image).name[0] for image in read] == ["0", "1", "2", "1"]


def test_a_mask_of_another_shape_and_a_case_of_another_job_are_refused(tmp_path: Path) -> None:
    whom = asker(job_in(tmp_path))
    with pytest.raises(TrainingError, match=r"shape \(3, 3, 3\), expected \(10, 24, 32\)"):
        whom.ask("c0", np.ones((3, 3, 3), np.uint8), seed=1)
    with pytest.raises(TrainingError, match="c9 is none of the 2 cases"):
        whom.ask("c9", rough(GRID.shape, GRID.spacing), seed=1)


def test_prompts_that_nobody_can_answer_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"prompts\.kinds: found mask"):
        asker(replace(job_in(tmp_path), prompts=PromptSettings(kinds="mask")))
