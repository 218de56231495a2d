"""A training of seconds in one process, and what tells two of them apart."""

import copy
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tests.methods.toys import SLAB, plan_of, sample
from tutelage.methods.base import SPECIALIST, Batch, Method, Resources
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.checkpoint import Checkpoint
from tutelage.methods.settings import TrainSettings
from tutelage.methods.supervised import Supervised
from tutelage.methods.training import Around, Trained, fit
from tutelage.specialist.plan import Plan

SHAPE = SLAB
SETTINGS = TrainSettings(steps=8, batch=2, warmup=2, checkpoint_every=3)


MIXED = (sample("g1"), sample("g2"), sample("u1", gold=False, undecided=(2,)), sample("u2", gold=False))


class Restless(Supervised):
    """Has chance in its losses, a second network that follows, and something to count."""

    def __init__(self, plan: Plan, settings: TrainSettings, resources: Resources) -> None:
        super().__init__(plan, settings, resources)
        self.seen = 0

    def networks(self) -> nn.ModuleDict:
        networks = super().networks()
        networks["teacher"] = copy.deepcopy(networks[SPECIALIST]).requires_grad_(False)
        return networks

    def losses(self, batch: Batch, networks: nn.ModuleDict, step: int) -> dict[str, Tensor]:
        self.seen += len(batch.labeled)
        shaken = batch.labeled.image + 0.1 * torch.randn_like(batch.labeled.image)
        with torch.no_grad():
            told = networks["teacher"](batch.labeled.image).softmax(1)
        steady = (networks[SPECIALIST](shaken).softmax(1) - told).square().mean()
        return super().losses(batch, networks, step) | {"steady": steady}

    def after_step(self, networks: nn.ModuleDict, step: int) -> None:
        mean, weights = networks["teacher"].state_dict(), networks[SPECIALIST].state_dict()
        for name, value in weights.items():
            mean[name].lerp_(value, 0.2)

    def counts(self) -> dict[str, float]:
        return {"patches": float(self.seen)}


class Run:
    """One training of a small method on the samples above."""

    def __init__(
        self,
        *samples: Sample,
        settings: TrainSettings = SETTINGS,
        seed: int = 5,
        first: int = 0,
        cls: Callable[[Plan, TrainSettings, Resources], Method] = Supervised,
        plan: Plan | None = None,
    ) -> None:
        plan = plan or plan_of(SHAPE)
        self.method = cls(plan, settings, Resources())
        torch.manual_seed(first)
        self.networks = self.method.networks()
        self.settings = settings
        self.batches = Batches(samples or (sample("one"), sample("two")), plan, settings, seed)

    @property
    def specialist(self) -> nn.Module:
        return self.networks[SPECIALIST]

    def fit(self, around: Around | None = None) -> Trained:
        return fit(self.method, self.networks, self.batches, self.settings, around)


def told(**values: object) -> TrainSettings:
    return SETTINGS.model_copy(update=values)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def stored(checkpoint: Checkpoint) -> Checkpoint:
    """What a file would give back."""
    buffer = io.BytesIO()
    torch.save(checkpoint.to_dict(), buffer)
    buffer.seek(0)
    return Checkpoint.from_dict(torch.load(buffer, weights_only=True))


def brightness(weights: dict[str, Tensor]) -> Iterator[float]:
    """Scores of two cases that are as good as any: they follow from weights alone."""
    yield 0.0
    yield float(torch.stack([value.float().sum() for value in weights.values()]).sum())
