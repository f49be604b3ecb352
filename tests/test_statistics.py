"""The statistics of the lab: they agree with scipy, they are paired, and they do not call a method
better that does nothing.
"""

import ast
import math
import re

import numpy as np
import pytest
from scipy import stats

from cfm_lite import course
from cfm_lite.errors import ConfigError
from cfm_lite.lab import differences, paired_difference, report, statistics
from tools.report.results import said_of


def against_zero(d):
    return paired_difference(
        "m", "frechet", 50, dict(enumerate(d)), dict.fromkeys(range(len(d)), 0.0)
    )


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_mean_spread_and_intervals_are_those_of_scipy(n):
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    found = against_zero(d)
    t = stats.ttest_1samp(d, 0.0).confidence_interval(0.98)
    boot = stats.bootstrap(
        (d,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.mean, found.std, found.seeds) == (
        pytest.approx(d.mean()),
        pytest.approx(d.std(ddof=1)),
        n,
    )
    assert (found.t_low, found.t_high) == (pytest.approx(t.low), pytest.approx(t.high))
    assert (found.low, found.high) == (pytest.approx(boot.low), pytest.approx(boot.high))


@pytest.mark.parametrize("shift", [-2.0, -0.6, -0.2, 0.0, 0.4, 3.0])
def test_a_difference_is_clear_where_scipys_t_test_and_the_bootstrap_both_say_so(shift):
    d = np.random.default_rng(1).normal(0, 1, 6) + shift
    found = against_zero(d)
    assert found.clear == (
        stats.ttest_1samp(d, 0.0).pvalue < 0.02 and not found.low <= 0 <= found.high
    )


def test_a_constant_difference_has_no_spread_and_is_clear_unless_it_is_zero():
    assert against_zero([-0.5] * 4).clear
    assert not against_zero([-0.001] * 2).clear  # two seeds agree too often by chance
    assert (against_zero([0.1 + 0.2, 0.3, 0.3]).low, against_zero([0.0] * 4).clear) == (
        pytest.approx(0.3),
        False,
    )


def test_one_seed_and_no_seed_say_nothing():
    for found in (against_zero([1.0]), against_zero([])):
        assert not found.clear
        assert all(
            math.isnan(value)
            for value in (found.low, found.high, found.t_low, found.t_high, found.std)
        )


def called_better(pairs, resamplings=100):
    """How often the rule, and how often the bootstrap alone, calls a method better that is FM with
    other seeds.
    """
    found = [against_zero(d) for d in pairs[:resamplings]]
    return sum(d.clear and d.mean < 0 for d in found), sum(d.high < 0 for d in found)


def planted(values, n, rng):
    """FM's values under `n` seeds, and those of a fake method: FM's under `n` other seeds."""
    chosen = rng.permutation(len(values))[: 2 * n]
    return values[chosen[:n]] - values[chosen[n:]]


@pytest.mark.parametrize("n", [3, 4])
def test_fm_with_other_seeds_is_not_called_better_on_committed_rows(n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    rows = [
        row
        for row in course.results("digits")
        if (row["method"], row["metric"], row["nfe"]) == ("fm", "frechet", 50)
    ]
    values = np.array([row["value"] for row in rows])
    assert len(values) >= 2 * n
    assert called_better([planted(values, n, rng) for _ in range(100)])[0] <= 5


@pytest.mark.parametrize("metric", ["frechet", "recall"])
def test_a_method_planted_among_the_committed_rows_is_not_called_better(metric, monkeypatch):
    """The fake is FM under seeds drawn anew, with all of its rows, and is read as the report reads
    every method.
    """
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rows = [
        r
        for r in course.results("digits")
        if (r["method"], r["metric"], r["nfe"]) == ("fm", metric, 50)
    ]
    values, rng, better = [row["value"] for row in rows], np.random.default_rng(1), 0
    for _ in range(100):
        fake = [
            row | {"method": "fake", "value": value}
            for row, value in zip(rows, rng.choice(values, len(values)))
        ]
        (found,) = differences([*rows, *fake], metric, 50)
        assert (found.method, found.seeds) == ("fake", len(rows))
        better += said_of(found) == "gains"
    assert better <= 5


@pytest.mark.parametrize("n", [3, 5, 8])
@pytest.mark.parametrize("tail", [100, 3])  # degrees of freedom: nearly normal, and heavy tails
def test_fm_with_other_seeds_is_not_called_better_whatever_its_spread(n, tail, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    rng = np.random.default_rng(n)
    rule, bootstrap = called_better(
        [rng.standard_t(tail, n) - rng.standard_t(tail, n) for _ in range(200)], 200
    )
    assert rule <= 10  # 5 of 100
    assert bootstrap > rule  # which is why the bootstrap alone does not decide


def test_a_real_gain_is_found():
    rng = np.random.default_rng(3)
    assert sum(against_zero(rng.normal(-2.0, 1.0, 8)).clear for _ in range(20)) >= 16


def test_seeds_that_only_one_of_the_two_has_are_left_out():
    rows = [
        {"method": m, "seed": s, "metric": "frechet", "nfe": 50, "value": v}
        for m, s, v in [("fm", 0, 1.0), ("fm", 1, None), ("x", 1, 5.0), ("x", 0, 3.0)]
    ]
    found = differences(rows, "frechet", 50)[0]
    assert (found.seeds, found.mean) == (1, 2.0)


@pytest.mark.parametrize(
    ("name", "nfe", "field"),
    [("digits.solver", 128, "sampler"), ("digits.guidance", 50, "guidance")],
)
@pytest.mark.parametrize("ask", [differences, report])
def test_several_values_of_one_seed_are_refused_and_the_remedy_works(ask, name, nfe, field):
    rows = course.results(name)
    with pytest.raises(ConfigError, match=f"differ in {field}") as caught:
        ask(rows, "frechet", nfe)
    told = re.search(r"\[row for row in rows if row\.get\('(\w+)'\) == (.+)\]\.", str(caught.value))
    assert told[1] == field
    kept = [row for row in rows if row.get(field) == ast.literal_eval(told[2])]
    assert ask(kept, "frechet", nfe)


def test_several_variants_of_one_seed_are_refused():
    rows = course.results("digits.weight")
    with pytest.raises(ConfigError, match="differ in variant"):
        differences([*rows, *course.results("digits")], "frechet", 50)
    row = rows[0]
    with pytest.raises(ConfigError, match="Give each row once"):
        differences([row, row], row["metric"], row["nfe"], base=row["method"])


def test_a_pair_that_is_not_finite_is_left_out_and_decides_nothing():
    values, base = {0: 1.5, 1: math.inf, 2: 3.5, 3: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: math.nan}
    found = paired_difference("m", "frechet", 50, values, base)
    assert found == paired_difference("m", "frechet", 50, {0: 1.5, 2: 3.5}, {0: 1.0, 2: 3.0})
    alone = paired_difference("m", "frechet", 50, {0: math.inf, 1: math.inf}, {0: 1.0, 1: 2.0})
    assert (alone.seeds, alone.clear) == (0, False)


def test_a_method_that_shares_no_seed_with_the_base_has_no_difference():
    row = {"metric": "frechet", "nfe": 50, "value": 1.0}
    rows = [{**row, "method": "fm", "seed": 0}, {**row, "method": "vecor", "seed": 1}]
    assert differences(rows, "frechet", 50) == []
    assert "vecor" not in report(rows, "frechet", 50)


def test_numbers_of_numpy_are_numbers_in_a_row_too():
    def rows(whole, real):
        return [
            {"method": m, "metric": "frechet", "nfe": whole(50), "seed": whole(s), "value": real(v)}
            for m, of_seed in (("fm", (1.0, 2.0, 4.0)), ("vecor", (0.5, 1.75, 3.0)))
            for s, v in enumerate(of_seed)
        ]

    wanted = differences(rows(int, float), "frechet", 50)
    assert differences(rows(np.int64, np.float32), "frechet", 50) == wanted


def test_values_that_are_not_finite_are_left_out():
    row = {"metric": "frechet", "nfe": 50}
    rows = [
        {**row, "method": method, "seed": seed, "value": value}
        for method, seed, value in [
            *(("fm", seed, 1.0) for seed in range(4)),
            *(("x", seed, v) for seed, v in enumerate([2.0, math.nan, math.inf, None])),
        ]
    ]
    (found,) = differences(rows, "frechet", 50)
    assert (found.seeds, found.mean) == (1, 1.0)


@pytest.mark.parametrize("bad", [[1, 2], None, {0: "x"}, {"a": None}])
def test_values_that_are_no_mapping_of_numbers_are_refused(bad):
    with pytest.raises(ConfigError, match=r"values is .*; it must map seeds to numbers"):
        paired_difference("a", "b", 1, bad, {0: 1.0})
    with pytest.raises(ConfigError, match=r"base is .*; it must map seeds to numbers"):
        paired_difference("a", "b", 1, {0: 1.0}, bad)
