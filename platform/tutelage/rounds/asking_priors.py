"""The step before all rounds: a language model is asked what is known about the archive's structures.

It decides who is asked and where the answers go: a shelf to review, replies that need not be
asked for again, what was refused and why, and vectors of the texts. It does not know what is
asked or which answers can be used.
"""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tutelage.errors import PARTIAL, SettingsError
from tutelage.priors import shelf as shelves
from tutelage.priors import vectors as texts
from tutelage.priors.asking import Effort, Interview, interview
from tutelage.priors.base import TextModel
from tutelage.priors.questions import Region
from tutelage.priors.recorded import Recorded, Replies
from tutelage.records import Prior
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.textual import check
from tutelage.storage import Place


@dataclass(frozen=True)
class Who:
    """Who is asked: one of a model, a server and a recording."""

    model: Path | None = None
    """Folder of a model, or a .gguf file."""

    endpoint: str | None = None
    """Address of a server that speaks OpenAI's protocol."""

    served: str | None = None
    """Which of a server's models."""

    recorded: Path | None = None
    """A shelf that answers in a model's place."""

    models: Path = Path("models")
    """Where folders of .gguf files are made."""


@dataclass(frozen=True, kw_only=True)
class Told(Effort):
    """What came of it."""

    model: str
    weights: str
    shelf: str
    vectors: str | None
    no_vectors: str
    """Why there are none."""
    record: str
    priors: dict[str, Prior]

    @property
    def exit_code(self) -> int:
        """Partial where something was refused."""
        return PARTIAL if self.refused else 0


def ask(settings: RunSettings, reporter: Reporter, who: Who, structures: Sequence[str] = ()) -> Told:
    """Ask about all structures of an archive, or some, and write what can be used for review.

    Raises:
        SettingsError: nobody to ask was named, or more than one, or an unknown structure.
        PriorsError: the model cannot be had.
    """
    model = model_of(settings, who)
    try:
        with opened(settings, reporter) as campaign:
            return _asked(campaign, model, structures)
    finally:
        model.close()


def _asked(campaign: Campaign, model: TextModel, structures: Sequence[str]) -> Told:
    settings, folder = campaign.settings.priors, campaign.workspace.root / "priors"
    counts = campaign.catalog.cases.counts("modality")
    modalities = [name for (name,), _ in sorted(counts.items(), key=lambda item: -item[1])]
    region = Region(campaign.catalog.structures, tuple(modalities))
    place = folder / "shelf.yaml"
    before = shelves.opened(place) if place.exists() else None
    asking = settings.asking
    if isinstance(model, Recorded):  # it says the same every time
        asking = asking.model_copy(update={"samples": 1})
    asked = structures or region.structures
    total = len(asked) * len(region.modalities) * len(asking.views) * asking.samples
    campaign.reporter.say(f"asking    {model.name} ({model.digest}) about {len(asked)} structures")
    with campaign.reporter.task("answers", total) as advance:
        found = interview(
            model,
            region,
            asked,
            asking,
            Replies(folder / "replies"),
            before,
            datetime.date.today().isoformat(),
            advance,
        )
    found = replace(found, shelf=check(campaign, found.shelf), seconds=round(found.seconds, 1))
    shelves.write(place, found.shelf)
    vectors, reason = _vectors(campaign, found, folder / "vectors.parquet")
    told = Told(
        model=model.name,
        weights=model.digest,
        shelf=str(place),
        vectors=vectors,
        no_vectors=reason,
        record=str(folder / "asking.json"),
        priors=found.shelf.priors,
        **{field.name: getattr(found, field.name) for field in fields(Effort)},
    )
    record = {key: value for key, value in asdict(told).items() if key != "priors"}
    Place.of(told.record).write_text(json.dumps(record, indent=1) + "\n")
    return told


def _vectors(campaign: Campaign, found: Interview, place: Place) -> tuple[str | None, str]:
    """Make vectors of what is on the shelf now; without a text for each structure there are none."""
    sources = {
        name: asked.model_dump(mode="json", exclude={"claims"}) for name, asked in found.shelf.asked.items()
    }
    try:
        made = texts.make(
            found.shelf.priors, campaign.catalog.structures, campaign.settings.priors.vectors, sources
        )
    except (SettingsError, ImportError) as error:
        place.remove()
        return None, str(error)
    texts.write(place, made)
    return str(place), ""


def model_of(settings: RunSettings, who: Who) -> TextModel:
    """Return who is asked; nothing is started yet.

    Raises:
        SettingsError: nobody was named, or more than one.
    """
    named = [value for value in (who.model, who.endpoint, who.recorded) if value is not None]
    if len(named) != 1:
        told = "none" if not named else "more than one"
        raise SettingsError(
            f"--model, --endpoint and --recorded name who is asked; found {told}, give one of them"
        )
    if who.recorded is not None:
        return Recorded(who.recorded)
    if who.endpoint is not None:
        from tutelage.priors.endpoint import Endpoint

        return Endpoint(who.endpoint, who.served, settings.priors.endpoint)
    assert who.model is not None
    from tutelage.cluster.texts import RayTextModel
    from tutelage.priors.gguf import as_folder

    folder = as_folder(who.model, who.models) if who.model.suffix == ".gguf" else who.model
    return RayTextModel(folder, settings.priors.engine, settings.cluster)
