"""The likelihood: closed forms, SiT's own numbers, the trace estimate, gradients, errors."""

import math

import pytest
import torch
from torch import Tensor, nn

from cfm_lite._internal.checks import expand
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import conditional
from cfm_lite.paths import COSINE, LINEAR, Path
from cfm_lite.samplers import Step, euler, log_prob, rk4, sample
from cfm_lite.theory import GaussianMixture
from tests.fields import sit_field
from tests.reference import case

MEAN, STD = 0.7, 0.5


def gaussian(x: Tensor, t: Tensor) -> Tensor:
    """The exact velocity of N(MEAN, STD^2) data, on the linear path."""
    t = expand(t, x)
    return MEAN + (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * (x - t * MEAN)


def density(x: Tensor) -> Tensor:
    z = (x.flatten(1) - MEAN) / STD
    return -0.5 * (z**2).sum(1) - z.shape[1] * (math.log(STD) + 0.5 * math.log(2 * math.pi))


MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[1.5, 0.0], [-0.5, 1.0]], dtype=torch.float64),
    covariances=torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.5]]], dtype=torch.float64
    ),
)


def mixture(x: Tensor, t: Tensor) -> Tensor:
    return MIXTURE.velocity(x, t)


def grid(n: int) -> Tensor:
    return torch.linspace(1, 0, n + 1, dtype=torch.float64)


@pytest.mark.parametrize(("name", "step"), [("likelihood_euler", euler), ("likelihood_rk4", rk4)])
def test_likelihood_agrees_with_sit(name: str, step: Step) -> None:
    given = case("samplers_sit", name)
    model, _, y = sit_field(name)
    velocity, ts = conditional(model, y), grid(7)
    result = log_prob(velocity, given["data"], ts, step, probes=list(given["eps_pm1"]))
    torch.testing.assert_close(result, given["logp"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        sample(velocity, given["data"], ts, step), given["latent"], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 2, 2, 2), (1, 3)])
def test_gaussian_likelihood_is_its_density(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(shape, dtype=dtype)
    result = log_prob(gaussian, x)
    assert result.shape == shape[:1]
    torch.testing.assert_close(result, density(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", [LINEAR, COSINE])
def test_mixture_likelihood_is_its_density(path: Path, generator: torch.Generator) -> None:
    x, _ = MIXTURE.sample(30, generator=generator)
    ones = torch.ones(30, dtype=torch.float64)
    result = log_prob(lambda x, t: MIXTURE.velocity(x, t, path=path), x)
    torch.testing.assert_close(result, MIXTURE.log_prob(x, ones, path=path), rtol=1e-4, atol=1e-4)


def test_density_integrates_to_one() -> None:
    axis = torch.linspace(-3, 4, 61, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    total = log_prob(mixture, x, grid(20)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=2e-3)


def test_grid_may_be_given_either_way_round() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(log_prob(gaussian, x, grid(10)), log_prob(gaussian, x, grid(10).flip(0)))


# ------------------------------------------------------------------------------------------------
# the trace


def test_hutchinson_is_exact_for_a_multiple_of_the_identity(generator: torch.Generator) -> None:
    # dv/dx = a I, so e . a e = a D for every vector of signs
    x = torch.randn(4, 3, dtype=torch.float64)
    exact = log_prob(gaussian, x, grid(20))
    torch.testing.assert_close(
        log_prob(gaussian, x, grid(20), trace="hutchinson", generator=generator), exact
    )


def test_hutchinson_is_unbiased_and_more_probes_are_better(generator: torch.Generator) -> None:
    x = MIXTURE.sample(1, generator=generator)[0].expand(400, 2)
    exact = log_prob(mixture, x[:1], grid(5)).item()
    spread = {}
    for n in (1, 8):
        draws = log_prob(mixture, x, grid(5), trace="hutchinson", n_probes=n, generator=generator)
        spread[n] = draws.std().item()
        assert draws.mean().item() == pytest.approx(exact, abs=4 * spread[n] / 20)
    assert spread[8] == pytest.approx(spread[1] / 8**0.5, rel=0.25)


def test_the_trace_is_exact_up_to_sixteen_dimensions() -> None:
    def coupled(x: Tensor, t: Tensor) -> Tensor:  # its Jacobian is full, so an estimate would show
        return 0.3 * x.sin() + 0.2 * x.flip(1) * x

    for dims, exact in ((16, True), (17, False)):
        x = torch.randn(3, dims, dtype=torch.float64)
        truth = log_prob(coupled, x, grid(4), trace="exact")
        assert torch.equal(log_prob(coupled, x, grid(4)), truth) is exact


def test_probes_are_used_in_their_order() -> None:
    x = torch.randn(3, 2, dtype=torch.float64)
    probes = torch.randint(0, 2, (8, 2, 3, 2)).double() * 2 - 1
    pairs = log_prob(mixture, x, grid(2), probes=list(probes))
    singles = [log_prob(mixture, x, grid(2), probes=list(probes[:, i])) for i in (0, 1)]
    torch.testing.assert_close(pairs, (singles[0] + singles[1]) / 2)
    assert not torch.equal(pairs, log_prob(mixture, x, grid(2), probes=list(probes.flip(0))))


def test_the_generator_decides_and_the_global_state_is_left_alone() -> None:
    x, before = torch.randn(3, 2), torch.get_rng_state()
    first, again, other = (
        log_prob(
            mixture, x, grid(3), trace="hutchinson", generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    )
    log_prob(mixture, x, grid(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------
# gradients and modes


def test_it_works_whatever_the_grad_mode_outside_and_leaves_no_graph() -> None:
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    field = lambda x, t: torch.tanh(model(x)) * expand(t, x)  # noqa: E731
    result = log_prob(field, x, grid(4))
    assert not result.requires_grad
    assert not log_prob(field, x.clone().requires_grad_(), grid(4)).requires_grad
    with torch.no_grad():
        assert torch.equal(log_prob(field, x, grid(4)), result)
    with torch.inference_mode():
        assert torch.equal(log_prob(field, x.clone(), grid(4)), result)
        torch.testing.assert_close(log_prob(field, x[:1].clone(), grid(4).float()), result[:1])
    assert model.weight.grad is None


def test_the_gradient_of_the_likelihood_is_the_score() -> None:
    x = torch.randn(6, 2, dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(log_prob(mixture, x, grid(50), grad=True).sum(), x)
    exact = MIXTURE.score(x.detach(), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(score, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_the_points_receive_gradients_whatever_the_grad_mode_outside(outside) -> None:
    x = torch.randn(6, 2, dtype=torch.float64).requires_grad_()
    with outside():
        result = log_prob(mixture, x, grid(20), grad=True)
    (slope,) = torch.autograd.grad(result.sum(), x)
    (wanted,) = torch.autograd.grad(log_prob(mixture, x, grid(20), grad=True).sum(), x)
    assert torch.equal(slope, wanted)


def test_parameters_receive_gradients() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    # v = a x carries x1 back to x1 / e^a: log p = log N(x1 e^-a) - a D, so d/da = |x0|^2 - D
    x = torch.randn(5, 3)
    (slope,) = torch.autograd.grad(
        log_prob(lambda x, t: scale * x, x, grid(20), grad=True).sum(), scale
    )
    assert slope.item() == pytest.approx(((x * math.exp(-0.5)) ** 2).sum().item() - 15, rel=1e-4)


def test_a_model_in_training_mode_is_evaluated_in_eval_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9))

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x)

    field, x = Field(), torch.randn(3, 2)
    assert torch.equal(log_prob(field, x, grid(2)), log_prob(field, x, grid(2)))
    assert field.training
    assert model[1].training


def test_inputs_are_not_changed_and_half_precision_is_promoted() -> None:
    x = torch.randn(3, 2)
    before, ts = x.clone(), grid(3)
    log_prob(gaussian, x, ts)
    assert torch.equal(x, before)
    assert torch.equal(ts, grid(3))
    assert not x.requires_grad
    assert log_prob(gaussian, x.half(), ts).dtype == torch.float32


def test_nothing_is_read_back_from_a_device() -> None:
    x = torch.empty(3, 2, device="meta")
    field = lambda x, t: x.sin() * expand(t, x)  # noqa: E731
    for trace in ("exact", "hutchinson"):
        for ts in (grid(3), grid(3).to("meta")):
            assert log_prob(field, x, ts, trace=trace).shape == (3,)


# ------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trace": "hutchison"}, "trace is 'hutchison'.*Did you mean 'hutchinson'"),
        ({"n_probes": 0}, "n_probes is 0"),
        (
            {"trace": "exact", "probes": [torch.ones(3, 2)]},
            "probes were given with trace = 'exact'",
        ),
        ({"probes": [torch.ones(3, 2)] * 3}, "only 3 probes were given"),
        ({"probes": [torch.ones(2, 2)] * 40}, r"a probe has shape \(2, 2\); it must be \(3, 2\)"),
        ({"ts": torch.tensor([1.0])}, r"ts has shape \(1,\)"),
        ({"ts": 10}, "ts has type int"),
        ({"ts": torch.tensor([1.2, 0.0])}, "times lie in"),
        ({"ts": torch.linspace(0.5, 0, 5)}, r"ts runs between 0\.5 and 0"),
        ({"ts": torch.linspace(1e-3, 1, 5)}, r"ts runs between 1 and 0\.001"),
        ({"generator": torch.Generator()}, "generator was given with trace = 'exact'"),
        ({"n_probes": 2}, "n_probes was given with trace = 'exact'"),
        ({"probes": [torch.ones(3, 2)] * 40, "n_probes": 2}, "n_probes was given with probes"),
        (
            {"probes": [torch.ones(3, 2)] * 40, "generator": torch.Generator()},
            "generator was given with probes",
        ),
        ({"probes": [1, 2]}, "probes 0 has type int"),
        ({"probes": 3}, "probes has type int"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        log_prob(gaussian, torch.zeros(3, 2), **{"ts": grid(10), **settings})


def test_bad_points_and_velocities_are_refused() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        log_prob(gaussian, torch.tensor([[float("nan")]]))
    with pytest.raises(ConfigError, match=r"shapes differ: velocity \(3, 1\), x \(3, 2\)"):
        log_prob(lambda x, t: x[:, :1], torch.zeros(3, 2))

    @torch.no_grad()
    def cut(x: Tensor, t: Tensor) -> Tensor:
        return gaussian(x, t)

    with pytest.raises(ConfigError, match="autograd can follow"):
        log_prob(cut, torch.zeros(3, 2))


def test_a_velocity_that_ignores_x_has_no_divergence() -> None:
    shift = torch.ones(2, requires_grad=True)
    x = torch.randn(3, 2)
    for velocity in (lambda x, t: shift.expand_as(x), lambda x, t: torch.ones_like(x)):
        result = log_prob(velocity, x, grid(4))
        torch.testing.assert_close(result, -0.5 * ((x - 1) ** 2).sum(1) - math.log(2 * math.pi))


def test_a_grid_may_stop_just_before_data_on_which_the_velocity_is_infinite() -> None:
    x = torch.randn(3, 2)
    assert log_prob(gaussian, x, torch.linspace(0.999, 0, 5)).isfinite().all()
