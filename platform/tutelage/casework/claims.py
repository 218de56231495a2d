"""What the annotated cases show about claims: reads labels that people made, of cases to learn from only.

It decides which labels may speak, those of gold cases and no others, and that one that cannot
be read is left out with its reason. What a claim is and when it holds, `priors.claims` knows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tutelage.archive import formats
from tutelage.casework.base import Worker
from tutelage.errors import ArchiveError
from tutelage.labels.rows import Row
from tutelage.priors.claims import Finding, findings
from tutelage.records import Case, Prior, Role


@dataclass(frozen=True, slots=True)
class ClaimJob:
    """Everything a worker that measures claims is built from."""

    priors: Mapping[str, Prior]
    structures: tuple[str, ...]


class Claims(Worker):
    """Measures claims on one annotated case after another."""

    def __init__(self, job: ClaimJob) -> None:
        self.job = job

    def work(self, case: Case) -> Row:
        """Return what one case shows."""
        if case.role is not Role.GOLD or case.label is None:
            raise ArchiveError(
                f"{case.case} is for {case.role.value}, expected an annotated case to learn from (gold): "
                "no other label may shape what is believed"
            )
        structures = self.job.structures
        label_DHW = formats.read_label(case.label, case.grid, len(structures))
        found = findings(label_DHW, case.grid, structures, self.job.priors)
        return {"findings": [asdict(finding) for finding in found]}


def findings_of(row: Row) -> list[Finding]:
    """Return the findings of a row; of a case that failed there are none."""
    return [Finding(**finding) for finding in row.get("findings") or []]
