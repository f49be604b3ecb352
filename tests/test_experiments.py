"""Paired experiments: controls, statistics, and sweeps that can be stopped."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfm_lite import guidance
from cfm_lite import lab as experiments
from cfm_lite.data.datasets import dataset
from cfm_lite.errors import ConfigError
from cfm_lite.evaluate import measures
from cfm_lite.evaluate.judges import judge_for, train_judge
from cfm_lite.lab import ARMS, SUITES, differences, jobs
from cfm_lite.runs import Run, train
from cfm_lite.runs.reads import READS
from cfm_lite.runs.recipe import METHODS, Recipe

DATA = dataset("digits")
SMALL = Recipe(hidden_size=16, depth=2, steps=5, batch=32, weight=0.2)


@pytest.fixture(scope="module")
def run():
    return train(SMALL, DATA, progress=False)


def rows(method, values, metric="frechet", nfe=50):
    return [
        {"method": method, "seed": i, "metric": metric, "nfe": nfe, "value": v}
        for i, v in enumerate(values)
    ]


def test_scaled_fm_is_fm_times_its_factor(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    v = guidance.conditional(run.model, y)(x, t)
    torch.testing.assert_close(experiments.velocity(ARMS["fm_scaled"], run, DATA, y)(x, t), v / 0.8)
    thrice = replace(run, recipe=replace(run.recipe, k=3))
    torch.testing.assert_close(
        experiments.velocity(ARMS["fm_scaled"], thrice, DATA, y)(x, t), v / 0.4
    )


def test_retargeted_fm_is_the_exact_affine_map_with_the_mean_of_the_data(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    v = guidance.conditional(run.model, y)(x, t)
    expected = (v - 0.2 * DATA.x1.mean(0)) / 0.8
    torch.testing.assert_close(
        experiments.velocity(ARMS["fm_retargeted"], run, DATA, y)(x, t), expected
    )


def test_the_maps_of_repulsion_take_the_mean_over_the_times_of_the_run(run):
    other = Run(run.recipe.changed(path="cosine", time="logit_normal", time_mean=-1.5), run.model)
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    v = guidance.conditional(run.model, y)(x, t)
    mean = 1.435 * DATA.x1.mean(0)  # E[d_alpha], by a million draws
    for name, expected in (
        ("fm_retargeted", (v - 0.2 * mean) / 0.8),
        ("delta_fm_debiased", 0.8 * v + 0.2 * mean),
    ):
        moved = experiments.velocity(ARMS[name], other, DATA, y)(x, t)
        torch.testing.assert_close(moved, expected, atol=1e-3, rtol=0)


def test_debiasing_undoes_retargeting(run):
    y = experiments.balanced_labels(10, 12)
    x, t = torch.randn(12, 1, 8, 8), torch.full((12,), 0.3)
    mean = DATA.x1.mean(0)
    retargeted = experiments.velocity(ARMS["fm_retargeted"], run, DATA, y)
    torch.testing.assert_close(
        guidance.debias(retargeted, 0.2, mean)(x, t),
        guidance.conditional(run.model, y)(x, t),
        atol=1e-5,
        rtol=1e-5,
    )


def test_arms_are_paired_by_their_noise(run):
    y = experiments.balanced_labels(10, 12)
    a = experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3)
    assert torch.equal(a, experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3, chunk=12))
    assert not torch.equal(a, experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=4))
    torch.testing.assert_close(
        a,
        experiments.draw_samples(ARMS["fm"], run, DATA, y, 2, seed=3, chunk=5),
        atol=1e-5,
        rtol=1e-5,
    )


def test_every_arm_of_every_suite_exists_and_is_trained_by_a_known_method():
    for suite in SUITES.values():
        assert {"fm", "fm_scaled", "fm_retargeted"} <= set(suite.arms)
        assert all(ARMS[name].trained in METHODS for name in suite.arms)


def test_what_is_tuned_takes_seeds_that_no_core_reports():
    for name in ("mnist", "mnist_short", "cifar10"):
        groups = SUITES[name].groups
        for group in ("tuning", "tuning_time"):
            trials = list(experiments.trials(name, group, seeds=(0,), changes={}))
            assert min(t.recipe.seed for t in trials) >= groups["core"].seeds
    boosts = {(t.recipe.boost, t.recipe.boost_power) for t in trials}
    assert len(boosts) == 9
    assert len({t.training for t in trials}) == 1  # nine pairs, one training


def test_guided_and_unguided_samples_of_mnist_are_of_the_same_trainings():
    told = {
        name: {t.training for t in experiments.trials(name, "core", seeds=range(5), changes={})}
        for name in ("mnist", "mnist_guidance")
    }
    assert told["mnist_guidance"] < told["mnist"]
    assert SUITES["mnist_guidance"].keep == SUITES["mnist"].keep


def test_real_images_measure_as_real():
    judge = judge_for("digits")
    values = experiments.measure(DATA.x1, DATA.y, DATA, judge)
    assert values["accuracy"] > 0.98
    assert values["frechet"] == pytest.approx(values["frechet_real"], rel=1e-9)
    assert values["nearest_ratio"] == 0  # they are the training data
    assert values["precision"] > 0.85  # 899 rows of 64 features are few
    assert values["recall"] > 0.85
    fresh = experiments.measure(DATA.held_x1, DATA.held_y, DATA, judge)
    assert fresh["frechet"] == pytest.approx(0, abs=1e-6)
    assert fresh["nearest_ratio"] == pytest.approx(1.0)


def test_the_ceiling_of_few_samples_is_that_of_as_many_real_rows():
    judge = train_judge("digits", limit=200)
    chosen = torch.arange(100) * len(DATA.x1) // 100
    values = experiments.measure(DATA.x1[chosen], DATA.y[chosen], DATA, judge)
    assert values["frechet"] == pytest.approx(values["frechet_real"], rel=1e-9)


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
    found = differences(
        rows("fm", base) + rows("delta_fm", [v - 0.5 for v in base]), "frechet", 50
    )[0]
    assert found.mean == pytest.approx(-0.5)
    assert found.std == pytest.approx(0.0, abs=1e-12)
    assert found.seeds == 4


def test_the_interval_of_a_known_law_covers_its_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        d = rng.normal(1.0, 1.0, size=20)
        found = experiments.paired_difference(
            "m", "x", 1, dict(enumerate(d)), dict(enumerate(np.zeros(20)))
        )
        hits += found.low <= 1.0 <= found.high
    assert 51 <= hits <= 60  # 95 % of 60 is 57; the bootstrap is a little short on 20 values


def test_no_winner_is_named_whose_interval_contains_zero():
    noisy = (
        rows("fm", [1, 2, 3, 4])
        + rows("delta_fm", [1.1, 1.9, 3.2, 3.8])
        + rows("vecor", [0.1, 1.2, 2.1, 3.0])
    )
    text = experiments.report(noisy, "frechet", 50)
    assert "no clear difference" in next(line for line in text.splitlines() if "delta_fm" in line)
    assert next(line for line in text.splitlines() if "vecor" in line).endswith("differs")


def test_one_seed_gives_no_interval():
    found = differences(rows("fm", [1.0]) + rows("vecor", [2.0]), "frechet", 50)[0]
    assert not found.clear
    assert math.isnan(found.low)
    assert "no interval: one seed" in experiments.report(
        rows("fm", [1.0]) + rows("vecor", [2.0]), "frechet", 50
    )


def test_missing_rows_are_a_clear_error():
    with pytest.raises(ConfigError, match="no rows of 'fm'"):
        differences(rows("vecor", [1.0]), "frechet", 50)


def test_an_unknown_suite_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        experiments.compare("digit", seeds=[0], out=".")


@pytest.mark.parametrize(
    "arm",
    [arm for arm in ARMS.values() if arm.trained != "vecor_image"],
    ids=lambda arm: arm.method,
)
def test_every_arm_changes_the_velocity_as_it_says_and_nothing_else(arm, run):
    y, x, t = experiments.balanced_labels(10, 4), torch.randn(4, 1, 8, 8), torch.full((4,), 0.4)
    v, mine = (experiments.velocity(some, run, DATA, y)(x, t) for some in (ARMS["fm"], arm))
    assert mine.shape == x.shape
    assert torch.equal(v, mine) != arm.changes


@pytest.mark.parametrize(
    ("retargeted", "debiased"),
    [("fm_retargeted_vecor", "vecor_debiased"), ("fm_retargeted_latent", "vecor_latent_debiased")],
)
def test_the_controls_of_vecor_and_their_inverses_cancel(retargeted, debiased, run):
    y, x, t = experiments.balanced_labels(10, 4), torch.randn(4, 1, 8, 8), torch.full((4,), 0.4)
    there = experiments.velocity(ARMS[retargeted], run, DATA, y)
    back = ARMS[debiased].change(there, run.recipe, DATA)(x, t)
    torch.testing.assert_close(
        back, experiments.velocity(ARMS["fm"], run, DATA, y)(x, t), atol=1e-4, rtol=1e-4
    )


def test_a_training_is_named_by_the_fields_that_it_reads():
    told = experiments.trained_recipe
    base = Recipe(method="delta_fm", weight=0.2)
    assert told(base) == told(
        base.changed(tau=0.1, views="restricted", align=0.9, guidance=3.0, solver="heun")
    )
    assert told(base) != told(base.changed(weight=0.3))
    assert (
        told(base) != told(base.changed(also="repa", align=0.9)) != told(base.changed(also="repa"))
    )
    assert set(METHODS) <= set(READS)


@pytest.mark.parametrize("method", METHODS)
def test_a_field_that_a_training_does_not_read_does_not_change_it(method):
    data = dataset("digits_pca") if method == "vecor_image" else DATA
    one = SMALL.changed(method=method, steps=2, dataset=data.name)
    idle = {
        "weight": 0.4,
        "k": 2,
        "perturb": "additive_noise",
        "spread": 2.0,
        "variant": "hinge",
        "tau": 2.0,
        "align": 2.0,
        "align_block": 1,
    }
    other = one.changed(
        **{name: value for name, value in idle.items() if name not in READS[method]}
    )
    assert experiments.trained_recipe(one) == experiments.trained_recipe(other)
    a, b = (train(r, data, progress=False).model.state_dict() for r in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_latents_are_measured_as_the_images_that_they_stand_for():
    judge, latent = experiments.judge_of("digits_pca"), dataset("digits_pca")
    y = latent.y[:500]
    values = experiments.measure(latent.x1[:500], y, latent, judge)
    again = experiments.measure(latent.codec.decode(latent.x1[:500]), y, latent.images, judge)
    assert values == again
    assert values["accuracy"] > 0.9


def test_the_sde_and_the_other_solvers_draw_what_their_names_say(run):
    y = experiments.balanced_labels(10, 6)
    plain, heun, sde = (
        experiments.draw_samples(ARMS["fm"], run, DATA, y, 4, solver=name)
        for name in (None, "heun", "sde")
    )
    assert torch.equal(
        plain, experiments.draw_samples(ARMS["fm"], run, DATA, y, 4, solver=run.recipe.solver)
    )
    assert not torch.equal(plain, heun)
    assert torch.equal(sde, experiments.draw_samples(ARMS["fm"], run, DATA, y, 4, solver="sde"))
    assert not torch.equal(
        sde, experiments.draw_samples(ARMS["fm"], run, DATA, y, 4, seed=1, solver="sde")
    )
    for bad in (
        {"solver": "heun", "nfe": 3},
        {"solver": "sde", "nfe": 1},
        {"solver": "eular"},
        {"samples": 0},
    ):
        with pytest.raises(ConfigError):
            experiments.Sampling(**bad)


@pytest.mark.parametrize(
    ("held", "trained", "n"),
    [
        (10_000, 60_000, 6_000),
        (10_000, 60_000, 9_999),
        (10_000, 60_000, 10_000),
        (898, 5_500, 1_000),
    ],
)
def test_samples_are_held_against_as_many_real_rows_of_each_kind(held, trained, n, monkeypatch):
    seen = []
    monkeypatch.setattr(
        measures,
        "assess",
        lambda judge, x: (
            seen.append(x.flatten()),
            (torch.zeros(len(x), 2), torch.randn(len(x), 2)),
        )[1],
    )
    rows = [torch.arange(float(count))[:, None] for count in (trained, held, n)]
    data = DATA._replace(x1=rows[0], held_x1=rows[1])
    experiments.measure(
        rows[2], torch.zeros(n, dtype=torch.long), data, train_judge("digits", limit=5)
    )
    _, real, train = seen
    assert (len(real), len(train)) == (min(n, held), min(n, trained))
    for chosen, whole in ((real, held), (train, trained)):
        assert chosen.diff().min() >= 1  # none twice
        assert chosen.diff().max() - chosen.diff().min() <= 1  # evenly spaced
        assert whole - chosen[-1] < whole / len(chosen) + 1  # up to the end
        if whole % len(chosen) == 0:
            assert torch.equal(chosen, torch.arange(0.0, whole, whole // len(chosen)))


def test_a_guided_sampling_counts_its_evaluations_once_and_its_rows_twice_wherever_they_are_counted():
    plain, guided = (experiments.Sampling("heun", 8, scale, 100) for scale in (1.0, 2.0))
    assert (plain.nfe, plain.rows, guided.nfe, guided.rows) == (8, 800, 8, 1600)
    one, two = (
        jobs.Job(SMALL, (experiments.Trial("core", "", "fm", SMALL, (way,)),))
        for way in (plain, guided)
    )
    assert jobs.estimate_rows(two) - jobs.estimate_rows(one) == 800
    assert jobs.estimate(two) / jobs.estimate(one) == pytest.approx(
        jobs.estimate_rows(two) / jobs.estimate_rows(one)
    )
    assert experiments.row_base("fm", SMALL.changed(guidance=2.0), 100, 4, "heun")["nfe"] == 8


@pytest.mark.parametrize("suite", ["mnist", "mnist_short", "words", "cifar10"])
def test_gains_on_pictures_are_held_against_all_three_controls(suite):
    arms = SUITES[suite].arms
    assert {"fm", "fm_scaled", "fm_time_scaled", "fm_retargeted"} <= set(arms)
    assert len(set(arms)) == len(arms)


def test_time_scaled_fm_is_fm_with_a_boost_and_shares_its_training():
    base = experiments.SUITES["digits"].base("core", {})
    fm = jobs.Trial("g", "", "fm", base, ())
    boosted = jobs.Trial(
        "g", "", "fm_time_scaled", base.changed(**ARMS["fm_time_scaled"].fields), ()
    )
    assert boosted.training == fm.training
    assert boosted.key != fm.key
    other = jobs.Trial("g", "", "fm_time_scaled", base.changed(boost=0.2, boost_power=2.0), ())
    assert other.training == fm.training
    assert other.key != boosted.key
