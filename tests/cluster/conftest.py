"""What tests of work on Ray share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def known_to_actors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let actors have the workers that a test's file defines: they cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)  # type: ignore[no-untyped-call]
    yield
    cloudpickle.unregister_pickle_by_value(request.module)  # type: ignore[no-untyped-call]
