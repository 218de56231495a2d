"""Of MONAI comes what is used: fast, without what it takes along, and nobody else is kept from it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

SCRIPT = """
import sys, threading
from tutelage.specialist import parts

taken = {name.partition(".")[0] for name in sys.modules} & parts._SPARED
assert not taken, taken

def elsewhere():
    import tensorboardX

with parts._sparing():
    try:
        import pandas
    except ModuleNotFoundError as error:
        assert error.name == "pandas"
    else:
        raise AssertionError("pandas was not spared")
    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
assert "tensorboardX" in sys.modules, "another thread was kept from it as well"
import pandas
assert parts._Missing not in map(type, sys.meta_path)
"""


def test_what_monai_takes_along_is_spared_and_still_there_for_others() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


WHOLE = """
from monai.visualize import img2tensorboard
import tutelage.specialist.parts

assert img2tensorboard.has_tensorboardx
"""


def test_who_imports_monai_first_has_it_whole() -> None:
    told = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
