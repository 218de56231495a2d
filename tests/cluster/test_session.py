"""The Ray that a command starts for itself."""

import os

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_workers_are_worth_as_much_to_the_machine_as_the_command_they_work_for() -> None:
    import ray

    @ray.remote
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    assert ray.get(niceness.remote()) == os.getpriority(os.PRIO_PROCESS, 0)
