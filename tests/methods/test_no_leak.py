"""Of every method: what it may not look at changes nothing, and the rest follows from the seed."""

from dataclasses import replace

import pytest
import torch

from tests.methods.toys import FLAT, VOLUME, blank, learn, method_of, same
from tutelage.methods.base import Batch
from tutelage.methods.needs import NEEDS, MethodName
from tutelage.methods.registry import METHODS
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch

SPREAD = (0, 9, 10, 19)
"""Steps of twenty, so that every phase is seen."""

BLIND = [name for name in METHODS if not NEEDS[name].pseudo]
BELIEVERS = [name for name in METHODS if NEEDS[name].pseudo]


@pytest.mark.parametrize("patch", [VOLUME, FLAT], ids=["volume", "flat"])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_learns_the_same_bits(name: MethodName, patch: Triple) -> None:
    one, other = (learn(method_of(name, patch), patch=patch) for _ in range(2))
    assert same(one, other)
    assert not same(one, learn(method_of(name, patch), seed=1, patch=patch))


@pytest.mark.parametrize("name", BLIND)
def test_labels_of_unlabeled_cases_leave_no_trace(name: MethodName) -> None:
    assert same(learn(method_of(name), steps=SPREAD), learn(method_of(name), steps=SPREAD, given=blank))


@pytest.mark.parametrize("name", BLIND)
def test_images_of_unlabeled_cases_do(name: MethodName) -> None:
    def darker(batch: Batch) -> Batch:
        assert batch.unlabeled is not None
        return replace(batch, unlabeled=replace(batch.unlabeled, image=torch.sin(3 * batch.unlabeled.image)))

    seen, other = (learn(method_of(name), steps=SPREAD, given=given) for given in (lambda one: one, darker))
    assert not same(seen, other)


@pytest.mark.parametrize("name", BELIEVERS)
def test_pseudo_labels_are_looked_at_by_those_that_ask_for_them(name: MethodName) -> None:
    seen, blanked = (learn(method_of(name), steps=SPREAD, given=given) for given in (lambda one: one, blank))
    assert not same(seen, blanked)
