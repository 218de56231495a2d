"""What the report is told: counts of rulings, and which slice is shown."""

from typing import Any

import numpy as np

from tutelage.evaluation.campaign import EVERY, Believed, Curation, curation_of, example, fullest_slice
from tutelage.evaluation.table import beliefs, priors_table
from tutelage.geometry import Grid
from tutelage.records import Score


def row(case: str, structure: str, ruling: str, weight: float = 0.0, name: str = "r00") -> dict[str, Any]:
    return {"round": name, "case": case, "structure": structure, "ruling": ruling, "weight": weight}


def score(case: str, structure: str, dice: float, absent: bool = False) -> Score:
    return Score(case, structure, dice, dice, 1.0, 1.0, 1.0, 1.0, 1.0, absent)


def test_rulings_are_counted_by_round_and_structure() -> None:
    rows = [
        row("a", "liver", "accept", 0.75),
        row("b", "liver", "partial", 0.25),
        row("a", "spleen", "reject"),
        row("b", "spleen", "absent", 0.5),
        row("c", "spleen", "failed"),
        row("a", "liver", "accept", 1.0, "r01"),
    ]
    found = curation_of(rows, {"r00": [score("a", "liver", 0.8), score("b", "liver", 0.1)]})
    assert found == (
        Curation("r00", "liver", 1, 1, 0, 0, 0, 0.5, 0.8, 0.1),
        Curation("r00", "spleen", 0, 0, 1, 1, 1, 0.5, None, None),
        Curation("r00", EVERY, 1, 1, 1, 1, 1, 0.5, 0.8, 0.1),
        Curation("r01", "liver", 1, 0, 0, 0, 0, 1.0, None, None),
        Curation("r01", EVERY, 1, 0, 0, 0, 0, 1.0, None, None),
    )
    assert [c.total for c in found] == [2, 3, 5, 1, 1]


def test_what_is_accepted_without_and_with_priors_is_counted_side_by_side() -> None:
    told = [
        row("a", "liver", "reject") | {"without_priors": "accept", "with_priors": "reject"},
        row("b", "liver", "accept", 1.0) | {"without_priors": "accept", "with_priors": "accept"},
    ]
    liver, every = curation_of(told, {"r00": [score("a", "liver", 0.25), score("b", "liver", 0.75)]})
    assert liver.without_priors == Believed(2, 0.5, None)
    assert liver.with_priors == Believed(1, 0.75, 0.25)
    assert (every.without_priors, every.with_priors) == (liver.without_priors, liver.with_priors)
    assert beliefs(liver) == [("2", "1"), ("0.500", "0.750"), ("-", "0.250")]
    shown = priors_table([liver, every])
    assert shown is not None
    assert shown.row_count == 2


def test_where_verdicts_do_not_say_what_they_would_be_nothing_is_shown() -> None:
    ruled = curation_of([row("a", "liver", "accept", 1.0)])
    assert ruled[0].without_priors is None
    assert beliefs(ruled[0]) == []
    assert priors_table(ruled) is None


def test_nothing_ruled_is_nothing_counted() -> None:
    assert curation_of([]) == ()


def test_the_slice_with_the_most_structures_is_shown() -> None:
    mask = np.zeros((4, 6, 6), np.uint8)
    mask[0] = 1
    mask[2, :2, :2], mask[2, 3:, 3:] = 1, 2
    mask[3, :2, :1], mask[3, 3:, 3:] = 1, 2
    assert fullest_slice(mask) == 2
    image = np.arange(4 * 36, dtype=np.float32).reshape(4, 6, 6)
    shown = example("a", "r00", image, mask, mask, Grid.from_spacing((4, 6, 6), (9, 2, 3)))
    assert shown.image_HW[0, 0] == image[2, 0, 0]
    assert shown.spacing_HW == (2, 3)


def test_a_label_of_nothing_still_gives_a_slice() -> None:
    assert fullest_slice(np.zeros((3, 2, 2), np.uint8)) == 0
