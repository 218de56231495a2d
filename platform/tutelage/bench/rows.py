"""One row of the methods bench: a method, a set and a seed, as a small campaign of its own.

A row is a folder: `campaign.yaml`, which `tutelage run` takes too, its workspace, and `row.json`,
written last. A row whose JSON was made with the same settings, files and priors is not done again. What
rows of one seed have in common, the catalog and the specialist of labels alone, is copied from the
supervised row, and embeddings of the generalist lie in one folder for all rows of a set; manifests
decide whether what was copied still holds. Test cases are looked at once, after everything was
decided: by the last weights, and by those that did best on validation in any stage that the method
rests on; with every piece and with the largest piece of each structure alone.

It runs in a process of its own, so that its memory is its own and a row that dies takes no other
with it:

    python -m tutelage.bench.rows FOLDER
"""

import contextlib
import hashlib
import json
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.bench import sets
from tutelage.errors import TutelageError, WorkspaceError
from tutelage.methods.needs import NEEDS
from tutelage.records import Role, Score
from tutelage.rounds.campaign import Campaign, opened
from tutelage.rounds.progress import Reporter
from tutelage.rounds.run import stage
from tutelage.rounds.settings import RunSettings
from tutelage.rounds.workspace import LABELS_ONLY, Workspace, read_manifest
from tutelage.settings import fingerprint, load
from tutelage.storage import Place

_FORM = 3
"""Of row.json; another form is another row."""

CAMPAIGN = "campaign.yaml"
RESULT = "row.json"
LOG = "row.log"
_ORDER = "order.json"

SELECTIONS = ("last", "best")
"""Weights of the last step, and those that did best on validation while they were learned, in any round:
a method whose second round makes it worse is published with a rule that keeps the first."""

PIECES = ("all", "largest")
"""Scored as predicted, and with the largest piece of each structure alone."""


@dataclass(frozen=True)
class Row:
    """What one row is about."""

    set: str
    labeled: int
    budget: str
    method: str
    """As it was asked for, with its variant."""
    seed: int
    folder: str
    archive: str = ""
    """Digest of what its set was drawn from, where that is an archive with a split of its own."""
    common: str | None = None
    """Folder of the row whose labels-only stage may be taken."""
    embeddings: str | None = None
    """Folder of embeddings that rows share."""

    @property
    def name(self) -> str:
        """What to call it while it runs."""
        return f"{self.set} {self.labeled} {self.budget} {self.method} seed {self.seed}"


def ordered(row: Row, campaign_yaml: str) -> Row:
    """Write what a row needs to run into its folder."""
    folder = Place.of(row.folder)
    (folder / CAMPAIGN).write_text(campaign_yaml)
    (folder / _ORDER).write_text(json.dumps(asdict(row), indent=1))
    return row


def done(row: Row) -> dict[str, Any] | None:
    """Return the result of a row that is finished and still holds, else None."""
    folder = Place.of(row.folder)
    return held(row, _settings(folder)) if (folder / RESULT).exists() else None


def held(row: Row, settings: RunSettings) -> dict[str, Any] | None:
    """Return the result of a row if it is what these settings come to, else None."""
    with contextlib.suppress(ValueError, OSError):
        found: dict[str, Any] = json.loads((Place.of(row.folder) / RESULT).read_text())
        if found.get("fingerprint") == _identity(row, settings):
            return found
    return None


def work(row: Row) -> dict[str, Any]:
    """Do everything about a row that is not done yet, write its result and return it."""
    if known := done(row):
        return known
    folder = Place.of(row.folder)
    settings = _settings(folder)
    _share(row, Workspace(Place.of(settings.workspace)))
    with opened(settings, Reporter()) as campaign:
        for number in range(LABELS_ONLY, settings.rounds):
            stage(campaign, number)
        result = _result(row, campaign)
    (folder / RESULT).write_text(json.dumps(result, indent=1))
    return result


def _settings(folder: Place) -> RunSettings:
    return load(Path(folder.uri) / CAMPAIGN, RunSettings)


def _identity(row: Row, settings: RunSettings) -> str:
    """Everything that a result rests on but the code.

    The list's name holds a digest of the cases; their files and the shelf of priors count by what is in
    them: hours of rows outlive a copy of the data.
    """
    told = settings.model_dump(mode="json", exclude={"workspace", "name", "cluster", "tracking"})
    told["archive"]["root"] = Path(settings.archive.root or "").name
    files = sets.contents(Place.of(settings.archive.root or ""))
    shelf = settings.priors.shelf
    if shelf is not None:
        told["priors"]["shelf"] = hashlib.sha256(Place.of(shelf).read_bytes()).hexdigest()
    return fingerprint(_FORM, row.set, row.labeled, row.archive, told, files)


def _share(row: Row, workspace: Workspace) -> None:
    """Take the catalog and the labels-only stage of the common row, and share embeddings.

    A copy that a killed row left unfinished is made again: the stage's last manifest comes last. So is one
    of a stage that was done anew since.
    """
    root = Path(workspace.root.uri)
    root.mkdir(parents=True, exist_ok=True)
    if row.embeddings is not None and not (root / "embeddings").exists():
        Path(row.embeddings).mkdir(parents=True, exist_ok=True)
        (root / "embeddings").symlink_to(row.embeddings, target_is_directory=True)
    if row.common is None:
        return
    theirs = Workspace(Place.of(row.common) / "workspace")
    known, copied = (read_manifest(one.stage(LABELS_ONLY), "promote") for one in (theirs, workspace))
    if known and copied != known:
        for ours, common in (
            (workspace.catalog, theirs.catalog),
            (workspace.stage(LABELS_ONLY), theirs.stage(LABELS_ONLY)),
        ):
            ours.remove()
            last = "promote.manifest.json"
            shutil.copytree(common.uri, ours.uri, ignore=shutil.ignore_patterns(last))
            if (common / last).exists():
                (ours / last).write_bytes((common / last).read_bytes())


# --- what came of it ----------------------------------------------------------------------


def _result(row: Row, campaign: Campaign) -> dict[str, Any]:
    number = campaign.settings.rounds - 1
    started = time.monotonic()
    test = _tested(campaign, number)
    return {
        **{key: getattr(row, key) for key in ("set", "labeled", "budget", "method", "seed")},
        "fingerprint": _identity(row, campaign.settings),
        "structures": list(campaign.catalog.structures),
        "cases": {role: n for (role,), n in campaign.catalog.cases.counts("role").items()},
        "test": test,
        "validation": _validation(campaign, number),
        "training": dict(_training(campaign.workspace.stage(number))),
        **_cost(campaign, number),
        **_peaks(campaign, number),
        "test_seconds": round(time.monotonic() - started, 1),
        "specialist": str(campaign.workspace.specialist(number)),
    }


def _tested(campaign: Campaign, number: int) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Score the test cases: by selection, pieces and structure, every measure."""
    cases = campaign.catalog.of(Role.TEST)
    if not cases:
        raise WorkspaceError("the set has no test cases; set archive.split.test to 1 or more")
    found = {}
    for selection, folder in _kept(campaign, number).items():
        scores = _scores(campaign, folder)
        found[selection] = {name: _means(scores[name], campaign.catalog.structures) for name in PIECES}
    return found


def _kept(campaign: Campaign, number: int) -> dict[str, Place]:
    """Folders of the weights to test; training that never looked at validation has its last ones alone."""
    found = _weights(campaign.workspace.stage(number))
    by_dice = {stage: _best_dice(stage) for stage in _charged(campaign, number)}
    first_best = max(by_dice, key=lambda stage: by_dice[stage])
    return found | {name: place for name, place in _weights(first_best).items() if name == "best"}


def _best_dice(stage: Place) -> float:
    """Highest Dice on validation while a stage learned; a stage that never looked is below all."""
    looks = _training(stage).get("validation_dice", ())
    return max((float(dice) for _, dice in looks), default=-math.inf)


def _weights(stage: Place) -> dict[str, Place]:
    """Folders of a stage's weights by selection.

    Those that a campaign goes on with are in the specialist's folder, the others beside it.
    """
    folder = stage / "specialist"
    beside = {name: Place.of(f"{folder}.{name}") for name in SELECTIONS}
    others = {name: place for name, place in beside.items() if place.exists()}
    selected = next((name for name in reversed(SELECTIONS) if name not in others), "last")
    found = {"last": folder} if not others else {selected: folder} | others
    return {name: found[name] for name in SELECTIONS if name in found}


def _scores(campaign: Campaign, folder: Place) -> dict[str, list[Score]]:
    from tutelage.archive import formats
    from tutelage.evaluation.scorecard import largest_pieces, score_case
    from tutelage.specialist.predictor import Predictor

    predictor, structures = Predictor(folder), campaign.catalog.structures
    scores: dict[str, list[Score]] = {name: [] for name in PIECES}
    for case in campaign.catalog.of(Role.TEST):
        volume = formats.read_image(case.image, campaign.settings.archive.max_voxels)
        reference_DHW = formats.read_label(case.label or "", volume.grid, len(structures))
        mask_DHW = predictor.mask(volume.image_CDHW, volume.grid)
        masks = {"all": mask_DHW, "largest": largest_pieces(mask_DHW, len(structures))}
        for name, one_DHW in masks.items():
            scores[name] += score_case(
                case.case, one_DHW, reference_DHW, volume.grid, structures, campaign.settings.evaluation
            )
    return scores


def _means(scores: Sequence[Score], structures: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return every measure of every structure and of their mean; None where no case holds a structure."""
    from tutelage.evaluation.scorecard import MEAN, MEASURES, means

    by_measure = {measure: means(scores, structures, measure) for measure in MEASURES}
    return {
        name: {measure: _finite(by_measure[measure][name]) for measure in MEASURES}
        for name in (*structures, MEAN)
    }


def _validation(campaign: Campaign, number: int) -> float | None:
    """Mean Dice of the specialist that a campaign would go on with."""
    manifest = read_manifest(campaign.workspace.stage(number), "evaluate")
    return _finite(float(manifest["outputs"]["dice"])) if manifest else None


def _charged(campaign: Campaign, number: int) -> list[Place]:
    """Stages that a method rests on, those that were copied from another row included.

    The specialist of labels alone is a cost to those that are prompted by it or start from it.
    """
    needs = NEEDS[campaign.settings.train.method]
    first = LABELS_ONLY if number == LABELS_ONLY or needs.pseudo or needs.continues else LABELS_ONLY + 1
    return [campaign.workspace.stage(one) for one in range(first, number + 1)]


def _cost(campaign: Campaign, number: int) -> dict[str, Any]:
    """Steps, seconds and prompts of all stages that count; training that was resumed knows its own time."""
    seconds: dict[str, float] = {}
    steps = calls = 0
    for folder in _charged(campaign, number):
        training = _training(folder)
        for name in ("label", "curate", "train", "evaluate"):
            manifest = read_manifest(folder, name)
            if manifest is None:
                continue
            took = training.get("seconds", manifest["seconds"]) if name == "train" else manifest["seconds"]
            seconds[name] = seconds.get(name, 0.0) + float(took)
            calls += int(manifest["outputs"].get("prompts", 0))
            steps += int(manifest["settings"]["train"]["steps"]) if name == "train" else 0
        calls += int(training.get("counts", {}).get("generalist_calls", 0))
    told = {name: round(value, 1) for name, value in seconds.items()}
    return {"steps": steps, "seconds": told, "generalist_calls": calls}


def _training(stage: Place) -> Mapping[str, Any]:
    """What training noted down about itself, if it did."""
    place = stage / "training.json"
    found: Mapping[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _peaks(campaign: Campaign, number: int) -> dict[str, int]:
    """Most memory that training took, in whichever process it was; where it told nothing, this one's."""
    told = [float(_training(folder).get("peak_mib", 0.0)) for folder in _charged(campaign, number)]
    gpu = _peak_gpu_mib()
    noted = "peak_gpu_mib" if gpu else "peak_mib"  # training notes down the GPU's where there is one
    found = {"peak_mib": _peak_mib(), "peak_gpu_mib": gpu}
    return {name: round(value) for name, value in (found | {noted: max(told) or found[noted]}).items()}


def _peak_mib() -> float:
    """Most memory this process ever had; Linux tells it in kB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _peak_gpu_mib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def main(arguments: Sequence[str]) -> None:
    """Do the row of one folder; a mistake is told without a traceback."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    (folder,) = arguments
    row = Row(**json.loads((Place.of(folder) / _ORDER).read_text()))
    try:
        work(row)
    except TutelageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
