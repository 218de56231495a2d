"""Records: frozen, and whole again after a trip to another process."""

import dataclasses
import pickle

import numpy as np
import pytest

from tutelage import records
from tutelage.geometry import Box, Grid
from tutelage.records import (
    Answer,
    Candidate,
    Case,
    Decision,
    Ground,
    Note,
    Point,
    Prior,
    Promotion,
    Prompt,
    PseudoLabel,
    Quarantined,
    Reason,
    Region,
    Relation,
    Role,
    Ruling,
    Score,
    Scorecard,
    Summary,
    Verdict,
)

GRID = Grid.from_spacing((1, 2, 3), (3, 1, 1))
MASK = np.zeros((1, 2, 3), np.uint8)
SOFT_HW = np.zeros((2, 3), np.float32)
POOLED = np.zeros((2, 4), np.float16)
REGION = Region((0, 0, 0), MASK, MASK)
VERDICT = Verdict("liver", Ruling.PARTIAL, 0.5, {"agreement": 0.7}, ("agreement 0.70 < 0.80",))
SCORE = Score("a", "liver", 0.9, 0.8, 3.0, 1.0, 0.9, 2.0, 1.0, False)
SUMMARY = Summary("mean", 1, 0.9, 0.9, 0.9, 3.0, 0.9)
REASON = Reason(Ground.GAIN, False, "too little", value=0.0, limit=0.01)
PROMPT = Prompt(1, 0, Box((0.0, 0.0), (1.0, 2.0)), (Point((0.5, 0.5), True),))

MADE = [
    Case("a", "p", Role.GOLD, "a.nii.gz", "l.nii.gz", None, "CT", GRID, 1, "12-34"),
    Quarantined("a.nii.gz", "truncated"),
    Prior("liver", (700.0, 2500.0), text={"shape": "a wedge"}, relations=(Relation("right-of", "spleen"),)),
    Relation("touching", "stomach", 0.5, 0.0),
    Note("a", {"protocol": "abdomen"}),
    PROMPT.points[0],
    PROMPT,
    Answer(PROMPT, SOFT_HW, 0.9),
    REGION,
    Candidate("a", MASK, (REGION, REGION), (0.0, 0.9), (1.0, 1.0), POOLED),
    VERDICT,
    PseudoLabel("a", MASK, MASK, (1,), (VERDICT,), POOLED),
    SCORE,
    SUMMARY,
    Scorecard("abc", Role.TEST, (SCORE,), (SUMMARY,)),
    REASON,
    Promotion(Decision.HOLD, "abc", None, (REASON,)),
]


@pytest.mark.parametrize("record", MADE, ids=[type(record).__name__ for record in MADE])
def test_a_record_is_frozen_and_survives_pickling(record: object) -> None:
    again = pickle.loads(pickle.dumps(record))
    assert repr(again) == repr(record)
    name = next(iter(type(record).__dataclass_fields__))  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)


def test_every_record_is_among_them() -> None:
    known = {
        kind
        for kind in vars(records).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == records.__name__
    }
    assert known == {type(record) for record in MADE}


def test_words_in_records_are_their_own_text() -> None:
    assert [str(role) for role in Role] == ["gold", "unlabeled", "validation", "test"]
    assert Ruling("accept") is Ruling.ACCEPT
    assert [str(decision) for decision in Decision] == ["promote", "hold"]
