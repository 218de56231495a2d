"""Two processes that learn together: started side by side, and awaited together."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tutelage

_FOLDERS = (Path(tutelage.__file__).parents[1], Path(__file__).parents[1])
"""Of the platform and of these tests."""


def said_by_both(command: Sequence[str], *arguments: str | Path) -> list[str]:
    """Run Python twice with a command, the rank (0 or 1) and arguments, and return what each printed."""
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, _FOLDERS)), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command, str(rank), *map(str, arguments)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:  # one that waits for another that is gone would wait on
            process.kill()
            process.wait()
    assert all(process.returncode == 0 for process in processes), told
    return [out for out, _ in told]
