"""A training that is killed, or told to end, goes on to the weights of one that never was."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.process]

STEPS, EVERY = 60, 7
LONG_S = 300.0


Call = Callable[..., tuple[int, str, str]]


def arguments(config: Path, method: str) -> list[str]:
    told = [
        f"train.method={method}",
        f"train.steps={STEPS}",
        f"train.checkpoint_every={EVERY}",
        "train.ema=0.9",
    ]
    return ["train", str(config), "--round", "0", *told]


def digest(config: Path) -> str:
    stage = config.parent / config.stem / "rounds/r00"
    return str(json.loads((stage / "specialist/specialist.json").read_text())["digest"])


def checkpoints(config: Path) -> list[Path]:
    """The oldest first; none before the second one is there, so that there is one to fall back to."""
    found = sorted((config.parent / config.stem / "rounds/r00/checkpoint").glob("step-*.pt"))
    return found if len(found) >= 2 else []


def interrupted(config: Path, method: str, number: signal.Signals) -> tuple[int, float, str]:
    """Start it, send a signal in its middle; return the exit code, when it was sent, and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage.cli", *arguments(config, method)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    while not checkpoints(config) and process.poll() is None and time.monotonic() - started < LONG_S:
        time.sleep(0.005)
    sent = time.time()
    process.send_signal(number)
    _, told = process.communicate(timeout=LONG_S)
    return process.returncode, sent, told


def test_killed_in_the_middle_it_goes_on_to_the_same_bits_even_from_the_checkpoint_before(
    tiny_config: Callable[[str], Path], call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken, broken = tiny_config("unbroken"), tiny_config("broken")
    code, _, _ = interrupted(broken, "cps", signal.SIGKILL)
    assert code == -signal.SIGKILL
    *_, newest = checkpoints(broken)
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert call(*arguments(broken, "cps"))[0] == 0
    assert f"{newest} is damaged" in caplog.text
    assert not (broken.parent / "broken/rounds/r00/checkpoint").exists()
    assert call(*arguments(unbroken, "cps"))[0] == 0
    assert digest(broken) == digest(unbroken)


def test_told_to_end_it_saves_its_step_and_goes_on_to_the_same_bits(
    tiny_config: Callable[[str], Path], call: Call
) -> None:
    unbroken, broken = tiny_config("unbroken"), tiny_config("broken")
    code, sent, told = interrupted(broken, "mean_teacher", signal.SIGTERM)
    *_, newest = checkpoints(broken)
    step = int(newest.name[5:11])
    assert code == 143
    assert newest.stat().st_mtime - sent < 20
    assert f"after {step} of {STEPS} steps. The same command goes on from step {step}" in told
    assert "Traceback" not in told
    assert call(*arguments(broken, "mean_teacher"))[0] == 0
    assert call(*arguments(unbroken, "mean_teacher"))[0] == 0
    assert digest(broken) == digest(unbroken)
