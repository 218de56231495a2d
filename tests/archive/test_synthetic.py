"""The phantom must be hard in the ways that archives are."""

from pathlib import Path

import numpy as np
import pytest

from tutelage import priors
from tutelage.archive.synthetic import STRUCTURES, STYLES, Phantom, phantom
from tutelage.geometry import Grid

COARSE = (15.0, 8.0, 8.0)
TORSO = Path(__file__).parents[2] / "configs" / "priors" / "torso.yaml"


@pytest.fixture(scope="module")
def patients() -> list[Phantom]:
    return [phantom(3, index, COARSE) for index in range(16)]


def counts(patient: Phantom) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.bincount(patient.label_DHW.ravel(), minlength=len(STRUCTURES) + 1)


def test_a_patient_depends_on_seed_and_index_alone() -> None:
    first, again, other = (phantom(3, index, COARSE) for index in (5, 5, 6))
    assert (first.image_DHW == again.image_DHW).all()
    assert first.image_DHW.shape != other.image_DHW.shape or (first.image_DHW != other.image_DHW).any()


def test_there_are_eight_structures_or_more_and_small_ones_among_large(patients: list[Phantom]) -> None:
    total = np.stack([counts(patient) for patient in patients]).sum(axis=0)
    assert len(STRUCTURES) >= 8
    assert (total > 0).all()
    assert total.max() / total[1:].min() >= 100


def test_organs_are_missing_in_some_patients_but_not_in_most(patients: list[Phantom]) -> None:
    missing = [patient for patient in patients if patient.absent]
    assert 0 < len(missing) < len(patients) / 2
    for patient in missing:
        for name in patient.absent:
            assert counts(patient)[STRUCTURES.index(name) + 1] == 0


def test_every_style_turns_up_and_shows_tissues_in_another_order(patients: list[Phantom]) -> None:
    assert {patient.style for patient in patients} == set(STYLES)
    order = {}
    for patient in patients:
        means = [patient.image_DHW[patient.label_DHW == value].mean() for value in (1, 5, 8, 10)]
        order[patient.style] = tuple(np.argsort(means))
    assert len(set(order.values())) == len(STYLES)


def test_spacing_is_anisotropic_and_differs_between_patients(patients: list[Phantom]) -> None:
    assert all(patient.spacing[0] > 1.5 * patient.spacing[1] for patient in patients)
    assert len({patient.spacing for patient in patients}) == len(patients)


def test_a_mean_label_map_is_a_poor_segmentation(patients: list[Phantom]) -> None:
    """Deformation between patients: where an organ usually is does not tell where it is now."""
    shape = tuple(min(p.label_DHW.shape[axis] for p in patients) for axis in range(3))
    cut = [p.label_DHW[tuple(slice(n) for n in shape)] for p in patients]
    dice = []
    for value in (6, 7, 9):  # gallbladder, pancreas, vena cava
        usual = np.mean([mask == value for mask in cut[:-1]], axis=0) > 0.4
        now = cut[-1] == value
        dice.append(2 * (usual & now).sum() / max(1, usual.sum() + now.sum()))
    assert np.mean(dice) < 0.6


def test_volumes_are_those_that_the_priors_expect(patients: list[Phantom]) -> None:
    shelf = priors.read(TORSO)
    kept = []
    for patient in patients:
        voxel_ml = Grid.from_spacing(patient.label_DHW.shape, patient.spacing).voxel_ml
        for value, name in enumerate(STRUCTURES, start=1):
            volume = counts(patient)[value] * voxel_ml
            low, high = shelf[name].volume_ml
            kept += [low <= volume <= high] if volume else []
    assert np.mean(kept) > 0.97
