"""What the bench of the server counts, and that it measures what it says."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.bench import serve
from tutelage.bench.base import Bench, Measured
from tutelage.bench.crowd import Crowd, Heard, Order, ask, heard
from tutelage.bench.serve import Size, _memory, _Stage, run
from tutelage.errors import ServerError, TrainingError

pytestmark = pytest.mark.torch

Call = Callable[..., tuple[int, str, str]]

SMALL = Size(
    channels=(8, 16), spacing=(18.0, 9.0, 9.0), seen=(18.0, 9.0, 9.0), long=2, asks=(2, 1), each=1,
    rollout_s=6.0, queued=4, pressing=6, steps=2,
)  # fmt: skip


def one(began: float, ended: float, status: int = 200, body: str = "a", specialist: str = "s") -> Heard:
    return Heard(0, began, ended, status, body if status == 200 else "", specialist)


def test_a_rate_counts_masks_from_the_first_question_to_the_last_answer(tmp_path: Path) -> None:
    crowd = Crowd((one(1.0, 2.0), one(1.5, 5.0), one(2.0, 2.1, 503), one(0.5, 0.6, 503)), tmp_path)
    assert crowd.rate == pytest.approx(2 / 4)
    assert crowd.statuses == {200: 2, 503: 2}


def test_a_crowd_that_heard_no_mask_measures_nothing(tmp_path: Path) -> None:
    order = Order("http://x", (), 1, str(tmp_path))
    (tmp_path / "heard.json").write_text(json.dumps([asdict(one(0, 1, 500))]))
    with pytest.raises(ServerError, match=r"answered \{500: 1\}, expected masks"):
        heard(order)


@pytest.mark.process
def test_a_crowd_that_fails_says_why(tmp_path: Path, dead_port: int) -> None:
    order = Order(
        f"http://127.0.0.1:{dead_port}", (str(tmp_path / "gone"),), 1, str(tmp_path / "out"), asks=1
    )
    with pytest.raises(ServerError, match=r"the clients failed: .*gone"):
        ask(order)


def test_memory_that_grows_is_told_from_memory_that_swings() -> None:
    swinging = [(0.5 * at, 1000.0 + 30 * (at % 4)) for at in range(1200)]
    growing = [(0.5 * at, 1000.0 + 0.5 * at) for at in range(1200)]
    early, late = _memory(swinging).line(since=20)
    assert late / early == pytest.approx(1.0, abs=0.005)
    early, late = _memory(growing).line(since=20)
    assert late / early > 1.15
    with pytest.raises(TrainingError, match="too soon to tell"):
        _memory([(0.0, 1.0), (1.0, 1.0)]).line(since=40)


def test_other_masks_and_unknown_specialists_are_wrong(tmp_path: Path) -> None:
    stage = _Stage(tmp_path, SMALL)
    right = stage.direct(0)
    volume = formats.read_image(stage.scans[0])
    mask_DHW = stage.predictors[0].mask(volume.image_CDHW, volume.grid)
    mask_DHW[0, 0, 0] += 1
    out = tmp_path / "crowd"
    out.mkdir()
    for name, data in (("right", right), ("other", formats.mask_bytes(mask_DHW, volume, ".nii.gz"))):
        (out / f"{name}.nii.gz").write_bytes(data)
    digest, second = (predictor.digest for predictor in stage.predictors)
    other_DHW = stage.predictors[1].mask(volume.image_CDHW, volume.grid)
    assert not np.array_equal(stage.predictors[0].mask(volume.image_CDHW, volume.grid), other_DHW)
    answers = (
        one(0, 1, body="right", specialist=digest),
        one(0, 1, body="other", specialist=digest),
        one(0, 1, body="right", specialist=second),
        one(0, 1, body="right", specialist="nobody"),
        one(0, 1, 503),
    )
    assert stage.wrong(Crowd(answers, out), [0]) == list(answers[1:4])


def test_its_command_says_how_long_to_press(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[dict[str, object]] = []

    def fake(**options: object) -> Bench:
        given.append(options)
        return Bench("serve", (Measured("serve.p50_small", "direct", 1.0, 1.0, 1.0, 1.15, "lower", ""),))

    monkeypatch.setattr(serve, "run", fake)
    file = tmp_path / "serve.json"
    assert call("bench", "serve", "--soak-minutes", "0.5", "--json", file)[0] == 0
    assert call("bench", "serve")[0] == 0
    assert given == [{"soak_minutes": 0.5}, {"soak_minutes": 10.0}]
    assert json.loads(file.read_text())["rows"][0]["met"] is True


@pytest.mark.ray
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_everything_is_measured_on_a_small_server() -> None:
    found = {row.measure: row for row in run(repeats=1, soak_minutes=0.2, size=SMALL).rows}
    assert list(found) == [
        *("serve.p50_small", "serve.p50_large", "serve.throughput"),
        *("serve.rollout_failed", "serve.soak_failed", "serve.soak_memory"),
    ]
    small, _, throughput, rollout, soak, memory = found.values()
    assert small.ratio == pytest.approx(small.ours / small.theirs)
    assert 0.2 < small.ratio < 100
    assert throughput.ours > 0.1
    assert (rollout.ours, soak.ours) == (0, 0)
    assert rollout.theirs > 2
    assert "times 503" in soak.note
    assert 100 < memory.ours < 4000
