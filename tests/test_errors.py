"""The tree of exceptions: drawn as it is, kept whole by pickling, caught by strangers."""

import pickle

import pytest

from tutelage import errors
from tutelage.errors import FAILED, PREEMPTED, UNUSABLE, TutelageError

TABLE = [
    (errors.SettingsError, ValueError, UNUSABLE),
    (errors.MissingExtraError, ImportError, UNUSABLE),
    (errors.ArchiveError, ValueError, UNUSABLE),
    (errors.GeneralistError, RuntimeError, FAILED),
    (errors.PriorsError, RuntimeError, FAILED),
    (errors.TrainingError, RuntimeError, FAILED),
    (errors.DivergedError, FloatingPointError, FAILED),
    (errors.Preempted, RuntimeError, PREEMPTED),
    (errors.StoppedError, RuntimeError, FAILED),
    (errors.WorkspaceError, RuntimeError, FAILED),
    (errors.StorageError, OSError, FAILED),
    (errors.ClusterError, RuntimeError, FAILED),
    (errors.TrackingError, RuntimeError, FAILED),
    (errors.ServerError, RuntimeError, FAILED),
    (errors.RefusedError, ValueError, UNUSABLE),
    (errors.ForbiddenError, RuntimeError, UNUSABLE),
    (errors.BusyError, RuntimeError, FAILED),
    (errors.UnreachableError, ConnectionError, FAILED),
]

each = pytest.mark.parametrize(
    ("kind", "standard", "exit_code"), TABLE, ids=[row[0].__name__ for row in TABLE]
)


@each
def test_an_error_is_ours_and_a_standard_one(
    kind: type[TutelageError], standard: type[Exception], exit_code: int
) -> None:
    assert issubclass(kind, TutelageError)
    assert issubclass(kind, standard)
    assert kind.exit_code == exit_code


@each
def test_an_error_survives_pickling(
    kind: type[TutelageError], standard: type[Exception], exit_code: int
) -> None:
    again = pickle.loads(pickle.dumps(kind("found 3, expected 4; do this")))
    assert type(again) is kind
    assert str(again) == "found 3, expected 4; do this"


def test_every_error_is_in_the_table_and_in_the_drawing() -> None:
    ours = {kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not TutelageError}
    assert ours == {row[0] for row in TABLE}
    assert errors.__doc__ is not None
    for kind, standard, _ in TABLE:
        line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line)
        assert f"({standard.__name__})" in line
