"""What is known of generalists before they are loaded."""

from typing import get_args

import pytest

from tutelage.generalists import GeneralistSettings, build
from tutelage.generalists.capabilities import CAPABILITIES


def test_every_name_in_the_settings_has_its_capabilities() -> None:
    assert set(get_args(GeneralistSettings.model_fields["name"].annotation)) == set(CAPABILITIES)


@pytest.mark.parametrize("name", ["threshold", pytest.param("litemedsam", marks=pytest.mark.torch)])
def test_a_loaded_generalist_has_them_too(name: str) -> None:
    assert build(GeneralistSettings(name=name)).capabilities == CAPABILITIES[name]


def test_second_opinions_are_checked_like_first_ones_and_have_none_themselves() -> None:
    third = GeneralistSettings(name="threshold")
    second = GeneralistSettings(name="threshold", weights="some.pth", second_opinions=(third,))
    found = dict(GeneralistSettings(name="threshold", second_opinions=(third, second)).problems())
    assert set(found) == {"second_opinions.1.weights", "second_opinions.1.second_opinions"}
    assert "list them all in generalist.second_opinions" in found["second_opinions.1.second_opinions"]
