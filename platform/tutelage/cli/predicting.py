"""What `tutelage predict` does."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, PARTIAL
from tutelage.rounds.champion import specialist
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.casework.predicting import Prediction


def predict(
    source: Path,
    out: Path,
    model: str | None,
    tracking_uri: str | None,
    max_voxels: int,
    dry_run: bool,
    teller: Teller,
) -> int:
    """Segment files with a specialist that is loaded once."""
    from tutelage.casework import predicting

    listed = predicting.orders(source, out)
    folder = specialist(model, tracking_uri)
    teller.say(f"specialist {folder}")
    if dry_run:
        for order in listed:
            teller.say(f"would segment {order.image} to {order.mask}")
        teller.say("nothing was started")
        teller.result({"specialist": str(folder), "masks": [str(order.mask) for order in listed]})
        return 0
    from tutelage.specialist.predictor import Predictor

    predictor = Predictor(folder)
    done = _followed(predicting.predict(predictor, listed, max_voxels), len(listed), teller)
    return _told(done, folder, predictor.digest, teller)


def _followed(predictions: "Iterable[Prediction]", total: int, teller: Teller) -> "list[Prediction]":
    """Collect predictions while showing how far they are."""
    from tutelage.rounds.progress import Reporter

    done: list[Prediction] = []
    with Reporter().task(f"segment {total} scans", total) as advance:
        for prediction in predictions:
            done.append(prediction)
            advance(len(done), Path(prediction.image).name)
    return done


def _told(done: "list[Prediction]", folder: Place, digest: str, teller: Teller) -> int:
    failed = [prediction for prediction in done if prediction.mask is None]
    for prediction in done:
        teller.say(prediction.mask or f"failed: {prediction.image}: {prediction.reason}")
    teller.say(f"{len(done) - len(failed)} masks written, {len(failed)} scans failed")
    teller.result(
        {
            "specialist": str(folder),
            "digest": digest,
            "predictions": [asdict(prediction) for prediction in done],
        }
    )
    if not failed:
        return 0
    return FAILED if len(failed) == len(done) else PARTIAL
