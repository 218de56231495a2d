"""What is told of the machine: by MLflow's names, seldom, and only what can be seen."""

import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tutelage.tracking.machine import Machine

ALWAYS = {
    "cpu_utilization_percentage",
    "process_cpu_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "process_memory_usage_megabytes",
    "disk_usage_percentage",
    "disk_usage_megabytes",
    "disk_available_megabytes",
    "network_transmit_megabytes",
    "network_receive_megabytes",
}


class NVMLError(Exception):
    pass


def nvml(gpus: int, shared: int | None = None) -> Any:
    """A stand-in for NVIDIA's library, with so many GPUs; one that is shared does not know its load."""

    def load(gpu: int) -> SimpleNamespace:
        if gpu == shared:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=50 + gpu)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=3e9, total=4e9),
        nvmlDeviceGetUtilizationRates=load,
        nvmlDeviceGetPowerUsage=lambda gpu: 350_000,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 700_000,
    )


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def told(machine: Machine) -> dict[str, float]:
    numbers = machine.told()
    assert numbers is not None
    return numbers


def test_processor_memory_disk_and_network_are_told_in_numbers_that_can_be() -> None:
    numbers = told(Machine())
    assert set(numbers) == ALWAYS
    for name, value in numbers.items():
        assert 0 <= value <= (100 if name.endswith("percentage") and "process_cpu" not in name else 1e9), name
    assert numbers["process_memory_usage_megabytes"] == pytest.approx(
        psutil.Process().memory_info().rss / 1e6, rel=0.5
    )


def test_it_looks_at_once_and_then_when_its_time_has_come() -> None:
    now = 100.0
    machine = Machine(every_s=10, clock=lambda: now)
    looked = {}
    for now in (100.0, 104.0, 109.9, 110.0, 119.0, 135.0, 136.0):
        looked[now] = bool(machine.told())
    assert [when for when, seen in looked.items() if seen] == [100.0, 110.0, 135.0]


def test_every_gpu_is_told_and_of_one_that_is_shared_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(2, shared=1))
    numbers = {name: value for name, value in told(Machine()).items() if name.startswith("gpu_")}
    assert numbers == {
        "gpu_0_memory_usage_megabytes": 3000.0,
        "gpu_0_memory_usage_percentage": 75.0,
        "gpu_0_utilization_percentage": 50.0,
        "gpu_0_power_usage_watts": 350.0,
        "gpu_0_power_usage_percentage": 50.0,
        "gpu_1_memory_usage_megabytes": 3000.0,
        "gpu_1_memory_usage_percentage": 75.0,
        "gpu_1_power_usage_watts": 350.0,
        "gpu_1_power_usage_percentage": 50.0,
    }


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NVMLError("Driver Not Loaded")

    without = nvml(1)
    without.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", without)
    assert set(told(Machine())) == ALWAYS


def test_what_cannot_be_seen_is_left_out_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()

    def refuse(*_: object) -> None:
        raise PermissionError("/proc is closed")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "net_io_counters", lambda: None)
    assert ALWAYS - set(told(machine)) == {name for name in ALWAYS if "memory" in name}


@pytest.mark.heavy
def test_what_mlflow_itself_would_look_at_has_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monkeypatch.setitem(sys.modules, "pynvml", nvml(1))
    monkeypatch.setattr("mlflow.system_metrics.metrics.gpu_monitor.pynvml", nvml(1), raising=False)
    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor(), GPUMonitor()):
        monitor.collect_metrics()
        theirs |= set(monitor.metrics)
    ours = set(told(Machine()))
    assert theirs <= ours
    assert ours - theirs == {"process_cpu_percentage", "process_memory_usage_megabytes"}
