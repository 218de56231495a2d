import numpy as np
import pytest
import torch

from tutelage.methods import distillation

pytestmark = pytest.mark.torch


def grids() -> tuple[torch.Tensor, torch.nn.Module, torch.Tensor]:
    """A level twice as fine as the features, of which one cell is empty."""
    torch.manual_seed(0)
    level = torch.randn(2, 3, 2, 4, 4, requires_grad=True)
    features = torch.randn(2, 5, 2, 2, 2)
    features[1, :, 0, 1, 1] = 0
    return level, distillation.projection(3, 5), features


def test_the_distance_is_what_a_slow_one_says() -> None:
    level, projection, features = grids()
    assert isinstance(projection, torch.nn.Conv3d)
    assert projection.bias is not None
    fine = level.detach().double().numpy()
    weight = projection.weight.detach().double().numpy()[:, :, 0, 0, 0]
    bias = projection.bias.detach().double().numpy()
    away = []
    for b, d, h, w in np.ndindex(2, 2, 2, 2):
        target = features[b, :, d, h, w].double().numpy()
        if not target.any():
            continue
        cell = fine[b, :, d, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean(axis=(1, 2))
        seen = weight @ cell + bias
        away.append(1 - seen @ target / (np.linalg.norm(seen) * np.linalg.norm(target)))
    assert len(away) == 15
    found = distillation.distance(level, projection, features)
    assert found.item() == pytest.approx(np.mean(away), abs=1e-5)


def test_level_and_layer_learn_and_features_do_not() -> None:
    level, projection, features = grids()
    torch.autograd.backward(distillation.distance(level, projection, features))
    assert level.grad is not None
    assert level.grad.abs().sum() > 0
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in projection.parameters())
    assert not features.requires_grad
    # Of the empty cell nothing is learned.
    assert (level.grad[1, :, 0, 2:, 2:] == 0).all()


def test_only_directions_are_compared() -> None:
    level, projection, features = grids()
    one, other = (distillation.distance(level, projection, times * features) for times in (1.0, 7.0))
    assert one.item() == pytest.approx(other.item(), abs=1e-6)


def test_without_features_there_is_nothing_to_learn() -> None:
    level, projection, features = grids()
    found = distillation.distance(level, projection, torch.zeros_like(features))
    torch.autograd.backward(found)
    assert found.item() == 0
    assert level.grad is not None
    assert not level.grad.any()


def test_cells_that_hold_both_of_two_mixed_patches_are_emptied() -> None:
    outer, inner = torch.full((1, 1, 1, 2, 4), 1.0), torch.full((1, 1, 1, 2, 4), 2.0)
    inside = torch.zeros(2, 4, 8, dtype=torch.bool)
    inside[:, :2, 2:7] = True
    mixed = distillation.pasted(outer, inner, inside)
    assert mixed[0, 0, 0].tolist() == [[1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
