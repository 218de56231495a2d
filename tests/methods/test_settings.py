import pytest
from pydantic import ValidationError

from tutelage.methods.settings import TrainSettings


def test_the_recipe_that_was_measured_is_the_default() -> None:
    told = TrainSettings()
    assert (told.batch, told.learning_rate, told.warmup, told.clip, told.weight_decay) == (
        *(2, 4e-3, 30, 5.0, 1e-4),
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", "hope"),
        ("steps", 0),
        ("batch", 0),
        ("gold_share", 0.0),
        ("gold_share", 1.1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1e-4),
        ("warmup", -1),
        ("clip", 0.0),
        ("ema", 1.0),
        ("checkpoint_every", 0),
        ("epochs", 10),
    ],
)
def test_what_cannot_be_trained_with_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        TrainSettings.model_validate({key: value})
