"""Samplers carry noise to data:  dx = v(x, t) dt, or with noise of any strength c(t) >= 0  dx = (v + c s) dt + sqrt(2 c) dW.

Both have the same marginals, for the score s of the path makes up for the noise. A sampler sees a `Velocity` (guidance.py)
and a grid of times; the single steps and the loop over them are in steps.py, the likelihood in likelihood.py.
Convention: t = 0 is noise, t = 1 is data. The state keeps its dtype, half precision becomes float32. Noise is an argument.
Reference: Ma et al. 2024 (SiT, arXiv:2401.08740), section 2 and appendix A.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from cfm_lite.checks import check_choice, check_count, check_floating, check_generator, check_number, check_tensor, on_host
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.guidance import EVERYWHERE, Guided, Velocity, as_velocity, check_interval
from cfm_lite.lazy import optional
from cfm_lite.likelihood import log_prob
from cfm_lite.paths import LINEAR, Path, check_path
from cfm_lite.steps import Step, check_finite, check_state, euler, fitting, heun, make_grid, midpoint, rk4, trajectory

__all__ = [
    "DIFFUSIONS",
    "EVALUATIONS",
    "SDE_END",
    "Evaluations",
    "Step",
    "diffusion_coefficient",
    "euler",
    "evaluations",
    "heun",
    "log_prob",
    "midpoint",
    "rk4",
    "sample",
    "sample_adaptive",
    "sample_sde",
    "trajectory",
]


STAGES = {"euler": (0.0,), "midpoint": (0.0, 1 / 2), "heun": (0.0, 1.0), "rk4": (0.0, 1 / 3, 2 / 3, 1.0)}  # times in a step
EVALUATIONS = {**{solver: len(times) for solver, times in STAGES.items()}, "sde": 1}  # of the network, in one step
SDE_END = 0.04  # the last step of the SDE, which has no noise, as in SiT's program


class Evaluations(NamedTuple):
    """What one sample costs: `nfe` evaluations of the velocity, and the `rows` that the network computes for them."""

    nfe: int
    rows: int


def evaluations(solver: str, steps: int, guidance: float = 1.0, interval: tuple[float, float] = EVERYWHERE) -> Evaluations:
    """What one sample costs with `steps` even steps of a solver from t = 0 to t = 1, or of "sde", its last step included.

    The rule, here as in the papers: a guided evaluation counts once in `nfe`, and as two rows, one of them unconditional. So
    `rows` is `nfe`, plus the evaluations inside `interval` where `guidance` is not 1. `sample_adaptive` chooses its own steps:
    what it takes is known afterwards, by counting the calls of the velocity. Raises ConfigError for an unknown solver, for
    fewer than one step (two for "sde"), and for a wrong guidance or interval.

    >>> evaluations("heun", 25, guidance=1.5, interval=(0.5, 1.0))
    Evaluations(nfe=50, rows=75)
    """
    check_choice("solver", solver, EVALUATIONS)
    check_count("steps", steps, low=2 if solver == "sde" else 1)
    scale = check_number("guidance", guidance, -math.inf, math.inf)
    guided = Guided((), lambda t: t, check_interval(interval))
    if solver == "sde":
        times = torch.linspace(0, 1 - SDE_END, steps).tolist()
    else:
        ts = torch.linspace(0, 1, steps + 1).tolist()
        times = [low + share * (high - low) for low, high in pairwise(ts) for share in STAGES[solver]]
    return Evaluations(len(times), len(times) + (sum(map(guided.acts_at, times)) if scale != 1 else 0))


@torch.no_grad()
def sample(velocity: Velocity, x: Tensor, ts: Tensor, step: Step = heun) -> Tensor:
    """The state (B, *dims) at ts[-1], from `x` at ts[0]; arguments and errors as in `trajectory`, without gradients."""
    return deque(trajectory(velocity, x, ts, step), maxlen=1).pop()


@torch.no_grad()
def sample_adaptive(velocity: Velocity, x: Tensor, t0: float = 0.0, t1: float = 1.0, rtol: float = 1e-5, atol: float = 1e-5) -> Tensor:
    """The state (B, *dims) at `t1`, from `x` at `t0`, by torchdiffeq's dopri5, whose steps keep the error near rtol |x| + atol.

    One step length serves the whole batch. The last step ends at t1 itself, so the velocity is never asked outside [t0, t1].
    Raises ConfigError for times outside [0, 1] or equal, for tolerances not above 0, and without torchdiffeq (extra `ode`);
    DivergenceError where no step is short enough. Reference: Dormand & Prince 1980; Chen et al. 2018 (arXiv:1806.07366).
    """
    velocity, x = as_velocity(velocity), check_state(x)
    t0, t1 = check_number("t0", t0, 0, 1), check_number("t1", t1, 0, 1)
    if t0 == t1:
        raise ConfigError(f"t0 and t1 are both {t0:g}; there is nothing to integrate.")
    if not x.numel():
        raise ConfigError(f"x has shape {tuple(x.shape)}; there is nothing to integrate.")
    tolerances = {"rtol": check_number("rtol", rtol, 0, 1, open_low=True), "atol": check_number("atol", atol, 0, math.inf, open_low=True)}
    low, high = min(t0, t1), max(t0, t1)
    ends = torch.tensor([t0, t1], dtype=torch.float64, device=x.device)

    stuck = _Stuck(t0, t1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        stuck.check(float(t))
        return fitting(velocity(x, t.to(x.dtype).clamp(low, high).expand(len(x))), x)  # a first guess of the step may overshoot

    solve = optional("torchdiffeq", "ode").odeint
    try:
        end = solve(field, x, ends, method="dopri5", options={"step_t": ends[1:]}, **tolerances)[-1]
    except AssertionError as error:
        if not str(error).startswith(("underflow in dt", "non-finite values", "max_num_steps")):
            raise
        raise stuck.error() from error
    if on_host(end) and not end.isfinite().all():  # a bounded velocity is finite even where the state is not
        raise stuck.error()
    return end


class _Stuck:
    """Finds, from the times that dopri5 asks for, that it will never arrive: its own assertions do not run under `python -O`.

    A step is six calls at as many times. Where it has become too short for the clock they are one time and its two neighbours,
    and a velocity that is not finite gives a step length, and so a time, that is not.
    """

    def __init__(self, t0: float, t1: float) -> None:
        self.t0, self.t1 = t0, t1
        self.recent: deque[float] = deque(maxlen=18)

    def check(self, t: float) -> None:
        self.recent.append(t)
        if not math.isfinite(t) or (len(self.recent) == 18 and len(set(self.recent)) <= 3):
            raise self.error()

    def error(self) -> DivergenceError:
        return DivergenceError(
            f"dopri5 found no step between t = {self.t0:g} and t = {self.t1:g} that meets its tolerance. Look at the velocity: it may "
            "not be finite, or change too fast; loosen rtol and atol, or stop before the time where it is infinite."
        )


Form = Callable[[Path, Tensor, float], Tensor]
DIFFUSIONS: dict[str, Form] = {
    "constant": lambda path, t, norm: norm * torch.ones_like(t),
    "sbdm": lambda path, t, norm: norm * (path.d_alpha(t) / path.alpha(t) * path.sigma(t) ** 2 - path.half_variance_rate(t)),
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * (1 - t),
    "decreasing": lambda path, t, norm: 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * torch.sin(math.pi * t) ** 2,
}
LAST_STEPS = ("mean", "tweedie", "euler")


def diffusion_coefficient(t: Tensor, diffusion: str = "sigma", path: Path = LINEAR, norm: float = 1.0) -> Tensor:
    """c(t) >= 0 at times of any shape; "sbdm" is infinite at t = 0 on the linear and cosine paths.

    Raises ConfigError for an unknown form or a negative norm. Reference: SiT, table 2; the forms of its official program.
    """
    check_choice("diffusion", diffusion, DIFFUSIONS)
    check_path(path)
    check_floating(t=t)
    return DIFFUSIONS[diffusion](path, t, check_number("norm", norm, 0, math.inf))


@torch.no_grad()
def sample_sde(
    velocity: Velocity,
    x: Tensor,
    ts: Tensor,
    path: Path = LINEAR,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last_step: str | None = "mean",
    last_step_size: float = 0.04,
    generator: torch.Generator | None = None,
    noise: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """The state (B, *dims) at t = 1, from noise `x` at ts[0], by Euler-Maruyama steps on dx = (v + c s) dt + sqrt(2 c) dW.

    `ts` (n + 1,) rises to 1 - last_step_size, where one step without noise follows: "mean" (x + h (v + c s)), "tweedie" (the
    data that v implies) or "euler" (x + h v). None leaves it out, and `ts` may end anywhere up to 1. `noise`, n standard
    normals (B, *dims), is used instead of `generator`. Raises ConfigError for a wrong argument and for "sbdm" where it is
    infinite; DivergenceError as `trajectory` does. Reference: SiT, eq. 5 with w = 2 c; Tweedie: Efron 2011.
    """
    velocity, x = as_velocity(velocity), check_state(x)
    grid = make_grid(ts, x, ascending=True)
    _check_last_step(ts, last_step, last_step_size)
    rates = _rates(ts, diffusion, path, norm)
    draws = _noises(x, len(grid.lengths), generator, noise)
    for k, (t, dt, c, z) in enumerate(zip(grid.rows(), grid.lengths, rates, draws)):
        v = fitting(grid.restrict(velocity, k)(x, t), x)
        x = x + dt * (v + c * path.score(x, v, t)) + (2 * c * dt) ** 0.5 * z
        if on_host(x):
            check_finite([x], k, grid)
    x = _finish(velocity, x, grid.table[-1], path, rates[-1], last_step, last_step_size)
    if on_host(x) and not x.isfinite().all():
        raise DivergenceError(
            f"the state is not finite after the last step, from t = {1 - last_step_size:.4g} to t = 1. Look at the velocity."
        )
    return x


def _finish(velocity: Velocity, x: Tensor, t: Tensor, path: Path, c: float | Tensor, last_step: str | None, h: float) -> Tensor:
    """The step without noise from 1 - h to 1."""
    if last_step is None:
        return x
    v = fitting(velocity(x, t), x)
    if last_step == "tweedie":
        return path.endpoints(x, v, t)[1]
    return x + h * (v if last_step == "euler" else v + c * path.score(x, v, t))


def _check_last_step(ts: Tensor, last_step: str | None, size: float) -> None:
    if last_step is None:
        return
    check_choice("last_step", last_step, LAST_STEPS)
    size = check_number("last_step_size", size, 0, 1, open_low=True, open_high=True)
    if on_host(ts) and abs(float(ts[-1]) - (1 - size)) > 1e-4:
        raise ConfigError(
            f"ts ends at {float(ts[-1]):g} and last_step_size is {size:g}, which leaves a gap: ts must end at {1 - size:g}. "
            f"Use torch.linspace(0, {1 - size:g}, steps + 1), or last_step=None."
        )


def _rates(ts: Tensor, diffusion: str, path: Path, norm: float) -> list[float] | tuple[Tensor, ...]:
    """c at every time: numbers if `ts` is on the host. The last one is not used without a last step, so it may be infinite."""
    rates = diffusion_coefficient(ts.double() if on_host(ts) else ts, diffusion, path, norm)
    if not on_host(ts):
        return rates.unbind()
    if not rates[:-1].isfinite().all():
        raise ConfigError(
            f"diffusion {diffusion!r} is infinite at t = {ts[0]:g} on path {path.name!r}; start ts later, for example at 0.01."
        )
    return rates.tolist()


def _noises(x: Tensor, n: int, generator: torch.Generator | None, noise: Tensor | Sequence[Tensor] | None) -> Iterator[Tensor]:
    """`n` standard normals like x: those given, checked at once, or fresh ones, drawn one by one where the generator is."""
    check_generator(generator)
    if noise is None:
        device = x.device if generator is None else generator.device
        return (torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device, non_blocking=True) for _ in range(n))
    check_tensor(**{"noise": noise} if not isinstance(noise, list | tuple) else {f"noise {i}": z for i, z in enumerate(noise)})
    if isinstance(noise, Tensor) and not noise.dim():
        raise ConfigError("noise is one number; it must have an entry per step of ts.")
    shapes = {tuple(z.shape) for z in noise}
    if len(noise) != n or shapes != {tuple(x.shape)}:
        raise ConfigError(
            f"noise has {len(noise)} entries of shape {sorted(shapes)}; it must have {n}, one per step of ts, of shape {tuple(x.shape)}."
        )
    if on_host(x) and not all(z.isfinite().all() for z in noise):
        raise ConfigError("noise holds NaN or infinity; it must be standard normals, such as torch.randn(n, *x.shape).")
    return (z.to(x) for z in noise)
