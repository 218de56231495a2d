"""What `tutelage priors` does: ask a language model about structures and show what is there to review."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from rich.table import Table
from rich.text import Text

from tutelage.cli.telling import Teller
from tutelage.errors import PARTIAL
from tutelage.records import Prior
from tutelage.rounds.asking_priors import Told, Who, ask
from tutelage.rounds.progress import Reporter
from tutelage.rounds.settings import RunSettings


def priors(settings: RunSettings, who: Who, structures: Sequence[str], teller: Teller) -> int:
    """Ask, and say where the answers are and what became of them."""
    from tutelage.generalists.fetching import folder

    told = ask(settings, Reporter(), replace(who, models=folder()), structures)
    teller.show(_table(told))
    for refused in told.refused:
        what = f"{refused.structure}: {refused.claim or 'everything'}"
        teller.say(f"refused  {what}: {refused.reason}")
    counts = f"{told.answered} answers in {told.seconds:.0f} s, {told.tokens} tokens"
    teller.say(f"{counts}; {told.kept} from before, {told.again} asked again, {told.unusable} unusable")
    teller.say()
    teller.say(f"to review  {told.shelf}")
    teller.say(f"vectors    {told.vectors or f'none: {told.no_vectors}'}")
    teller.say(f"use it     priors.shelf={told.shelf}")
    values = asdict(told) | {"priors": {name: asdict(prior) for name, prior in told.priors.items()}}
    teller.result(values | {"exit_code": told.exit_code})
    return told.exit_code


def case_priors(settings: RunSettings, who: Who, teller: Teller) -> int:
    """Ask about single cases, and say how many there are and where the answers lie."""
    from tutelage.generalists.fetching import folder
    from tutelage.rounds import noting

    told, place = noting.ask(settings, Reporter(), replace(who, models=folder()))
    teller.say(f"case priors  {place}")
    teller.say("curation uses them from the next run on; delete the file to have none")
    exit_code = PARTIAL if told.failed else 0
    teller.result(asdict(told) | {"answers": str(place), "exit_code": exit_code})
    return exit_code


def _table(told: Told) -> Table:
    table = Table(title="priors to review; a language model may be wrong", title_justify="left")
    for name in ("structure", "ml", "pieces", "absent", "relations", "agreement", "edited"):
        left = name in ("structure", "edited")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "edited")
    for name, prior in told.priors.items():
        table.add_row(
            Text(name),
            _range(prior, "volume_ml"),
            _range(prior, "components"),
            "may be" if prior.may_be_absent else "",
            str(len(prior.relations)),
            _agreement(prior),
            Text(", ".join(prior.edited)),
        )
    return table


def _range(prior: Prior, claim: str) -> str:
    if claim in prior.struck:
        return "struck"
    low, high = getattr(prior, claim)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _agreement(prior: Prior) -> str:
    """Mean share of samples that said the same; nothing to compare where there was one."""
    shares = [*prior.confidence.values(), *(related.confidence for related in prior.relations)]
    return f"{sum(shares) / len(shares):.0%}" if prior.confidence else ""
