from tutelage.rounds.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_says_speed_cache_failures_and_time_left() -> None:
    clock = Clock()
    pace = Pace(4, clock)
    clock.now = 10.0
    pace.add({"case": "a", "outcome": "done", "slices_embedded": 1, "cache_hits": 3})
    pace.add({"case": "b", "outcome": "failed"})
    assert pace.per_hour == 720
    assert pace.note() == "720 an hour, 75% of slices in the cache, 1 failed, 0:00:10 left"


def test_work_without_slices_says_nothing_of_a_cache() -> None:
    clock = Clock()
    pace = Pace(1, clock)
    clock.now = 3600.0
    pace.add({"case": "a", "outcome": "done"})
    assert pace.note() == "1 an hour, 0:00:00 left"
