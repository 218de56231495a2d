"""What each method asks of a round, by its name: the part of a method that is known without torch.

Rounds read it to know which steps to do; training reads it to know what to load. It does
not know how any method works.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # settings name methods, and so import this
    from tutelage.methods.settings import TrainSettings

MethodName = Literal[
    "supervised",
    "mean_teacher",
    "ua_mt",
    "cps",
    "bcp",
    "llm_segnet",
    "tak",
    "knowledge_mining",
    "semisam_plus",
    "tutelage",
]
"""Every method, in the order in which tables show them."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What has to be there before a method can learn."""

    unlabeled: bool = True
    """Images of which nothing is believed; without, only cases with a pseudo-label are seen."""

    pseudo: bool = False
    """Pseudo-labels: each round labels and curates before it trains."""

    text: bool = False
    """Vectors of what is known about each structure."""

    asker: bool = False
    """A generalist that answers while training goes on."""

    features: bool = False
    """The generalist's embedding grids, kept with the pseudo-labels."""

    continues: bool = False
    """Starts from the specialist of the stage before instead of fresh weights."""

    mixes: bool = True
    """Needs an annotated and an unlabeled patch in the same process at every step."""

    every_parameter: bool = False
    """Every weight gets a gradient at every step; several processes are then joined at less cost."""

    divides: bool = True
    """No weight is a single number, and so all can be divided among processes that train together."""

    options: tuple[str, ...] = ()
    """Fields of TrainSettings with options of other methods that it reads beside its own."""


NEEDS: dict[MethodName, Needs] = {
    "supervised": Needs(unlabeled=False, pseudo=True, mixes=False, every_parameter=True),
    "mean_teacher": Needs(),
    "ua_mt": Needs(),
    "cps": Needs(),
    "bcp": Needs(),
    "llm_segnet": Needs(text=True, divides=False),
    "tak": Needs(text=True),
    "knowledge_mining": Needs(
        unlabeled=False, pseudo=True, continues=True, mixes=False, every_parameter=True
    ),
    "semisam_plus": Needs(asker=True, options=("mean_teacher", "ua_mt", "cps", "bcp")),
    "tutelage": Needs(pseudo=True, text=True, features=True),
}
"""One line a method."""

assert list(NEEDS) == list(get_args(MethodName))


def needs_of(train: "TrainSettings") -> Needs:
    """Return what the chosen method asks for with its options: ours needs what its parts do."""
    needs = NEEDS[train.method]
    if train.method != "tutelage":
        return needs
    parts = train.tutelage
    return replace(
        needs,
        text=parts.text is not None,
        features=parts.distillation > 0,
        continues=parts.continues,
        divides=parts.text != "bottleneck",
    )


def undivided(train: "TrainSettings") -> str | None:
    """Return why what learns cannot be divided among processes, and what can be; None where it can."""
    if needs_of(train).divides:
        return None
    able = ", ".join(name for name, needs in NEEDS.items() if needs.divides)
    return (
        f"{train.method} balances text in the bottleneck by a single number, which cannot be divided among "
        f"processes; take one of {able} (with train.tutelage.text head or null), or set it to false"
    )
