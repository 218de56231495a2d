import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.toys import SLAB, plan_of, sample
from tutelage.errors import TrainingError
from tutelage.methods.base import Batch, Patches, View
from tutelage.methods.batches import Batches, Sample
from tutelage.methods.settings import AugmentSettings, TrainSettings
from tutelage.methods.shelves import Ready, Shelf, Shelves, held
from tutelage.specialist.plan import Triple

pytestmark = pytest.mark.torch

SHAPE = SLAB
SETTINGS = TrainSettings(steps=8, batch=2, warmup=2, checkpoint_every=3)


def unknown(name: str, shape: Triple = SHAPE) -> Sample:
    return replace(sample(name, gold=False, shape=shape), label_DHW=None, weight_DHW=None)


def batches(
    *samples: Sample, settings: TrainSettings = SETTINGS, seed: int = 5, rank: int = 0, world: int = 1
) -> Batches:
    return Batches(samples or (sample("one"), sample("two")), plan_of(SHAPE), settings, seed, rank, world)


def told(augment: AugmentSettings | None = None, **values: object) -> TrainSettings:
    update = values | ({"augment": augment} if augment else {})
    return SETTINGS.model_copy(update=update)


def tensors(patches: Patches) -> dict[str, Tensor]:
    named = {field.name: getattr(patches, field.name) for field in fields(patches)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def same(one: Patches, other: Patches) -> bool:
    mine, theirs = tensors(one), tensors(other)
    alike = all(torch.equal(mine[name], theirs[name]) for name in mine)
    return mine.keys() == theirs.keys() and alike and (one.cases, one.views) == (other.cases, other.views)


def others(batch: Batch) -> Patches:
    assert batch.unlabeled is not None
    return batch.unlabeled


MIXED = (
    *(sample("g1"), sample("g2")),
    *(sample("u1", gold=False, undecided=(2,)), sample("u2", gold=False), unknown("u3")),
)


# --- who is in a batch ----------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 4])
def test_what_the_workers_see_is_what_one_would_see(world: int) -> None:
    settings = told(batch=8)
    for step in range(4):
        whole = batches(*MIXED, settings=settings).at(step)
        shares = [
            batches(*MIXED, settings=settings, rank=rank, world=world).at(step) for rank in range(world)
        ]
        for name in ("labeled", "unlabeled"):
            one, dealt = getattr(whole, name), [getattr(share, name) for share in shares]
            for place in range(len(one)):
                theirs = dealt[place % world]
                assert theirs.cases[place // world] == one.cases[place]
                assert theirs.views[place // world] == one.views[place]
                assert torch.equal(theirs.image[place // world], one.image[place])
                assert torch.equal(theirs.weight[place // world], one.weight[place])
            assert sum(len(theirs) for theirs in dealt) == len(one)


def test_a_batch_follows_from_seed_and_step() -> None:
    drawn = batches(*MIXED)
    backwards = {step: drawn.at(step) for step in reversed(range(6))}
    for step in range(6):
        again = batches(*MIXED).at(step)
        assert same(again.labeled, backwards[step].labeled)
        assert same(others(again), others(backwards[step]))
    assert not same(drawn.at(0).labeled, drawn.at(1).labeled)
    assert not same(drawn.at(0).labeled, batches(*MIXED, seed=6).at(0).labeled)


def test_what_is_drawn_ahead_is_what_each_step_would_draw() -> None:
    drawn = batches(*MIXED)
    ahead = [one.on(torch.device("cpu")) for one in drawn.ahead(2, 6)]
    assert len(ahead) == 4
    assert all(same(one.labeled, drawn.at(step).labeled) for step, one in enumerate(ahead, start=2))


def test_what_goes_wrong_ahead_is_told_where_it_is_used() -> None:
    drawn = batches(replace(sample("one"), image_CDHW=np.zeros((2, *SHAPE), np.float32)))
    with pytest.raises(RuntimeError):
        next(drawn.ahead(0, 3))


def test_a_batch_is_what_losses_and_networks_take() -> None:
    batch = batches(*MIXED).at(0)
    for patches in (batch.labeled, others(batch)):
        assert len(patches) == len(patches.views) == 1
        assert {name: (tuple(value.shape), value.dtype) for name, value in tensors(patches).items()} == {
            "image": ((1, 1, *SHAPE), torch.float32),
            "label": ((1, *SHAPE), torch.int64),
            "weight": ((1, *SHAPE), torch.float32),
            "undecided": ((1, 3), torch.bool),
            "featured": ((1,), torch.bool),
        }


@pytest.mark.parametrize(
    ("batch", "share", "gold"),
    [(2, 0.5, 1), (4, 0.25, 1), (8, 0.1, 1), (4, 0.75, 3), (2, 1.0, 2), (5, 0.5, 2)],
)
def test_annotated_cases_get_the_same_share_of_every_batch(batch: int, share: float, gold: int) -> None:
    drawn = batches(*MIXED, settings=told(batch=batch, gold_share=share))
    for step in range(5):
        at = drawn.at(step)
        assert len(at.labeled) == gold
        assert len(others(at)) == batch - gold
        assert all(case.startswith("g") for case in at.labeled.cases)
        assert all(case.startswith("u") for case in others(at).cases)


def test_all_cases_have_their_turn() -> None:
    drawn = batches(*MIXED)
    seen = {
        case for step in range(40) for case in drawn.at(step).labeled.cases + others(drawn.at(step)).cases
    }
    assert seen == {"g1", "g2", "u1", "u2", "u3"}


def test_without_others_annotated_cases_are_all_there_is() -> None:
    at = [batches().at(step) for step in range(20)]
    assert {case for batch in at for case in batch.labeled.cases} == {"one", "two"}
    assert all(batch.unlabeled is None and len(batch.labeled) == 2 for batch in at)


def test_a_worker_may_have_patches_of_one_kind_alone() -> None:
    """Where nothing is mixed: two workers share one annotated and one other patch."""
    first, second = (batches(*MIXED, rank=rank, world=2).at(0) for rank in range(2))
    assert (len(first.labeled), len(others(first))) == (1, 0)
    assert (len(second.labeled), len(others(second))) == (0, 1)
    assert tuple(second.labeled.image.shape) == (0, 1, *SHAPE)


@pytest.mark.parametrize(
    ("given", "batch", "world"),
    [(MIXED, 2, 2), (MIXED, 1, 1), (MIXED[:2], 4, 1)],
    ids=["workers", "batch of one", "no others"],
)
def test_a_method_that_mixes_needs_both_kinds_in_each_worker(
    given: tuple[Sample, ...], batch: int, world: int
) -> None:
    with pytest.raises(
        TrainingError, match=rf"ua_mt mixes .* {world} workers.*set train.batch to {2 * world}"
    ):
        batches(*given, settings=told(method="ua_mt", batch=batch), world=world)


@pytest.mark.parametrize(("batch", "world"), [(2, 3), (3, 2), (1, 2)])
def test_a_batch_that_cannot_be_divided_is_refused(batch: int, world: int) -> None:
    with pytest.raises(TrainingError, match=rf"batch of {batch} cannot be divided over {world}"):
        batches(settings=told(batch=batch), world=world)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((sample("u", gold=False),), "no annotated case"),
        ((sample("g"), sample("x1", gold=False, undecided=(3,))), r"x1 has .* undecided structures \[3\]"),
        ((sample("g"), sample("x1", gold=False, undecided=(-1,))), r"x1 .* expected structures 1 to 2"),
        ((sample("g"), sample("x1", gold=False, undecided=(0,))), r"x1 .* expected structures 1 to 2"),
        (
            (sample("g"), replace(sample("x1"), label_DHW=np.full(SHAPE, 7, np.uint8))),
            "x1 has labels up to 7",
        ),
        ((sample("g"), replace(sample("x1"), label_DHW=None)), "x1 is annotated but has no label"),
    ],
    ids=["no gold", "undecided too large", "negative", "background", "label too large", "no label"],
)
def test_samples_that_cannot_be_learned_from_are_refused(given: tuple[Sample, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        batches(*given)


# --- what is in a patch ---------------------------------------------------------------------


def test_doubts_and_weights_travel_with_their_sample() -> None:
    seen = set()
    for step in range(30):
        batch = batches(*MIXED).at(step)
        assert bool((batch.labeled.weight == 1).all())
        (case,), weight = others(batch).cases, others(batch).weight[0]
        seen.add(case)
        assert others(batch).undecided[0].tolist() == [False, False, case == "u1"]
        assert bool((weight == 0).all()) == (case == "u3")
        assert not (weight == 1).all()
    assert seen == {"u1", "u2", "u3"}


def test_where_nothing_is_known_nothing_counts_beyond_the_volume_either() -> None:
    small = unknown("u", shape=(3, 10, 12))
    patches = others(batches(sample("g"), small).at(0))
    assert (patches.label == 0).all()
    assert (patches.weight == 0).all()


@pytest.mark.parametrize("moved", [False, True], ids=["as it lies", "turned"])
@pytest.mark.parametrize(
    "shape", [(4, 16, 16), (9, 30, 16), (3, 14, 14), (3, 40, 14)], ids=["patch", "larger", "smaller", "both"]
)
def test_image_label_and_weight_are_cut_turned_and_filled_alike(shape: Triple, moved: bool) -> None:
    """The image holds its label, so that after any change of brightness their order must agree."""
    label = np.random.default_rng(0).integers(1, 3, shape).astype(np.uint8)
    exact = Sample(
        "one", label[None].astype(np.float32), label, (label / 2).astype(np.float32), (), gold=True
    )
    settings = told(AugmentSettings(flips=(moved,) * 3, quarter_turns=moved))
    drawn = batches(exact, settings=settings)
    kept = int(np.prod([min(n, p) for n, p in zip(shape, SHAPE, strict=True)]))
    places = set()
    for step in range(12):
        patches = drawn.at(step).labeled
        for image, cut, weight in zip(patches.image, patches.label, patches.weight, strict=True):
            inside = cut > 0
            assert int(inside.sum()) == kept
            assert torch.equal(weight[inside], cut[inside] / 2)
            assert (weight[~inside] == 1).all()
            assert image[0][cut == 2].mean() > image[0][cut == 1].mean() + 0.5
            places.add(cut.numpy().tobytes())
    assert (len(places) > 1) == (moved or any(n > p for n, p in zip(shape, SHAPE, strict=True)))


@pytest.mark.parametrize("shape", [(4, 16, 16), (9, 30, 17), (3, 14, 40)])
def test_a_view_says_how_its_patch_was_made(shape: Triple) -> None:
    one = sample("one", shape=shape)
    settings = told(AugmentSettings(flips=(True, True, True), quarter_turns=True))
    views = set()
    for step in range(10):
        patches = batches(one, settings=settings).at(step).labeled
        for label, view in zip(patches.label.numpy(), patches.views, strict=True):
            assert one.label_DHW is not None
            assert np.array_equal(view.of(one.label_DHW), label)
            laid = view.back(label, fill=9)
            assert np.array_equal(laid[laid != 9], one.label_DHW[laid != 9])
            views.add(view)
    assert len({(view.flips, view.quarter_turns) for view in views}) > 5


def test_patches_that_are_not_square_are_turned_by_halves() -> None:
    settings = told(AugmentSettings(quarter_turns=True))
    plan = plan_of(SHAPE).model_copy(update={"patch": (4, 16, 8)})
    drawn = Batches([sample("one")], plan, settings, 0)
    turns = {view.quarter_turns for step in range(20) for view in drawn.at(step).labeled.views}
    assert turns == {0, 2}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_patches_is_sure_to_show_a_structure(share: float) -> None:
    wide = sample("one", shape=(4, 16, 400))
    drawn = batches(wide, settings=told(AugmentSettings(foreground_share=share), batch=1))
    shown = [bool((drawn.at(step).labeled.label > 0).any()) for step in range(120)]
    by_chance = 0.06
    assert np.mean(shown) == pytest.approx(share + (1 - share) * by_chance, abs=0.12)


def test_a_rare_structure_is_shown_as_often_as_a_frequent_one() -> None:
    label = np.zeros((4, 16, 400), np.uint8)
    label[:, :, :120] = 1
    label[2, 8, 300] = 2
    one = Sample("one", label[None].astype(np.float32), label, None, (), gold=True)
    drawn = batches(one, settings=told(AugmentSettings(foreground_share=1.0), batch=1))
    rare = [bool((drawn.at(step).labeled.label == 2).any()) for step in range(80)]
    assert np.mean(rare) == pytest.approx(0.5, abs=0.15)


def test_what_is_not_believed_draws_no_patches() -> None:
    """Voxels without weight are no foreground."""
    one = sample("u", gold=False, shape=(4, 16, 400))
    nowhere = replace(one, weight_DHW=np.zeros((4, 16, 400), np.float32))
    drawn = batches(sample("g"), nowhere, settings=told(AugmentSettings(foreground_share=1.0)))
    assert np.mean([bool((others(drawn.at(step)).label > 0).any()) for step in range(40)]) < 0.3


def test_a_patch_reads_no_more_of_its_volume_than_it_shows() -> None:
    whole: list[str] = []

    class Told(np.ndarray):
        def min(self, *given: Any, **named: Any) -> Any:
            whole.append("min")
            return super().min(*given, **named)

    one = sample("one")
    drawn = batches(replace(one, image_CDHW=one.image_CDHW.view(Told)))
    assert whole == ["min"]
    drawn.at(0)
    assert whole == ["min"]


def test_samples_are_not_changed_by_drawing() -> None:
    before = copy.deepcopy([(one.image_CDHW, one.label_DHW) for one in MIXED])
    for step in range(10):
        batches(*MIXED).at(step)
    for one, (image, label) in zip(MIXED, before, strict=True):
        assert np.array_equal(one.image_CDHW, image)
        assert (one.label_DHW is None) == (label is None)
        assert label is None or np.array_equal(one.label_DHW, label)  # type: ignore[arg-type]


# --- whose turn it is -----------------------------------------------------------------------


def test_few_cases_are_drawn_as_they_always_were() -> None:
    """Written down before there were windows: trainings that are under way see the same patches."""
    shape = (6, 24, 30)
    gold = [sample(f"g{n}", shape=shape) for n in range(3)]
    free = [sample(f"u{n}", gold=False, shape=shape) for n in range(7)]
    drawn = batches(*gold, *free, settings=told(batch=6, gold_share=0.34), seed=11)
    found = [(at.labeled.cases, others(at).cases) for at in map(drawn.at, range(4))]
    assert found == [
        (("g0", "g1"), ("u1", "u5", "u3", "u3")),
        (("g0", "g1"), ("u6", "u1", "u5", "u5")),
        (("g0", "g1"), ("u0", "u0", "u5", "u2")),
        (("g0", "g0"), ("u4", "u0", "u6", "u6")),
    ]
    starts = [view.start for view in drawn.at(3).labeled.views + others(drawn.at(3)).views]
    assert starts == [(0, 5, 4), (2, 8, 14), (1, 1, 3), (0, 1, 1), (0, 1, 3), (2, 4, 5)]


MANY = (*(sample(f"g{n}") for n in range(2)), *(sample(f"u{n}", gold=False) for n in range(24)))
TURNS = told(batch=8, window=6, reuse=2)


def test_many_cases_take_turns_and_few_beside_them_do_not() -> None:
    drawn = batches(*MANY, settings=TURNS)
    at = [drawn.at(step) for step in range(12)]
    assert {case for one in at for case in others(one).cases} == {f"u{n}" for n in range(24)}
    assert {case for one in at for case in one.labeled.cases} == {"g0", "g1"}
    for first in range(0, 12, 2):
        assert len({case for one in at[first : first + 2] for case in others(one).cases}) <= 6


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_turns_and_each_case_is_one_workers(world: int) -> None:
    whole = [batches(*MANY, settings=TURNS).at(step) for step in range(12)]
    shares = [batches(*MANY, settings=TURNS, rank=rank, world=world) for rank in range(world)]
    for step, one in enumerate(whole):
        dealt = [others(share.at(step)) for share in shares]
        for place, case in enumerate(others(one).cases):
            assert dealt[place % world].cases[place // world] == case
            assert torch.equal(dealt[place % world].image[place // world], others(one).image[place])
    theirs = [{case for step in range(10) for case in others(share.at(step)).cases} for share in shares]
    assert sum(map(len, theirs)) == len(set().union(*theirs))


class Told:
    """A shelf that notes what it is told and asked for, and lacks some."""

    def __init__(self, shelf: Shelf, lacks: frozenset[int] = frozenset()) -> None:
        self.shelf, self.lacks = shelf, lacks
        self.width = 0
        self.told: list[int] = []
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.shelf)

    def at(self, index: int) -> Ready | None:
        self.asked.append(index)
        return None if index in self.lacks else self.shelf.at(index)

    def soon(self, indices: Sequence[int]) -> None:
        self.told += indices


def told_of(lacks: frozenset[int] = frozenset()) -> tuple[Told, Batches]:
    both = held(MANY, 3)
    free = Told(both.others, lacks)
    return free, Batches(Shelves(Told(both.gold), free), plan_of(SHAPE), TURNS, 5, rank=1, world=2)


def test_shelves_are_told_in_order_and_in_time_what_is_asked_of_them() -> None:
    free, drawn = told_of()
    for number, _ in enumerate(drawn.ahead(7, 107)):
        assert len(free.told) >= min(100, number + 32) * 2
        assert len(free.told) <= (number + 2 * 32 + 2) * 2
    assert free.asked == free.told
    assert len(free.told) == 100 * 2


def test_for_a_case_that_is_not_there_the_next_of_its_window_stands_in() -> None:
    lacks = frozenset(range(0, 24, 5))
    drawn = told_of(lacks)[1]
    whole = batches(*MANY, settings=TURNS, rank=1, world=2)
    replaced = 0
    for step, one in enumerate(drawn.ahead(0, 48)):
        at, full = one.on(torch.device("cpu")), whole.at(step)
        assert same(at.labeled, full.labeled)
        for case, planned in zip(others(at).cases, others(full).cases, strict=True):
            assert int(case[1:]) not in lacks
            assert (case == planned) == (int(planned[1:]) not in lacks)
            replaced += case != planned
    assert replaced > 10
    assert drawn.counts() == {"skipped": replaced}
    assert same(others(told_of(lacks)[1].at(30)), others(drawn.at(30)))


def test_a_window_without_any_case_that_is_there_ends_the_training() -> None:
    with pytest.raises(TrainingError, match=r"none of the cases .* step 3 .* restore"):
        told_of(lacks=frozenset(range(24)))[1].at(3)


# --- features -------------------------------------------------------------------------------


def featured(name: str, shape: Triple, slices: int) -> Sample:
    """Features that tell where they lie: their own place along D, H and W, in shares of the volume."""
    cells = (np.arange(8) + 0.5) / 8
    grid = np.empty((slices, 3, 8, 8), np.float16)
    grid[:, 0] = ((np.arange(slices) + 0.5) / slices)[:, None, None]
    grid[:, 1], grid[:, 2] = cells[:, None], cells[None]
    return replace(sample(name, gold=False, shape=shape), features_DCHW=grid)


def test_features_lie_where_their_patch_lies() -> None:
    settings = told(AugmentSettings(flips=(True, True, True), quarter_turns=True), batch=4)
    shape = (8, 32, 48)
    drawn = batches(sample("g"), featured("u", shape, slices=40), settings=settings)
    places = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij")).astype(
        np.float32
    )
    for step in range(8):
        patches = others(drawn.at(step))
        assert patches.features is not None
        assert patches.featured.all()
        for features, view in zip(patches.features, patches.views, strict=True):
            inside = torch.from_numpy(np.asarray(view.of(places)))
            cells = [p // n for p, n in zip(SHAPE, features.shape[1:], strict=True)]
            expected = torch.nn.functional.avg_pool3d(inside[None], cells)[0]
            rim = 1 / 16  # nothing is known of the outer halves of the outer cells
            expected[1:] = expected[1:].clamp(rim, 1 - rim)
            assert torch.allclose(features, expected, atol=0.02)


def test_patches_without_features_say_so() -> None:
    blind = np.zeros((4, 3, 8, 8), np.float16)
    given = (sample("g"), featured("u", SHAPE, 4), replace(sample("v", gold=False), features_DCHW=blind))
    batch = batches(*given, settings=told(batch=6)).at(0)
    assert batch.labeled.features is not None
    assert not batch.labeled.featured.any()
    assert others(batch).featured.tolist() == [case == "u" for case in others(batch).cases]


def test_features_of_two_generalists_are_refused() -> None:
    narrow = replace(sample("v", gold=False), features_DCHW=np.zeros((4, 2, 8, 8), np.float16))
    with pytest.raises(TrainingError, match=r"\[2, 3\] channels"):
        batches(sample("g"), featured("u", SHAPE, 4), narrow)


def test_a_view_turns_features_as_it_turns_voxels() -> None:
    view = View((4, 8, 8), (0, 0, 0), (4, 8, 8), (True, False, True), 1)
    voxels = np.arange(256).reshape(4, 8, 8)
    coarse = voxels.reshape(2, 2, 4, 2, 4, 2).mean((1, 3, 5))
    fine = np.asarray(view.of(voxels)).reshape(2, 2, 4, 2, 4, 2).mean((1, 3, 5))
    assert np.array_equal(view.turned(coarse), fine)


def test_the_thread_that_draws_computes_alone_and_the_one_that_learns_as_before() -> None:
    before = torch.get_num_threads()
    told = batches(sample("a"), sample("b"))
    counts: list[int] = []
    draw = told.draw

    def drawn(step: int, pinned: bool = False) -> Any:
        counts.append(torch.get_num_threads())
        return draw(step, pinned)

    vars(told)["draw"] = drawn
    torch.set_num_threads(3)
    try:
        counts += [torch.get_num_threads() for _ in told.ahead(0, 3)]
    finally:
        torch.set_num_threads(before)
    assert sorted(counts) == [1, 1, 1, 3, 3, 3]
