"""Two processes learn what one does from the same batches: losses, gradients and weights."""

import pytest
import torch
from torch import Tensor, nn

from tests.methods.learning import LESSONS, Learned, learn
from tests.pairs import said_by_both
from tutelage.methods import together
from tutelage.methods.needs import NEEDS
from tutelage.methods.together import Ring

pytestmark = pytest.mark.torch

alike = pytest.mark.parametrize("name", [name for name, lesson in LESSONS.items() if lesson.alike])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Learned]]:
    """What two processes say of all lessons, which they learn one after the other."""
    folder = tmp_path_factory.mktemp("pair")
    said_by_both(["-m", "tests.methods.learning"], "2", folder)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [{name: Learned(*one) for name, one in each.items()} for each in found]


def test_every_method_is_compared() -> None:
    assert {lesson.method for lesson in LESSONS.values() if lesson.alike} == set(NEEDS)


@pytest.mark.process
@alike
def test_losses_and_gradients_are_those_of_one_process(name: str, pair: list[dict[str, Learned]]) -> None:
    alone = learn(LESSONS[name])
    for each in pair:
        for expected, found in zip(alone.told, each[name].told, strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.process
@pytest.mark.parametrize(
    "name", [name for name, lesson in LESSONS.items() if lesson.alike and not lesson.adaptive]
)
def test_weights_are_those_of_one_process(name: str, pair: list[dict[str, Learned]]) -> None:
    alone = learn(LESSONS[name])
    for key, expected in alone.weights.items():
        found = pair[0][name].weights[key]
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), key


@pytest.mark.process
@pytest.mark.parametrize("name", LESSONS)
def test_both_processes_have_the_same_loss_and_the_same_weights(
    name: str, pair: list[dict[str, Learned]]
) -> None:
    one, other = (each[name] for each in pair)
    assert one.told == other.told
    assert all(torch.equal(one.weights[key], other.weights[key]) for key in one.weights)


# --- one process ------------------------------------------------------------------------------


def test_one_process_has_the_sums_and_rows_that_it_gives() -> None:
    one, other = torch.randn(3), torch.randn(2, 2)
    assert together.total(one, other) == (one, other)
    assert together.rows(one).all is one
    assert together.mean(one) == one.sum() / 3
    assert together.counts(4, one.device) == [4]
    assert [together.anyone(here, one.device) for here in (True, False)] == [True, False]


@pytest.mark.parametrize(("patches", "lonely"), [(1, True), (2, False), (3, False)])
def test_one_process_goes_around_its_own_patches(patches: int, lonely: bool) -> None:
    values = torch.arange(patches)
    ring = Ring.of(values)
    (after,), (before,) = ring.following(values), ring.preceding(values)
    assert after.tolist() == [(n + 1) % patches for n in range(patches)]
    assert before.tolist() == [(n - 1) % patches for n in range(patches)]
    assert ring.lonely == lonely


def test_one_process_keeps_its_norms() -> None:
    norm = nn.BatchNorm3d(2)
    together.join_norms(norm)
    assert "forward" not in vars(norm)


# --- norms over several -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 2, 4, 4), (5, 2)], ids=["volumes", "vectors"])
def test_a_joined_norm_does_what_torch_does(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one process that takes itself for several; how sums are shared is seen above."""
    monkeypatch.setattr(together, "world", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)

    def answers(joined: bool) -> list[Tensor]:
        torch.manual_seed(0)
        norm: nn.Module = nn.BatchNorm1d(2) if len(shape) == 2 else nn.BatchNorm3d(2)
        if joined:
            together.join_norms(norm)
        image = (3 + 2 * torch.randn(shape)).requires_grad_()
        weights = torch.randn(shape)
        for _ in range(2):
            answer = norm(image)
        slopes = torch.autograd.grad((answer * weights).sum(), [image, *norm.parameters()])
        return [answer, *slopes, *norm.state_dict().values(), norm.eval()(image)]

    for found, expected in zip(answers(True), answers(False), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
