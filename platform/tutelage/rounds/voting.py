"""Who votes on what was rejected, once every answer of a round has been judged.

It decides which accepted cases are looked at: of an archive of any size as many of each structure as
settings say, always the same ones. A row remembers who could vote, so that a vote is taken once, and
anew where other answers were accepted. What a vote paints, curation knows.
"""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tutelage.labels.rows import Row
from tutelage.records import Ruling
from tutelage.rounds import casewise
from tutelage.rounds.campaign import Campaign
from tutelage.rounds.casewise import Worked
from tutelage.rounds.workspace import Step
from tutelage.settings import fingerprint

if TYPE_CHECKING:
    from tutelage.archive.cases import Cases
    from tutelage.casework.curating import CurateJob


def voted(
    campaign: Campaign, step: Step, number: int, job: "CurateJob", cases: "Cases", worked: Worked
) -> Worked:
    """Let neighbours vote on every case with a rejected answer, and return the rows of all cases."""
    from tutelage.casework.voting import VoteJob, Voter

    voters = electorate(worked.rows(), job.curation.neighbours.among)
    digest = fingerprint(voters)
    waiting = [row["case"] for row in worked.rows() if _waits(row, digest)]
    if not waiting:
        return worked
    names = {structure: tuple(of_structure) for structure, of_structure in voters.items()}
    return casewise.again(campaign, step, number, Voter, VoteJob(job, names, digest), cases, worked, waiting)


def electorate(rows: Iterable[Row], most: int) -> dict[str, dict[str, str]]:
    """Return by structure the cases whose answer was accepted, each with what it is about.

    Where there are more than `most`, those whose names hash lowest: no matter which other cases there
    are, and mostly the same ones for every structure.
    """
    kept: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for row in rows:
        rank = -int.from_bytes(hashlib.sha256(row["case"].encode()).digest()[:8])
        for verdict in row.get("verdicts") or ():
            if verdict["ruling"] != Ruling.ACCEPT.value:
                continue
            heap = kept[verdict["structure"]]
            heapq.heappush(heap, (rank, row["case"], row["of"]))
            if len(heap) > most:
                heapq.heappop(heap)
    return {name: {case: of for _, case, of in sorted(heap)} for name, heap in sorted(kept.items())}


def _waits(row: Mapping[str, object], digest: str) -> bool:
    """Whether something was rejected, or voted on, and these voters have not been asked."""
    verdicts = row.get("verdicts")
    if not isinstance(verdicts, list) or row.get("electorate") == digest:
        return False
    return any(one["ruling"] == Ruling.REJECT.value or "neighbours" in one["features"] for one in verdicts)
