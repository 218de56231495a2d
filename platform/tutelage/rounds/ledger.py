"""The ledger: one row a case, structure and round, saying what was believed and on what grounds.

It holds content only (digests, numbers, reasons), no times and no paths, so that two
campaigns that did the same have the same ledger.
"""

from collections.abc import Iterable

from tutelage.labels.rows import Row


def rows(
    round_name: str,
    labeled: Iterable[Row],
    curated: Iterable[Row],
    structures: Iterable[str],
    fingerprints: dict[str, str],
) -> list[Row]:
    """Join what labeling and curation said about each case into ledger rows of one round."""
    verdicts = {row["case"]: row for row in curated}
    names = list(structures)
    return [
        _row(round_name, case, verdicts.get(case["case"], {}), structure, i, fingerprints)
        for case in labeled
        for i, structure in enumerate(names)
    ]


def _row(
    round_name: str, labeled: Row, curated: Row, structure: str, index: int, fingerprints: dict[str, str]
) -> Row:
    verdict = (curated.get("verdicts") or {index: {}})[index]
    features = verdict.get("features", {})
    return {
        "round": round_name,
        "case": labeled["case"],
        "structure": structure,
        "ruling": verdict.get("ruling", "failed"),
        "weight": verdict.get("weight", 0.0),
        "reasons": list(verdict.get("reasons", [])) or [labeled["reason"] or curated.get("reason", "")],
        "agreement": features.get("agreement"),
        "generalist_ml": features.get("generalist_ml"),
        "specialist_ml": features.get("specialist_ml"),
        "components": features.get("components"),
        "variance": features.get("variance"),
        "predicted_iou": features.get("predicted_iou"),
        "prompts": labeled.get("prompts"),
        "image": labeled.get("image"),
        "specialist": labeled.get("specialist"),
        "generalist": labeled.get("generalist"),
        "candidate": labeled.get("candidate"),
        "label": curated.get("label"),
        **fingerprints,
    }
