"""What `tutelage doctor` and `tutelage bench` do."""

from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, SettingsError
from tutelage.storage import Place

_MARKS = {"ok": ("ok", "green"), "absent": ("absent", "yellow"), "missing": ("MISSING", "bold red")}


def doctor(teller: Teller) -> int:
    """Examine the machine."""
    from tutelage.doctor import examine, usable

    findings = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark, style = _MARKS[finding.state]
        table.add_row(finding.what, Text(mark, style=style), Text(finding.told, overflow="fold"))
    teller.show(table)
    missing = [finding.what for finding in findings if finding.state == "missing"]
    absent = [finding.what for finding in findings if finding.state == "absent"]
    teller.say()
    if missing:
        teller.say(f"cannot work: {', '.join(missing)} missing")
    else:
        teller.say(
            "everything that is required is here" + (f"; absent: {', '.join(absent)}" if absent else "")
        )
    teller.result({"usable": usable(findings), "findings": [asdict(finding) for finding in findings]})
    return 0 if usable(findings) else FAILED


def bench(name: str, json_file: Path | None, teller: Teller) -> int:
    """Measure one part."""
    from tutelage.bench import BENCHES, load

    if name not in BENCHES:
        raise SettingsError(f"no bench named {name!r}; there is {', '.join(sorted(BENCHES))}")
    measured = load(name)()
    teller.show(measured.table())
    if json_file is not None:
        measured.write(Place.of(json_file))
        teller.say(f"written to {json_file}")
    return 0
