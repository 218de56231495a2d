"""Relations between structures: the words, what each says the other way round, and whether many can be true.

Left and right are the patient's own; a direction compares centers of mass, so it is a strict
order and cannot run in a circle. It does not know where any structure really is.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tutelage.records import Relation

INVERSE = {
    "left-of": "right-of",
    "right-of": "left-of",
    "superior-to": "inferior-to",
    "inferior-to": "superior-to",
    "anterior-to": "posterior-to",
    "posterior-to": "anterior-to",
    "inside": "contains",
    "contains": "inside",
    "touching": "touching",
}
"""What a relation says the other way round."""

KINDS = tuple(INVERSE)

_ORDERS = ("left-of", "superior-to", "anterior-to", "inside")
"""One word for each strict order; its inverse is the same order read backwards."""


@dataclass(frozen=True, order=True, slots=True)
class Stated:
    """That `structure` is `kind` `other`, as somebody said it."""

    structure: str
    kind: str
    other: str

    def __str__(self) -> str:
        return f"{self.structure} {self.kind} {self.other}"

    @property
    def turned(self) -> "Stated":
        """The same, said about the other structure."""
        return Stated(self.other, INVERSE[self.kind], self.structure)


def stated(relations: Mapping[str, Iterable[Relation]]) -> list[Stated]:
    """List the relations of many structures."""
    return [
        Stated(structure, related.kind, related.other)
        for structure, several in relations.items()
        for related in several
    ]


def circles(claims: Iterable[Stated]) -> list[tuple[Stated, ...]]:
    """Find statements that cannot all be true: in each order a shortest circle from each of its structures.

    A circle of two is "A left-of B" beside "B left-of A", of one "A left-of A".
    """
    found: dict[frozenset[Stated], tuple[Stated, ...]] = {}
    several = list(claims)
    for order in _ORDERS:
        steps: dict[str, dict[str, Stated]] = {}
        for claim in sorted(several):
            if claim.kind in (order, INVERSE[order]):
                forward = claim if claim.kind == order else claim.turned
                steps.setdefault(forward.structure, {}).setdefault(forward.other, claim)
        for start in sorted(steps):
            circle = _back_to(start, steps)
            if circle:
                found.setdefault(frozenset(circle), circle)
    return list(found.values())


def _back_to(start: str, steps: Mapping[str, Mapping[str, Stated]]) -> tuple[Stated, ...]:
    """Follow an order from a structure back to it by the shortest way; empty if there is none."""
    ways: dict[str, tuple[Stated, ...]] = {start: ()}
    ahead = [start]
    for here in ahead:
        for there, claim in steps.get(here, {}).items():
            if there == start:
                return (*ways[here], claim)
            if there not in ways:
                ways[there] = (*ways[here], claim)
                ahead.append(there)
    return ()


def complaints(claims: Iterable[Stated]) -> Iterator[tuple[Stated, str]]:
    """Yield every statement that stands in a circle, with the circle in words."""
    for circle in circles(claims):
        words = " and ".join(f'"{claim}"' for claim in circle)
        plain = "cannot be true" if len(circle) == 1 else "cannot all be true"
        for claim in circle:
            yield claim, f"{words} {plain}"
