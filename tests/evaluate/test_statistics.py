import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from hermitcrab.evaluate.statistics import (
    bootstrap_metric,
    clustered_interval,
    group_codes,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_shares,
    smallest_effect,
    swap_test,
    wilson,
)


def mean(total):
    return total[:, :1] / total[:, 1:]


def with_count(values):
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


@given(n=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(n, share, confidence):
    k = round(share * n)
    known = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((k / n, known.low, known.high), abs=1e-12)


def test_wilson_knows_nothing_from_no_rows():
    assert all(math.isnan(x) for x in wilson(0, 0))


def covered(intervals, truth):
    return np.mean([i.low <= truth <= i.high for i in intervals])


def test_wilson_covers_in_95_of_100_cases():
    random = np.random.default_rng(1)
    intervals = [wilson(int(k), 200) for k in random.binomial(200, 0.8, 1000)]
    assert 0.93 <= covered(intervals, 0.8) <= 0.97


def test_paired_bootstrap_covers_in_95_of_100_cases():
    random = np.random.default_rng(2)
    a, b = random.random((1000, 150)) < 0.8, random.random((1000, 150)) < 0.7
    intervals = [paired_bootstrap(x, y, resamples=999, seed=i) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    assert 0.93 <= covered(intervals, 0.1) <= 0.97


def correlated_documents(random, documents, truth):
    """Right answers in documents of 2 to 14 rows, whose rows share a difficulty."""
    sizes = random.integers(2, 15, documents)
    easy = random.beta(truth * 3, (1 - truth) * 3, documents)
    groups = np.repeat(np.arange(documents), sizes)
    return (random.random(len(groups)) < easy[groups]).astype(float), groups


def test_clustered_bootstrap_covers_where_the_plain_one_does_not():
    random = np.random.default_rng(3)
    cases = [correlated_documents(random, 40, 0.7) for _ in range(1000)]
    options = {"resamples": 999, "confidence": 0.95, "seed": 0}
    clustered = [bootstrap_metric(mean, with_count(x), groups=g, **options)[0] for x, g in cases]
    plain = [bootstrap_metric(mean, with_count(x), **options)[0] for x, _ in cases[:300]]
    assert 0.93 <= covered(clustered, 0.7) <= 0.97
    assert covered(plain, 0.7) < 0.85


@pytest.mark.parametrize("documents", [12, 60])
def test_clustered_interval_covers_with_few_and_many_documents(documents):
    random = np.random.default_rng(4)
    intervals = [clustered_interval(*correlated_documents(random, documents, 0.7)) for _ in range(1000)]
    assert 0.93 <= covered(intervals, 0.7) <= 0.985


def test_clustered_interval_without_clusters_is_wilsons():
    hits = [1.0] * 60 + [0.0] * 40
    assert clustered_interval(hits, range(100)) == pytest.approx(wilson(60, 100), abs=0.002)


def test_clustered_interval_of_rows_that_all_agree_counts_the_documents():
    interval = clustered_interval([1.0] * 100, [i // 10 for i in range(100)])
    assert interval.value == interval.high == 1
    assert interval.low < wilson(10, 10).low


def test_bootstrap_of_a_mean_is_close_to_students_interval():
    values = np.random.default_rng(5).normal(size=60)
    known = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    interval = bootstrap_metric(mean, with_count(values), resamples=20_000, confidence=0.95, seed=0)[0]
    assert (interval.low, interval.high) == pytest.approx(known, abs=0.02)


def test_one_group_gives_a_figure_and_no_limits():
    interval = paired_bootstrap([1, 1, 0], [0, 0, 0], groups=["a", "a", "a"], resamples=100)
    assert interval.value == pytest.approx(2 / 3)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    a, b = np.random.default_rng(6).random((2, 300))
    first, again, other = (paired_bootstrap(a, b, resamples=500, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_rows_without_a_group_are_groups_of_their_own():
    assert group_codes(["x", None, "x", None], 4).tolist() == [0, 1, 0, 2]


def test_mcnemar_has_the_values_of_the_binomial():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(15, 5) == mcnemar(5, 15) == pytest.approx(0.041389, abs=1e-6)


@given(gained=st.integers(0, 7), lost=st.integers(0, 6), tied=st.integers(0, 30))
def test_swap_test_of_independent_rows_is_mcnemars(gained, lost, tied):
    a = with_count([1] * gained + [0] * lost + [1] * tied)
    b = with_count([0] * gained + [1] * lost + [1] * tied)
    if gained + lost + tied:
        assert swap_test(mean, a, b, resamples=100, seed=0)[0] == pytest.approx(mcnemar(gained, lost))


def test_swap_test_by_chance_agrees_with_enumeration():
    random = np.random.default_rng(7)
    a, b = random.normal(0.12, 1, 300), random.normal(0, 1, 300)
    known = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
    ).pvalue
    assert swap_test(mean, with_count(a), with_count(b), resamples=9999, seed=0)[0] == pytest.approx(known, abs=0.02)


def test_swap_test_keeps_its_level_on_clustered_rows_where_mcnemar_does_not():
    random = np.random.default_rng(8)
    ours, theirs = [], []
    for _ in range(200):
        groups = np.repeat(np.arange(25), 8)
        tilt = random.normal(0, 0.35, 25)[groups]  # a document favors one model or the other, neither on the whole
        a, b = random.random(200) < 0.5 + tilt, random.random(200) < 0.5 - tilt
        ours.append(swap_test(mean, with_count(a), with_count(b), groups=groups, resamples=999, seed=0)[0])
        theirs.append(mcnemar(int((a & ~b).sum()), int((b & ~a).sum())))
    assert np.mean(np.array(ours) < 0.05) <= 0.1
    assert np.mean(np.array(theirs) < 0.05) > 0.2


def test_holm_has_its_textbook_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_smallest_effect_is_shown_as_often_as_promised():
    n, discordance = 1000, 0.2
    effect = smallest_effect(n, discordance)
    assert effect == pytest.approx(0.0396, abs=0.0005)
    shares = [(discordance + effect) / 2, (discordance - effect) / 2, 1 - discordance]
    drawn = np.random.default_rng(9).multinomial(n, shares, 2000)
    assert 0.76 <= np.mean([mcnemar(int(g), int(lo)) < 0.05 for g, lo, _ in drawn]) <= 0.82


def test_a_handful_of_rows_can_show_nothing():
    assert smallest_effect(10, 0.2) is None
    assert smallest_effect(0) is None


@settings(max_examples=30)
@given(n=st.integers(60, 100_000))
def test_more_rows_show_smaller_effects(n):
    assert smallest_effect(2 * n) < smallest_effect(n)


Z2 = 1.959964**2


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [(0, 0, 16, -Z2 / (16 + Z2), Z2 / (16 + Z2)), (50, 0, 50, (50 - Z2) / (50 + Z2), 1.0)],
)
def test_the_score_interval_has_a_closed_form_where_nothing_or_all_turned(
    gained: int, lost: int, n: int, low: float, high: float
) -> None:
    found, turned = paired_shares(gained, lost, n), paired_shares(lost, gained, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert (turned.low, turned.high) == (pytest.approx(-found.high, abs=1e-9), pytest.approx(-found.low, abs=1e-9))


@pytest.mark.parametrize(("gained", "lost", "n"), [(9, 4, 44), (0, 3, 100), (12, 9, 1066)])
def test_the_limits_are_where_the_score_test_rejects(gained: int, lost: int, n: int) -> None:
    """The likeliest shares that differ by a limit, found by search, put the observed difference z standard errors away."""
    found = paired_shares(gained, lost, n)
    assert found.low < (gained - lost) / n < found.high
    for delta in (found.low, found.high):

        def unlikely(q: float, delta: float = delta) -> float:
            shares = np.maximum([q + delta, q, 1 - 2 * q - delta], 1e-300)
            return -float(np.log(shares) @ [gained, lost, n - gained - lost])

        q = optimize.minimize_scalar(
            unlikely, bounds=(max(0.0, -delta), (1 - delta) / 2), method="bounded", options={"xatol": 1e-12}
        ).x
        apart = abs(gained - lost - n * delta) / np.sqrt(n * (2 * q + delta - delta**2))
        assert apart == pytest.approx(1.959964, abs=1e-3)


def test_the_score_interval_covers_where_few_rows_turn() -> None:
    rng, hits, gain, loss, n = np.random.default_rng(0), 0, 0.004, 0.008, 150
    for gained, lost, _ in rng.multinomial(n, [gain, loss, 1 - gain - loss], 1000):
        found = paired_shares(int(gained), int(lost), n)
        hits += found.low <= gain - loss <= found.high
    assert hits >= 940
