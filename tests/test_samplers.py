"""ODE samplers: agreement with the official programs, order, evaluations, time grids, dtypes, errors."""

import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cfm_lite import guidance, steps
from cfm_lite.checks import expand
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.paths import COSINE, LINEAR
from cfm_lite.samplers import euler, heun, midpoint, rk4, sample, sample_adaptive, sample_sde, trajectory
from tests.fields import PATHS, Field, Mixture, Network, sit_field
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


# ------------------------------------------------------------------------------------------------ REPA and DeltaFM

REPA = [name for name in cases("samplers_repa") if name.startswith(("euler_", "heun_", "em_"))]


def repa_field(name: str) -> tuple[Field, Tensor, Tensor]:
    """(model in our convention, start in float64, labels) of a case."""
    init, given = case("samplers_repa", "init"), settings("samplers_repa")[name]
    dtype = getattr(torch, given["latents_dtype"])
    if given["field"] == "mlp":
        return Network("samplers_repa", reverse=True, dtype=dtype), init["latents_mlp"], init["y_mlp"]
    return Mixture("samplers_repa", PATHS[given["path_type"]], dtype=dtype), init["latents_gmm"], init["y_gmm"]


def repa_velocity(name: str, model: Field, y: Tensor) -> guidance.Velocity:
    """Guidance and interference correction of a case: v <- a v + b I inside the interval, I = E[u_neg] in our sign of time."""
    given = settings("samplers_repa")[name]
    interval = (1 - given["guidance_high"], 1 - given["guidance_low"])
    velocity = guidance.cfg(model, y, given["cfg_scale"], interval)
    correction = given["interference"]
    if not (correction and correction["apply_reduction"]):
        return velocity
    a, b = correction["velocity_lambda"], correction["interference_lambda"]
    vector = case("samplers_repa", "init")[correction["interference_vector"].split("/")[1]][0].double()
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
    same(torch.tensor([1 - t for t, _ in model.calls], dtype=torch.float64), expected["call_t"], 1e-6)
    assert [rows for _, rows in model.calls] == expected["call_batch"].tolist()


@pytest.mark.parametrize("name", [name for name in REPA if name.startswith("em_")])
def test_euler_maruyama_agrees_with_repa_and_deltafm(name: str) -> None:
    given, expected = settings("samplers_repa")[name], case("samplers_repa", name)
    model, x, y = repa_field(name)
    velocity, n = repa_velocity(name, model, y), given["num_steps"]
    ts = 1 - torch.linspace(1, 0.04, n, dtype=torch.float64)
    # its w = 2 t is twice sigma on the linear path, and not on the cosine path
    form = {"linear": "sigma", "cosine": "linear"}[given["path_type"]]
    run = partial(sample_sde, velocity, x, path=PATHS[given["path_type"]], diffusion=form)
    result = run(ts, noise=expected["noise"])
    calls = list(model.calls)
    tolerance = 1e-10 if given["latents_dtype"] == "float64" else 1e-5
    same(result, expected["samples"], tolerance)
    for k in range(1, n):
        same(run(ts[: k + 1], noise=expected["noise"][:k], last_step=None), expected["x_start_of_step"][k], tolerance)
    same(torch.tensor([1 - t for t, _ in calls], dtype=torch.float64), expected["call_t"], 1e-6)
    assert [rows for _, rows in calls] == expected["call_batch"].tolist()


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


# ------------------------------------------------------------------------------------------------ SiT

SIT_ODE = cases("samplers_sit", "ode_")
FIXED = [name for name in SIT_ODE if settings("samplers_sit")[name]["method"] in SOLVERS]
ADAPTIVE = [name for name in SIT_ODE if settings("samplers_sit")[name]["method"] == "dopri5"]


@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps_agree_with_sit(name: str) -> None:
    given, expected = settings("samplers_sit")[name], case("samplers_sit", name)
    model, x, y = sit_field(name)
    states = list(trajectory(guidance.conditional(model, y), x, expected["t"], SOLVERS[given["method"]]))
    near_the_end = given["path"] != "Linear" and given["prediction"] != "velocity"
    same(torch.stack(states), expected["trajectory"], 1e-6 if near_the_end else 1e-9)
    assert len(model.calls) == given.get("model_calls", len(model.calls))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_is_at_least_as_near_to_the_exact_flow_as_sit(name: str) -> None:
    # the official call steps past t1 and interpolates back; ours ends at t1, so the two differ by about the tolerance
    given, expected = settings("samplers_sit")[name], case("samplers_sit", name)
    model, x, y = sit_field(name)
    t0, t1 = float(expected["t"][0]), float(expected["t"][-1])
    result = sample_adaptive(guidance.conditional(model, y), x, t0, t1, rtol=given["rtol"], atol=given["atol"])
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
    assert left_out == {f"ode_{path}_velocity_heun3_tol1e-06_0.001" for path in ("Linear", "GVP", "VP")}
    assert len(FIXED) + len(ADAPTIVE) == 50
