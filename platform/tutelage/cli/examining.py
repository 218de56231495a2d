"""What `tutelage doctor` and `tutelage bench` do."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, PARTIAL
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.bench.base import Bench

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


def bench(name: str, json_file: Path | None, teller: Teller, **options: object) -> int:
    """Measure one part."""
    from tutelage.bench import load

    measured = load(name)(**options)
    teller.show(measured.table())
    _written(measured, json_file, teller)
    return 0


def bench_methods(
    archive: str,
    labeled: int | None,
    seeds: int,
    budget: str,
    methods: str | None,
    out: Path,
    jobs: int,
    json_file: Path | None,
    teller: Teller,
) -> int:
    """Compare methods, and say which rows came to nothing."""
    from tutelage.bench.methods import run
    from tutelage.bench.plans import ALL
    from tutelage.bench.sets import budget_of

    told = run(
        archives=archive.split(","),
        labeled=labeled,
        seeds=seeds,
        budget=budget_of(budget),
        methods=ALL if methods is None else methods.split(","),
        out=out,
        jobs=jobs,
        say=teller.say,
    )
    teller.show(told.table())
    for file in told.files:
        teller.say(f"written to {file}")
    _written(told, json_file, teller)
    for why in told.failed:
        teller.say(f"failed: {why}")
    return PARTIAL if told.failed else 0


def _written(measured: "Bench", json_file: Path | None, teller: Teller) -> None:
    if json_file is not None:
        measured.write(Place.of(json_file))
        teller.say(f"written to {json_file}")
