"""What the report page says of settings: it is read by more people than write them, and kept in MLflow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.listening import Listener
from tutelage.rounds import reporting, results
from tutelage.rounds.campaign import opened
from tutelage.rounds.settings import RunSettings
from tutelage.settings import load

pytestmark = pytest.mark.torch


def test_the_page_shows_settings_and_what_to_type_without_a_password(
    tiny_config: Callable[[str], Path], dead_port: int, tmp_path: Path
) -> None:
    uri = f"http://me:hunter2@127.0.0.1:{dead_port}"
    told = ["tracking.enabled=true", f"tracking.uri={uri}"]
    listener = Listener()
    with opened(load(tiny_config("workspace"), RunSettings, told), listener) as campaign:
        reporting.write(campaign, (), None)
    page = (tmp_path / "workspace" / "report.html").read_text()
    assert "hunter2" not in page
    assert page.count(f"http://***@127.0.0.1:{dead_port}") == 2
    assert "hunter2" not in "".join(listener.said)
    assert load(tmp_path / "workspace" / "settings.yaml", RunSettings).tracking.uri == uri


def test_what_vouches_for_page_and_record_holds_no_password(
    tiny_config: Callable[[str], Path], dead_port: int, tmp_path: Path
) -> None:
    told = ["tracking.enabled=true", f"tracking.uri=http://me:hunter2@127.0.0.1:{dead_port}"]
    with opened(load(tiny_config("workspace"), RunSettings, told), Listener()) as campaign:
        results.tell(campaign)
    written = [
        *(tmp_path / "workspace").glob("*.manifest.json"),
        *(tmp_path / "workspace").glob("*.settings.json"),
    ]
    assert len(written) == 3  # of the page, and of a record that waits for its server
    assert not any("hunter2" in place.read_text() for place in written)
