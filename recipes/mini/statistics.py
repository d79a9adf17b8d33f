"""Intervals of the study: interquartile mean, paired difference, probability of improvement.

Scores are a mapping from task to seed to score. Tasks are strata: seeds are drawn, or taken for a sample, within each,
and every task weighs the same.

The interquartile mean with a stratified bootstrap and the probability of improvement are those of Agarwal et al. 2021
(arXiv 2108.13264, the library `rliable`), which needs the same seeds in every task; here they may differ. A percentile
bootstrap of few seeds is too narrow (of three it covers 75 % at most), so that verdicts stand on Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

Scores = Mapping[str, Mapping[int, float]]
LEVEL = 0.95
RESAMPLES = 2000
MIN_SEEDS = 3
"""Seeds per task below which nothing is decided."""
TIE = 0.02
"""Differences in accuracy that count as none."""


@dataclass(frozen=True)
class Estimate:
    """A value, and where there are seeds to say so, its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f} (one seed: no interval)"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half; as `rliable`, a quarter of the number of values, rounded down, is cut at each end."""
    return float(stats.trim_mean(values, 0.25, axis=None))


def _strata(scores: Scores) -> list[np.ndarray]:
    return [np.array(list(by_seed.values()), dtype=float) for by_seed in scores.values()]


def _bootstrap(strata: list[np.ndarray], statistic: Callable[[list[np.ndarray]], float], seed: int) -> Estimate:
    """The statistic with its percentile interval over resamples within each stratum."""
    value = statistic(strata)
    if min(map(len, strata)) < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    draws = [statistic([rng.choice(stratum, len(stratum)) for stratum in strata]) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def aggregate(scores: Scores, seed: int = 0) -> Estimate:
    """Interquartile mean over tasks and seeds."""
    return _bootstrap(_strata(scores), lambda strata: interquartile_mean(np.concatenate(strata)), seed)


def probability_of_improvement(one: Scores, other: Scores, seed: int = 0) -> Estimate:
    """Probability that a run of `one` is above one of `other` on the same task, a draw being half; mean over tasks."""
    tasks = [task for task in one if task in other]
    strata = _strata({task: one[task] for task in tasks}) + _strata({task: other[task] for task in tasks})

    def statistic(strata: list[np.ndarray]) -> float:
        pairs = zip(strata[: len(tasks)], strata[len(tasks) :], strict=True)
        return float(np.mean([np.mean(np.sign(x[:, None] - y[None, :]) / 2 + 0.5) for x, y in pairs]))

    return _bootstrap(strata, statistic, seed)


def paired(one: Scores, other: Scores) -> dict[str, np.ndarray]:
    """By task, the differences between runs of the same seed; tasks without such a pair are left out."""
    differences = {}
    for task in one:
        shared = sorted(set(one[task]) & set(other.get(task, {})))
        if shared:
            differences[task] = np.array([one[task][seed] - other[task][seed] for seed in shared])
    return differences


def mean_difference(differences: Mapping[str, np.ndarray]) -> Estimate:
    """Mean over tasks of the mean paired difference, with Student's t interval.

    The variance is sum_k s_k^2 / n_k / K^2 over K tasks of n_k seeds; degrees of freedom by Welch and Satterthwaite.
    """
    strata = list(differences.values())
    value = float(np.mean([stratum.mean() for stratum in strata]))
    if min(map(len, strata)) < 2:
        return Estimate(value)
    parts = np.array([stratum.var(ddof=1) / len(stratum) for stratum in strata]) / len(strata) ** 2
    if parts.sum() == 0.0:
        return Estimate(value, value, value)
    freedom = parts.sum() ** 2 / sum(part**2 / (len(stratum) - 1) for part, stratum in zip(parts, strata, strict=True))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(parts.sum()))
    return Estimate(value, value - half, value + half)


def verdict(differences: Mapping[str, np.ndarray]) -> str:
    """better, worse, a tie, or cannot be said; "not run" where no seed has both runs."""
    if not differences:
        return "not run"
    estimate = mean_difference(differences)
    if min(map(len, differences.values())) < MIN_SEEDS or estimate.low is None or estimate.high is None:
        return "cannot be said"
    if estimate.low > 0:
        return "better"
    if estimate.high < 0:
        return "worse"
    return "a tie" if estimate.low >= -TIE and estimate.high <= TIE else "cannot be said"
