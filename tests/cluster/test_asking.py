"""Generalists in processes of their own answer as one in this process does, whatever becomes of them."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.archive import formats
from tutelage.casework import online
from tutelage.casework.online import AskJob
from tutelage.cluster.asking import Askers, askers
from tutelage.cluster.settings import ClusterSettings
from tutelage.errors import SettingsError, TrainingError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.settings import CacheSettings
from tutelage.geometry import Grid
from tutelage.methods.base import Answers
from tutelage.prompts import PromptSettings
from tutelage.records import Case, Role
from tutelage.specialist.plan import make_plan
from tutelage.specialist.settings import SpecialistSettings

pytestmark = [pytest.mark.ray, pytest.mark.torch, pytest.mark.usefixtures("local_ray")]

GRID = Grid.from_spacing((10, 24, 32), (4.0, 2.0, 2.0))
CASES = 4
TWO = ClusterSettings(backend="ray", askers=2, cpus_per_asker=0.5)
_SOON_S = 30.0


def block() -> NDArray[np.uint8]:
    """Where every image is bright."""
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[2:8, 4:16, 8:20] = 1
    return label_DHW


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> AskJob:
    folder = tmp_path_factory.mktemp("asked")
    cases = []
    for number in range(CASES):
        image = folder / f"{number}.nii.gz"
        noise = np.random.default_rng(number).normal(0, 3, GRID.shape)
        formats.write_image(image, (block() * 100 + noise).astype(np.float32), GRID)
        cases.append(Case(f"c{number}", "p", Role.UNLABELED, str(image), None, None, "CT", GRID, 1, ""))
    return AskJob(
        cases=tuple(cases),
        plan=make_plan([GRID], ["a", "b"], 1, SpecialistSettings(channels=(8, 16), spacing=(8.0, 4.0, 4.0))),
        generalist=GeneralistSettings(name="threshold", cache=CacheSettings(when="always")),
        prompts=PromptSettings(variants=2),
        embeddings=str(folder / "embeddings"),
        max_voxels=10**6,
    )


@pytest.fixture(scope="module")
def pool(job: AskJob, local_ray: None) -> Iterator[Askers]:
    with askers(job, TWO) as made:
        yield made


def rough() -> NDArray[np.uint8]:
    """The block's middle at the plan's spacing, as a specialist that sees too little of it has it."""
    mask_DHW = np.zeros((5, 12, 16), np.uint8)
    mask_DHW[2:3, 3:7, 5:9] = 1
    return mask_DHW


def bytes_of(answers: Answers) -> tuple[bytes, bytes, bytes, int]:
    arrays = (answers.mean_KDHW, answers.variance_KDHW, answers.asked_K)
    mean, variance, asked = (array.tobytes() for array in arrays)
    return mean, variance, asked, answers.calls


def pid_of(actor: Any) -> int:
    import ray

    pid: int = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    return pid


def ended(actor: Any) -> bool:
    """Whether it is gone soon: one that was told to end may still answer what it is asked at that moment."""
    from ray.exceptions import RayActorError

    until = time.monotonic() + _SOON_S
    while time.monotonic() < until:
        try:
            pid_of(actor)
        except RayActorError:
            return True
        time.sleep(0.05)
    return False


def test_they_answer_byte_for_byte_as_one_in_this_process(job: AskJob, pool: Askers) -> None:
    here, travelled = online.asker(job), pickle.loads(pickle.dumps(pool))
    for number in range(CASES):
        answers = travelled.ask(f"c{number}", rough(), number)
        assert answers.asked_K.tolist() == [True, False]
        assert bytes_of(answers) == bytes_of(here.ask(f"c{number}", rough(), number))
        assert answers.mean_KDHW.flags.writeable, "an answer that is kept would fill Ray's shared memory"


def test_one_that_is_killed_is_replaced_and_asked_again(job: AskJob, pool: Askers) -> None:
    before = [pid_of(actor) for actor in pool.actors]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    answers = pool.ask("c0", rough(), 7)
    assert bytes_of(answers) == bytes_of(online.asker(job).ask("c0", rough(), 7))
    assert set(before).isdisjoint(pid_of(actor) for actor in pool.actors)


def test_a_question_that_cannot_be_asked_fails_as_it_would_here(pool: Askers) -> None:
    with pytest.raises(TrainingError, match="none of the 4 cases") as failed:
        pool.ask("stranger", rough(), 0)
    assert type(failed.value) is TrainingError


def test_generalists_that_cannot_be_asked_are_found_out_before_training(job: AskJob) -> None:
    from dataclasses import replace

    flawed = replace(job, prompts=PromptSettings(kinds="mask"))
    with pytest.raises(SettingsError, match=r"prompts\.kinds"), askers(flawed, TWO):
        pytest.fail("training would have begun")


def test_they_end_with_the_training(job: AskJob) -> None:
    with askers(job, TWO.model_copy(update={"askers": 1})) as pool:
        assert pid_of(pool.actors[0])
    assert ended(pool.actors[0])
