"""A few steps of every method on made-up cases, alone or as one of several processes that learn together."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.methods.toys import FEATURES, VOLUME, plan_of, resources, sample
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.cubes import Cubes
from tutelage.methods.needs import MethodName, needs_of
from tutelage.methods.registry import method_class
from tutelage.methods.settings import TrainSettings
from tutelage.methods.training import Around, StepReport, fit
from tutelage.specialist.settings import Norm

STEPS = 3


@dataclass(frozen=True)
class Lesson:
    """What is learned, and how."""

    method: MethodName
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 4
    norm: Norm = "instance"
    staying: bool = False
    """Whether cubes stay in their image: processes do not exchange them with each other."""
    adaptive: bool = False
    """Whether AdamW learns, as it does in earnest. It makes whole steps of gradients that are nothing but
    rounding, such as those of a bias before a norm, so only losses can be compared; else plain descent."""
    alike: bool = True
    """Whether two processes learn what one does."""


LATE = {"rise": 0.0}
"""From the first step on."""

SOON = {"tak": {"blend_from": 1, "contrast_from": 0.3, "gate_rise": 0.0, "rise": 0.0}}
"""All of TAK's terms within three steps."""

LESSONS: dict[str, Lesson] = {
    "supervised": Lesson("supervised"),
    "supervised, dealt unevenly": Lesson("supervised", batch=6),
    "supervised with batch norm": Lesson("supervised", norm="batch"),
    "supervised by AdamW": Lesson("supervised", adaptive=True),
    "mean teacher": Lesson("mean_teacher", {"mean_teacher": LATE}),
    "mean teacher, dealt unevenly": Lesson("mean_teacher", {"mean_teacher": LATE}, batch=6),
    "mean teacher with batch norm": Lesson("mean_teacher", {"mean_teacher": LATE}, norm="batch"),
    "UA-MT": Lesson("ua_mt", {"ua_mt": LATE | {"passes": 2, "surest": 0.99}}),
    "UA-MT, dealt unevenly": Lesson("ua_mt", {"ua_mt": LATE | {"passes": 2, "surest": 0.99}}, batch=6),
    "UA-MT by AdamW": Lesson("ua_mt", {"ua_mt": LATE | {"passes": 2, "surest": 0.99}}, adaptive=True),
    "CPS": Lesson("cps", {"cps": LATE | {"dice": True}}),
    "CPS, dealt unevenly": Lesson("cps", {"cps": LATE}, batch=6),
    "BCP": Lesson("bcp"),
    "BCP, two of each": Lesson("bcp", batch=8),
    "BCP, dealt unevenly": Lesson("bcp", batch=6, alike=False),
    "LLM-SegNet": Lesson("llm_segnet", {"llm_segnet": LATE | {"sure": 0.4}}),
    "LLM-SegNet, two of each": Lesson("llm_segnet", {"llm_segnet": LATE | {"sure": 0.4}}, batch=8),
    "LLM-SegNet, dealt unevenly": Lesson("llm_segnet", batch=6, alike=False),
    "TAK, cubes staying": Lesson("tak", SOON, staying=True),
    "TAK": Lesson("tak", SOON, alike=False),
    "knowledge mining": Lesson("knowledge_mining"),
    "SemiSAM+": Lesson("semisam_plus", {"semisam_plus": {"base": "bcp", "ask_every": 1}}),
    "ours": Lesson("tutelage", {"tutelage": LATE | {"sure": 0.4, "text": "head", "distillation": 0.1}}),
    "ours, two of each": Lesson("tutelage", {"tutelage": LATE | {"sure": 0.4, "distillation": 0.1}}, batch=8),
    "ours, dealt unevenly": Lesson("tutelage", {"tutelage": LATE}, batch=6, alike=False),
}
"""By what a test is called. Batches are half of annotated patches."""


@dataclass(frozen=True)
class Learned:
    """What one process saw of it."""

    told: list[list[float]]
    """Step by step: the norm of the gradient, the loss and its terms."""
    weights: dict[str, Tensor]


def learn(
    lesson: Lesson, rank: int = 0, world: int = 1, wrap: Callable[[nn.Module], nn.Module] | None = None
) -> Learned:
    """Take all steps with a process's share of each batch; several are joined as usual, or by `wrap`."""
    chosen = {
        "method": lesson.method,
        "steps": STEPS,
        "warmup": 0,
        "batch": lesson.batch,
        "learning_rate": 0.05,
    }
    settings = TrainSettings.model_validate(chosen | lesson.options)
    plan = plan_of().model_copy(update={"norm": lesson.norm, "channels": (4, 8)})
    method = method_class(settings.method)(plan, settings, resources())
    torch.manual_seed(0)
    networks = method.networks()
    reports: list[StepReport] = []
    joined = wrap or partial(
        DistributedDataParallel, find_unused_parameters=not needs_of(settings).every_parameter
    )
    around = Around(on_step=reports.append, wrap=joined if world > 1 else None)
    with ExitStack() as stack:
        if not lesson.adaptive:
            stack.enter_context(patch.object(torch.optim, "AdamW", sgd))
        if lesson.staying:
            stack.enter_context(patch.object(Cubes, "draw", staying))
        fit(method, networks, Batches(cases(), plan, settings, 5, rank, world), settings, around)
    told = [[report.gradient_norm, report.loss, *report.terms.values()] for report in reports]
    return Learned(told, networks.state_dict())


def sgd(weights: list[nn.Parameter], lr: float, weight_decay: float, fused: bool) -> torch.optim.SGD:
    """Return what AdamW is replaced by; torch has no fused SGD of weights that are divided."""
    return torch.optim.SGD(weights, lr=lr, weight_decay=weight_decay)


def staying(cubes: Cubes, seeds: Sequence[int]) -> Tensor:
    """Let every cube come from its own image."""
    return torch.arange(len(seeds)).view(-1, 1, 1, 1).expand(-1, *cubes.counts)


def cases() -> list[Sample]:
    """Annotated ones, and others of which some leave a structure undecided; all with features."""
    made = [sample(f"gold{n}", True, VOLUME) for n in range(3)]
    made += [sample(f"free{n}", False, VOLUME, (2,) if n % 2 else ()) for n in range(4)]
    rng = np.random.default_rng(1)
    shape = (VOLUME[0], FEATURES, VOLUME[1] // 2, VOLUME[2] // 2)
    return [replace(one, features_DCHW=rng.normal(size=shape).astype(np.float16)) for one in made]


if __name__ == "__main__":
    mine, everyone, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=mine, world_size=everyone)
    found = {name: learn(lesson, mine, everyone) for name, lesson in LESSONS.items()}
    torch.save({name: (one.told, one.weights) for name, one in found.items()}, folder / f"{mine}.pt")
    torch.distributed.destroy_process_group()
