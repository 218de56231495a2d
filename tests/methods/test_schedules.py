from math import exp

import pytest

from tutelage.methods.schedules import fade, rise


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, exp(-5)),
        (100, exp(-5 * 0.75**2)),
        (200, exp(-5 * 0.5**2)),
        (300, exp(-5 * 0.25**2)),
        (399, exp(-5 * (1 / 400) ** 2)),
        (400, 1.0),
        (401, 1.0),
        (1000, 1.0),
    ],
)
def test_a_weight_rises_over_its_share_of_the_steps(step: int, expected: float) -> None:
    assert rise(step, 1000, 0.4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1.0),
        (600, 1.0),
        (601, exp(-5 * (1 / 400) ** 2)),
        (800, exp(-5 * 0.5**2)),
        (900, exp(-5 * 0.75**2)),
        (1000, exp(-5)),
    ],
)
def test_a_weight_fades_over_the_last_share_of_the_steps(step: int, expected: float) -> None:
    assert fade(step, 1000, 0.4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_rising_never_turns_and_fading_is_its_mirror_image(share: float) -> None:
    risen = [rise(step, 60, share) for step in range(61)]
    assert risen == sorted(risen)
    assert risen[::-1] == [fade(step, 60, share) for step in range(61)]
    assert 0 < risen[0] < 0.01
    assert risen[-1] == 1


@pytest.mark.parametrize("step", [0, 5, 10])
def test_without_a_share_nothing_rises_and_nothing_fades(step: int) -> None:
    assert rise(step, 10, 0) == fade(step, 10, 0) == 1
