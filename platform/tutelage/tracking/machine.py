"""What a training takes of the machine that it runs on: processor, memory, disk, network and GPUs.

It decides what is looked at, and how often. It is looked at where training runs, and told with a
step: so it goes the way of all that steps tell, which waits while MLflow does not answer and is
sent from machines that cannot reach it. MLflow's own monitor does neither, and ends when a server
is silent once; numbers that it knows have its names here. It knows nothing of training.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psutil

EVERY_S = 10.0
"""Seconds between two looks; one takes a millisecond."""

_MB = 1e6
"""Bytes of a megabyte, as MLflow counts them."""

Numbers = dict[str, float]


class Machine:
    """Looks at the machine of this process now and then. Whatever cannot be seen is left out."""

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._due = clock()
        self._process = psutil.Process()
        self._gpus = list(_gpus())
        self._sent_mb, self._received_mb = _network_mb()
        # Shares of the processor are since the call before: what the first one says is nothing.
        psutil.cpu_percent()
        self._process.cpu_percent()

    def told(self) -> Numbers | None:
        """Return numbers by name if it is time to look, else None. Waits for nothing and never fails."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + self._every_s
        numbers: Numbers = {}
        for look in (self._processor, self._memory, _disk, self._network):
            with contextlib.suppress(psutil.Error, OSError):
                numbers |= look()
        for number, gpu in enumerate(self._gpus):
            numbers |= {f"gpu_{number}_{name}": value for name, value in _looked_at(*gpu)}
        return numbers

    def _processor(self) -> Numbers:
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "process_cpu_percentage": self._process.cpu_percent(),
        }

    def _memory(self) -> Numbers:
        memory = psutil.virtual_memory()
        return {
            "system_memory_usage_megabytes": memory.used / _MB,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "process_memory_usage_megabytes": self._process.memory_info().rss / _MB,
        }

    def _network(self) -> Numbers:
        """What went out and came in since the beginning."""
        sent_mb, received_mb = _network_mb()
        return {
            "network_transmit_megabytes": sent_mb - self._sent_mb,
            "network_receive_megabytes": received_mb - self._received_mb,
        }


def _disk() -> Numbers:
    disk = psutil.disk_usage(os.sep)
    return {
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": disk.used / _MB,
        "disk_available_megabytes": disk.free / _MB,
    }


def _network_mb() -> tuple[float, float]:
    with contextlib.suppress(psutil.Error, OSError):
        if counted := psutil.net_io_counters():
            return counted.bytes_sent / _MB, counted.bytes_recv / _MB
    return 0.0, 0.0


def _gpus() -> Iterator[tuple[ModuleType, Any]]:
    """Yield the GPUs of this machine; none without NVIDIA's driver, or without the package that asks it."""
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            for number in range(pynvml.nvmlDeviceGetCount()):
                yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(number)


def _looked_at(nvml: ModuleType, gpu: Any) -> Iterator[tuple[str, float]]:
    """Yield what a GPU says of itself: not every one knows its load, as when it is shared, or its power."""
    with contextlib.suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        yield "memory_usage_megabytes", memory.used / _MB
        yield "memory_usage_percentage", 100 * memory.used / memory.total
    with contextlib.suppress(nvml.NVMLError):
        yield "utilization_percentage", float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
    with contextlib.suppress(nvml.NVMLError):
        milliwatts = nvml.nvmlDeviceGetPowerUsage(gpu)
        yield "power_usage_watts", milliwatts / 1000
        yield "power_usage_percentage", 100 * milliwatts / nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
