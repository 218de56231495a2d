"""Every registered method is there, and reads no options but those that make a stage train again."""

import inspect
import re
from importlib import import_module

import pytest

from tutelage.methods.needs import NEEDS, MethodName
from tutelage.methods.registry import METHODS, method_class
from tutelage.methods.settings import TrainSettings

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("method", METHODS)
def test_the_class_that_the_registry_names_is_a_method(method: MethodName) -> None:
    cls = method_class(method)
    assert all(callable(getattr(cls, name)) for name in ("networks", "losses", "after_step", "counts"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_its_own_options_and_those_it_says_it_reads(method: MethodName) -> None:
    source = inspect.getsource(import_module(METHODS[method].partition(":")[0]))
    read = {name for name in re.findall(r"settings\.(\w+)", source) if name in NEEDS}
    assert read <= {method, *NEEDS[method].options}


def test_what_a_method_reads_is_what_training_depends_on() -> None:
    told = TrainSettings(method="semisam_plus").effective()
    assert {"steps", "batch", "augment", "semisam_plus", "mean_teacher", "bcp"} <= set(told)
    assert not {"tutelage", "tak", "max_gb", "disk_gb", "missing"} & set(told)
    assert not {"window", "reuse"} & set(told), "campaigns from before there were turns stay as they are"
    assert {"window", "reuse"} <= set(TrainSettings(window=100, reuse=2).effective())
    assert not set(NEEDS) & set(TrainSettings().effective())
