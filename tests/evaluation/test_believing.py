"""What curation believed, added up: by round and structure, and how good it was."""

from tutelage.evaluation.believing import EVERY, Believed, Curation, Tally, curation_of
from tutelage.evaluation.table import beliefs, priors_table


def test_rulings_are_added_up_by_round_and_structure() -> None:
    tallies = [
        Tally("r00", "liver", "accept", 1, 1, 0.75, 1, 0.8),
        Tally("r00", "liver", "partial", 1, 1, 0.25, 1, 0.1),
        Tally("r00", "spleen", "reject", 1),
        Tally("r00", "spleen", "absent", 1, 1, 0.5),
        Tally("r00", "spleen", "failed", 1),
        Tally("r01", "liver", "accept", 3, 2, 1.0),
    ]
    found = curation_of(tallies)
    assert found == (
        Curation("r00", "liver", 1, 1, 0, 0, 0, 0.5, 0.8, 0.1),
        Curation("r00", "spleen", 0, 0, 1, 1, 1, 0.5, None, None),
        Curation("r00", EVERY, 1, 1, 1, 1, 1, 0.5, 0.8, 0.1),
        Curation("r01", "liver", 3, 0, 0, 0, 0, 0.5, None, None),
        Curation("r01", EVERY, 3, 0, 0, 0, 0, 0.5, None, None),
    )
    assert [c.total for c in found] == [2, 3, 5, 3, 3]


def test_what_is_accepted_without_and_with_priors_is_counted_side_by_side() -> None:
    told = [
        Tally("r00", "liver", "reject", 1, 0, 0.0, 1, 0.25, "accept", "reject"),
        Tally("r00", "liver", "accept", 1, 1, 1.0, 1, 0.75, "accept", "accept"),
    ]
    liver, every = curation_of(told)
    assert liver.without_priors == Believed(2, 0.5, None)
    assert liver.with_priors == Believed(1, 0.75, 0.25)
    assert (every.without_priors, every.with_priors) == (liver.without_priors, liver.with_priors)
    assert beliefs(liver) == [("2", "1"), ("0.500", "0.750"), ("-", "0.250")]
    shown = priors_table([liver, every])
    assert shown is not None
    assert shown.row_count == 2


def test_where_verdicts_do_not_say_what_they_would_be_nothing_is_shown() -> None:
    ruled = curation_of([Tally("r00", "liver", "accept", 1, 1, 1.0)])
    assert ruled[0].without_priors is None
    assert beliefs(ruled[0]) == []
    assert priors_table(ruled) is None


def test_nothing_ruled_is_nothing_counted() -> None:
    assert curation_of([]) == ()
