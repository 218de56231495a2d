"""What several tests of the server share: specialists to be served, and a folder for uploads."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # pure tests load no torch
    from tests.serve.specialists import Serve


@pytest.fixture
def specialist(tiny_specialist: Path) -> Callable[..., str]:
    """Write a specialist with weights of its own and return its digest."""
    from tests.serve.specialists import write

    return functools.partial(write, tiny_specialist)


@pytest.fixture
def workspace(tiny_specialist: Path, tmp_path: Path) -> Path:
    """Have a workspace of two stages, the first of which is champion."""
    from tests.serve.specialists import two_stages

    return two_stages(tiny_specialist, tmp_path / "workspace")


@pytest.fixture
def serving() -> "Iterator[Serve]":
    """Have models that are closed in the end."""
    from tests.serve.specialists import served

    with served() as serve:
        yield serve


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the folder for uploads be one of this test's own."""
    from serve.uploads import SPOOL

    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setenv(SPOOL, str(folder))
    return folder
