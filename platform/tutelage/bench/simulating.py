"""How long a labeling round of any size would take, from what its parts cost on a machine that was measured.

The model. n actors take volumes from one queue, which the driver fills at d seconds a row; volume i
occupies its actor for s(i) = w x f(i) + g seconds:

    w = slow x (read + specialist + slices x embed + prompts x decode + write + rest)
    begin(i) = max(i x d, the moment when the first actor is free),  end(i) = begin(i) + s(i)
    round = start + max over i of end(i)

d is the driver's time for a row, g what lies between two volumes of an actor, `slow` how much longer
a volume takes when as many actors as were measured share a machine, and f(i) is drawn from the
spread that was measured, which is where stragglers come from. It is simulated volume by volume. For
many volumes it tends to start + N x max(d, (w + g) / n): an actor more brings something up to
(w + g) / d of them.

It knows neither Ray nor a file of voxels; what things cost is measured by `bench/costs.py`. Left out:
curation, nodes that are lost, stores that all actors wait for, prices of storage.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.table import Table

from tutelage.settings import Settings, load

Profile = Literal["a100-sam-vit-b", "a100-sam-vit-h"]

PUBLISHED: dict[Profile, float] = {"a100-sam-vit-b": 94.9, "a100-sam-vit-h": 25.2}
"""Images a second, decoding included, that segment-anything-fast publishes for an A100. Not measured here."""

_SEED = 0
_HOUR_S = 3600.0


class Costs(Settings):
    """What the parts of a labeling round cost on one machine. Seconds, of one thread where not said."""

    machine: str
    """What was measured, in words."""

    generalist: str
    """Who answered."""

    at_once: int = Field(ge=1)
    """Actors that shared the machine when `slow` was measured."""

    slow: float = Field(gt=0)
    """How many times as long a volume takes then."""

    spread: tuple[float, ...] = Field(min_length=1)
    """Times of single volumes over their mean."""

    slices: float = Field(ge=0)
    """Slices of a volume that are embedded, on average."""

    prompts: float = Field(ge=0)
    """Questions about a volume, on average."""

    read_s: float = Field(ge=0)
    """To read and decode a volume, from a page cache that has it."""

    specialist_s: float = Field(ge=0)
    """For the specialist to say where."""

    embed_s: float = Field(ge=0)
    """To embed one slice."""

    decode_s: float = Field(ge=0)
    """To answer one prompt."""

    write_s: float = Field(ge=0)
    """To keep a volume's embeddings and its candidate."""

    rest_s: float = Field(ge=0)
    """For everything else about a volume: pieces, prompts, joining answers."""

    between_s: float = Field(ge=0)
    """From the end of a volume in its actor to the beginning of the next."""

    driver_s: float = Field(ge=0)
    """Of the driver's core for one row."""

    start_s: float = Field(ge=0)
    """Once a round: starting Ray and actors, loading models, and writing down what came of it."""

    actor_mib: float = Field(ge=0)
    """Memory of an actor at its peak."""

    embeddings_mb: float = Field(ge=0)
    """Megabytes (10^6 bytes) of a volume's embeddings."""

    labels_mb: float = Field(ge=0)
    """Megabytes of a volume's candidate, pseudo-label and rows."""

    @property
    def work_s(self) -> float:
        """Seconds of a volume for an actor that is alone on its machine."""
        steps = self.read_s + self.specialist_s + self.write_s + self.rest_s
        return steps + self.slices * self.embed_s + self.prompts * self.decode_s

    def slowed(self, actors: int) -> float:
        """How many times as long a volume takes with so many actors, machines filled one after another."""
        beside = min(actors, self.at_once) - 1
        return 1 + (self.slow - 1) * beside / max(self.at_once - 1, 1)

    def with_profile(self, profile: Profile) -> "Costs":
        """Take the published rate of a GPU for embedding and decoding; all else stays as it was measured."""
        machine = f"{profile}: {PUBLISHED[profile]:g} slices a second as published; else {self.machine}"
        told = {"machine": machine, "generalist": profile, "embed_s": 1 / PUBLISHED[profile], "decode_s": 0.0}
        return self.model_copy(update=told)


def costs_in(file: Path) -> Costs:
    """Read costs that were measured before.

    Raises:
        SettingsError: the file does not hold them.
    """
    return load(file, Costs)


def round_s(costs: Costs, volumes: int, actors: int) -> float:
    """Seconds that the labeling step of so many volumes takes."""
    return costs.start_s + labeling_s(costs, volumes, actors)


def labeling_s(costs: Costs, volumes: int, actors: int) -> float:
    """Seconds from the first volume's begin to the last one's end."""
    work_s = costs.work_s * costs.slowed(actors)
    factors = random.Random(_SEED).choices(costs.spread, k=volumes)
    free_s = [0.0] * min(actors, volumes)
    last_s = 0.0
    for number, factor in enumerate(factors):
        begin_s = max(number * costs.driver_s, free_s[0])
        end_s = begin_s + work_s * factor + costs.between_s
        heapq.heapreplace(free_s, end_s)
        last_s = max(last_s, end_s)
    return last_s


@dataclass(frozen=True)
class Size:
    """What a round of one size would take."""

    volumes: int
    actors: int
    hours: float
    per_actor_hour: float
    """Volumes that an actor labels in an hour, the round's start and end included."""

    busy: float
    """Share of the actors' time in which they work on volumes."""

    useful_actors: int
    """With more, the driver would be what all wait for."""

    actor_mib: float
    embeddings_gb: float
    labels_gb: float
    per_1000: float | None
    """Price of 1,000 volumes, if that of an actor's hour is known."""


def size(costs: Costs, volumes: int, actors: int, price_per_hour: float | None = None) -> Size:
    """Predict a round; the price is that of what one actor occupies."""
    hours = round_s(costs, volumes, actors) / _HOUR_S
    worked_s = volumes * costs.work_s * costs.slowed(actors)
    occupied_s = costs.work_s * costs.slowed(actors) + costs.between_s
    return Size(
        volumes,
        actors,
        hours,
        volumes / hours / actors,
        worked_s / (actors * hours * _HOUR_S),
        max(1, int(occupied_s / costs.driver_s)) if costs.driver_s else actors,
        costs.actor_mib,
        volumes * costs.embeddings_mb / 1000,
        volumes * costs.labels_mb / 1000,
        None if price_per_hour is None else price_per_hour * actors * hours / volumes * 1000,
    )


def table(costs: Costs, sizes: Sequence[Size]) -> Table:
    """Show sizes as a person would plan with them."""
    title = f"{costs.generalist}, {costs.slices:.0f} slices a volume; {costs.machine}"
    shown = Table(title=title, title_justify="left")
    for name in ("volumes", "actors", "hours", "an hour, each", "MiB, each", "cache GB", "labels GB",
                 "price of 1,000"):  # fmt: skip
        shown.add_column(name, justify="right")
    for one in sizes:
        shown.add_row(
            f"{one.volumes:,}", f"{one.actors}", f"{one.hours:,.1f}", f"{one.per_actor_hour:,.0f}",
            f"{one.actor_mib:,.0f}", f"{one.embeddings_gb:,.0f}", f"{one.labels_gb:,.2f}",
            "-" if one.per_1000 is None else f"{one.per_1000:,.2f}",
        )  # fmt: skip
    return shown
