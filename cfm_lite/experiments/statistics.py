"""Paired differences over seeds, their intervals, and the rule by which a difference is called clear.

All arms of one seed start from one network and see the same batches and noise, so what luck a seed brings falls out of
d_s = a_s - b_s. Two 95 % intervals of the mean of d are taken, both by scipy: the bootstrap (BCa), and Student's t.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from cfm_lite.errors import ConfigError

__all__ = ["Difference", "differences", "paired_difference"]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """The paired difference of one method to another over the seeds: mean, standard deviation, number of pairs, and 95 % intervals.

    [low, high] is the bootstrap's, [t_low, t_high] Student's; with fewer than two seeds all four are NaN.
    """

    method: str
    metric: str
    nfe: int
    mean: float
    std: float
    low: float
    high: float
    seeds: int
    t_low: float = float("nan")
    t_high: float = float("nan")

    @property
    def clear(self) -> bool:
        """True where both intervals exist and neither contains zero: only then is a winner named.

        The bootstrap alone is too short for few seeds: it calls an idle method better or worse far more often than in 5 % of
        the cases (tests/test_statistics.py). A difference without spread is clear unless it is zero.
        """
        return self.seeds >= 2 and ((self.low > 0 and self.t_low > 0) or (self.high < 0 and self.t_high < 0))


def differences(rows: Sequence[Mapping[str, Any]], metric: str, nfe: int, *, base: str = "fm") -> list[Difference]:
    """For every method with seeds in common with `base`: the difference in `metric` at `nfe` evaluations.

    Rows whose value is None (not finite) are left out. Raises ConfigError where `base` has no rows.
    """
    table: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["metric"] == metric and row["nfe"] == nfe and row["value"] is not None:
            table.setdefault(row["method"], {})[row["seed"]] = row["value"]
    if base not in table:
        raise ConfigError(f"no rows of {base!r} for metric {metric!r} at nfe {nfe}; methods there: {sorted(table)}.")
    return [paired_difference(method, metric, nfe, values, table[base]) for method, values in table.items() if method != base]


def paired_difference(method: str, metric: str, nfe: int, values: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """The difference of `values` to `base`, both {seed: value}, over the seeds that both have."""
    d = np.array([values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())])
    mean = float(d.mean()) if len(d) else float("nan")
    std = float(d.std(ddof=1)) if len(d) >= 2 else float("nan")
    low, high = bootstrap_interval(d)
    t_low, t_high = student_interval(d)
    return Difference(method, metric, nfe, mean, std, low, high, len(d), t_low, t_high)


def bootstrap_interval(d: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of `d` (n,): 10,000 resamples of fixed seed, BCa, for two values percentiles."""
    if len(d) < 2:
        return float("nan"), float("nan")
    if _constant(d):
        return float(d.mean()), float(d.mean())
    kind = "BCa" if len(d) > 2 else "percentile"
    interval = stats.bootstrap((d,), np.mean, n_resamples=RESAMPLES, method=kind, rng=np.random.default_rng(0)).confidence_interval
    return float(interval.low), float(interval.high)


def student_interval(d: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of `d` (n,), exact for normal differences."""
    if len(d) < 2:
        return float("nan"), float("nan")
    if _constant(d):
        return float(d.mean()), float(d.mean())
    low, high = stats.t.interval(0.95, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return float(low), float(high)


def _constant(d: np.ndarray) -> bool:
    """Whether all values are one, up to rounding: then there is nothing to resample."""
    return bool(np.ptp(d) <= 1e-12 * np.abs(d).max())
