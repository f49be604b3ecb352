"""Paired differences over seeds, their intervals, and the rule for a clear difference.

All arms of one seed start from one network and see the same batches and noise. So the luck of a
seed cancels in d_s = a_s - b_s. Two intervals of the mean of d are computed by scipy: the 95 %
bootstrap interval (BCa), which is reported, and Student's 98 % interval. A difference is clear only
if both exclude zero, from three seeds on.

The bootstrap alone is not enough. It calls an idle method better in 14 of 100 cases with three
seeds, and in 7 of 100 with eight. By both intervals about one idle method in 100 is called better,
and one worse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from cfm_lite._internal.checks import check_choice, check_count, plain
from cfm_lite.errors import ConfigError

__all__ = ["Difference", "differences", "paired_difference", "report"]

# what is read of every row
FIELDS = {"method": str, "metric": str, "seed": int, "nfe": int, "value": int | float | None}
RESAMPLES = 10_000
STUDENT = 0.98  # one idle method in a hundred lies outside on the better side


@dataclass(frozen=True)
class Difference:
    """The paired difference of one method to another over the seeds: mean, deviation, pairs, two
    intervals.

    [low, high] is the 95 % bootstrap interval, [t_low, t_high] Student's 98 % interval. With fewer
    than two seeds all four are NaN.

    >>> d = Difference("vecor", "frechet", 50, -0.2, 0.1, -0.3, -0.1, seeds=8)
    >>> d.clear  # Student's interval is not known
    False
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
        """True if neither interval contains zero, from three seeds on: two shares of a thousand
        pictures are often off by the same amount. Only then a winner is named.
        """
        return self.seeds >= 3 and (
            (self.low > 0 and self.t_low > 0) or (self.high < 0 and self.t_high < 0)
        )


def differences(
    rows: Sequence[Mapping[str, Any]], metric: str, nfe: int, *, base: str = "fm"
) -> list[Difference]:
    """The difference to `base` in `metric` at `nfe` evaluations, for every method that shares seeds
    with it.

    Rows whose value is not finite are left out. Raises ConfigError if `base` has no rows, or a
    method has several values for one seed, as from two samplers.

    >>> row = {"metric": "frechet", "seed": 0, "nfe": 50}
    >>> rows = [{**row, "method": "fm", "value": 1.0}, {**row, "method": "vecor", "value": 0.5}]
    >>> [(d.method, d.mean) for d in differences(rows, "frechet", 50)]
    [('vecor', -0.5)]
    """
    _check_rows(rows)
    check_choice("metric", metric, sorted({row["metric"] for row in rows}))
    nfe = check_count("nfe", nfe)
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        finite = row["value"] is not None and math.isfinite(row["value"])
        if row["metric"] == metric and row["nfe"] == nfe and finite:
            found.setdefault((row["method"], row["seed"]), []).append(row)
    table: dict[str, dict[int, float]] = {}
    for (method, seed), mine in found.items():
        _check_one(mine)
        table.setdefault(method, {})[seed] = float(mine[0]["value"])
    if not isinstance(base, str) or base not in table:
        raise ConfigError(
            f"no rows of {base!r}, the base, for metric {metric!r} at nfe {nfe}; methods there: "
            f"{sorted(table)}."
        )
    return [
        paired_difference(method, metric, nfe, values, table[base])
        for method, values in table.items()
        if method != base and values.keys() & table[base].keys()
    ]


def _check_one(rows: Sequence[Mapping[str, Any]]) -> None:
    """ConfigError for several rows in one place: the difference of which of them is not said."""
    if len(rows) == 1:
        return
    first = rows[0]
    names = dict.fromkeys(name for row in rows for name in row)
    differ = [
        name
        for name in names
        if name not in ("value", "key") and any(row.get(name) != first.get(name) for row in rows)
    ]
    kept = " and ".join(f"row.get({name!r}) == {first.get(name)!r}" for name in differ)
    remedy = f"Filter them first: [row for row in rows if {kept}]."
    raise ConfigError(
        f"rows hold {len(rows)} values of {first['method']!r} with seed {first['seed']}, for "
        f"metric {first['metric']!r} at nfe {first['nfe']}; one is allowed. "
        + (f"They differ in {', '.join(differ)}. {remedy}" if differ else "Give each row once.")
    )


def _check_rows(rows: Any) -> None:
    """ConfigError for malformed rows. They come from a file that anyone may have edited."""
    for row in rows if isinstance(rows, list | tuple) and rows else [None]:
        if fault_of(row, FIELDS):
            raise ConfigError(
                f"rows hold {row!r:.80}; each must be a mapping with {', '.join(FIELDS)}, as "
                "cfm-lite compare writes them."
            )


def fault_of(row: Any, fields: Mapping[str, Any]) -> str:
    """What makes `row` other than a mapping with `fields`, {name: type}; empty if nothing does.

    >>> fault_of({"nfe": None}, {"nfe": int})
    'has nfe None'
    """
    if not isinstance(row, Mapping):
        return f"is {row!r:.80}"
    for name, kind in fields.items():
        value = row.get(name, ...)
        if not isinstance(plain(value), kind):
            return f"has no {name}" if value is ... else f"has {name} {value!r:.80}"
    return ""


def paired_difference(
    method: str, metric: str, nfe: int, values: Mapping[int, float], base: Mapping[int, float]
) -> Difference:
    """The difference of `values` to `base`, both {seed: value}, over the seeds that both have.

    A seed is left out where one of the two is not finite, as of a run that diverged.

    Raises ConfigError if one of them is no mapping to numbers.

    >>> d = paired_difference("vecor", "frechet", 50, {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5})
    >>> d.mean, d.seeds
    (-0.5, 2)
    """
    for name, given in (("values", values), ("base", base)):
        if not isinstance(given, Mapping) or not all(
            isinstance(value, Real) for value in given.values()
        ):
            raise ConfigError(
                f"{name} is {given!r:.80}; it must map seeds to numbers, as {{0: 1.5, 1: 2.5}}."
            )
    both = [(values[seed], base[seed]) for seed in sorted(values.keys() & base.keys())]
    d = np.array([a - b for a, b in both if math.isfinite(a) and math.isfinite(b)])
    mean = float(d.mean()) if len(d) else float("nan")
    std = float(d.std(ddof=1)) if len(d) >= 2 else float("nan")
    low, high, t_low, t_high = _intervals(tuple(d.tolist()), RESAMPLES)
    return Difference(method, metric, nfe, mean, std, low, high, len(d), t_low, t_high)


@cache
def _intervals(values: tuple[float, ...], resamples: int) -> tuple[float, ...]:
    """The ends of two intervals of the mean of `values`: the 95 % bootstrap interval, from
    `resamples` with a fixed seed, and Student's 98 % interval, exact for normal differences.

    The bootstrap is BCa, or percentiles for two values.
    """
    d = np.array(values)
    if len(d) < 2:
        return (float("nan"),) * 4
    if np.ptp(d) <= 1e-12 * np.abs(d).max():  # equal up to rounding: nothing to resample
        return (float(d.mean()),) * 4
    from scipy import stats  # late: it takes most of a second

    kind, rng = "BCa" if len(d) > 2 else "percentile", np.random.default_rng(0)
    found = stats.bootstrap((d,), np.mean, n_resamples=resamples, method=kind, rng=rng)
    student = stats.t.interval(STUDENT, len(d) - 1, loc=d.mean(), scale=stats.sem(d))
    return tuple(float(end) for end in (*found.confidence_interval, *student))


def report(rows: Sequence[Mapping[str, Any]], metric: str, nfe: int) -> str:
    """A text table of the paired differences to FM. It names no winner if an interval contains
    zero.

    >>> row = {"metric": "frechet", "seed": 0, "nfe": 50}
    >>> rows = [{**row, "method": "fm", "value": 1.0}, {**row, "method": "vecor", "value": 0.5}]
    >>> report(rows, "frechet", 50).splitlines()[1].split()[:2]
    ['vecor', '-0.5000']
    """
    lines = [
        f"{metric} at {nfe} evaluations, difference to fm (95 % bootstrap interval over seeds)"
    ]
    for d in differences(rows, metric, nfe):
        interval = f"[{d.low:+.4f}, {d.high:+.4f}]" if d.seeds >= 2 else "no interval: one seed"
        verdict = ("differs" if d.clear else "no clear difference") if d.seeds >= 2 else ""
        lines.append(f"  {d.method:<21} {d.mean:+.4f}  {interval}  n = {d.seeds}  {verdict}")
    return "\n".join(lines)
