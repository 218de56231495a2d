"""Cases as a specialist learns from them: read, brought to the plan's spacing, with what is believed.

It decides what each kind of case may carry. It does not know what a method makes of it.
"""

from tutelage.archive import formats
from tutelage.errors import TrainingError
from tutelage.labels.arrays import read_label
from tutelage.methods.batches import Sample
from tutelage.records import Case
from tutelage.specialist.plan import Plan
from tutelage.specialist.preprocess import prepare, resample_label, resample_weight
from tutelage.storage import Place


def annotated(case: Case, plan: Plan, max_voxels: int) -> Sample:
    """Read a case with the label that people made."""
    if case.label is None:
        raise TrainingError(f"{case.case} is annotated but has no label; scan the archive again")
    volume = formats.read_image(case.image, max_voxels)
    label_DHW = formats.read_label(case.label, volume.grid, len(plan.structures))
    return Sample(
        case=case.case,
        image_CDHW=prepare(volume.image_CDHW, volume.grid, plan),
        label_DHW=resample_label(label_DHW, volume.grid, plan),
        weight_DHW=None,
        undecided=(),
        gold=True,
    )


def believed(case: Case, plan: Plan, max_voxels: int, labels: Place, features: bool) -> Sample:
    """Read an unlabeled case with its pseudo-label, and the generalist's features if they are wanted."""
    volume = formats.read_image(case.image, max_voxels)
    label = read_label(labels, case.case)
    return Sample(
        case=case.case,
        image_CDHW=prepare(volume.image_CDHW, volume.grid, plan),
        label_DHW=resample_label(label.mask_DHW, volume.grid, plan),
        weight_DHW=resample_weight(label.weight_DHW, volume.grid, plan),
        undecided=label.undecided,
        gold=False,
        features_DCHW=label.grid_DCHW if features else None,
    )


def unlabeled(case: Case, plan: Plan, max_voxels: int) -> Sample:
    """Read the image of a case, and nothing else: no label of it is opened."""
    volume = formats.read_image(case.image, max_voxels)
    image_CDHW = prepare(volume.image_CDHW, volume.grid, plan)
    return Sample(case.case, image_CDHW, None, None, (), gold=False)
