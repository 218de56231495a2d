"""Which patient does what. A patient never straddles: all of a patient's cases have one role.

The draw is seeded and takes patients from every modality in turn. Test patients are drawn
first, then validation, then gold, so that asking for more gold labels leaves the others as
they were. Works on columns, in order of case; knows nothing about files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.archive.settings import SplitSettings
from tutelage.errors import ArchiveError
from tutelage.records import Role

_DRAWN = (Role.TEST, Role.VALIDATION, Role.GOLD)
_ROLES = (*_DRAWN, Role.UNLABELED)


@dataclass(frozen=True, slots=True)
class Told:
    """Where roles are written down."""

    source: str
    """What to call it in a message."""

    complete: bool
    """Whether unlabeled cases are named too, so that others are left out."""


def roles_told(told: Mapping[str, Role], cases: Any) -> Any:
    """Return the role of each case, by its id in an arrow array; null where nothing is told."""
    import pyarrow as pa
    import pyarrow.compute as pc

    named = pc.index_in(cases, value_set=pa.array(list(told), pa.string()))
    return pa.array([role.value for role in told.values()], pa.string()).take(named.combine_chunks())


def drawn(cases: Any, settings: SplitSettings) -> Any:
    """Draw a role for each row of columns case, patient, label and modality.

    Only patients whose cases all have labels can be more than unlabeled. Cases beyond
    `settings.unlabeled` are left out: null.

    Raises:
        ArchiveError: there are fewer such patients than asked for.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    patients = _patients(cases)
    order = _in_turn(patients["modality"].to_pylist(), settings.seed)
    labeled = order[patients["labeled"].to_numpy()[order]]
    wanted = {role: int(getattr(settings, role.value)) for role in _DRAWN}
    if sum(wanted.values()) > len(labeled):
        told = ", ".join(f"{n} {role.value}" for role, n in wanted.items())
        raise ArchiveError(
            f"{len(labeled)} patients have labels, expected {sum(wanted.values())} ({told}); "
            "add labels, or ask for fewer in archive.split"
        )
    unlabeled = _ROLES.index(Role.UNLABELED)
    role_of = np.full(len(order), unlabeled)
    role_of[labeled[: sum(wanted.values())]] = np.repeat(range(len(_DRAWN)), list(wanted.values()))
    patient_of = pc.index_in(cases["patient"], value_set=patients["patient"]).to_numpy()
    roles = role_of[patient_of]
    rest = np.flatnonzero(roles == unlabeled)
    rest = rest[np.argsort(np.argsort(order)[patient_of[rest]], kind="stable")]
    left_out = np.zeros(len(roles), bool)
    left_out[rest[settings.unlabeled :] if settings.unlabeled is not None else []] = True
    return pa.array([role.value for role in _ROLES]).take(pa.array(roles, mask=left_out))


def checked(cases: Any, told: Told) -> Any:
    """Take a role for each row of columns case, patient, label and role, where role is what is told.

    Cases nobody names are unlabeled, or left out (null) where unlabeled cases are named.

    Raises:
        ArchiveError: a labeled split holds a case without a label, or a patient is in two.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    roles = cases["role"] if told.complete else pc.fill_null(cases["role"], Role.UNLABELED.value)
    needs_label = pc.is_in(roles, value_set=pa.array([role.value for role in _DRAWN]))
    bare = cases["case"].filter(pc.and_(needs_label, pc.is_null(cases["label"]))).to_pylist()
    if bare:
        raise ArchiveError(
            f"{told.source} gives {_some(bare)} a labeled split, expected a label file of each; "
            "add it, or list the case as unlabeled"
        )
    _refuse_straddling(pa.table({"patient": cases["patient"], "role": roles}), told.source)
    return roles


def _refuse_straddling(held: Any, source: str) -> None:
    import pyarrow.compute as pc

    pairs = held.filter(pc.is_valid(held["role"])).group_by(["patient", "role"]).aggregate([])
    counted = pairs.group_by("patient").aggregate([([], "count_all")])
    straddling = counted.filter(pc.greater(counted["count_all"], 1))["patient"]
    if not len(straddling):
        return
    roles_of: dict[str, list[str]] = {}
    for row in pairs.filter(pc.is_in(pairs["patient"], value_set=straddling)).to_pylist():
        roles_of.setdefault(row["patient"], []).append(row["role"])
    both = [f"{patient} in {' and '.join(sorted(roles))}" for patient, roles in sorted(roles_of.items())]
    raise ArchiveError(
        f"{len(both)} patients are in two splits: {_some(both)}; expected one each, "
        f"put all cases of a patient into one split of {source}"
    )


def _patients(cases: Any) -> Any:
    """Return patients in order of their names: modality of the first case, and whether all have labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    told = pa.table(
        {
            "patient": cases["patient"],
            "modality": cases["modality"],
            "labeled": pc.is_valid(cases["label"]),
        }
    )
    grouped = told.group_by("patient", use_threads=False).aggregate(
        [("modality", "first"), ("labeled", "min")]
    )
    return grouped.rename_columns(["patient", "modality", "labeled"]).sort_by("patient").combine_chunks()


def _in_turn(modality_of: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Shuffle patients within each modality, then take one of each in turn; patients by number."""
    modalities = np.array(modality_of, object)
    rng = np.random.default_rng(seed)
    turn = np.zeros(len(modalities), np.int64)
    group = np.zeros(len(modalities), np.int64)
    for number, modality in enumerate(sorted(set(modality_of))):
        members = np.flatnonzero(modalities == modality)
        turn[members[rng.permutation(len(members))]] = np.arange(len(members))
        group[members] = number
    order: NDArray[np.int64] = np.lexsort((group, turn))
    return order


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
