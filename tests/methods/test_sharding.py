"""Two processes that divide a learner learn what one does, hold half of it each, and keep it whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.dividing import TAUGHT, Seen, run
from tests.methods.learning import LESSONS, learn
from tests.methods.runs import brightness
from tests.pairs import said_by_both
from tutelage.methods import sharding
from tutelage.methods.checkpoint import Checkpoint
from tutelage.methods.needs import NEEDS

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def alone() -> Seen:
    """What one process sees."""
    return run()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, alone: Seen) -> list[dict[str, Any]]:
    """What each of two says of lessons and runs."""
    folder = tmp_path_factory.mktemp("divided")
    torch.save(alone.saved, folder / "alone.pt")
    said_by_both(["-m", "tests.methods.dividing"], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def seen(each: dict[str, Any], name: str) -> Seen:
    return Seen(**each["runs"][name])


def test_every_method_is_compared_that_can_be_divided() -> None:
    assert {LESSONS[name].method for name in TAUGHT} == {name for name, one in NEEDS.items() if one.divides}


@pytest.mark.process
@pytest.mark.parametrize("name", TAUGHT)
def test_losses_gradients_and_weights_are_those_of_one_process(name: str, pair: list[dict[str, Any]]) -> None:
    expected = learn(LESSONS[name])
    for each in pair:
        told, weights = each["lessons"][name]
        for mine, theirs in zip(told, expected.told, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)
        for key, value in expected.weights.items():
            close = torch.allclose(weights[key], value, rtol=1e-5, atol=1e-6)
            assert close or LESSONS[name].adaptive, key


@pytest.mark.process
def test_each_holds_about_half_of_weights_gradients_and_moments(
    pair: list[dict[str, Any]], alone: Seen
) -> None:
    halves = [seen(each, "divided").held for each in pair]
    for what, everything in alone.held.items():
        assert sum(half[what] for half in halves) == everything
        assert all(0.4 * everything < half[what] < 0.6 * everything for half in halves)


@pytest.mark.process
def test_large_convolutions_are_put_together_by_themselves(pair: list[dict[str, Any]], alone: Seen) -> None:
    assert seen(pair[0], "divided").exchanges >= 2
    assert alone.exchanges == 0


@pytest.mark.process
def test_a_look_and_what_is_kept_are_of_whole_weights(pair: list[dict[str, Any]], alone: Seen) -> None:
    first, second = (seen(each, "divided") for each in pair)
    assert [step for step, _ in first.validated] == [3, 6]
    assert first.validated[-1][1] == sum(brightness(first.weights)) / 2
    assert first.best is not None
    assert second.best is None
    assert shapes(first.best) == shapes(alone.weights)
    assert shapes(first.weights) == shapes(alone.weights)
    assert all(torch.equal(first.weights[name], value) for name, value in second.weights.items())


@pytest.mark.process
def test_a_checkpoint_has_one_form_whoever_wrote_it(pair: list[dict[str, Any]], alone: Seen) -> None:
    written, expected = seen(pair[0], "divided").saved, alone.saved
    assert seen(pair[1], "divided").saved is None
    assert written is not None
    assert expected is not None
    for what in ("networks", "mean"):
        assert shapes(written[what]) == shapes(expected[what])
    moments, others = (one["optimizer"]["state"] for one in (written, expected))
    assert list(moments) == list(others)
    for number, about in others.items():
        assert shapes(moments[number]) == shapes(about)
        assert moments[number]["step"] == about["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(moments[number][name], about[name], rtol=1e-4, atol=1e-6)
    assert written["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]


@pytest.mark.process
@pytest.mark.parametrize(
    "name", ["divided, on divided", "divided, on whole", "whole, on divided", "one process, on divided"]
)
def test_training_goes_on_from_a_checkpoint_of_any_other_form(
    name: str, pair: list[dict[str, Any]], alone: Seen
) -> None:
    for each in pair:
        for mine, theirs in zip(seen(each, name).told, alone.told[3:], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.process
def test_a_batch_learned_from_in_parts_is_joined_as_among_whole_learners(pair: list[dict[str, Any]]) -> None:
    for each in pair:
        of_parts, of_wholes = (seen(each, f"{kind}, by parts").told for kind in ("divided", "whole"))
        for mine, theirs in zip(of_parts, of_wholes, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.process
def test_one_process_goes_on_from_what_two_had_divided(pair: list[dict[str, Any]], alone: Seen) -> None:
    saved = seen(pair[0], "divided").saved
    assert saved is not None
    for mine, theirs in zip(run(resume=Checkpoint.from_dict(saved)).told, alone.told[3:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.process
def test_going_on_divided_ends_with_the_bits_of_never_having_stopped(pair: list[dict[str, Any]]) -> None:
    unbroken, resumed = seen(pair[0], "divided"), seen(pair[0], "divided, on divided")
    assert resumed.told == unbroken.told[3:]
    assert all(torch.equal(resumed.weights[name], value) for name, value in unbroken.weights.items())


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[type, torch.Size, torch.dtype]]:
    return {name: (type(value), value.shape, value.dtype) for name, value in state.items()}


# --- what is no part ----------------------------------------------------------------------------


def test_what_is_whole_stays_as_it_is() -> None:
    state = {"weight": torch.randn(2)}
    assert sharding.whole(state["weight"]) is state["weight"]
    assert sharding.gathered(state)["weight"] is state["weight"]
    assert sharding.divided(state, state)["weight"] is state["weight"]
    assert sharding.divided(state, {})["weight"] is state["weight"]


def test_an_optimizer_goes_on_with_a_copy_of_what_was_kept() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    kept: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 1.0}],
    }
    taken = sharding.divided_optimizer(kept, [parameter])
    taken["state"][0]["exp_avg"].zero_()
    taken["param_groups"][0]["lr"] = 2.0
    assert kept["state"][0]["exp_avg"].tolist() == [1.0, 1.0]
    assert kept["param_groups"] == [{"lr": 1.0}]
