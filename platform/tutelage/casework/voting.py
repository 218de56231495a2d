"""Letting cases that look alike vote on what was rejected of one case.

The case is judged again, which takes little and comes out the same, so that a vote never builds on a
vote: of a neighbour only structures count whose own answer was accepted, and a vote paints around those.
Which cases may vote is decided before, once for all.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.casework.base import Worker
from tutelage.casework.curating import CurateJob, Curator
from tutelage.curation import neighbours
from tutelage.curation.neighbours import Features, Vote
from tutelage.labels import arrays
from tutelage.labels.rows import Row
from tutelage.records import Case, PseudoLabel
from tutelage.storage import Place


@dataclass(frozen=True, slots=True)
class VoteJob:
    """Everything a worker that takes votes is built from."""

    curate: CurateJob
    voters: Mapping[str, tuple[str, ...]]
    """Cases whose answer was accepted, by structure."""
    electorate: str
    """Digest of those and their answers."""


class Voter(Worker):
    """Judges one case after another again and lets its neighbours vote."""

    def __init__(self, job: VoteJob) -> None:
        self.job = job
        self.curator = Curator(job.curate)
        self.labels = Place.of(job.curate.labels)
        cases = {case for of_structure in job.voters.values() for case in of_structure}
        self.features = {case: arrays.read_label(self.labels, case).pooled_KC for case in sorted(cases)}

    def work(self, case: Case) -> Row:
        """Store what is believed of one case after the vote."""
        label = self.curator.judged(case)
        votes = self._votes(label)
        told = neighbours.voted(label, votes, self.job.curate.curation.neighbours)
        return self.curator.kept(told) | {"electorate": self.job.electorate}

    def _votes(self, label: PseudoLabel) -> dict[int, list[Vote]]:
        """Ask the nearest accepted cases of each rejected structure; each case's mask is read once."""
        asked: dict[str, dict[int, float]] = defaultdict(dict)
        for value in neighbours.wanting(label):
            for case, likeness in self._nearest(label, value):
                asked[case][value] = likeness
        votes: dict[int, list[Vote]] = defaultdict(list)
        for case, by_value in sorted(asked.items()):
            mask_DHW = arrays.read_label(self.labels, case).mask_DHW
            for value, likeness in by_value.items():
                votes[value].append(Vote.of(case, likeness, mask_DHW, value))
        return votes

    def _nearest(self, label: PseudoLabel, value: int) -> list[tuple[str, float]]:
        job = self.job
        voters = job.voters.get(job.curate.structures[value - 1], ())
        among: dict[str, Features] = {case: self.features[case] for case in voters if case != label.case}
        return neighbours.nearest(label.pooled_KC, among, job.curate.curation.neighbours.count)
