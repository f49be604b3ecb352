"""Samplers, guidance and metrics on numbers that are not finite, times at the very ends, and sets
that are too small.
"""

import math

import pytest
import torch

from cfm_lite import guidance, metrics, samplers
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.paths import COSINE, LINEAR, VP
from cfm_lite.runs.recipe import recipe
from tests.networks import Tiny

STEPS = (samplers.euler, samplers.midpoint, samplers.heun, samplers.rk4)
X0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))


def bad_after(calls, value=math.nan):
    """A velocity whose one row becomes bad at that call."""
    count = 0

    def velocity(x, t):
        nonlocal count
        count += 1
        v = -x
        if count > calls:
            v = v.clone()
            v[2, 1] = value
        return v

    return velocity


def bad_from(time, value=math.nan):
    """A velocity that is bad for one row from that time on; a function of (x, t), as a model is."""
    return lambda x, t: torch.where(
        (torch.arange(len(x)) == 2)[:, None] & (t[:, None] > time), value, -x
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("k", range(19))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_turns_bad_is_named_with_its_step_and_time(step, k, value):
    ts = torch.linspace(0, 1, 21)
    with pytest.raises(DivergenceError) as caught:
        samplers.sample(bad_from(k / 20 + 0.01, value), X0, ts, step)
    # euler asks at the start of a step only, so it meets the bad time one step later
    late = int(step is samplers.euler)
    words = f"step {k + 1 + late} of 20, from t = {(k + late) / 20:.4g} to t = {(k + 1 + late) / 20:.4g}"
    assert words in str(caught.value)


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
@pytest.mark.parametrize("k", [0, 3, 9, 10])
def test_the_stochastic_sampler_names_it_too_the_last_step_included(last_step, k):
    with pytest.raises(DivergenceError, match="last step" if k == 10 else rf"step {k + 1} of 10"):
        samplers.sample_sde(bad_after(k), X0, torch.linspace(0, 0.96, 11), last_step=last_step)


def test_the_adaptive_sampler_and_the_likelihood_say_so_too():
    with pytest.raises(DivergenceError, match="t = 0 and t = 1"):
        samplers.sample_adaptive(bad_after(9), X0)
    with pytest.raises(DivergenceError, match="not finite after step"):
        samplers.log_prob(lambda x, t: x * torch.where(t < 0.5, math.nan, 1.0)[:, None], X0)


@pytest.mark.parametrize("path", [LINEAR, COSINE, VP])
def test_times_of_exactly_zero_and_one_give_finite_positions_and_velocities(path):
    for time in (0.0, path.train_end):
        x_t, u_t = path.interpolate(X0, X0.flip(0), torch.full((5,), time))
        assert x_t.isfinite().all()
        assert u_t.isfinite().all()
    assert (
        samplers.sample_sde(
            lambda x, t: -x, X0, torch.linspace(0, 0.96, 9), path=path, diffusion="linear"
        )
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "9", math.nan])
def test_a_number_of_steps_that_is_no_count_is_refused(steps):
    with pytest.raises(ConfigError, match="sample_steps"):
        recipe("toy", sample_steps=steps)


@pytest.mark.parametrize(
    "ts",
    [
        torch.zeros(0),
        torch.zeros(1),
        torch.tensor([0.0, 0.0]),
        torch.tensor([0.0, math.nan]),
        [0.0, 1.0],
        10,
    ],
)
def test_a_grid_without_steps_is_refused(ts):
    with pytest.raises(ConfigError, match="ts"):
        samplers.sample(lambda x, t: x, X0, ts)


@pytest.mark.parametrize("scale", [math.nan, math.inf, "2", True, None])
def test_a_guidance_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(ConfigError, match="scale"):
        guidance.cfg(Tiny(), 0, scale)


@pytest.mark.parametrize(
    "interval", [(0.8, 0.2), (-0.1, 1), (0, 1.1), (0, math.nan), (0.5,), 0.5, None, "01", (0, 1, 2)]
)
def test_an_interval_that_is_reversed_or_outside_is_refused(interval):
    with pytest.raises(ConfigError, match="interval"):
        guidance.cfg(Tiny(), 0, 2.0, interval=interval)


def test_the_frechet_distance_of_degenerate_sets_is_right_or_refused():
    x = torch.randn(40, 6, dtype=torch.float64)
    assert abs(float(metrics.frechet(x, x))) < 1e-9
    assert (
        abs(float(metrics.frechet(x[:1].repeat(9, 1), x[:1].repeat(9, 1)))) < 1e-9
    )  # duplicates: a covariance of zero
    assert float(metrics.frechet(x[:2], x[2:4])) > 0  # fewer rows than features
    assert float(metrics.frechet(x[:, :1] * 0, x[:, :1] * 0 + 3)) == pytest.approx(9)
    for bad in (
        x[:1],
        x[:0],
        x.clone().index_fill(0, torch.tensor([3]), math.nan),
        x.long(),
        x[:, :0],
        "x",
    ):
        with pytest.raises(ConfigError, match="features"):
            metrics.frechet(x, bad)
    with pytest.raises(ConfigError, match="width"):
        metrics.frechet(x, x[:, :3])
