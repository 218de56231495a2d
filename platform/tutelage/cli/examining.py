"""What `tutelage doctor` and `tutelage bench` do."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tutelage.cli.telling import Teller
from tutelage.errors import FAILED, PARTIAL, SettingsError
from tutelage.storage import Place

if TYPE_CHECKING:
    from tutelage.bench.base import Bench
    from tutelage.cluster.examining import Node
    from tutelage.doctor import Finding

_MARKS = {"ok": ("ok", "green"), "absent": ("absent", "yellow"), "missing": ("MISSING", "bold red")}


def doctor(teller: Teller) -> int:
    """Examine the machine."""
    from tutelage.doctor import examine, usable

    findings = examine()
    teller.show(_shown(findings))
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


def doctor_of_cluster(
    address: str, config: Path | None, overrides: Sequence[str], patience_s: float, teller: Teller
) -> int:
    """Examine the nodes of a cluster, and what of a campaign they reach."""
    from tutelage.doctor import examine_cluster, usable
    from tutelage.rounds.settings import RunSettings
    from tutelage.settings import load

    settings = None if config is None else load(config, RunSettings, overrides, elsewhere=True)
    nodes, findings = examine_cluster(address, settings, patience_s)
    teller.show(_nodes(nodes))
    teller.say()
    teller.show(_shown(findings))
    teller.say()
    if config is None:
        teller.say("name a campaign's YAML to have its storage, weights and MLflow looked at from every node")
    wrong = dict.fromkeys(finding.what for finding in findings if finding.state != "ok")
    if usable(findings):
        teller.say("the cluster can work" + (f"; look at: {', '.join(wrong)}" if wrong else ""))
    else:
        teller.say("the cluster cannot work: no node with cores has all that is required")
    teller.result(
        {
            "usable": usable(findings),
            "nodes": [asdict(node) | {"custom": node.custom} for node in nodes],
            "findings": [asdict(finding) for finding in findings],
        }
    )
    return 0 if usable(findings) else FAILED


def only_on_a_cluster(config: Path) -> SettingsError:
    """Return the complaint about a campaign that is to be looked at from no cluster."""
    return SettingsError(
        f"{config} is looked at from the nodes of a cluster; give its --address, or leave the file out; "
        "`tutelage run --dry-run` checks a campaign here"
    )


def _shown(findings: "Sequence[Finding]") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark, style = _MARKS[finding.state]
        table.add_row(finding.what, Text(mark, style=style), Text(finding.told, overflow="fold"))
    return table


def _nodes(nodes: "Sequence[Node]") -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("node", "cores", "memory", "GPUs", "resources", "disk free", "clock"):
        table.add_column(heading, overflow="fold")
    for node in nodes:
        told, there = node.answer, node.resources
        table.add_row(
            node.address + (" (head)" if node.head else ""),
            f"{there.get('CPU', 0):g}",
            f"{there.get('memory', 0) / 2**30:.0f} GiB",
            f"{there.get('GPU', 0):g}",
            ", ".join(f"{name} {amount:g}" for name, amount in node.custom.items()) or "-",
            "no answer" if told is None else " / ".join(f"{disk.free_gib:.0f} GiB" for disk in told.disks),
            "-" if told is None or told.skew is None else f"{told.skew.ahead_s:+.2f} s",
        )
    return table


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
