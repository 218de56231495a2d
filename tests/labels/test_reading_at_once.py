"""Labels are read by several threads at a time while a specialist learns."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tutelage.labels.arrays import read_label, write_label
from tutelage.records import PseudoLabel
from tutelage.storage import NUMPY_HEADERS, Place


def test_headers_of_arrays_are_parsed_one_thread_at_a_time(tmp_path: Path) -> None:
    """What it would come to otherwise happens once in a thousand times, so the order is looked at."""
    mask, pooled = np.ones((2, 3, 4), np.uint8), np.zeros((2, 1), np.float16)
    write_label(Place.of(tmp_path), PseudoLabel("c", mask, mask, (1,), (), pooled, None))
    with ThreadPoolExecutor(1) as pool:
        with NUMPY_HEADERS:
            reading = pool.submit(read_label, Place.of(tmp_path), "c")
            with pytest.raises(TimeoutError):
                reading.result(timeout=0.3)
        assert reading.result(timeout=60).undecided == (1,)
