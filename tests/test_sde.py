"""The stochastic sampler: agreement with SiT, marginals, last steps, noise, errors. (REPA's and
DeltaFM's: test_samplers.py.)
"""

import functools

import pytest
import torch
from torch import Tensor

from cfm_lite import guidance
from cfm_lite._internal.checks import expand
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.paths import COSINE, LINEAR, VP, Path
from cfm_lite.samplers import DIFFUSIONS, diffusion_coefficient, euler, sample, sample_sde
from cfm_lite.theory import GaussianMixture
from tests.fields import PATHS, seen_by, sit_field
from tests.reference import case, cases, settings

FORMS = {
    "SBDM": "sbdm",
    "inccreasing-decreasing": "increasing-decreasing",
}  # the official spelling has this slip
SDE = cases("samplers_sit", "sde_")
EULER = [
    name
    for name in SDE
    if settings("samplers_sit")[name].get("sampling_method", "Euler") == "Euler"
]
GRID = torch.linspace(0, 0.96, 13, dtype=torch.float64)


def gaussian(
    x: Tensor, t: Tensor, path: Path = LINEAR, mean: float = 2.0, std: float = 0.5
) -> Tensor:
    """The exact velocity of N(mean, std^2) data."""
    alpha, sigma, d_alpha, _ = path.coefficients(t, x)
    rate = alpha * d_alpha * std**2 + expand(path.half_variance_rate(t), x)
    return d_alpha * mean + rate / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)


@pytest.mark.parametrize("name", EULER)
def test_euler_maruyama_agrees_with_sit(name: str) -> None:
    given, expected = settings("samplers_sit")[name], case("samplers_sit", name)
    model, x, y = sit_field(name)
    states: list[Tensor] = []
    form, last_step = given.get("diffusion_form", "sigma"), given["last_step"]
    result = sample_sde(
        seen_by(guidance.conditional(model, y), states),
        x,
        expected["t"],
        PATHS[given.get("path", "Linear")],
        FORMS.get(form, form),
        given.get("diffusion_norm", 1.0),
        last_step and last_step.lower(),
        given["last_step_size"],
        noise=expected["noise"],
    )
    if last_step is None:  # the official trajectory repeats its last state
        states += [result]
    trajectory = torch.stack([*states[1:], result])
    tolerance = 1e-9 if given.get("path", "Linear") == "Linear" else 1e-6
    torch.testing.assert_close(trajectory, expected["trajectory"], rtol=tolerance, atol=tolerance)


def test_only_the_stochastic_heun_is_left_out() -> None:
    left_out = set(SDE) - set(EULER)
    assert all(settings("samplers_sit")[name]["sampling_method"] == "Heun" for name in left_out)
    assert (len(EULER), len(left_out)) == (79, 7)


@pytest.mark.parametrize("name", ["Linear", "GVP", "VP"])
@pytest.mark.parametrize(
    "form", ["constant", "SBDM", "sigma", "linear", "decreasing", "inccreasing-decreasing"]
)
@pytest.mark.parametrize("norm", [1.0, 0.7])
def test_diffusion_coefficients_agree_with_sit(name: str, form: str, norm: float) -> None:
    t, expected = (
        case("sit_paths", "inputs")["t"],
        case("sit_paths", name)[f"diffusion_{form}_norm{norm}"],
    )
    ours = diffusion_coefficient(t, FORMS.get(form, form), PATHS[name], norm)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    assert (ours >= 0).all()


def marginal(t: float, path: Path) -> tuple[float, float]:
    """Mean and variance of x_t for the data of `gaussian`."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = path.alpha(time).item(), path.sigma(time).item()
    return 2.0 * alpha, 0.25 * alpha**2 + sigma**2


def moments(form: str, path: Path, steps: int) -> tuple[float, float]:
    """Mean and variance at t = 0.96 of what `sample_sde` draws, without Monte Carlo.

    The state is affine in the start and in each noise: one row without noise gives the mean, one
    row per source of randomness, moved by one standard deviation of it, gives that source's share
    of the variance.
    """
    start = 0.05 if form == "sbdm" else 0.0
    mean, variance = marginal(start, path)
    x = torch.full((steps + 2, 1), mean, dtype=torch.float64)
    x[1] += variance**0.5
    noise = torch.zeros(steps, steps + 2, 1, dtype=torch.float64)
    noise[torch.arange(steps), torch.arange(steps) + 2] = 1
    ts = torch.linspace(start, 0.96, steps + 1, dtype=torch.float64)
    end = sample_sde(
        lambda x, t: gaussian(x, t, path), x, ts, path, form, last_step=None, noise=noise
    )
    return end[0].item(), (end[1:] - end[0]).square().sum().item()


@pytest.mark.parametrize("path", [LINEAR, COSINE])
@pytest.mark.parametrize("form", DIFFUSIONS)
def test_every_diffusion_has_the_marginals_of_the_ode(form: str, path: Path) -> None:
    exact = torch.tensor(marginal(0.96, path))
    coarse, fine = (
        (torch.tensor(moments(form, path, steps)) - exact).abs() for steps in (100, 200)
    )
    assert (fine < 0.01 * exact).all()
    assert (fine < 0.6 * coarse + 1e-5).all()  # the weak order of Euler-Maruyama is 1


def test_without_diffusion_it_is_the_euler_method() -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    ode = sample(gaussian, x, torch.cat([GRID, torch.ones(1, dtype=torch.float64)]), euler)
    for last_step in ("mean", "euler"):
        torch.testing.assert_close(
            sample_sde(gaussian, x, GRID, norm=0.0, last_step=last_step), ode
        )


@pytest.mark.parametrize("path", [LINEAR, COSINE, VP])
def test_last_steps_are_what_they_say(path: Path) -> None:
    x, noise = torch.randn(5, 2, dtype=torch.float64), torch.randn(12, 5, 2, dtype=torch.float64)
    velocity = lambda x, t: gaussian(x, t, path)  # noqa: E731
    before = sample_sde(velocity, x, GRID, path, last_step=None, noise=noise)
    t = torch.full((5,), 0.96, dtype=torch.float64)
    v, c = velocity(before, t), diffusion_coefficient(t, "sigma", path)[:, None]
    score = path.score(before, v, t)
    alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
    expected = {
        "mean": before + 0.04 * (v + c * score),
        "euler": before + 0.04 * v,
        "tweedie": (before + sigma**2 * score) / alpha,
    }
    for last_step, value in expected.items():
        torch.testing.assert_close(
            sample_sde(velocity, x, GRID, path, last_step=last_step, noise=noise),
            value,
            rtol=1e-9,
            atol=1e-9,
        )


def test_it_needs_one_evaluation_per_time() -> None:
    states: list[Tensor] = []
    sample_sde(seen_by(gaussian, states), torch.zeros(2, 1), torch.linspace(0, 0.96, 10))
    assert len(states) == 10
    states.clear()
    sample_sde(
        seen_by(gaussian, states), torch.zeros(2, 1), torch.linspace(0, 1, 10), last_step=None
    )
    assert len(states) == 9


def test_guided_velocity_and_guided_drift_are_one() -> None:
    # the score is affine in v, and guidance is an average with weights that sum to 1
    x, t = torch.randn(4, 2), torch.full((4,), 0.3)
    good, bad = torch.randn(4, 2), torch.randn(4, 2)
    guided = bad + 1.8 * (good - bad)
    scores = [LINEAR.score(x, v, t) for v in (good, bad, guided)]
    torch.testing.assert_close(scores[2], scores[1] + 1.8 * (scores[0] - scores[1]))


# ------------------------------------------------------------------------------------------------
# randomness


def test_the_generator_decides_and_the_global_state_is_left_alone() -> None:
    x, before = torch.zeros(5, 2), torch.get_rng_state()
    first, again, other = (
        sample_sde(gaussian, x, GRID, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_given_noise_is_the_noise_and_may_be_a_tensor_or_a_sequence() -> None:
    x, seed = torch.zeros(5, 2), 7
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(5, 2, generator=generator) for _ in range(12)])
    drawn = sample_sde(gaussian, x, GRID, generator=torch.Generator().manual_seed(seed))
    before = torch.get_rng_state()
    for given in (noise, list(noise), tuple(noise)):
        assert torch.equal(sample_sde(gaussian, x, GRID, noise=given), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    without = sample_sde(gaussian, x, GRID, noise=torch.zeros(12, 5, 2))
    assert without.unique(dim=0).shape[0] == 1  # equal rows stay equal without noise


def test_inputs_are_not_changed() -> None:
    x, noise, ts = torch.randn(5, 2), torch.randn(12, 5, 2), GRID.clone()
    copies = [a.clone() for a in (x, noise, ts)]
    sample_sde(gaussian, x, ts, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip((x, noise, ts), copies))


def test_nothing_is_read_back_from_a_device() -> None:
    x, field = torch.empty(3, 2, device="meta"), lambda x, t: x * expand(t, x)
    for ts in (GRID, GRID.to("meta")):
        for last_step in ("mean", "tweedie", "euler", None):
            assert sample_sde(field, x, ts, last_step=last_step).shape == x.shape


# ------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"diffusion": "sigmoid"}, "diffusion is 'sigmoid'.*Did you mean 'sigma'"),
        ({"diffusion": "SBDM"}, "diffusion is 'SBDM'"),
        ({"norm": -1.0}, r"norm is -1\.0"),
        (
            {"generator": torch.Generator(), "noise": torch.zeros(12, 5, 2)},
            "generator was given with noise, so nothing is drawn",
        ),
        ({"norm": float("nan")}, "norm is nan"),
        ({"last_step": "Mean"}, "last_step is 'Mean'.*'mean'"),
        (
            {"last_step_size": 0.1},
            r"ts ends at 0\.96 and last_step_size is 0\.1.*ts must end at 0\.9",
        ),
        ({"last_step_size": 0.0}, r"last_step_size is 0\.0"),
        ({"last_step_size": 1.0}, r"last_step_size is 1\.0"),
        ({"last_step": None, "last_step_size": 7}, "last_step_size is 7"),
        ({"ts": torch.linspace(0, 1, 5)}, r"ts ends at 1 and last_step_size is 0\.04"),
        ({"ts": GRID.flip(0)}, r"ts falls from 0\.96 to 0; here it must rise"),
        (
            {"noise": torch.zeros(11, 3, 2)},
            r"noise has 11 entries of shape \[\(3, 2\)\]; it must have 12",
        ),
        (
            {"noise": torch.zeros(12, 2, 3)},
            r"noise has 12 entries of shape \[\(2, 3\)\].* of shape \(3, 2\)",
        ),
        ({"noise": [torch.zeros(3, 2)] * 11 + [torch.zeros(3, 1)]}, "noise has 12 entries"),
        ({"diffusion": "sbdm"}, "'sbdm' is infinite at t = 0 on path 'linear'; start ts later"),
        ({"diffusion": "sbdm", "path": COSINE}, "'sbdm' is infinite at t = 0 on path 'cosine'"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_sde(gaussian, torch.zeros(3, 2), settings.pop("ts", GRID), **settings)


def test_sbdm_is_finite_at_zero_on_vp_and_later_elsewhere() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    assert sample_sde(lambda x, t: gaussian(x, t, VP), x, GRID, VP, "sbdm").isfinite().all()
    assert sample_sde(gaussian, x, torch.linspace(0.01, 0.96, 9), LINEAR, "sbdm").isfinite().all()


def test_divergence_names_the_step_and_the_time() -> None:
    broken = lambda x, t: x / (expand(t, x) < 0.4)  # noqa: E731
    with pytest.raises(DivergenceError, match=r"after step 6 of 12, from t = 0\.4 to t = 0\.48"):
        sample_sde(broken, torch.ones(3, 2), GRID)


SQUARE = Path(
    "square", lambda t: t**2, lambda t: 1 - t, lambda t: 2 * t, lambda t: -torch.ones_like(t)
)  # alpha(0) = d_alpha(0) = 0


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
def test_a_path_that_starts_without_data_is_sampled_from_its_start(last_step):
    mixture = GaussianMixture([1.0], [[2.0, -1.0]], [0.5])
    x = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow = functools.partial(mixture.velocity, path=SQUARE)
    ts = torch.linspace(0, 0.99, 100)
    end = sample_sde(
        flow,
        x,
        ts,
        SQUARE,
        last_step=last_step,
        last_step_size=0.01,
        generator=torch.Generator().manual_seed(1),
    )
    assert end.mean(0).tolist() == pytest.approx([2, -1], abs=0.04)
    assert end.std(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)


def test_a_score_that_a_path_does_not_define_is_named_and_the_velocity_is_not_blamed():
    still = Path(
        "still", lambda t: 0 * t + 0.5, lambda t: 0 * t + 0.5, torch.zeros_like, torch.zeros_like
    )
    with pytest.raises(
        ConfigError, match=r"the score is not defined on path 'still' at t = 0, where alpha = 0\.5"
    ):
        sample_sde(lambda x, t: -x, torch.zeros(3, 2), torch.linspace(0, 0.96, 4), still)
