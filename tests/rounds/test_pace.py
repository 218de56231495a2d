from tutelage.rounds.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_says_speed_cache_failures_and_time_left() -> None:
    clock = Clock()
    pace = Pace(4, clock=clock)
    clock.now = 10.0
    pace.add({"case": "a", "outcome": "done", "slices_embedded": 1, "cache_hits": 3})
    pace.add({"case": "b", "outcome": "failed"})
    assert pace.per_hour == 720
    assert pace.note() == "720 an hour, 75% of slices in the cache, 1 failed, 0:00:10 left"


def test_work_without_slices_says_nothing_of_a_cache() -> None:
    clock = Clock()
    pace = Pace(1, clock=clock)
    clock.now = 3600.0
    pace.add({"case": "a", "outcome": "done"})
    assert pace.note() == "1 an hour, 0:00:00 left"


def test_two_workers_who_end_together_are_as_fast_as_two() -> None:
    found = []
    for workers in (1, 2):
        clock = Clock()
        pace = Pace(8, workers, clock)
        clock.now = 100.0  # starting and loading
        for case in range(8):
            clock.now += 10.0 if case % workers == 0 else 0.0
            pace.add({"case": str(case), "outcome": "done"})
        found.append(pace.steady_per_hour)
    assert found == [360, 720]


def test_a_pace_that_was_never_steady_is_that_of_all_the_time() -> None:
    clock = Clock()
    pace = Pace(1, 2, clock)
    clock.now = 36.0
    pace.add({"case": "a", "outcome": "done"})
    assert pace.steady_per_hour == 100
