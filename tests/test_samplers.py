"""ODE samplers: agreement with the official programs, order, evaluations, time grids, dtypes,
errors.
"""

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfm_lite import guidance, samplers
from cfm_lite import samplers as steps
from cfm_lite._internal.checks import expand, widest
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.paths import COSINE
from cfm_lite.samplers import (
    euler,
    heun,
    midpoint,
    rk4,
    sample,
    sample_adaptive,
    sample_sde,
    trajectory,
)
from cfm_lite.viz.artists import evaluate
from tests.fields import PATHS, Field, Mixture, Network, seen_by, sit_field
from tests.reference import case, cases, settings

ORDERS = {euler: 1, midpoint: 2, heun: 2, rk4: 4}
CALLS = {euler: 1, midpoint: 2, heun: 2, rk4: 4}
SOLVERS = {"euler": euler, "midpoint": midpoint, "heun2": heun, "rk4": rk4}
GRID = torch.linspace(0, 1, 11, dtype=torch.float64)


def gaussian(x: Tensor, t: Tensor, mean: float = 1.3, std: float = 0.6) -> Tensor:
    """The exact velocity of N(mean, std^2) data on the linear path; it carries x0 to mean + std x0."""
    t = expand(t, x)
    variance = t**2 * std**2 + (1 - t) ** 2
    return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)


def same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """|ours - theirs| <= tolerance (1 + |theirs|), the fixtures' own measure."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------
# REPA and DeltaFM

REPA = [name for name in cases("samplers_repa") if name.startswith(("euler_", "heun_", "em_"))]


def repa_field(name: str) -> tuple[Field, Tensor, Tensor]:
    """(model in our convention, start in float64, labels) of a case."""
    init, given = case("samplers_repa", "init"), settings("samplers_repa")[name]
    dtype = getattr(torch, given["latents_dtype"])
    if given["field"] == "mlp":
        return (
            Network("samplers_repa", reverse=True, dtype=dtype),
            init["latents_mlp"],
            init["y_mlp"],
        )
    return (
        Mixture("samplers_repa", PATHS[given["path_type"]], dtype=dtype),
        init["latents_gmm"],
        init["y_gmm"],
    )


def repa_velocity(name: str, model: Field, y: Tensor) -> guidance.Velocity:
    """Guidance and interference correction of a case: v <- a v + b I inside the interval, I =
    E[u_neg] in our sign of time.
    """
    given = settings("samplers_repa")[name]
    interval = (1 - given["guidance_high"], 1 - given["guidance_low"])
    velocity = guidance.cfg(model, y, given["cfg_scale"], interval)
    correction = given["interference"]
    if not (correction and correction["apply_reduction"]):
        return velocity
    a, b = correction["velocity_lambda"], correction["interference_lambda"]
    vector = case("samplers_repa", "init")[correction["interference_vector"].split("/")[1]][
        0
    ].double()
    inside = lambda t: (t >= interval[0]) & (t <= interval[1])  # noqa: E731
    # debias computes (1 - b) v + b I, so what is left of a is a factor of v
    factor = lambda t: 1 + inside(t).to(t) * (a / (1 - b) - 1)  # noqa: E731
    return guidance.debias(guidance.rescale(velocity, factor), b, vector, interval)


def decided_at_the_start(velocity: guidance.Velocity, x: Tensor, t: Tensor, dt: float) -> Tensor:
    """REPA's Heun asks whether t lies in the guidance interval once, at the start of the step."""
    start = float(t[0])
    return heun(guidance.restrict(velocity, start, start), x, t, dt)


@pytest.mark.parametrize("name", [name for name in REPA if not name.startswith("em_")])
def test_euler_and_heun_agree_with_repa(name: str) -> None:
    given, expected = settings("samplers_repa")[name], case("samplers_repa", name)
    model, x, y = repa_field(name)
    velocity, n = repa_velocity(name, model, y), given["num_steps"]
    ts = 1 - torch.linspace(1, 0, n + 1, dtype=torch.float64)
    if given["heun"]:  # its last step has no corrector
        states = list(trajectory(velocity, x, ts[:-1], decided_at_the_start))
        states += list(trajectory(velocity, states[-1], ts[-2:], euler))[1:]
    else:
        states = list(trajectory(velocity, x, ts, euler))
    tolerance = 1e-10 if given["latents_dtype"] == "float64" else 1e-5
    same(torch.stack(states[:-1]), expected["x_start_of_step"], tolerance)
    same(states[-1], expected["samples"], tolerance)
    same(
        torch.tensor([1 - t for t, _ in model.calls], dtype=torch.float64), expected["call_t"], 1e-6
    )
    assert [rows for _, rows in model.calls] == expected["call_batch"].tolist()


@pytest.mark.parametrize("name", [name for name in REPA if name.startswith("em_")])
def test_euler_maruyama_agrees_with_repa_and_deltafm(name: str) -> None:
    given, expected = settings("samplers_repa")[name], case("samplers_repa", name)
    model, x, y = repa_field(name)
    velocity, n = repa_velocity(name, model, y), given["num_steps"]
    ts = 1 - torch.linspace(1, 0.04, n, dtype=torch.float64)
    # its w = 2 t is twice sigma on the linear path, and not on the cosine path
    form = {"linear": "sigma", "cosine": "linear"}[given["path_type"]]
    states = []
    result = sample_sde(
        seen_by(velocity, states), x, ts, PATHS[given["path_type"]], form, noise=expected["noise"]
    )
    tolerance = 1e-10 if given["latents_dtype"] == "float64" else 1e-5
    same(result, expected["samples"], tolerance)
    same(torch.stack(states), expected["x_start_of_step"], tolerance)
    same(
        torch.tensor([1 - t for t, _ in model.calls], dtype=torch.float64), expected["call_t"], 1e-6
    )
    assert [rows for _, rows in model.calls] == expected["call_batch"].tolist()


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_repa_score_and_drift_agree(name: str) -> None:
    given, path = case("samplers_repa", f"score_from_velocity_{name}"), PATHS[name]
    t, x, v = 1 - given["t"], given["x"], -given["v"]
    score = path.score(x, v, t)
    same(score, given["score"], 1e-10)
    same(-(v + given["diffusion"][:, None] / 2 * score), given["drift"], 1e-10)


def test_every_repa_case_is_used() -> None:
    used = {*REPA, "gmm", "mlp", "init", "score_from_velocity_linear", "score_from_velocity_cosine"}
    assert used == set(cases("samplers_repa"))
    assert len(REPA) == 78


# ------------------------------------------------------------------------------------------------
# SiT

SIT_ODE = cases("samplers_sit", "ode_")
FIXED = [name for name in SIT_ODE if settings("samplers_sit")[name]["method"] in SOLVERS]
ADAPTIVE = [name for name in SIT_ODE if settings("samplers_sit")[name]["method"] == "dopri5"]


@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps_agree_with_sit(name: str) -> None:
    given, expected = settings("samplers_sit")[name], case("samplers_sit", name)
    model, x, y = sit_field(name)
    states = list(
        trajectory(guidance.conditional(model, y), x, expected["t"], SOLVERS[given["method"]])
    )
    near_the_end = given["path"] != "Linear" and given["prediction"] != "velocity"
    same(torch.stack(states), expected["trajectory"], 1e-6 if near_the_end else 1e-9)
    assert len(model.calls) == given.get("model_calls", len(model.calls))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_is_at_least_as_near_to_the_exact_flow_as_sit(name: str) -> None:
    # the official call steps past t1 and interpolates back; ours ends at t1, so the two differ by
    # about the tolerance
    given, expected = settings("samplers_sit")[name], case("samplers_sit", name)
    model, x, y = sit_field(name)
    t0, t1 = float(expected["t"][0]), float(expected["t"][-1])
    result = sample_adaptive(
        guidance.conditional(model, y), x, t0, t1, rtol=given["rtol"], atol=given["atol"]
    )
    theirs = expected["trajectory"][-1]
    tight = name.replace("tol1e-06_0.001", "tol1e-09_1e-09")
    if given["rtol"] == 1e-9 or tight == name:
        same(result, theirs, 1e-6 if given["rtol"] == 1e-9 else 1e-2)
    else:
        exact = case("samplers_sit", tight)["trajectory"][-1]
        assert (result - exact).abs().max() <= (theirs - exact).abs().max()
    assert len(model.calls) <= given["model_calls"]
    assert all(min(t0, t1) <= t <= max(t0, t1) for t, _ in model.calls)


def test_only_solvers_without_a_name_here_are_left_out() -> None:
    left_out = set(SIT_ODE) - set(FIXED) - set(ADAPTIVE)
    assert left_out == {
        f"ode_{path}_velocity_heun3_tol1e-06_0.001" for path in ("Linear", "GVP", "VP")
    }
    assert len(FIXED) + len(ADAPTIVE) == 50


# ------------------------------------------------------------------------------------------------
# mathematics


def gaussian_on_cosine(x: Tensor, t: Tensor) -> Tensor:
    """The same data on the cosine path; on the linear one, midpoint happens to have order 3."""
    alpha, sigma, d_alpha, d_sigma = COSINE.coefficients(t, x)
    return d_alpha * 1.3 + (alpha * d_alpha * 0.36 + sigma * d_sigma) / (
        alpha**2 * 0.36 + sigma**2
    ) * (x - alpha * 1.3)


@pytest.mark.parametrize("step", ORDERS)
def test_step_has_its_order(step: steps.Step) -> None:
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    exact = 1.3 + 0.6 * x
    errors = [
        (
            sample(gaussian_on_cosine, x, torch.linspace(0, 1, n + 1, dtype=torch.float64), step)
            - exact
        )
        .abs()
        .max()
        for n in (40, 160)
    ]
    assert (errors[0] / errors[1]).log2().item() / 2 == pytest.approx(ORDERS[step], abs=0.1)


@pytest.mark.parametrize(("step", "degree"), [(euler, 0), (midpoint, 1), (heun, 1), (rk4, 3)])
def test_step_is_exact_for_velocities_polynomial_in_t(step: steps.Step, degree: int) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    ts = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    power = lambda x, t: (degree + 1) * expand(t, x) ** degree + 0 * x  # noqa: E731
    torch.testing.assert_close(sample(power, x, ts, step), x + 1, rtol=1e-12, atol=1e-12)
    beyond = lambda x, t: (degree + 2) * expand(t, x) ** (degree + 1) + 0 * x  # noqa: E731
    assert (sample(beyond, x, ts, step) - x - 1).abs().min() > 1e-3


@pytest.mark.parametrize("step", ORDERS)
def test_walking_back_returns_to_the_start(step: steps.Step) -> None:
    x, ts = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0, 1, 401, dtype=torch.float64)
    back = sample(gaussian, sample(gaussian, x, ts, step), ts.flip(0), step)
    torch.testing.assert_close(back, x, rtol=0, atol={1: 2e-2, 2: 1e-4, 4: 1e-8}[ORDERS[step]])


def test_adaptive_meets_its_tolerance_and_needs_fewer_calls_for_a_larger_one() -> None:
    x, calls = torch.randn(6, 2, dtype=torch.float64), []
    for tolerance in (1e-3, 1e-6, 1e-9):
        states: list[Tensor] = []
        result = sample_adaptive(seen_by(gaussian, states), x, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(result, 1.3 + 0.6 * x, rtol=0, atol=50 * tolerance)
        calls.append(len(states))
    assert calls == sorted(calls)
    assert calls[0] < calls[2]
    torch.testing.assert_close(
        sample_adaptive(gaussian, result, 1.0, 0.0, 1e-9, 1e-9), x, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0), (0.3, 0.6)])
def test_adaptive_never_asks_outside_its_times(ends: tuple[float, float]) -> None:
    seen: list[float] = []

    def slow(
        x: Tensor, t: Tensor
    ) -> Tensor:  # so slow that the solver's first guess of a step is far too long
        seen.append(t[0].item())
        return 1e-4 * x

    sample_adaptive(slow, torch.ones(2, 2, dtype=torch.float64), *ends)
    assert min(ends) <= min(seen) <= max(seen) <= max(ends)


# ------------------------------------------------------------------------------------------------
# what a step costs and sees


@pytest.mark.parametrize("step", ORDERS)
def test_a_step_calls_the_velocity_as_often_as_its_name_says(step: steps.Step) -> None:
    calls = []
    sample(
        lambda x, t: calls.append(t) or torch.zeros_like(x),
        torch.zeros(3, 2),
        torch.linspace(0, 1, 8),
        step,
    )
    assert len(calls) == 7 * CALLS[step]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps_and_limit", [(7, 2**22), (700, 2**22), (700, 10)])
def test_velocities_see_the_grid_in_the_dtype_of_the_state(
    dtype: torch.dtype, steps_and_limit: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, limit = steps_and_limit
    monkeypatch.setattr(steps, "TABLE_UP_TO", limit)
    ts, seen = torch.linspace(0, 1, n + 1, dtype=torch.float64), []
    sample(
        lambda x, t: seen.append(t) or torch.ones_like(x), torch.zeros(3, 2, dtype=dtype), ts, euler
    )
    expected = ts[:-1, None].to(dtype).expand(-1, 3)
    assert torch.equal(torch.stack(seen), expected)


@pytest.mark.parametrize("step", ORDERS)
@pytest.mark.parametrize("n", [3, 7, 10, 49, 1000])
def test_no_stage_leaves_the_unit_interval(step: steps.Step, n: int) -> None:
    for grid in (
        torch.linspace(0, 1, n + 1),
        torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 2,
    ):
        for ts in (grid, grid.flip(0)):
            seen = []
            still = lambda x, t, seen=seen: seen.append(t[0]) or torch.zeros_like(x)  # noqa: E731
            sample(still, torch.zeros(1, 1), ts, step)
            times = torch.stack(seen)
            assert times.min() >= 0
            assert times.max() <= 1


def test_trajectory_yields_every_state_and_sample_the_last() -> None:
    x, ts = torch.randn(4, 2), torch.linspace(0, 1, 6)
    states = list(trajectory(gaussian, x, ts, rk4))
    assert len(states) == 6
    assert states[0] is x
    assert torch.equal(states[-1], sample(gaussian, x, ts, rk4))
    second = list(trajectory(gaussian, x, ts, euler))[1]
    torch.testing.assert_close(second, x + gaussian(x, torch.zeros(4)) / 5)


@pytest.mark.parametrize("step", ORDERS)
def test_a_step_takes_one_time_or_one_per_row(step: steps.Step) -> None:
    x, t, dt = torch.randn(2, 3), torch.tensor([0.1, 0.6]), torch.tensor([0.2, 0.3])
    both = step(gaussian, x, t, dt)
    for row in (0, 1):
        one = step(gaussian, x[row : row + 1], t[row].item(), dt[row].item())
        torch.testing.assert_close(both[row : row + 1], one)


@pytest.mark.parametrize("shape", [(1, 2), (0, 2), (3,), (2, 3, 4, 4)])
def test_any_batch_and_shape_is_carried(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert sample(gaussian, x, torch.linspace(0, 1, 4), midpoint).shape == shape
    assert sample_sde(gaussian, x, torch.linspace(0, 0.96, 4)).shape == shape


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float64,) * 2,
        (torch.float32,) * 2,
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_the_state_keeps_its_dtype_and_half_precision_is_promoted(
    given: torch.dtype, kept: torch.dtype
) -> None:
    x = torch.randn(3, 2).to(given)
    before, ts = x.clone(), torch.linspace(0, 1, 4, dtype=torch.float64)
    for velocity in (
        gaussian,
        lambda x, t: gaussian(x, t).double(),
        lambda x, t: gaussian(x, t).half(),
    ):
        for step in ORDERS:
            assert {state.dtype for state in trajectory(velocity, x, ts, step)} == {kept}
        assert sample_adaptive(velocity, x, rtol=1e-2).dtype == kept
        assert sample_sde(velocity, x, ts[:-1], last_step=None).dtype == kept
    assert torch.equal(x, before)


def test_float32_follows_float64() -> None:
    x, ts = torch.randn(50, 2), torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(
        sample(gaussian, x, ts), sample(gaussian, x.double(), ts).float(), rtol=1e-5, atol=1e-5
    )


def test_sample_makes_no_graph_and_trajectory_does() -> None:
    model = nn.Linear(2, 2)
    field, x, ts = lambda x, t: model(x), torch.randn(3, 2), torch.linspace(0, 1, 3)
    assert not sample(field, x, ts).requires_grad
    assert not sample_adaptive(field, x).requires_grad
    assert not sample_sde(field, x, torch.linspace(0, 0.96, 3)).requires_grad
    list(trajectory(field, x, ts))[-1].sum().backward()
    assert model.weight.grad is not None


def test_a_model_in_training_mode_is_sampled_in_eval_mode_and_put_back() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.frozen, self.modes = nn.Dropout(0.5), nn.Dropout(0.5).eval(), set()

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            self.modes.add(self.dropout.training)
            return self.dropout(x)

    model, x, ts = Model(), torch.ones(3, 2), torch.linspace(0, 1, 3)
    list(trajectory(model, x, ts))
    sample(guidance.conditional(model), x, ts)
    sample_adaptive(model, x)
    assert model.modes == {False}
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training


class Dropping(nn.Module):
    """A network that draws in training mode."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("step", [steps.euler, steps.midpoint, steps.heun, steps.rk4])
def test_a_step_and_a_figure_ask_a_model_in_training_mode_as_a_sampler_does(step) -> None:
    model, x, t = Dropping(), torch.randn(8, 2), torch.zeros(8)
    assert torch.equal(step(model, x, t, 0.1), step(model.eval(), x, t, 0.1))
    drawn = [evaluate(model.train(mode), x.numpy(), 0.5) for mode in (True, False)]
    assert (drawn[0] == drawn[1]).all()


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    x = torch.ones(3, 2)
    sample(gaussian, x, torch.linspace(0, 1, 3))
    sample_adaptive(gaussian, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("step", ORDERS)
def test_nothing_is_read_back_from_a_device(step: steps.Step) -> None:
    x = torch.empty(3, 2, device="meta")  # has shapes but no values: reading one is an error
    for ts in (torch.linspace(0, 1, 10), torch.linspace(0, 1, 10, device="meta")):
        result = sample(gaussian, x, ts, step)
        assert (result.device.type, result.shape, result.dtype) == ("meta", x.shape, x.dtype)


# ------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize("bad_call", [1, 4, 7, 8, 9, 20])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_names_the_step_and_the_time(bad_call: int, value: float) -> None:
    calls = []

    def breaks(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        out = torch.zeros_like(x)
        out[-1, -1] = value if round(20 * float(t[0])) == bad_call - 1 else 0.0
        return out

    with pytest.raises(
        DivergenceError,
        match=rf"after step {bad_call} of 20, from t = {(bad_call - 1) / 20:.4g} to t = {bad_call / 20:.4g}",
    ):
        sample(breaks, torch.zeros(3, 2), torch.linspace(0, 1, 21), euler)
    assert (
        len(calls) <= bad_call + 7 + 8
    )  # seen within eight steps, which are then walked once more


def test_a_field_that_does_not_repeat_itself_still_stops() -> None:
    calls = []

    def breaks_once(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.full_like(x, float("nan") if len(calls) == 3 else 0.0)

    with pytest.raises(DivergenceError, match="not finite after step 8 of 20"):
        sample(breaks_once, torch.zeros(3, 2), torch.linspace(0, 1, 21), euler)


def test_large_finite_states_are_no_divergence() -> None:
    x = torch.full((4, 2), 3e38)
    assert torch.equal(sample(lambda x, t: torch.zeros_like(x), x, torch.linspace(0, 1, 3)), x)


def _broken(kind: float, x: Tensor, t: Tensor, where: str) -> Tensor:
    bad = {"everywhere": t >= 0, "later": t > 0.5, "one row": torch.arange(len(x)) == 1}[where]
    return torch.where(bad[:, None], kind, -x)


def test_on_mps_adaptive_counts_its_time_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has no float64, and torch refuses to make such a tensor there."""
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cuda")) == torch.float64
    made, kinds = torch.tensor, []

    def tensor(*args: Any, **settings: Any) -> Tensor:
        kinds.append(settings.get("dtype"))
        return made(*args, **settings)

    monkeypatch.setattr(samplers, "widest", lambda device: torch.float32)
    monkeypatch.setattr(torch, "tensor", tensor)
    end = sample_adaptive(lambda x, t: x, torch.ones(1))
    assert torch.float64 not in kinds
    assert end.item() == pytest.approx(math.e, rel=1e-4)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("asserting", [True, False], ids=["python", "python -O"])
@pytest.mark.parametrize("where", ["everywhere", "later", "one row"])
@pytest.mark.parametrize("kind", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["up", "down"])
def test_adaptive_ends_where_the_velocity_is_not_finite(
    ends: tuple[float, float],
    kind: float,
    where: str,
    asserting: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under -O torchdiffeq's assertions are gone, and its loop had no end."""
    if not asserting:
        from torchdiffeq._impl import rk_common

        bare = {"__name__": "torchdiffeq._impl.rk_common", "__package__": "torchdiffeq._impl"}
        source = Path(rk_common.__file__).read_text()
        exec(compile(source, rk_common.__file__, "exec", optimize=1), bare)  # noqa: S102
        solver = "RKAdaptiveStepsizeODESolver"
        monkeypatch.setattr(
            getattr(rk_common, solver), "_adaptive_step", bare[solver]._adaptive_step
        )
    calls = []

    def broken(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return _broken(kind, x, t, where)

    with pytest.raises(DivergenceError, match="Look at the velocity"):
        sample_adaptive(broken, torch.ones(3, 2), *ends)
    assert len(calls) < 3000  # at once, not after all the calls that a sampling may take


@pytest.mark.timeout(120)
def test_adaptive_ends_where_every_step_would_be_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a network in float32 at rtol = 1e-13: the steps are real ones, and hours of them."""
    assert samplers.CALLS == 30_000
    monkeypatch.setattr(samplers, "CALLS", 600)
    with pytest.raises(DivergenceError, match="loosen rtol and atol"):
        sample_adaptive(
            lambda x, t: x + 1e-3 * (1e6 * x).sin().half(), torch.ones(3, 2), rtol=1e-13, atol=1e-13
        )


def test_adaptive_does_not_return_a_state_that_is_not_finite() -> None:
    with pytest.raises(DivergenceError):
        sample_adaptive(
            lambda x, t: torch.where(t[:, None] > 0.3, 3e38 * x.sign(), x), torch.ones(3, 2)
        )


def test_adaptive_divergence_is_an_error() -> None:
    with pytest.raises(DivergenceError, match="between t = 0 and t = 1"):
        sample_adaptive(lambda x, t: x / 0 * 0, torch.ones(3, 2))

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):  # a velocity's own failure stays what it is
        sample_adaptive(wrong, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("ts", "message"),
    [
        (50, r"ts has type int.*torch\.linspace\(0, 1, steps \+ 1\)"),
        ([0.0, 1.0], "ts has type list"),
        (torch.tensor(0.5), r"ts has shape \(\)"),
        (torch.tensor([0.5]), r"ts has shape \(1,\)"),
        (torch.linspace(0, 1, 0), r"ts has shape \(0,\)"),
        (torch.linspace(0, 1, 4)[None], r"ts has shape \(1, 4\)"),
        (torch.tensor([0, 1]), "dtype torch.int64"),
        (torch.tensor([0.0, 0.5, 0.5]), "repeats a time"),
        (torch.tensor([0.0, 0.7, 0.5]), "changes direction"),
        (torch.tensor([0.0, 1.1]), r"ts spans \[0, 1\.1\]; times lie in \[0, 1\]"),
        (torch.tensor([-0.1, 1.0]), r"ts spans \[-0\.1, 1\]"),
        (torch.tensor([0.0, float("nan"), 1.0]), "times lie in"),
    ],
)
def test_bad_grids_are_refused_at_once(ts: object, message: str) -> None:
    for run in (trajectory, sample, sample_sde):
        with pytest.raises(ConfigError, match=message):
            run(gaussian, torch.zeros(3, 2), ts)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (None, "x has type NoneType"),
        (torch.tensor(1.0), r"x has shape \(\)"),
        (torch.zeros(3, 2, dtype=torch.int64), "x has dtype torch.int64"),
        (torch.tensor([[1.0, float("nan")]]), "not finite"),
        (torch.tensor([[1.0, float("inf")]]), "not finite"),
    ],
)
def test_bad_states_are_refused(x: object, message: str) -> None:
    for run in (trajectory, sample, sample_sde):
        with pytest.raises(ConfigError, match=message):
            run(gaussian, x, torch.linspace(0, 0.96, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=message):
        sample_adaptive(gaussian, x)  # pyright: ignore[reportArgumentType]


def test_a_velocity_must_have_the_shape_of_the_state() -> None:
    for step in ORDERS:
        with pytest.raises(ConfigError, match=r"velocity has shape \(3, 1\) for x \(3, 2\)"):
            sample(lambda x, t: x[:, :1], torch.zeros(3, 2), torch.linspace(0, 1, 3), step)
    with pytest.raises(ConfigError, match="velocity has type float"):
        sample(0.5, torch.zeros(3, 2), torch.linspace(0, 1, 3))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t0": -0.1}, r"t0 is -0\.1"),
        ({"t1": 1.5}, r"t1 is 1\.5"),
        ({"t0": 0.3, "t1": 0.3}, r"both 0\.3"),
        ({"rtol": 0.0}, r"rtol is 0\.0"),
        ({"atol": float("nan")}, "atol is nan"),
    ],
)
def test_bad_adaptive_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_adaptive(gaussian, torch.zeros(3, 2), **settings)


def test_a_missing_torchdiffeq_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ConfigError, match=r"pip install 'cfm-lite\[ode\]'"):
        sample_adaptive(gaussian, torch.zeros(3, 2))


# what a sample costs


class Tally(nn.Module):
    """A model with a null label that counts its calls and the rows in them."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.calls, self.rows = 0, 0

    def forward(self, x, t, y):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return -x


INTERVALS = ((0.0, 1.0), (0.25, 0.75), (0.3, 0.62), (0.5, 0.5), (0.97, 1.0), (0.0, 0.0))


@pytest.mark.parametrize("solver", samplers.EVALUATIONS)
def test_evaluations_are_the_calls_of_the_network_and_guidance_doubles_rows_not_evaluations(solver):
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 1])
    for scale, interval, n in itertools.product((1.0, 0.0, 2.5), INTERVALS, (2, 4, 7)):
        model = Tally()
        v = guidance.cfg(model, y, scale, interval)
        if solver == "sde":
            samplers.sample_sde(
                v, x, torch.linspace(0, 1 - samplers.SDE_END, n), noise=torch.zeros(n - 1, 3, 2)
            )
        else:
            samplers.sample(v, x, torch.linspace(0, 1, n + 1), getattr(samplers, solver))
        assert samplers.evaluations(solver, n, scale, interval) == (
            model.calls,
            model.rows / len(x),
        ), (scale, interval, n)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: samplers.evaluations("dopri5", 4), "must be one of 'euler'"),
        (lambda: samplers.evaluations("sde", 1), "at least 2"),
        (lambda: samplers.evaluations("heun", 0), "at least 1"),
        (lambda: samplers.evaluations("heun", 4, math.nan), "guidance is nan"),
        (lambda: samplers.evaluations("heun", 4, 2.0, (0.8, 0.2)), "low above high"),
    ],
)
def test_evaluations_of_what_cannot_be_sampled_are_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
