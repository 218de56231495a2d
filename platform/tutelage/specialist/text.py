"""How text enters a network: fused at its bottleneck, or as the weights of its last layers.

It decides which layers read the vectors and where their answer acts. It does not know who wrote
the text or what encoded it. The vectors are buffers, zero until somebody tells them, and are stored
with the weights, so that a stored specialist needs no text.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import TrainingError
from tutelage.specialist.base import Specialist
from tutelage.specialist.plan import Plan, TextPlan

_BALANCE = -4.0
"""Sigmoid of it is 0.018: the image alone, almost."""

_HEAD = 8
"""Features in the layers that text generates; with three layers, 153 numbers a class."""

_GROUPS = 16
"""Of the normalization before a head, or as many as divide the features."""

_LEVELS = 3
"""Coarsest levels from which the head sums up what it is looking at."""


class Steady(nn.Linear):
    """A linear layer that learns at a pace which does not grow with how much it reads.

    Adam moves every weight by about the learning rate, so that what a plain layer makes of n numbers moves
    by up to n times that in one step: of a text's 384, by 1.2 and more. Within fifty steps nearly every unit
    behind such a layer was off and stayed so, in bottleneck and head, on hippocampi and polyps: text was not
    looked at any more, and a head 256 wide found nothing at all. Here weights are sqrt(n) times as large and
    count as much less: the same function at first, and steps that much smaller.
    """

    def __init__(self, features_in: int, features_out: int, bias: bool = True) -> None:
        super().__init__(features_in, features_out, bias)
        with torch.no_grad():
            self.weight.mul_(math.sqrt(features_in))

    @property
    def counted(self) -> Tensor:
        """The weights as they count."""
        return self.weight / math.sqrt(self.in_features)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.linear(x, self.counted, self.bias)


class Texts(nn.Module):
    """The vectors of all classes, the background first, as told."""

    texts_KTF: Tensor

    def __init__(self, classes: int, topics: int, width: int) -> None:
        super().__init__()
        self.register_buffer("texts_KTF", torch.zeros(classes, topics, width))

    def forward(self) -> Tensor:
        """Return them with a root mean square of 1, whatever encoder they are of; zeros stay zeros."""
        return F.normalize(self.texts_KTF, dim=2) * math.sqrt(self.texts_KTF.shape[2])


class BottleneckFusion(nn.Module):
    """Features scaled and shifted by the text of the task, by a balance that is learned.

    With s = sigmoid(balance) and t the text, f' = (1 - s) f + s (f (1 + scale(t)) + shift(t)).
    The paper (LLM-SegNet) tells only that text and image meet at the bottleneck and that their
    balance is learned; this form, and the start at -4, are a reconstruction. Scale and shift start at
    zero, so a new fusion changes nothing at all. No layer has a bias, so what it comes to change it has
    from the text. The text is the same for every image of a task, so a task's vector is the plain mean
    over its structures, topic by topic: attention would choose among constants.
    """

    def __init__(self, texts: Texts, channels: int) -> None:
        super().__init__()
        _, topics, width = texts.texts_KTF.shape
        self.texts = texts
        self.reader = nn.Sequential(Steady(topics * width, channels, bias=False), nn.ReLU())
        self.scale = Steady(channels, channels, bias=False)
        self.shift = Steady(channels, channels, bias=False)
        self.balance = nn.Parameter(torch.tensor(_BALANCE))
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, features_BCDHW: Tensor) -> Tensor:
        """Return features of the same shape."""
        read = self.reader(self.texts()[1:].mean(0).flatten())
        scale, shift = (layer(read)[:, None, None, None] for layer in (self.scale, self.shift))
        fused: Tensor = features_BCDHW + self.balance.sigmoid() * (features_BCDHW * scale + shift)
        return fused


class TextHead(nn.Module):
    """Three layers a class, of kernel 1, whose weights are made from its text and the image.

    As in TAK's released code: a vector of each class from all its topics, a vector of each image from
    the three coarsest levels (normalized, averaged over space, brought to one width, averaged), and a
    layer that makes 153 numbers of both. Widths follow the network's own; the published 256 is the
    width of its bottleneck. The code takes the three levels from the encoder, here they are what the
    decoder starts from and makes of it.
    """

    def __init__(self, texts: Texts, level_channels: tuple[int, ...]) -> None:
        super().__init__()
        _, topics, width = texts.texts_KTF.shape
        hidden, finest = level_channels[0], level_channels[-1]
        self.texts = texts
        self.reader = nn.Sequential(Steady(width, hidden), nn.ReLU())
        self.join = nn.Sequential(Steady(topics * hidden, hidden), nn.ReLU())
        self.norms = nn.ModuleList(_normed(channels) for channels in level_channels[:_LEVELS])
        self.sums = nn.ModuleList(Steady(channels, hidden) for channels in level_channels[:_LEVELS])
        self.controller = Steady(2 * hidden, sum(_sizes()))
        self.entry = nn.Sequential(_normed(finest), nn.ReLU(), nn.Conv3d(finest, _HEAD, 1))

    def read_texts(self) -> Tensor:
        """Return what the head reads in each vector, (K, T, hidden)."""
        read: Tensor = self.reader(self.texts())
        return read

    def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Return logits (B, K, D, H, W) of features from coarse to fine."""
        generated_BKP = self.generate(levels)
        return dynamic(self.entry(levels[-1]), generated_BKP)

    def generate(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Return the numbers of every class in every image, (B, K, 153)."""
        classes_KC = self.join(self.read_texts().flatten(1))
        pooled = [
            layer(norm(level).relu().flatten(2).mean(2))
            for layer, norm, level in zip(self.sums, self.norms, levels, strict=False)
        ]
        images_BC = sum(pooled[1:], pooled[0]) / len(pooled)
        # The controller sees both side by side; its halves are applied apart, which is the same sum.
        of_image, of_class = torch.split(self.controller.counted, images_BC.shape[1], 1)
        image_BP, class_KP = F.linear(images_BC, of_image), F.linear(classes_KC, of_class)
        generated: Tensor = image_BP[:, None] + class_KP + self.controller.bias
        return generated


def dynamic(features_BCDHW: Tensor, generated_BKP: Tensor) -> Tensor:
    """Apply each class's own layers to the same features, all classes at once.

    The numbers of a class are the weights of its layers (8 to 8, 8 to 8, 8 to 1), then their biases.
    It is three grouped convolutions, written as matrix products, which takes half the time (measured,
    forward and back: 0.36 to 0.58 s instead of 0.98 to 1.29; two patches of 24x40x40 voxels, 11 classes,
    one CPU thread).
    """
    batch, classes, _ = generated_BKP.shape
    w1, w2, w3, b1, b2, b3 = torch.split(generated_BKP.reshape(batch * classes, -1, 1), _sizes(), 1)
    # The first layer has the same input for every class, so it is one layer with as many features.
    w1, b1 = w1.reshape(batch, classes * _HEAD, _HEAD), b1.reshape(batch, classes * _HEAD, 1)
    x = torch.baddbmm(b1, w1, features_BCDHW.flatten(2)).relu_().reshape(batch * classes, _HEAD, -1)
    x = torch.baddbmm(b2, w2.reshape(-1, _HEAD, _HEAD), x).relu_()
    x = torch.baddbmm(b3, w3.reshape(-1, 1, _HEAD), x)
    return x.reshape(batch, classes, *features_BCDHW.shape[2:])


def _sizes() -> list[int]:
    return [_HEAD * _HEAD, _HEAD * _HEAD, _HEAD, _HEAD, _HEAD, 1]


def _normed(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)


def with_text(plan: Plan, kind: Literal["bottleneck", "head"], texts_KTF: Tensor | None) -> Plan:
    """Return the plan of a network that reads such vectors.

    Raises:
        TrainingError: there are none, or they are not of the plan's classes.
    """
    if texts_KTF is None or texts_KTF.ndim != 3 or len(texts_KTF) != plan.classes:
        found = "none" if texts_KTF is None else f"some of shape {tuple(texts_KTF.shape)}"
        raise TrainingError(
            f"a network that reads text needs vectors of {plan.classes} classes by topic, the background "
            f"first, and was given {found}; encode the texts of {', '.join(plan.structures)}"
        )
    _, topics, width = texts_KTF.shape
    return plan.model_copy(update={"text": TextPlan(kind=kind, topics=topics, width=width)})


def attach(network: Specialist, plan: Plan) -> None:
    """Give a network what its plan says about text."""
    assert plan.text is not None
    texts = Texts(plan.classes, plan.text.topics, plan.text.width)
    if plan.text.kind == "head":
        network.head = TextHead(texts, network.level_channels)
    else:
        network.bottleneck = BottleneckFusion(texts, network.level_channels[0])


def tell(network: nn.Module, texts_KTF: Tensor) -> None:
    """Give a network with text its vectors.

    Raises:
        TrainingError: they are not of its classes, topics and width.
    """
    for texts in (module for module in network.modules() if isinstance(module, Texts)):
        if texts_KTF.shape != texts.texts_KTF.shape:
            raise TrainingError(
                f"vectors have the shape {tuple(texts_KTF.shape)}, expected {tuple(texts.texts_KTF.shape)} "
                "(classes, topics, width); encode the texts as when the network was planned"
            )
        texts.texts_KTF.copy_(texts_KTF)
