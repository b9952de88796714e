"""Intervals and tests against numbers worked out elsewhere: scipy's, tables, simulations of known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from bdg.statistics import (
    Interval,
    holm,
    importance,
    over_both,
    over_photographs,
    over_seeds,
    paired,
    per_photograph,
    sign_flip,
    student_cdf,
    student_quantile,
)

LIGHT = [2.1, 2.4, 1.9, 2.8, 2.2, 2.6, 2.0, 2.3]


@pytest.mark.parametrize(("p", "freedom"), [(0.975, 1), (0.975, 2.5), (0.9, 7), (0.3, 4), (0.9995, 30), (0.5, 3)])
def test_quantiles_of_student_are_those_of_scipy(p, freedom):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), abs=1e-7)


@pytest.mark.parametrize("t", [-40.0, -1.3, 0.0, 0.2, 5.0])
@pytest.mark.parametrize("freedom", [1, 3.7, 50])
def test_probabilities_of_student_are_those_of_scipy(t, freedom):
    assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-9)
    assert student_cdf(-math.inf, freedom) == 0


def test_the_interval_over_seeds_is_that_of_a_textbook():
    found = over_seeds(np.array([20.1, 20.5, 20.3]))  # mean 20.3, s = 0.2, t(2) = 4.3027
    assert (found.mean, found.low, found.high) == pytest.approx((20.3, 19.8032, 20.7968), abs=1e-4)
    assert (found.low, found.high) == pytest.approx(
        tuple(stats.ttest_1samp([20.1, 20.5, 20.3], 0).confidence_interval())
    )


def test_one_value_tells_no_interval():
    assert over_seeds(np.array([20.0])) == Interval(20.0, None, None, 1)
    assert over_photographs(np.array([20.0])) == Interval(20.0, None, None, 1)
    assert not over_photographs(np.array([20.0])).sure


def test_the_bootstrap_gives_the_recorded_numbers():
    found = over_photographs(np.array(LIGHT))
    assert (found.mean, found.n) == (pytest.approx(2.2875), 8)
    assert (found.low, found.high) == pytest.approx((2.0500, 2.5500), abs=0.02)  # recorded; seeded, so always the same
    assert found == over_photographs(np.array(LIGHT))


def test_the_bootstrap_is_as_wide_as_students_t_where_values_are_symmetric():
    y = np.random.default_rng(0).normal(size=15)
    ours, t = over_photographs(y), over_seeds(y)
    assert ours.high - ours.low == pytest.approx(t.high - t.low, rel=0.08)


def test_the_bootstrap_holds_its_promise_better_than_plain_percentiles():
    random = np.random.default_rng(0)
    hits, plain = 0, 0
    for _ in range(300):
        y = random.normal(size=6)
        found = over_photographs(y)
        hits += found.low <= 0 <= found.high
        means = random.choice(y, (500, 6)).mean(1)
        plain += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert hits / 300 >= 0.89 > plain / 300 + 0.03


def test_degradations_count_the_same_however_many_images_they_have():
    y = per_photograph([10.0, 10.0, 10.0, 20.0], ["a", "b", "c", "a"], ["rain", "rain", "rain", "haze"])
    assert y.mean() == pytest.approx(15.0)


def test_a_photograph_degraded_in_several_ways_is_one_value():
    y = per_photograph([20.0, 30.0, 22.0, 34.0], ["a", "a", "b", "b"], ["rain", "haze", "rain", "haze"])
    assert y.tolist() == pytest.approx([25.0, 28.0])


def test_copies_of_images_make_nothing_more_certain():
    values, photographs = LIGHT, [f"p{i}" for i in range(len(LIGHT))]
    once = over_photographs(per_photograph(values, photographs, ["rain"] * 8))
    thrice = over_photographs(per_photograph(values * 3, photographs * 3, ["rain"] * 8 + ["haze"] * 8 + ["blur"] * 8))
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))


def test_values_without_photographs_are_refused():
    with pytest.raises(ValueError, match="one of each per image"):
        per_photograph([1.0], ["a", "b"], ["rain"])


@pytest.mark.parametrize("n", [5, 9, 14])
def test_signs_flipped_give_the_p_of_scipys_permutations(n):
    y = np.random.default_rng(n).normal(0.4, size=n)
    expected = stats.permutation_test((y,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(y) == pytest.approx(expected)


def test_many_photographs_are_drawn_from_and_agree_with_students_t():
    y = np.random.default_rng(3).normal(0.2, size=60)
    assert sign_flip(y) == pytest.approx(stats.ttest_1samp(y, 0).pvalue, abs=0.015)


def test_five_photographs_cannot_show_a_difference():
    assert sign_flip(np.array([1.0, 1.1, 0.9, 1.2, 1.05])) == 2 / 32


def test_holms_correction_is_that_of_his_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_without_photographs_that_vary_are_students_t():
    table = np.array([[20.1], [20.5], [20.3]])
    assert over_both(table) == over_seeds(np.array([20.1, 20.5, 20.3]))


def test_a_difference_over_seeds_is_scipys_paired_t_where_photographs_agree():
    better = np.array([[0.3, 0.3], [0.5, 0.5], [0.1, 0.1]])
    assert paired(better).p == pytest.approx(stats.ttest_1samp([0.3, 0.5, 0.1], 0).pvalue)


def test_no_difference_at_all_is_no_difference():
    found = paired(np.zeros((2, 4)))
    assert (found.p, found.interval.low, found.interval.high) == (1.0, 0.0, 0.0)
    assert paired(np.zeros((1, 4))).p == 1.0


def test_the_interval_over_both_holds_its_promise():
    random, hits = np.random.default_rng(0), 0
    for _ in range(500):
        seeds, photographs = 0.3 * random.normal(size=(3, 1)), random.normal(size=(1, 20))
        found = over_both(seeds + photographs + 0.2 * random.normal(size=(3, 20)))
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 500 <= 0.99


def test_tests_do_not_cry_wolf():
    random, false = np.random.default_rng(0), 0
    for _ in range(400):
        false += paired(0.2 * random.normal(size=(2, 1)) + random.normal(size=(2, 10))).p < 0.05
    assert false / 400 <= 0.07


def test_what_a_key_explains_is_its_share_of_the_variance():
    changes = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1)]
    assert importance(changes, [0.0, 1.0, 3.0, 4.0]) == pytest.approx({"a": 0.9, "b": 0.1})
    assert importance(changes, [2.0] * 4) == {}
    assert importance([], []) == {}


def test_of_parts_in_groups_each_group_counts_the_same():
    """Two sets of rain and one of haze: the mean over rain and haze, of which rain is the mean over its sets."""
    values, parts = [1.0, 2.0, 6.0, 10.0], ["rain 1", "rain 1", "rain 2", "haze"]
    y = per_photograph(values, "abcd", parts, ["rain", "rain", "rain", "haze"])
    assert y.mean() == pytest.approx(((1.5 + 6) / 2 + 10) / 2)
    assert per_photograph(values, "abcd", parts).mean() == pytest.approx((1.5 + 6 + 10) / 3)
