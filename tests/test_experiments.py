"""Paired experiments: controls, statistics, and sweeps that can be stopped."""

import math

import numpy as np
import pytest
import torch

from cfm_lite import experiments, guidance
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError
from cfm_lite.experiments import ARMS, SUITES, differences
from cfm_lite.judges import train_judge
from cfm_lite.recipes import METHODS, Recipe
from cfm_lite.runs import train

DATA = dataset("digits")
SMALL = Recipe(hidden_size=16, depth=2, steps=5, batch=32, weight=0.2)


@pytest.fixture(scope="module")
def run():
    return train(SMALL, DATA, progress=False)


def rows(method, values, metric="frechet", nfe=50):
    return [{"method": method, "seed": i, "metric": metric, "nfe": nfe, "value": v} for i, v in enumerate(values)]


def test_scaled_fm_is_fm_times_its_factor(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    v = guidance.conditional(run.model, y)(x, t)
    torch.testing.assert_close(experiments.velocity(ARMS["fm_scaled"], run, DATA, y)(x, t), v / 0.8)


def test_retargeted_fm_is_the_exact_affine_map_with_the_mean_of_the_data(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    v = guidance.conditional(run.model, y)(x, t)
    expected = (v - 0.2 * DATA.x1.mean(0)) / 0.8
    torch.testing.assert_close(experiments.velocity(ARMS["fm_retargeted"], run, DATA, y)(x, t), expected)


def test_debiasing_undoes_retargeting(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    mean = DATA.x1.mean(0)
    retargeted = experiments.velocity(ARMS["fm_retargeted"], run, DATA, y)
    torch.testing.assert_close(guidance.debias(retargeted, 0.2, mean)(x, t), guidance.conditional(run.model, y)(x, t), atol=1e-5, rtol=1e-5)


def test_arms_are_paired_by_their_noise(run):
    y = experiments.balanced_labels(10, 12)
    a = experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3)
    assert torch.equal(a, experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3, chunk=12))
    assert not torch.equal(a, experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=4))
    torch.testing.assert_close(a, experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3, chunk=5), atol=1e-5, rtol=1e-5)


def test_every_arm_of_every_suite_exists_and_is_trained_by_a_known_method():
    for suite in SUITES.values():
        assert {"fm", "fm_scaled", "fm_retargeted"} <= set(suite.arms)
        assert all(ARMS[name].trained in METHODS for name in suite.arms)


def test_real_images_measure_as_real():
    judge = train_judge("digits")
    values = experiments.measure(DATA.x1, DATA.y, DATA, judge)
    assert values["accuracy"] > 0.98
    assert values["frechet"] == pytest.approx(values["frechet_real"], rel=1e-9)
    assert values["nearest_ratio"] == 0  # they are the training data
    assert values["precision"] > 0.85  # 899 rows of 64 features are few
    assert values["recall"] > 0.85
    fresh = experiments.measure(DATA.held_x1, DATA.held_y, DATA, judge)
    assert fresh["frechet"] == pytest.approx(0, abs=1e-6)
    assert fresh["nearest_ratio"] == pytest.approx(1.0)


def test_noise_measures_as_noise():
    judge = train_judge("digits", limit=200)
    y = experiments.balanced_labels(10, 500)
    values = experiments.measure(torch.randn(500, 1, 8, 8), y, DATA, judge)
    assert values["accuracy"] < 0.3
    assert values["frechet"] > 10 * values["frechet_real"]


def test_points_are_measured_by_their_exact_law():
    data = dataset("two_classes", points=600)
    values = experiments.measure(data.x1, data.y, data, None)
    assert values["accuracy"] > 0.95
    noise = experiments.measure(torch.randn(600, 2), data.y, data, None)
    assert values["sliced_wasserstein"] < 0.4 * noise["sliced_wasserstein"]
    assert values["mmd"] < 0.1 * noise["mmd"]
    wrong = experiments.measure(data.x1, 1 - data.y, data, None)
    assert wrong["accuracy"] < 0.05


def test_differences_are_paired_by_seed():
    base = [1.0, 5.0, 9.0, 2.0]
    found = differences(rows("fm", base) + rows("delta_fm", [v - 0.5 for v in base]), "frechet", 50)[0]
    assert found.mean == pytest.approx(-0.5)
    assert found.std == pytest.approx(0.0, abs=1e-12)
    assert found.seeds == 4


def test_the_interval_of_a_known_law_covers_its_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        d = rng.normal(1.0, 1.0, size=20)
        found = experiments.paired_difference("m", "x", 1, dict(enumerate(d)), dict(enumerate(np.zeros(20))))
        hits += found.low <= 1.0 <= found.high
    assert 51 <= hits <= 60  # 95 % of 60 is 57; the bootstrap is a little short on 20 values


def test_no_winner_is_named_whose_interval_contains_zero():
    noisy = rows("fm", [1, 2, 3, 4]) + rows("delta_fm", [1.1, 1.9, 3.2, 3.8]) + rows("vecor", [0.1, 1.2, 2.1, 3.0])
    text = experiments.report(noisy, "frechet", 50)
    assert "no clear difference" in next(line for line in text.splitlines() if "delta_fm" in line)
    assert next(line for line in text.splitlines() if "vecor" in line).endswith("differs")


def test_one_seed_gives_no_interval():
    found = differences(rows("fm", [1.0]) + rows("vecor", [2.0]), "frechet", 50)[0]
    assert not found.clear
    assert math.isnan(found.low)
    assert "no interval: one seed" in experiments.report(rows("fm", [1.0]) + rows("vecor", [2.0]), "frechet", 50)


def test_missing_rows_are_a_clear_error():
    with pytest.raises(ConfigError, match="no rows of 'fm'"):
        differences(rows("vecor", [1.0]), "frechet", 50)


def test_an_unknown_suite_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        experiments.compare("digit", seeds=[0], out=".")
