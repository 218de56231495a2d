"""Which patient does what. A patient never straddles: all of a patient's cases have one role.

The draw is seeded and takes patients from every modality in turn. Test patients are drawn
first, then validation, then gold, so that asking for more gold labels leaves the others as
they were. Knows nothing about files.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tutelage.archive.importers.base import Found
from tutelage.archive.settings import SplitSettings
from tutelage.errors import ArchiveError
from tutelage.records import Role

_DRAWN = (Role.TEST, Role.VALIDATION, Role.GOLD)


def drawn(found: Sequence[Found], settings: SplitSettings) -> dict[str, Role]:
    """Draw roles by case. Only patients whose cases all have labels can be more than unlabeled.

    Cases beyond `settings.unlabeled` are left out.

    Raises:
        ArchiveError: there are fewer such patients than asked for.
    """
    patients = _by_patient(found)
    order = _in_turn(patients, settings.seed)
    labeled = [p for p in order if all(case.label for case in patients[p])]
    wanted = {role: int(getattr(settings, role.value)) for role in _DRAWN}
    if sum(wanted.values()) > len(labeled):
        told = ", ".join(f"{n} {role.value}" for role, n in wanted.items())
        raise ArchiveError(
            f"{len(labeled)} patients have labels, expected {sum(wanted.values())} ({told}); "
            "add labels, or ask for fewer in archive.split"
        )
    roles: dict[str, Role] = {}
    left = iter(labeled)
    for role, count in wanted.items():
        for _ in range(count):
            roles.update((case.case, role) for case in patients[next(left)])
    rest = [case.case for p in order for case in patients[p] if case.case not in roles]
    roles.update(dict.fromkeys(rest[: settings.unlabeled], Role.UNLABELED))
    return roles


def checked(found: Sequence[Found], told: Mapping[str, Role]) -> dict[str, Role]:
    """Take roles by case as they are told. Cases nobody names are unlabeled, or left out
    where a list of unlabeled cases exists.

    Raises:
        ArchiveError: a labeled split holds a case without a label, or a patient is in two.
    """
    listed = Role.UNLABELED in told.values()
    roles = {case.case: told.get(case.case, Role.UNLABELED) for case in found}
    if listed:
        roles = {case: role for case, role in roles.items() if case in told}
    bare = [c.case for c in found if roles.get(c.case) in _DRAWN and not c.label]
    if bare:
        raise ArchiveError(
            f"splits.json gives {_some(bare)} a labeled split, expected a label file of each; "
            "add it, or list the case as unlabeled"
        )
    _refuse_straddling(found, roles)
    return roles


def _refuse_straddling(found: Sequence[Found], roles: Mapping[str, Role]) -> None:
    held: dict[str, set[str]] = defaultdict(set)
    for case in found:
        if case.case in roles:
            held[case.patient].add(roles[case.case].value)
    both = [f"{p} in {' and '.join(sorted(r))}" for p, r in sorted(held.items()) if len(r) > 1]
    if both:
        raise ArchiveError(
            f"{len(both)} patients are in two splits: {_some(both)}; expected one each, "
            "put all cases of a patient into one list of splits.json"
        )


def _by_patient(found: Sequence[Found]) -> dict[str, list[Found]]:
    patients: dict[str, list[Found]] = defaultdict(list)
    for case in sorted(found, key=lambda case: case.case):
        patients[case.patient].append(case)
    return dict(patients)


def _in_turn(patients: Mapping[str, Sequence[Found]], seed: int) -> list[str]:
    """Shuffle patients within each modality, then take one of each in turn."""
    groups: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(patients):
        groups[patients[patient][0].modality].append(patient)
    rng = np.random.default_rng(seed)
    shuffled = []
    for modality in sorted(groups):
        members = groups[modality]
        shuffled.append([members[i] for i in rng.permutation(len(members))])
    longest = max((len(group) for group in shuffled), default=0)
    return [group[i] for i in range(longest) for group in shuffled if i < len(group)]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
