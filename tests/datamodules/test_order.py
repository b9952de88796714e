"""The order of samples as pure functions, over drawn numbers of ranks, workers, shards and steps."""

from collections import Counter
from itertools import chain, islice, permutations
from math import ceil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datamodules.order import Deal, Order, Permutation, Place, forward, permutation
from datamodules.pipeline import Dealt, DealtForward, Listed, ListedForward, Share

quick = settings(deadline=None, max_examples=60)

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)
SEEDS = st.integers(0, 2**32)
RECORDED_FULL = [(0, 0), (2, 3), (1, 1), (2, 1), (2, 0), (0, 1), (2, 2), (1, 0), (0, 2)]
RECORDED_WINDOW = [(0, 2), (0, 0), (1, 1), (0, 1), (1, 0), (2, 0), (2, 3), (2, 2), (2, 1)]
RECORDED_FORWARD = [(2, 0), (2, 1), (2, 2), (2, 3), (0, 0), (0, 1)]


class Cases:
    """Stands in for the training cases: a case is its place."""

    def __init__(self, counts, window=None, seed=0):
        self.samples, self.seed, self.order = self, seed, Order(counts, window, seed)
        self.counts = np.array(counts)

    def __getitem__(self, index):
        return index, self.order[index]

    def at(self, shard, row):
        return shard, row

    def case(self, index, epoch, sample):
        return index, Place(epoch, *sample)


def loaded(plan, workers, num_batches):
    """What a loader with these workers makes of a plan: it asks them in turn for a batch each."""
    asked = [plan(worker, max(1, workers)) for worker in range(max(1, workers))]
    return [list(islice(asked[batch % len(asked)], plan.share.size)) for batch in range(num_batches)]


def trained(make, steps, start, ranks, workers, parts, size):
    """All samples of some steps, in the order of their places, from the loaders of all ranks."""
    shares = [Share(size // ranks // parts, start * parts, rank, ranks) for rank in range(ranks)]
    batches = zip(*(loaded(make(share), workers, steps * parts) for share in shares), strict=True)
    return [case for together in batches for of_rank in together for case in of_rank]


# --- permutations ---


@quick
@given(st.integers(1, 3000), SEEDS)
def test_every_place_of_a_permutation_is_another(size, seed):
    drawn = permutation(size, seed)
    assert sorted(drawn[i] for i in range(size)) == list(range(size))


def test_orders_of_five_come_equally_often():
    rng = np.random.default_rng(0)
    found: Counter[tuple[int, ...]] = Counter()
    for _ in range(6000):
        drawn = Permutation(5, tuple(int(key) for key in rng.integers(2**64, size=12, dtype=np.uint64)))
        found[tuple(drawn[i] for i in range(5))] += 1
    chi_square = sum((found[order] - 50) ** 2 / 50 for order in permutations(range(5)))
    assert chi_square < 180  # 119 degrees of freedom: more in one of 4000 cases


def test_neighbours_are_far_apart_in_a_large_permutation():
    drawn = permutation(10_000_000, 1)
    places = np.array([drawn[i] for i in range(5000)])
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(places, np.arange(5000))[0, 1]) < 0.05


def test_order_is_the_recorded_one():
    """Whoever changes it changes every experiment: runs that were begun before would go on with other samples."""
    assert [Order([3, 2, 4], None, 7)[i][1:] for i in range(9)] == RECORDED_FULL
    assert [Order([3, 2, 4], 2, 7)[i][1:] for i in range(9)] == RECORDED_WINDOW
    assert [place[1:] for place in islice(forward([3, 2, 4], 7, 0, 2), 6)] == RECORDED_FORWARD


# --- the indexed order ---


@quick
@given(COUNTS, st.none() | st.integers(1, 9), SEEDS)
def test_every_epoch_has_every_sample_once(counts, window, seed):
    order = Order(counts, window, seed)
    epochs = [[order[e * order.size + i] for i in range(order.size)] for e in range(2)]
    for number, places in enumerate(epochs):
        assert {place.epoch for place in places} == {number}
        assert sorted(place[1:] for place in places) == [(s, row) for s, n in enumerate(counts) for row in range(n)]


@quick
@given(COUNTS, st.none() | st.integers(1, 3), SEEDS, st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_place_does_not_depend_on_what_was_asked_before(counts, window, seed, positions):
    used = Order(counts, window, seed)
    assert [used[p] for p in positions] == [Order(counts, window, seed)[p] for p in positions]


@quick
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), SEEDS)
def test_window_has_so_many_shards_and_no_more(num_shards, each, window, seed):
    order = Order([each] * num_shards, window, seed)
    for first in range(0, order.size, each * window):
        places = [order[i] for i in range(first, min(first + each * window, order.size))]
        assert len({place.shard for place in places}) == min(window, num_shards - first // each)


def test_orders_of_other_epochs_seeds_and_names_are_others():
    orders = [Order([20], None, seed, name) for seed, name in ((0, ""), (1, ""), (0, "rain"))]
    drawn = [[order[i].row for i in range(20)] for order in orders] + [[orders[0][20 + i].row for i in range(20)]]
    assert len({tuple(rows) for rows in drawn}) == 4


@quick
@given(
    COUNTS,
    st.none() | st.integers(1, 3),
    SEEDS,
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_samples_are_the_same_whatever_ranks_workers_parts_and_restarts(
    counts, window, seed, ranks, workers, parts, each, stop
):
    size, cases = ranks * parts * each, Cases(counts, window, seed)

    def make(share):
        return Dealt(cases, share)

    alone = trained(make, 5, 0, 1, 0, 1, size)
    before = trained(make, stop, 0, ranks, workers, parts, size)
    after = trained(make, 5 - stop, stop, 1, workers + 1, parts * ranks, size)
    assert alone == before + after
    assert [index for index, _ in alone] == list(range(5 * size))


# --- the order of the forward reader ---


@quick
@given(COUNTS, SEEDS, st.integers(1, 8))
def test_lanes_share_an_epoch_without_overlap(counts, seed, num_lanes):
    counts = [n + 1 for n in counts]
    assume(num_lanes <= len(counts))
    epoch = [
        place
        for lane in range(num_lanes)
        for place in islice(forward(counts, seed, lane, num_lanes), sum(counts))
        if place.epoch == 0
    ]
    assert sorted(place[1:] for place in epoch) == [(s, row) for s, n in enumerate(counts) for row in range(n)]


@quick
@given(COUNTS, SEEDS, st.integers(0, 60))
def test_forward_order_begun_later_is_the_rest_of_it(counts, seed, first):
    whole = list(islice(forward(counts, seed, 0, 1), first + 10))
    assert list(islice(forward(counts, seed, 0, 1, first), 10)) == whole[first:]


@quick
@given(
    st.lists(st.integers(1, 9), min_size=4, max_size=8), SEEDS, st.integers(1, 2), st.integers(0, 2), st.integers(0, 6)
)
def test_forward_reader_resumes_with_the_same_ranks_and_workers(counts, seed, ranks, workers, stop):
    cases = Cases(counts, None, seed)

    def make(share):
        return DealtForward(cases, share)

    whole = trained(make, 6, 0, ranks, workers, 1, 2 * ranks)
    assert trained(make, 6 - stop, stop, ranks, workers, 1, 2 * ranks) == whole[stop * 2 * ranks :]


def test_forward_reader_takes_the_samples_of_a_shard_as_they_come():
    places = list(islice(forward([3, 3], 0, 0, 1), 6))
    assert [place.row for place in places] == [0, 1, 2, 0, 1, 2]


# --- validation ---


class Measured(list[int]):
    """Stands in for the validation cases: each is its number. counts: samples of each shard."""

    def __init__(self, counts, variants):
        self.samples, self.counts = self, np.array(counts)
        self.ends = variants * np.arange(1, sum(counts) + 1)
        super().__init__(range(variants * sum(counts)))


@quick
@given(st.sampled_from([Listed, ListedForward]), COUNTS, *(st.integers(1, most) for most in (2, 3, 5, 10)))
def test_validation_has_every_case_once_and_no_rank_without_work(plan, counts, variants, workers, size, ranks):
    """Of what idle ranks measure in place of nothing the metrics keep one, by the number of the case."""
    cases = Measured(counts, variants)
    plans = [plan(cases, size, rank, ranks) for rank in range(ranks)]
    of_ranks = [[list(each(worker, workers)) for worker in range(workers)] for each in plans]
    dealt = counts if plan is ListedForward else [1] * len(cases)
    idle = sum(not any(dealt[rank::ranks]) for rank in range(ranks))
    assert sorted(chain(*chain(*of_ranks))) == sorted([*cases, *[0] * idle])
    for of_rank, each in zip(of_ranks, plans, strict=True):
        assert any(of_rank)
        assert sum(ceil(len(numbers) / size) for numbers in of_rank) == each.num_batches(workers)


# --- quotas ---


@quick
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), SEEDS, st.integers(0, 5))
def test_every_round_has_each_label_by_its_quota_and_counts_on(quotas, seed, round_):
    deal, size = Deal(tuple(quotas), seed), sum(quotas)
    dealt = [deal[round_ * size + i] for i in range(size)]
    for label, quota in enumerate(quotas):
        assert [n for card, n in dealt if card == label] == list(range(round_ * quota, (round_ + 1) * quota))


def test_rounds_come_in_different_orders():
    deal = Deal((4, 2, 2, 1, 1), 0)
    rounds = {tuple(deal[10 * r + i][0] for i in range(10)) for r in range(5)}
    assert len(rounds) == 5


@pytest.mark.parametrize(("counts", "total"), [([10**9, 10**9], 2 * 10**9), ([1000] * 10_000, 10**7)])
def test_large_sets_are_looked_up_without_being_written_down(counts, total):
    order = Order(counts, None, 0)
    assert order.size == total
    assert all(0 <= order[position].row < counts[0] for position in (0, total - 1, 5 * total + 1))
