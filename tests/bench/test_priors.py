"""What can be measured without an engine."""

from collections.abc import Iterator

from tutelage.bench import priors
from tutelage.priors.base import Question


def test_memory_stays_flat_over_hundreds_of_different_notes() -> None:
    measured = priors.memory(300)
    assert "300 different case notes" in measured.note
    assert measured.met


def test_an_echo_holds_a_window_of_questions() -> None:
    taken = 0

    def questions() -> Iterator[Question]:
        nonlocal taken
        for question in priors._questions(20):
            taken += 1
            yield question

    replies = priors.Echo().answer(questions())
    next(replies)
    assert taken <= 64
