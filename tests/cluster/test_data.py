"""What is done is known at once, and not when the next is done."""

import time
from pathlib import Path

import pytest

from tutelage.archive.cases import Cases
from tutelage.casework.base import Limit, Worker
from tutelage.cluster.settings import ClusterSettings
from tutelage.geometry import Grid
from tutelage.labels.rows import Row
from tutelage.records import Case, Role

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

PATIENCE_S = 60


class Patient(Worker):
    """Does not end a case before the one before was heard of."""

    def __init__(self, job: str) -> None:
        self.heard = Path(job)

    def work(self, case: Case) -> Row:
        number, began = int(case.case), time.monotonic()
        while len(list(self.heard.iterdir())) < number and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.01)
        return {"heard": len(list(self.heard.iterdir()))}


@pytest.mark.usefixtures("known_to_actors")
def test_a_row_comes_while_the_next_case_is_worked_on(tmp_path: Path) -> None:
    import pyarrow as pa

    from tutelage.cluster.cases import each

    grid = Grid.from_spacing((1, 2, 2), (1.0, 1.0, 1.0))
    cases = [
        Case(str(n), f"p{n}", Role.UNLABELED, f"{n}.nii", None, None, "CT", grid, 1, "0") for n in range(3)
    ]
    heard = tmp_path / "heard"
    heard.mkdir()
    items = Cases.of(cases).table.append_column("of", pa.array(["x"] * len(cases)))
    limit = Limit(1, str(tmp_path / "marks"))
    for row in each(Patient, str(heard), items, limit, ClusterSettings(actors=1)):
        assert row["heard"] == int(row["case"]), "the row before was held back"
        (heard / row["case"]).touch()
