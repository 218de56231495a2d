"""The plan of a campaign, written for a person to edit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tutelage.archive.catalog import load
from tutelage.cli.campaigns import settings_of
from tutelage.errors import SettingsError
from tutelage.rounds import planning
from tutelage.rounds.workspace import Workspace
from tutelage.storage import Place

pytestmark = pytest.mark.files


def test_a_plan_is_written_edited_shown_and_refused(
    call: Callable[..., tuple[int, str, str]], tiny_config: Callable[[str], Path]
) -> None:
    config = tiny_config("ws")
    code, out, _ = call("plan", config, "--json")
    told = json.loads(out)
    file = Path(told["file"])
    assert (code, told["edited"]) == (0, [])
    assert yaml.safe_load(file.read_text()) == told["plan"]

    workspace, settings = Workspace(Place.of(file.parent)), settings_of(config, ())
    catalog = load(workspace.catalog)
    derived = planning.derived(settings, catalog)
    assert planning.edited(workspace, catalog) == derived

    file.write_text(file.read_text().replace("network: unet", "network: vnet"))
    edited = planning.edited(workspace, catalog)
    assert edited is not None
    assert edited.fingerprint() != derived.fingerprint()
    code, out, _ = call("plan", config)
    assert code == 0
    assert "edited: network vnet instead of unet" in out
    assert "network: vnet" in file.read_text()

    file.write_text(file.read_text().replace("network: vnet", "network: wnet"))
    code, _, err = call("plan", config)
    assert code == 2
    assert "network: found 'wnet'" in err

    values = edited.model_dump(mode="json") | {"structures": ["liver"]}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match="a plan for the structures liver, the archive has liver, spleen"):
        planning.edited(workspace, catalog)

    file.unlink()
    assert planning.edited(workspace, catalog) is None
