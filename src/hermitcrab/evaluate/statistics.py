"""Intervals and tests for figures measured on a sample of rows: pure functions of their arguments and seed.

Two ideas carry the module. A metric is a function of *sums* over rows (how many were right, nats, bytes, true positives
by label), so one resample of any metric is a weighted sum of rows: no metric is computed row by row again. And what is
resampled or swapped is a *group*: a row where rows are independent, the whole document (user, passage) where a column
names it. scipy takes longer to import than a server to start, so those functions import it that need it.

Shapes: N rows, G groups, K sums, M metrics, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hermitcrab.progress import progress

Floats = npt.NDArray[np.float64]
Groups = Sequence[Any] | npt.NDArray[Any]  # each row's group; None in it: a row for itself
Totals = Callable[[Floats], Floats]  # totals_RK -> values_RM

CELLS = 4_000_000  # numbers held at once while resampling
FEWEST_SWAPS = 9_999  # a p-value of a randomization test cannot fall below 1 / (swaps + 1)


class Interval(NamedTuple):
    """A figure with its confidence limits; these are NaN where the sample cannot tell (a single group)."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    return _wilson(successes / n, n, confidence)


def _wilson(p: float, n: float, confidence: float) -> Interval:
    from scipy import stats

    z = float(stats.norm.ppf(0.5 + confidence / 2))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, 0.0 if p == 0 else middle - half, 1.0 if p == 1 else middle + half)


def clustered_interval(hits: npt.ArrayLike, groups: Groups, confidence: float = 0.95) -> Interval:
    """Interval of a proportion whose errors are clustered: Wilson's, on the effective number of rows.

    The effective number is rows over the design effect (variance with the groups kept together over variance with
    rows independent; Miller 2024, arXiv:2411.00640), shrunk by Student's t for few groups (Korn & Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data").
    Where every row agrees there is no variance to go by, and the groups themselves are counted.
    """
    from scipy import stats

    x_N = np.asarray(hits, dtype=np.float64)
    code_N = group_codes(groups, len(x_N))
    n, g = len(x_N), int(code_N.max(initial=-1)) + 1
    if n == 0 or g < 2:
        return Interval(float(x_N.mean()) if n else math.nan, math.nan, math.nan)
    p = float(x_N.mean())
    residual_G = np.bincount(code_N, weights=x_N - p)
    variance = g / (g - 1) * float((residual_G**2).sum()) / n**2
    effective = p * (1 - p) / variance if variance > 0 else float(g)
    upper = 0.5 + confidence / 2
    effective *= (float(stats.t.ppf(upper, n - 1)) / float(stats.t.ppf(upper, g - 1))) ** 2
    return _wilson(p, min(effective, float(n)), confidence)


def group_codes(groups: Groups | None, n: int) -> npt.NDArray[np.int64]:
    """Each row's group as 0 … G-1; no groups, or None for a row: the row is a group of its own."""
    if groups is None:
        return np.arange(n)
    seen: dict[Any, int] = {}
    codes = [seen.setdefault((i,) if g is None else g, len(seen)) for i, g in enumerate(groups)]
    return np.array(codes, dtype=np.int64)


def group_sums(values_NK: Floats, groups: Groups | None = None) -> Floats:
    """Sums over the rows of each group -> sums_GK."""
    if groups is None:
        return values_NK
    code_N = group_codes(groups, len(values_NK))
    sums_GK = np.zeros((int(code_N.max(initial=-1)) + 1, values_NK.shape[1]))
    np.add.at(sums_GK, code_N, values_NK)
    return sums_GK


def _chunks(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to `total`, each small enough that size x width numbers fit."""
    size = max(1, CELLS // max(width, 1))
    for start in range(0, total, size):
        yield min(size, total - start)


def draws(groups: int, resamples: int, seed: int, width: int) -> Iterator[Floats]:
    """How often each group was drawn, with replacement, in some of the resamples: float64 [R, G], until there are `resamples`."""
    random = np.random.default_rng(seed)
    with progress("bootstrap", resamples, "resamples") as bar:
        for size in _chunks(resamples, max(groups, width)):
            drawn = random.integers(0, groups, size=(size, groups)) + np.arange(size)[:, None] * groups
            yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)
            bar.add(size)


def resample(fn: Totals, sums_GK: Floats, resamples: int, seed: int) -> Floats:
    """`fn` on the totals of G groups drawn with replacement -> values_RM."""
    g, k = sums_GK.shape
    return np.concatenate([fn(weight_RG @ sums_GK) for weight_RG in draws(g, resamples, seed, k)])


def expanded(value: float, values_R: Floats, groups: int, confidence: float) -> Interval:
    """Expanded percentile interval (Hesterberg 2015, doi:10.1080/00031305.2015.1089789): the percentiles are moved
    outwards by Student's t and by sqrt(G / (G - 1)), without which few groups give intervals that are too narrow."""
    from scipy import stats

    tail = float(stats.norm.cdf(math.sqrt(groups / (groups - 1)) * stats.t.ppf(0.5 - confidence / 2, groups - 1)))
    values_R = values_R[np.isfinite(values_R)]  # a resample may have no value: no user of a kind was drawn
    if not len(values_R):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def bootstrap_metric(
    fn: Totals, values_NK: Floats, *, groups: Groups | None = None, resamples: int, confidence: float, seed: int
) -> list[Interval]:
    """Bootstrap intervals of M metrics that `fn` computes from totals_RK; whole groups are resampled. `expanded` says which."""
    sums_GK = group_sums(values_NK, groups)
    g = len(sums_GK)
    value_M = fn(sums_GK.sum(axis=0, keepdims=True))[0]
    if g < 2:
        return [Interval(float(v), math.nan, math.nan) for v in value_M]
    values_RM = resample(fn, sums_GK, resamples, seed)
    return [expanded(v, values_RM[:, m], g, confidence) for m, v in enumerate(value_M)]


def bootstrap_weighted(
    fn: Callable[[Floats], Floats],
    n: int,
    *,
    groups: Groups | None = None,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Interval, float]:
    """Interval of what is no function of sums, and the two-sided p-value that it is zero.

    Args:
        fn: of how often each row was drawn, weights_RN -> values_R; NaN where a resample has no value, which is left out.

    The p-value is the share of resamples on the other side of zero, twice (Efron & Tibshirani 1993, "An Introduction to the
    Bootstrap", section 15.4). Of two models it is asked of their difference: to swap answers would mix scores of two scales.
    """
    code_N = group_codes(groups, n)
    g = int(code_N.max(initial=-1)) + 1
    value = float(fn(np.ones((1, n)))[0])
    if g < 2:
        return Interval(value, math.nan, math.nan), 1.0
    values_R = np.concatenate([fn(weight_RG[:, code_N]) for weight_RG in draws(g, resamples, seed, n)])
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan), 1.0
    beyond = min(int((values_R <= 0).sum()), int((values_R >= 0).sum()))
    return expanded(value, values_R, g, confidence), min(1.0, 2 * (beyond + 1) / (len(values_R) + 1))


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    groups: Groups | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of mean(a) - mean(b), where a and b are values of the same rows in the same order."""
    difference_N = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    rows_N2 = np.stack([difference_N, np.ones_like(difference_N)], axis=1)
    return bootstrap_metric(
        lambda total_R2: total_R2[:, :1] / total_R2[:, 1:],
        rows_N2, groups=groups, resamples=resamples, confidence=confidence, seed=seed,
    )[0]  # fmt: skip


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that gains and losses are equally likely (McNemar 1947; binomial on the discordant rows).

    For independent rows only. Where rows are clustered, see `swap_test`.
    """
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def paired_shares(gained: int, lost: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of the difference of two shares of the same n rows, `gained` of which only the first has and `lost` only the second.

    Tango 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B. Where nothing turned it still has a width, about
    z² / n: resampling rows of which none differs would say that none ever can. For independent rows only.
    """
    from scipy import optimize, stats

    z = float(stats.norm.ppf((1 + confidence) / 2))

    def score(delta: float) -> float:
        b = (2 * n - gained + lost) * delta - gained - lost
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * delta * (1 - delta))) - b) / (
            4 * n
        )  # share of the lost, given delta
        apart = gained - lost - n * delta
        spread = max(n * (2 * q + delta * (1 - delta)), 1e-300)
        return apart / math.sqrt(spread)

    value, edge = (gained - lost) / n, 1 - 1e-12
    low = float(optimize.brentq(lambda d: score(d) - z, -edge, value)) if score(-edge) > z else -1.0
    high = float(optimize.brentq(lambda d: score(d) + z, value, edge)) if score(edge) < -z else 1.0
    return Interval(value, low, high)


def swap_test(
    fn: Totals, a_NK: Floats, b_NK: Floats, *, groups: Groups | None = None, resamples: int, seed: int
) -> list[float]:
    """Two-sided p-values of fn(a) - fn(b) when, within each group, a coin decides whose answers are whose.

    Paired approximate randomization (Noreen 1989; for F1: Yeh 2000, ACL anthology C00-2137). Whole groups are swapped,
    so it holds for clustered rows, where McNemar's test does not; for a mean it is the sign-flip test on group sums.
    Groups in which both answered alike are the same either way and are left out; few enough groups are enumerated, and
    p is exact.
    """
    a_GK, b_GK = group_sums(a_NK, groups), group_sums(b_NK, groups)
    total_a, total_b = a_GK.sum(axis=0, keepdims=True), b_GK.sum(axis=0, keepdims=True)
    differs_G = (a_GK != b_GK).any(axis=1)
    change_GK = (b_GK - a_GK)[differs_G]
    g, swaps = len(change_GK), max(resamples, FEWEST_SWAPS)
    seen_M = np.abs(fn(total_a) - fn(total_b))[0]
    if g == 0:
        return [1.0] * len(seen_M)
    exact = 2**g <= swaps
    random = np.random.default_rng(seed)
    extreme_M = np.zeros(len(seen_M))
    done = 0
    for size in _chunks(2**g if exact else swaps, max(change_GK.shape)):
        if exact:
            swap_RG = (np.arange(done, done + size)[:, None] >> np.arange(g)) & 1
        else:
            swap_RG = random.integers(0, 2, size=(size, g), dtype=np.int8)
        moved_RK = swap_RG.astype(np.float64) @ change_GK
        statistic_RM = np.abs(fn(total_a + moved_RK) - fn(total_b - moved_RK))
        extreme_M += (statistic_RM >= seen_M * (1 - 1e-9) - 1e-12).sum(axis=0)  # ties, up to rounding, count as extreme
        done += size
    return [float(p) for p in (extreme_M / done if exact else (extreme_M + 1) / (done + 1))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values, in the order given; valid under any dependence between the tests.

    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def smallest_effect(n: int, discordance: float = 0.2, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest difference in accuracy that a paired test on n independent rows shows with that power.

    `discordance` is the share of rows on which exactly one of the two is right: unknown before the run, so assumed and
    said. Solves n = (z_a sqrt(D) + z_b sqrt(D - d^2))^2 / d^2 for d (Connor 1987, doi:10.2307/2531961). None where not
    even d = D, every discordant row going one way, would show.
    """
    from scipy import optimize, stats

    if n < 1:
        return None
    z_a, z_b = float(stats.norm.ppf(1 - alpha / 2)), float(stats.norm.ppf(power))

    def short(d: float) -> float:
        return (z_a * math.sqrt(discordance) + z_b * math.sqrt(discordance - d * d)) ** 2 / d**2 - n

    if short(discordance) > 0:
        return None
    return float(optimize.brentq(short, 1e-9, discordance))
