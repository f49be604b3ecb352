"""Samplers carry noise to data:  dx = v(x, t) dt, or with noise of any strength c(t) >= 0  dx = (v + c s) dt + sqrt(2 c) dW.

Both have the same marginals, because the score s of the path balances the noise. A sampler sees a
`Velocity` (guidance.py) and a grid of times. A `Step` is a function (velocity, x (B, *dims), t
(B,), dt) -> x at t + dt, and one loop takes it; a negative dt runs backwards. `log_prob` walks back
from data to noise and sums the divergence on the way. Convention: t = 0 is noise, t = 1 is data.
The state keeps its dtype, half precision becomes float32: times are rounded to it once, and the
step lengths are the exact differences of the rounded times. Noise is an argument. Reference: Ma et
al. 2024 (SiT, arXiv:2401.08740), section 2 and appendix A.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from cfm_lite._internal.checks import (
    check_callable,
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_generator,
    check_number,
    check_same_shape,
    check_tensor,
    expand,
    on_host,
    promote,
)
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import as_velocity_of
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.guidance import EVERYWHERE, Guided, Velocity, as_velocity, check_interval
from cfm_lite.paths import LINEAR, Path, check_path

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

Step = Callable[[Velocity, Tensor, Tensor, Any], Tensor]

CHECK_EVERY = 8  # steps; a look at each one would cost as much as the step itself for a toy model
TABLE_UP_TO = 2**22  # times held at once, 16 MiB


def euler(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    t: Float[Tensor, " batch"] | float,
    dt: float | Tensor,
) -> Float[Tensor, "batch *dims"]:
    """Order 1, one evaluation. `t` is (B,), or one number for all rows; `dt` likewise."""
    return _move(x, velocity(x, _rows(t, x)), dt)


def midpoint(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    t: Float[Tensor, " batch"] | float,
    dt: float | Tensor,
) -> Float[Tensor, "batch *dims"]:
    """Order 2, two evaluations: the slope at the middle of an Euler half step."""
    t = _rows(t, x)
    half = _move(x, velocity(x, t), dt / 2)
    return _move(x, velocity(half, t + dt / 2), dt)


def heun(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    t: Float[Tensor, " batch"] | float,
    dt: float | Tensor,
) -> Float[Tensor, "batch *dims"]:
    """Order 2, two evaluations: the mean slope of the two ends, the far end reached by an Euler
    step (torchdiffeq's heun2).
    """
    t = _rows(t, x)
    v = velocity(x, t)
    w = velocity(_move(x, v, dt), t + dt)
    return _move(_move(x, v, dt / 2), w, dt / 2)


def rk4(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    t: Float[Tensor, " batch"] | float,
    dt: float | Tensor,
) -> Float[Tensor, "batch *dims"]:
    """Order 4, four evaluations: Kutta's 3/8 rule, at 0, 1/3, 2/3 and 1 of the step.

    It is what torchdiffeq, and so the official SiT, calls rk4. The better known rule, at 0, 1/2,
    1/2 and 1, has the same order and cost. Reference: Kutta 1901; Hairer, Nørsett & Wanner, Solving
    Ordinary Differential Equations I, section II.1.
    """
    t = _rows(t, x)
    k1 = velocity(x, t)
    k2 = velocity(_move(x, k1, dt / 3), t + dt / 3)
    k3 = velocity(_move(x, k2 - k1 / 3, dt), t + 2 * dt / 3)
    k4 = velocity(_move(x, k1 - k2 + k3, dt), t + dt)
    return _move(x, k1 + 3 * (k2 + k3) + k4, dt / 8)


def trajectory(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    ts: Float[Tensor, " times"],
    step: Step = heun,
) -> Iterator[Float[Tensor, "batch *dims"]]:
    """Yields the state at every time of `ts`, `x` (B, *dims) at ts[0] first; gradients flow where
    grad mode is on.

    `ts` (n + 1,) runs up (noise to data) or down (data to noise) inside [0, 1]; leave it on the
    host: the steps are then numbers, and guidance knows without a device read where its interval
    ends. Raises ConfigError for a grid or state that is not as said, and DivergenceError, within
    eight steps, that names the first step whose state on the host is not finite.
    """
    velocity, x = as_velocity(velocity), check_state(x)
    check_callable(step=step)
    return _walk(velocity, x, make_grid(ts, x), step)


def _walk(velocity: Velocity, x: Tensor, grid: "Grid", step: Step) -> Iterator[Tensor]:
    watched, aware, last = on_host(x), isinstance(velocity, Guided), len(grid.lengths) - 1
    start, first = (
        x,
        0,
    )  # of the block that is not checked yet; the states between are not kept: fresh memory would cost time
    yield x
    for k, (t, dt) in enumerate(zip(grid.rows(), grid.lengths)):
        x = step(grid.restrict(velocity, k) if aware else velocity, x, t, dt)
        if watched and (k == last or k - first + 1 == CHECK_EVERY):
            if not _is_finite(x):
                check_finite([*_again(velocity, start, grid, step, first, k), x], k, grid)
            start, first = x, k + 1
        yield x


def _again(
    velocity: Velocity, x: Tensor, grid: "Grid", step: Step, first: int, k: int
) -> Iterator[Tensor]:
    """The states after the steps from `first` to the one before `k`, walked once more to find which
    of them went wrong.

    A velocity is a function of (x, t); of one that does not repeat itself only the last step of the
    block is named.
    """
    for i in range(first, k):
        x = step(grid.restrict(velocity, i), x, grid.table[i], grid.lengths[i])
        yield x


@dataclass(frozen=True, eq=False)
class Grid:
    """The times of a walk: `table` (n + 1, B); `lengths`, the n steps; `times`, numbers, if ts is
    on the host.
    """

    table: Tensor
    lengths: Sequence[float] | Sequence[Tensor]
    times: list[float] | None

    def rows(self) -> Iterator[Tensor]:
        """The times, (B,) each, in their order."""
        return chain.from_iterable(map(Tensor.unbind, self.table.split(256)))

    def restrict(self, velocity: Velocity, k: int) -> Velocity:
        """`velocity` for step `k`, told where the step lies, if it asks and the host knows."""
        if self.times is None or not isinstance(velocity, Guided):
            return velocity
        return velocity.restrict(*sorted(self.times[k : k + 2]))


def make_grid(ts: Any, x: Float[Tensor, "batch *dims"], *, ascending: bool = False) -> Grid:
    """`ts` (n + 1,) as a grid for the state `x`; ConfigError unless it is strictly monotone, inside
    [0, 1], n >= 1.
    """
    if not isinstance(ts, Tensor) or ts.dim() != 1 or len(ts) < 2 or not ts.is_floating_point():
        seen = (
            f"shape {tuple(ts.shape)} and dtype {ts.dtype}"
            if isinstance(ts, Tensor)
            else f"type {type(ts).__name__}"
        )
        raise ConfigError(
            f"ts has {seen}; it must be a floating tensor (n + 1,) of at least 2 times: "
            "torch.linspace(0, 1, steps + 1)."
        )
    check_tensor(ts=ts, x=x)
    if not x.dim():
        raise ConfigError("x is one number; it must be a tensor (B, *dims).")
    if on_host(ts):
        _check_times(ts.tolist(), ascending)
    ts = ts.to(x.dtype)
    table = ts.to(x.device, non_blocking=True)[:, None].expand(-1, len(x))
    if table.numel() <= TABLE_UP_TO:
        table = (
            table.contiguous()
        )  # torch.cat([x, t], 1) is faster with it; a longer table shares one number per row
    if not on_host(ts):
        return Grid(table, ts.diff().unbind(), None)
    times = ts.tolist()
    return Grid(table, [end - start for start, end in pairwise(times)], times)


def check_state(x: Any, name: str = "x") -> Tensor:
    """`x` (B, *dims) promoted from half precision; ConfigError unless it is floating and, on the
    host, finite.
    """
    if not isinstance(x, Tensor) or x.dim() < 1:
        seen = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ConfigError(f"{name} has {seen}; it must be a tensor (B, *dims).")
    check_floating(**{name: x})
    if on_host(x) and not _is_finite(x):
        raise ConfigError(
            f"{name} has entries that are not finite; the walk must start from finite numbers."
        )
    return promote(x)


def check_finite(states: Sequence[Tensor], k: int, grid: Grid) -> None:
    """DivergenceError for the first of `states` that is not finite; the last is the one after step
    `k`, counted from 0.
    """
    # a state that is not finite stays so in every later step, so the last one is enough
    if _is_finite(states[-1]):
        return
    k += 1 - sum(not _is_finite(x) for x in states)
    start, end = (grid.table[i].mean().item() for i in (k, k + 1))
    raise DivergenceError(
        f"the state is not finite after step {k + 1} of {len(grid.lengths)}, from t = {start:.4g} "
        f"to t = {end:.4g}. "
        "Look at the velocity there: it may be infinite at the end of its path, or its model may "
        "have diverged."
    )


def _check_times(ts: list[float], ascending: bool) -> None:
    if not all(0 <= t <= 1 for t in ts):  # false for NaN too
        raise ConfigError(
            f"ts spans [{min(ts):.4g}, {max(ts):.4g}]; times lie in [0, 1], 0 noise and 1 data."
        )
    rises = ts[0] < ts[-1]
    if not all((a < b) is rises and a != b for a, b in pairwise(ts)):
        raise ConfigError(
            "ts turns or stands still; it must rise, or fall, from each entry to the next."
        )
    if ascending and not rises:
        raise ConfigError(
            f"ts falls from {ts[0]:.4g} to {ts[-1]:.4g}; here it must rise, from noise (0) to data "
            "(1)."
        )


def _is_finite(x: Tensor) -> bool:
    # the sum is finite unless an entry is not, or it overflows; it costs a fifth of the full answer
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def _rows(t: Any, x: Tensor) -> Tensor:
    """`t` (B,) as it is; one number as (B,)."""
    return t if isinstance(t, Tensor) and t.dim() == 1 else x.new_full((len(x),), float(t))


def fitting(v: Float[Tensor, "batch *dims"], x: Float[Tensor, "batch *dims"]) -> Tensor:
    """`v` in the dtype of `x`; ConfigError unless it has the shape of `x`."""
    as_velocity_of(v, x)
    return v if v.dtype == x.dtype else v.to(x.dtype)


def _move(x: Tensor, v: Tensor, dt: float | Tensor) -> Tensor:
    """x + dt v, in the dtype of x."""
    if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
        v = fitting(v, x)
    if isinstance(dt, Tensor):
        return x + expand(dt.to(x.dtype), x) * v
    return torch.add(x, v, alpha=dt)


STAGES = {
    "euler": (0.0,),
    "midpoint": (0.0, 1 / 2),
    "heun": (0.0, 1.0),
    "rk4": (0.0, 1 / 3, 2 / 3, 1.0),
}  # times in a step
EVALUATIONS = {
    **{solver: len(times) for solver, times in STAGES.items()},
    "sde": 1,
}  # of the network, in one step
SDE_END = 0.04  # the last step of the SDE, which has no noise, as in SiT's program


class Evaluations(NamedTuple):
    """What one sample costs: `nfe` evaluations of the velocity, and the `rows` that the network
    computes for them.
    """

    nfe: int
    rows: int


def evaluations(
    solver: str, steps: int, guidance: float = 1.0, interval: tuple[float, float] = EVERYWHERE
) -> Evaluations:
    """What one sample costs with `steps` even steps of a solver from t = 0 to t = 1, or of "sde",
    its last step included.

    The rule, here as in the papers: a guided evaluation counts once in `nfe`, and as two rows, one
    of them unconditional. So `rows` is `nfe`, plus the evaluations inside `interval` where
    `guidance` is not 1. `sample_adaptive` chooses its own steps: what it takes is known afterwards,
    by counting the calls of the velocity. Raises ConfigError for an unknown solver, for fewer than
    one step (two for "sde"), and for a wrong guidance or interval.

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
        times = [
            low + share * (high - low) for low, high in pairwise(ts) for share in STAGES[solver]
        ]
    return Evaluations(
        len(times), len(times) + (sum(map(guided.acts_at, times)) if scale != 1 else 0)
    )


@torch.no_grad()
def sample(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    ts: Float[Tensor, " times"],
    step: Step = heun,
) -> Float[Tensor, "batch *dims"]:
    """The state (B, *dims) at ts[-1], from `x` at ts[0]; arguments and errors as in `trajectory`,
    without gradients.
    """
    return deque(trajectory(velocity, x, ts, step), maxlen=1).pop()


@torch.no_grad()
def sample_adaptive(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    t0: float = 0.0,
    t1: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Float[Tensor, "batch *dims"]:
    """The state (B, *dims) at `t1`, from `x` at `t0`, by torchdiffeq's dopri5, whose steps keep the
    error near rtol |x| + atol.

    One step length serves the whole batch. The last step ends at t1 itself, so the velocity is
    never asked outside [t0, t1]. Raises ConfigError for times outside [0, 1] or equal, for
    tolerances not above 0, and without torchdiffeq (extra `ode`); DivergenceError where no step is
    short enough. Reference: Dormand & Prince 1980; Chen et al. 2018 (arXiv:1806.07366).
    """
    velocity, x = as_velocity(velocity), check_state(x)
    t0, t1 = check_number("t0", t0, 0, 1), check_number("t1", t1, 0, 1)
    if t0 == t1:
        raise ConfigError(f"t0 and t1 are both {t0:g}; there is nothing to integrate.")
    if not x.numel():
        raise ConfigError(f"x has shape {tuple(x.shape)}; there is nothing to integrate.")
    tolerances = {
        "rtol": check_number("rtol", rtol, 0, 1, open_low=True),
        "atol": check_number("atol", atol, 0, math.inf, open_low=True),
    }
    low, high = min(t0, t1), max(t0, t1)
    ends = torch.tensor([t0, t1], dtype=torch.float64, device=x.device)

    stuck = _Stuck(t0, t1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        stuck.check(float(t))
        return fitting(
            velocity(x, t.to(x.dtype).clamp(low, high).expand(len(x))), x
        )  # a first guess of the step may overshoot

    solve = optional("torchdiffeq", "ode").odeint
    try:
        end = solve(field, x, ends, method="dopri5", options={"step_t": ends[1:]}, **tolerances)[-1]
    except AssertionError as error:
        if not str(error).startswith(("underflow in dt", "non-finite values", "max_num_steps")):
            raise
        raise stuck.error() from error
    if (
        on_host(end) and not end.isfinite().all()
    ):  # a bounded velocity is finite even where the state is not
        raise stuck.error()
    return end


class _Stuck:
    """Finds, from the times that dopri5 asks for, that it will never arrive: its own assertions do
    not run under `python -O`.

    A step is six calls at as many times. Where it has become too short for the clock they are one
    time and its two neighbours, and a velocity that is not finite gives a step length, and so a
    time, that is not.
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
            f"dopri5 found no step between t = {self.t0:g} and t = {self.t1:g} that meets its "
            "tolerance. Look at the velocity: it may "
            "not be finite, or change too fast; loosen rtol and atol, or stop before the time "
            "where it is infinite."
        )


Form = Callable[[Path, Tensor, float], Tensor]
DIFFUSIONS: dict[str, Form] = {
    "constant": lambda path, t, norm: norm * torch.ones_like(t),
    "sbdm": lambda path, t, norm: (
        norm * (path.d_alpha(t) / path.alpha(t) * path.sigma(t) ** 2 - path.half_variance_rate(t))
    ),
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * (1 - t),
    "decreasing": lambda path, t, norm: 0.25 * (norm * torch.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * torch.sin(math.pi * t) ** 2,
}
LAST_STEPS = ("mean", "tweedie", "euler")


def diffusion_coefficient(
    t: Float[Tensor, "*any"], diffusion: str = "sigma", path: Path = LINEAR, norm: float = 1.0
) -> Float[Tensor, "*any"]:
    """c(t) >= 0 at times of any shape; "sbdm" is infinite at t = 0 on the linear and cosine paths.

    Raises ConfigError for an unknown form or a negative norm. Reference: SiT, table 2; the forms of
    its official program.
    """
    check_choice("diffusion", diffusion, DIFFUSIONS)
    check_path(path)
    check_floating(t=t)
    return DIFFUSIONS[diffusion](path, t, check_number("norm", norm, 0, math.inf))


@torch.no_grad()
def sample_sde(
    velocity: Velocity,
    x: Float[Tensor, "batch *dims"],
    ts: Float[Tensor, " times"],
    path: Path = LINEAR,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last_step: str | None = "mean",
    last_step_size: float = 0.04,
    generator: torch.Generator | None = None,
    noise: Tensor | Sequence[Tensor] | None = None,
) -> Float[Tensor, "batch *dims"]:
    """The state (B, *dims) at t = 1, from noise `x` at ts[0], by Euler-Maruyama steps on dx = (v +
    c s) dt + sqrt(2 c) dW.

    `ts` (n + 1,) rises to 1 - last_step_size, where one step without noise follows: "mean" (x + h
    (v + c s)), "tweedie" (the data that v implies) or "euler" (x + h v). None leaves it out, and
    `ts` may end anywhere up to 1. `noise`, n standard normals (B, *dims), is used instead of
    `generator`. Raises ConfigError for a wrong argument and for "sbdm" where it is infinite;
    DivergenceError as `trajectory` does. Reference: SiT, eq. 5 with w = 2 c; Tweedie: Efron 2011.
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
            f"the state is not finite after the last step, from t = {1 - last_step_size:.4g} to t "
            "= 1. Look at the velocity."
        )
    return x


def _finish(
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    path: Path,
    c: float | Tensor,
    last_step: str | None,
    h: float,
) -> Tensor:
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
            f"ts ends at {float(ts[-1]):g} and last_step_size is {size:g}, which leaves a gap: ts "
            f"must end at {1 - size:g}. "
            f"Use torch.linspace(0, {1 - size:g}, steps + 1), or last_step=None."
        )


def _rates(ts: Tensor, diffusion: str, path: Path, norm: float) -> list[float] | tuple[Tensor, ...]:
    """c at every time: numbers if `ts` is on the host. The last one is not used without a last
    step, so it may be infinite.
    """
    rates = diffusion_coefficient(ts.double() if on_host(ts) else ts, diffusion, path, norm)
    if not on_host(ts):
        return rates.unbind()
    if not rates[:-1].isfinite().all():
        raise ConfigError(
            f"diffusion {diffusion!r} is infinite at t = {ts[0]:g} on path {path.name!r}; start ts "
            "later, for example at 0.01."
        )
    return rates.tolist()


def _noises(
    x: Tensor, n: int, generator: torch.Generator | None, noise: Tensor | Sequence[Tensor] | None
) -> Iterator[Tensor]:
    """`n` standard normals like x: those given, checked at once, or fresh ones, drawn one by one
    where the generator is.
    """
    check_generator(generator)
    if noise is None:
        device = x.device if generator is None else generator.device
        return (
            torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(
                x.device, non_blocking=True
            )
            for _ in range(n)
        )
    check_tensor(
        **{"noise": noise}
        if not isinstance(noise, list | tuple)
        else {f"noise {i}": z for i, z in enumerate(noise)}
    )
    if isinstance(noise, Tensor) and not noise.dim():
        raise ConfigError("noise is one number; it must have an entry per step of ts.")
    shapes = {tuple(z.shape) for z in noise}
    if len(noise) != n or shapes != {tuple(x.shape)}:
        raise ConfigError(
            f"noise has {len(noise)} entries of shape {sorted(shapes)}; it must have {n}, one per "
            f"step of ts, of shape {tuple(x.shape)}."
        )
    if on_host(x) and not all(z.isfinite().all() for z in noise):
        raise ConfigError(
            "noise holds NaN or infinity; it must be standard normals, such as torch.randn(n, "
            "*x.shape)."
        )
    return (z.to(x) for z in noise)


EXACT_UP_TO = 16  # dimensions; beyond, the exact trace needs more passes than it is worth
Trace = Callable[[Tensor, Tensor], Tensor]  # (v, x) -> (B,)


def log_prob(
    velocity: Velocity,
    x1: Float[Tensor, "batch *dims"],
    ts: Float[Tensor, " times"] | None = None,
    step: Step = rk4,
    trace: str | None = None,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
    probes: Sequence[Tensor] | None = None,
    grad: bool = False,
) -> Float[Tensor, " batch"]:
    """log p(x1) (B,) in nats, for points `x1` (B, *dims) and a velocity whose noise is N(0, I).

    `ts` is the grid between 1 and 0 (default: 100 equal steps); a rising one is walked from its
    end. `trace` is "exact" (the default up to 16 dimensions) or "hutchinson", which draws
    `n_probes` fresh sign vectors from `generator` at every velocity call; `probes` gives them
    instead, one tensor (B, *dims) or (n_probes, B, *dims) per call. Rows must not depend on each
    other. `grad` keeps the graph, to differentiate the result; without it the grad mode outside
    does not matter. Raises ConfigError for a wrong argument and for a velocity that autograd cannot
    follow.
    """
    velocity, x1 = as_velocity(velocity), check_state(x1, "x1")
    check_flag(grad=grad)
    check_callable(step=step)
    check_generator(generator)
    if x1.dim() < 2:
        raise ConfigError(f"x1 has shape {tuple(x1.shape)}; it must be (B, *dims).")
    ts = torch.linspace(1, 0, 101, dtype=torch.float64) if ts is None else ts
    if (
        isinstance(ts, Tensor)
        and ts.is_floating_point()
        and ts.dim() == 1
        and len(ts)
        and on_host(ts)
        and ts[0] < ts[-1]
    ):
        ts = ts.flip(0)
    measure = _measure(x1, trace, n_probes, generator, probes, grad)
    z = torch.cat(
        [x1.flatten(1), x1.new_zeros(len(x1), 1)], 1
    )  # (B, D + 1): the point, and the integral so far
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        z = deque(
            trajectory(_augmented(velocity, measure, x1.shape), z.clone(), ts, step), maxlen=1
        ).pop()
    x0, integral = z[:, :-1], z[:, -1]
    return integral - 0.5 * (x0**2).sum(1) - 0.5 * x0.shape[1] * math.log(2 * math.pi)


def _augmented(velocity: Velocity, trace: Trace, shape: torch.Size) -> Velocity:
    """The velocity of (x, integral of div v), on a state (B, D + 1)."""

    def field(z: Tensor, t: Tensor) -> Tensor:
        x = z[:, :-1].reshape(shape)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = velocity(
                x, t.clone()
            )  # a clone, because a time made in inference mode cannot be saved for a backward pass
            check_same_shape(velocity=v, x=x)
            divergence = trace(v, x)
        return torch.cat([v.flatten(1), divergence[:, None]], 1)

    return field


def _measure(
    x: Tensor,
    trace: str | None,
    n_probes: int,
    generator: torch.Generator | None,
    probes: Sequence[Tensor] | None,
    grad: bool,
) -> Trace:
    """The function (v, x) -> (B,) that `trace` and its settings describe."""
    dims = x.shape[1:].numel()
    if trace is None:
        trace = "exact" if dims <= EXACT_UP_TO and probes is None else "hutchinson"
    check_choice("trace", trace, ("exact", "hutchinson"))
    n_probes = check_count("n_probes", n_probes)
    if trace == "exact":
        if probes is not None:
            raise ConfigError(
                "probes were given with trace = 'exact', which uses none; leave one of the two out."
            )
        axes = (
            torch.eye(dims, dtype=x.dtype, device=x.device)
            .reshape(dims, 1, *x.shape[1:])
            .expand(dims, *x.shape)
        )
        return lambda v, x: _forms(v, x, axes, grad)
    signs = _signs(x, n_probes, generator) if probes is None else _given(x, probes)

    def hutchinson(v: Tensor, x: Tensor) -> Tensor:
        drawn = next(signs)
        return _forms(v, x, drawn, grad) / len(drawn)

    return hutchinson


def _forms(v: Tensor, x: Tensor, vectors: Tensor, grad: bool) -> Tensor:
    """The sum of e . (dv/dx) e over the `vectors` e (K, B, *dims), per row (B,)."""
    if not v.requires_grad:
        raise ConfigError(
            "the velocity is not a function of x that autograd can follow; was it computed under "
            "torch.no_grad()?"
        )
    total = v.new_zeros(len(v))
    for e in vectors:
        (pulled,) = torch.autograd.grad(
            v, x, e, retain_graph=True, create_graph=grad, materialize_grads=True
        )
        total = total + (pulled * e).flatten(1).sum(1)
    return total


def _signs(x: Tensor, n: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    device = x.device if generator is None else generator.device
    while True:
        bits = torch.randint(0, 2, (n, *x.shape), generator=generator, device=device)
        yield (2 * bits - 1).to(x, non_blocking=True)


def _given(x: Tensor, probes: Sequence[Tensor]) -> Iterator[Tensor]:
    for probe in probes:
        if tuple(probe.shape[-x.dim() :]) != tuple(x.shape) or probe.dim() > x.dim() + 1:
            raise ConfigError(
                f"a probe has shape {tuple(probe.shape)}; it must be {tuple(x.shape)}, or "
                f"(n_probes, *{tuple(x.shape)})."
            )
        yield (probe if probe.dim() > x.dim() else probe[None]).to(x)
    raise ConfigError(
        f"only {len(probes)} probes were given; every call of the velocity uses one: steps times "
        "evaluations per step."
    )
