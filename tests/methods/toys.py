"""Small things to learn from: plans, batches, a generalist to ask, a loop of ten lines, slow losses."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tutelage.geometry import Grid
from tutelage.methods.base import SPECIALIST, Answers, Batch, Method, Patches, Resources, View
from tutelage.methods.batches import Sample
from tutelage.methods.needs import MethodName
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.teachers import TEACHER
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.settings import SpecialistSettings

VOLUME: Triple = (8, 16, 16)
FLAT: Triple = (1, 16, 16)
SLAB: Triple = (4, 16, 16)

CLASSES = 3
TEXT_WIDTH = 12
FEATURES = 6


def plan_of(patch: Triple = VOLUME) -> Plan:
    """Slices are twice as thick as pixels are wide."""
    grid = Grid.from_spacing(patch, (2.0, 1.0, 1.0))
    return make_plan([grid], ["a", "b"], 1, SpecialistSettings(channels=(8, 16)))


def sample(name: str, gold: bool = True, shape: Triple = SLAB, undecided: tuple[int, ...] = ()) -> Sample:
    """Two bright blocks on a dark, noisy ground."""
    rng = np.random.default_rng(list(name.encode()))
    label = np.zeros(shape, np.uint8)
    label[1:3, 2:9, 3:8] = 1
    label[1:3, 8:14, 9:14] = 2
    image = (label * 1.2 - 0.5 + rng.normal(0, 0.2, shape)).astype(np.float32)[None]
    weight = None if gold else rng.random(shape, np.float32)
    return Sample(name, image, label, weight, undecided, gold)


class Echo:
    """A generalist that believes what it is shown, a little differently each time, and knows no more."""

    def ask(self, case: str, mask_DHW: NDArray[np.uint8], seed: int) -> Answers:
        rng = np.random.default_rng([seed, *case.encode()])
        shown = np.stack([mask_DHW == value for value in range(1, CLASSES)])
        answers = np.clip(np.where(shown, 0.8, 0.1) + rng.normal(0, 0.05, (4, *shown.shape)), 0, 1)
        asked = np.asarray(shown.any((1, 2, 3)))
        return Answers(
            mean_KDHW=answers.mean(0).astype(np.float32),
            variance_KDHW=answers.var(0).astype(np.float32),
            asked_K=asked,
            calls=4 * int(asked.sum()),
        )


def resources() -> Resources:
    texts = torch.randn(CLASSES, 2, TEXT_WIDTH, generator=torch.Generator().manual_seed(3))
    return Resources(texts_KTF=texts, asker=Echo(), feature_width=FEATURES)


def method_of(name: MethodName, patch: Triple = VOLUME, steps: int = 20) -> Method:
    return method_class(name)(plan_of(patch), TrainSettings(method=name, steps=steps, warmup=0), resources())


def patches(count: int, patch: Triple = VOLUME, seed: int = 0, name: str = "case") -> Patches:
    """Noise over two blocks, labels that show every class, weights and features of any kind."""
    rng = np.random.default_rng([seed, count])
    label = rng.integers(0, CLASSES, (count, *patch))
    label[:, :, 2:7, 3:8] = 1
    label[:, :, 8:12, 8:14] = 2
    image = (label * 0.7 + rng.normal(0, 0.4, label.shape)).astype(np.float32)[:, None]
    return Patches(
        image=torch.from_numpy(image),
        label=torch.from_numpy(label),
        weight=torch.from_numpy(rng.random(label.shape, np.float32)),
        undecided=torch.zeros(count, CLASSES, dtype=torch.bool),
        features=torch.from_numpy(rng.normal(size=(count, FEATURES, *patch)).astype(np.float32)),
        featured=torch.ones(count, dtype=torch.bool),
        cases=tuple(f"{name}{number}" for number in range(count)),
        views=(View(patch, (0, 0, 0), patch),) * count,
        seeds=tuple(int(one) for one in rng.integers(2**63, size=count)),
    )


def batch_of(patch: Triple = VOLUME, seed: int = 0, labeled: int = 2, unlabeled: int = 2) -> Batch:
    return Batch(patches(labeled, patch, seed, "gold"), patches(unlabeled, patch, seed + 100, "free"), seed)


def blank(batch: Batch) -> Batch:
    """The same images, of which nothing is believed."""
    assert batch.unlabeled is not None
    nothing = replace(
        batch.unlabeled,
        label=torch.zeros_like(batch.unlabeled.label),
        weight=torch.zeros_like(batch.unlabeled.weight),
    )
    return replace(batch, unlabeled=nothing)


def learn(
    method: Method,
    seed: int = 0,
    steps: Sequence[int] = (0, 1, 2),
    patch: Triple = VOLUME,
    given: Callable[[Batch], Batch] = lambda batch: batch,
) -> dict[str, Tensor]:
    """Take these steps with fresh networks and return all weights."""
    torch.manual_seed(seed)
    networks = method.networks().train()
    learning = [weight for weight in networks.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=4e-3)
    for step in steps:
        torch.manual_seed(1000 * seed + step)
        terms = method.losses(given(batch_of(patch, seed=step)), networks, step)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        method.after_step(networks, step)
    return networks.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def pixelwise(seed: int, classes: int = CLASSES) -> nn.Module:
    """A network that looks at one voxel at a time, far from sure."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Conv3d(1, classes, 1)
        nn.init.normal_(network.weight, std=2.0)
    return network


def always(logits: Sequence[float]) -> nn.Module:
    """A network that says the same of every voxel."""
    network = pixelwise(0, len(logits))
    nn.init.zeros_(weight_of(network))
    with torch.no_grad():
        bias_of(network).copy_(torch.tensor(logits))
    return network


def weight_of(network: nn.Module) -> Tensor:
    """Of a network of one layer."""
    assert isinstance(network, nn.Conv3d)
    return network.weight


def bias_of(network: nn.Module) -> Tensor:
    assert isinstance(network, nn.Conv3d)
    assert network.bias is not None
    return network.bias


# --- slow references --------------------------------------------------------------------------


def slow_softmax(logits_BKDHW: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.zeros_like(logits_BKDHW)
    for b, *where in np.ndindex(*logits_BKDHW[:, 0].shape):
        at = (b, slice(None), *where)
        raised = [np.exp(value) for value in logits_BKDHW[at]]
        p[at] = [one / sum(raised) for one in raised]
    return p


def slow_supervised(
    logits_BKDHW: NDArray[np.float64], label: NDArray[np.int64], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Cross entropy and Dice where nothing is undecided, voxel by voxel."""
    p = slow_softmax(logits_BKDHW)
    entropy = counted = 0.0
    classes = logits_BKDHW.shape[1]
    both, squared, shown = (np.zeros(classes) for _ in range(3))
    for b, *where in np.ndindex(*label.shape):
        right, w = label[(b, *where)], weight[(b, *where)]
        entropy -= w * np.log(p[(b, right, *where)])
        counted += w
        both[right] += w * p[(b, right, *where)]
        shown[right] += w
        for value in range(classes):
            squared[value] += w * p[(b, value, *where)] ** 2
    present = [value for value in range(1, classes) if shown[value] > 0]
    missed = [1 - (2 * both[v] + 1e-3) / (squared[v] + shown[v] + 1e-3) for v in present]
    return entropy / max(counted, 1.0), sum(missed) / max(len(missed), 1)


def plain(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().double().numpy()


def student_and_teacher() -> nn.ModuleDict:
    """Two who disagree, of whom one learns."""
    teacher = pixelwise(2).requires_grad_(False)
    return nn.ModuleDict({SPECIALIST: pixelwise(1), TEACHER: teacher})
