"""Samplers carry noise to data, along dx = v(x, t) dt or with noise of any strength.

With noise of strength c(t) >= 0 the equation is dx = (v + c s) dt + sqrt(2 c) dW. Both have the
same marginals, because the score s of the path balances the noise.

A sampler sees a `Velocity` (guidance.py) and a grid of times. A `Step` is a function (velocity, x
(B, *dims), t (B,), dt) -> x at t + dt, and one loop takes it; a negative dt runs backwards.
`log_prob` runs from data to noise and adds up the divergence.

Convention: t = 0 is noise, t = 1 is data. Noise is an argument. The state keeps its dtype, and half
precision becomes float32. Times are rounded to it once, and the step lengths are the exact
differences of the rounded times. Reference: Ma et al. 2024 (SiT, arXiv:2401.08740), section 2 and
appendix A.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
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
    check_grid,
    check_interval,
    check_number,
    check_same_shape,
    check_state,
    check_tensor,
    check_unwritten,
    expand,
    is_finite,
    moved,
    on_host,
    versions,
    widest,
)
from cfm_lite._internal.lazy import optional
from cfm_lite._internal.networks import as_velocity_of
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.guidance import EVERYWHERE, Guided, Velocity, as_velocity
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

State = Float[Tensor, "batch *dims"]
Time = Float[Tensor, " batch"] | float  # one per row, or one number for all rows
Times = Float[Tensor, " times"]
Step = Callable[[Velocity, Tensor, Tensor, Any], Tensor]

CHECK_EVERY = 8  # steps; a look at each one would cost as much as the step itself for a toy model
GAP = 1e-4  # how far a grid may end from where it must
TABLE_UP_TO = 2**22  # times held at once, 16 MiB


def _unwritten(step: Step) -> Step:
    """`step` for times of any kind, with a ConfigError where the velocity writes into its x or t.

    x *= 2 inside a velocity would change the state in silence; torch counts such writes.
    """

    @wraps(step)
    def checked(velocity: Velocity, x: Tensor, t: Time, dt: float | Tensor) -> Tensor:
        times = _rows(t, x)
        before = versions(x, times)
        moved = step(as_velocity(velocity), x, times, dt)
        check_unwritten("the velocity", before, x, times)
        return moved

    return checked


def _asked(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """The velocity at `x` (B, *dims) and `t` (B,), which writes into neither, in the dtype of x."""
    before = versions(x, t)
    v = velocity(x, t)
    check_unwritten("the velocity", before, x, t)
    return _fitting(v, x)


@_unwritten
def euler(velocity: Velocity, x: State, t: Time, dt: float | Tensor) -> State:
    """A step of order 1 with one evaluation.

    Raises:
        ConfigError: a velocity of another shape than `x`, or one that writes into its x or t.

    >>> euler(lambda x, t: x, torch.ones(1), 0.0, 0.1)
    tensor([1.1000])
    """
    return _move(x, velocity(x, _rows(t, x)), dt)


@_unwritten
def midpoint(velocity: Velocity, x: State, t: Time, dt: float | Tensor) -> State:
    """A step of order 2 with two evaluations: the slope at the middle of an Euler half step.

    Raises:
        ConfigError: a velocity of another shape than `x`, or one that writes into its x or t.

    >>> midpoint(lambda x, t: x, torch.ones(1), 0.0, 0.1)  # e^0.1 is 1.10517
    tensor([1.1050])
    """
    t = _rows(t, x)
    half = _move(x, velocity(x, t), dt / 2)
    # the first slope only finds the middle; symmetry about it cancels the error of order dt^2
    return _move(x, velocity(half, t + dt / 2), dt)


@_unwritten
def heun(velocity: Velocity, x: State, t: Time, dt: float | Tensor) -> State:
    """A step of order 2 with two evaluations: the mean slope of both ends.

    The far end is reached by an Euler step. torchdiffeq calls it heun2.

    Raises:
        ConfigError: a velocity of another shape than `x`, or one that writes into its x or t.

    >>> heun(lambda x, t: x, torch.ones(1), 0.0, 0.1)
    tensor([1.1050])
    """
    t = _rows(t, x)
    v = velocity(x, t)
    w = velocity(_move(x, v, dt), t + dt)
    # two moves, so that no tensor holds the mean slope
    return _move(_move(x, v, dt / 2), w, dt / 2)


@_unwritten
def rk4(velocity: Velocity, x: State, t: Time, dt: float | Tensor) -> State:
    """A step of order 4 with four evaluations: Kutta's 3/8 rule, at 0, 1/3, 2/3 and 1 of the step.

    torchdiffeq, and so the official SiT, calls this rule rk4. The better known rule, at 0, 1/2, 1/2
    and 1, has the same order and cost. Reference: Kutta 1901; Hairer, Nørsett & Wanner, Solving
    Ordinary Differential Equations I, section II.1.

    Raises:
        ConfigError: a velocity of another shape than `x`, or one that writes into its x or t.

    >>> rk4(lambda x, t: x, torch.ones(1), 0.0, 0.1)
    tensor([1.1052])
    """
    t = _rows(t, x)
    # the times 0, 1/3, 2/3, 1 stand in `STAGES` too, which counts guided evaluations
    k1 = velocity(x, t)
    k2 = velocity(_move(x, k1, dt / 3), t + dt / 3)
    k3 = velocity(_move(x, k2 - k1 / 3, dt), t + 2 * dt / 3)
    k4 = velocity(_move(x, k1 - k2 + k3, dt), t + dt)
    return _move(x, k1 + 3 * (k2 + k3) + k4, dt / 8)


def _rows(t: Any, x: Tensor) -> Tensor:
    """`t` (B,) as it is; one number as (B,)."""
    return t if isinstance(t, Tensor) and t.dim() == 1 else x.new_full((len(x),), float(t))


def _move(x: Tensor, v: Tensor, dt: float | Tensor) -> Tensor:
    """x + dt v, in the dtype of x."""
    # compared here first, because this runs at every stage of every step
    if not isinstance(v, Tensor) or v.shape != x.shape or v.dtype != x.dtype:
        v = _fitting(v, x)
    if isinstance(dt, Tensor):
        return x + expand(dt.to(x.dtype), x) * v
    return torch.add(x, v, alpha=dt)  # one kernel instead of two


def _fitting(v: Tensor, x: Tensor) -> Tensor:
    """`v` in the dtype of `x`; ConfigError unless it has the shape of `x`."""
    as_velocity_of(v, x)
    return v if v.dtype == x.dtype else v.to(x.dtype)


def trajectory(velocity: Velocity, x: State, ts: Times, step: Step = heun) -> Iterator[State]:
    """Yield the state at every time of `ts`, first `x` at ts[0].

    Gradients flow where grad mode is on.

    Args:
        ts: (n + 1,) in [0, 1], rising (noise to data) or falling (data to noise). Leave it on the
            host: the steps are then numbers, and guidance knows where its interval ends without a
            device read.

    Raises:
        ConfigError: a grid or a state that is not as said, or a velocity that writes into its x or
            t.
        DivergenceError: a state on the host is not finite. The error comes at most eight steps
            later; it names the first step whose state is not finite.

    >>> list(trajectory(lambda x, t: x, torch.ones(1), torch.tensor([0.0, 0.5, 1.0]), euler))
    [tensor([1.]), tensor([1.5000]), tensor([2.2500])]
    """
    velocity, x = as_velocity(velocity), check_state(x)
    check_callable(step=step)
    # not a generator itself: its checks would wait until the first state is asked for
    return _walk(velocity, x, _grid(ts, x), step)


@torch.no_grad()
def sample(velocity: Velocity, x: State, ts: Times, step: Step = heun) -> State:
    """The state at ts[-1], from `x` at ts[0], without gradients.

    Arguments and errors are those of `trajectory`.

    >>> sample(lambda x, t: x, torch.ones(1), torch.linspace(0, 1, 26))  # e is 2.71828
    tensor([2.7176])
    """
    return deque(trajectory(velocity, x, ts, step), maxlen=1).pop()  # keeps the last state alone


def _walk(velocity: Velocity, x: Tensor, grid: "Grid", step: Step) -> Iterator[Tensor]:
    step = step if step in (euler, midpoint, heun, rk4) else _unwritten(step)
    watched, aware, last = on_host(x), isinstance(velocity, Guided), len(grid.lengths) - 1
    # the block that is not checked yet; its states are not kept: fresh memory would cost time
    start, first = x, 0
    yield x
    for k, (t, dt) in enumerate(zip(grid.rows(), grid.lengths)):
        # a guided velocity learns where its step lies: outside the interval it is one call
        x = step(grid.restrict(velocity, k) if aware else velocity, x, t, dt)
        if watched and (k == last or k - first + 1 == CHECK_EVERY):
            if not is_finite(x):
                _check_finite([*_again(velocity, start, grid, step, first, k), x], k, grid)
            start, first = x, k + 1
        yield x


def _again(
    velocity: Velocity, x: Tensor, grid: "Grid", step: Step, first: int, k: int
) -> Iterator[Tensor]:
    """The states after the steps from `first` to the one before `k`, computed once more.

    They show which step went wrong. If the velocity does not repeat itself, only the last step of
    the block can be named.
    """
    for i in range(first, k):
        x = step(grid.restrict(velocity, i), x, grid.table[i], grid.lengths[i])
        yield x


@dataclass(frozen=True, eq=False)
class Grid:
    """The times of a walk: `table` (n + 1, B), the n step `lengths`, and `times` as numbers.

    `times` is None where ts is on a device.
    """

    table: Tensor
    lengths: Sequence[float] | Sequence[Tensor]
    times: list[float] | None

    def rows(self) -> Iterator[Tensor]:
        """The times, (B,) each, in their order."""
        return chain.from_iterable(map(Tensor.unbind, self.table.split(256)))

    def restrict(self, velocity: Velocity, k: int) -> Velocity:
        """`velocity` for step `k`: a `Guided` is told where the step lies, if the host knows."""
        if self.times is None or not isinstance(velocity, Guided):
            return velocity
        # sorted, because a walk from data to noise has its later time first
        return velocity.restrict(*sorted(self.times[k : k + 2]))


def _grid(ts: Any, x: Tensor, *, ascending: bool = False) -> Grid:
    check_grid(ts, ascending=ascending)
    ts = ts.to(x.dtype)
    table = moved(ts, x.device)[:, None].expand(-1, len(x))
    if table.numel() <= TABLE_UP_TO:
        # torch.cat([x, t], 1) is faster with it; a longer table shares one number per row
        table = table.contiguous()
    if not on_host(ts):
        return Grid(table, ts.diff().unbind(), None)
    times = ts.tolist()
    return Grid(table, [end - start for start, end in pairwise(times)], times)


def _check_finite(states: Sequence[Tensor], k: int, grid: Grid) -> None:
    """DivergenceError for the first of `states` that is not finite.

    The last of them is the state after step `k`, counted from 0.
    """
    # a state that is not finite stays so in every later step, so the last one is enough
    if is_finite(states[-1]):
        return
    k += 1 - sum(not is_finite(x) for x in states)
    start, end = (grid.table[i].mean().item() for i in (k, k + 1))
    raise DivergenceError(
        f"the state is not finite after step {k + 1} of {len(grid.lengths)}, from t = {start:.4g} "
        f"to t = {end:.4g}. Look at the velocity there: it may be infinite at the end of its path, "
        "or its model may have diverged."
    )


# times of the evaluations in a step of length 1
STAGES = {
    "euler": (0.0,),
    "midpoint": (0.0, 1 / 2),
    "heun": (0.0, 1.0),
    "rk4": (0.0, 1 / 3, 2 / 3, 1.0),
}
# how often a step evaluates the network
EVALUATIONS = {**{solver: len(times) for solver, times in STAGES.items()}, "sde": 1}
SDE_END = 0.04  # the last step of the SDE, which has no noise, as in SiT's program


class Evaluations(NamedTuple):
    """What one sample costs: `nfe` evaluations of the velocity, and `rows` that the network sees.

    >>> Evaluations(nfe=50, rows=75).rows
    75
    """

    nfe: int
    rows: int


def evaluations(
    solver: str, steps: int, guidance: float = 1.0, interval: tuple[float, float] = EVERYWHERE
) -> Evaluations:
    """What one sample costs with `steps` even steps of a solver, or of "sde" with its last step.

    As in the papers, a guided evaluation counts once in `nfe`, and as two rows, one of them
    unconditional. So `rows` is `nfe`, plus the evaluations inside `interval` where `guidance` is
    not 1. `sample_adaptive` chooses its own steps: count the calls of the velocity there.

    Raises:
        ConfigError: an unknown solver, fewer than one step (two for "sde"), or a wrong guidance or
            interval.

    >>> evaluations("heun", 25, guidance=1.5, interval=(0.5, 1.0))
    Evaluations(nfe=50, rows=75)
    """
    check_choice("solver", solver, EVALUATIONS)
    check_count("steps", steps, low=2 if solver == "sde" else 1)
    scale = check_number("guidance", guidance, -math.inf, math.inf)
    # only to ask it where it acts: one place decides what lies inside an interval
    guided = Guided((), lambda t: t, check_interval(interval))
    times = evaluated_at(solver, steps)
    # the ends are inclusive: a stage that lies on one is guided, as in the walk
    twice = sum(map(guided.acts_at, times)) if scale != 1 else 0
    return Evaluations(len(times), len(times) + twice)


def evaluated_at(solver: str, steps: int) -> list[float]:
    """The times of the evaluations that `evaluations` counts."""
    if solver == "sde":
        # its last time starts the step without noise, which evaluates the network too
        return torch.linspace(0, 1 - SDE_END, steps, device="cpu", dtype=torch.float32).tolist()
    spans = pairwise(torch.linspace(0, 1, steps + 1, device="cpu", dtype=torch.float32).tolist())
    return [low + share * (high - low) for low, high in spans for share in STAGES[solver]]


@torch.no_grad()
def sample_adaptive(
    velocity: Velocity,
    x: State,
    t0: float = 0.0,
    t1: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> State:
    """The state at `t1`, from `x` at `t0`, by torchdiffeq's dopri5.

    Its steps keep the error near rtol |x| + atol, and one step length serves the whole batch. The
    last step ends at t1 itself, so the velocity is never asked outside [t0, t1].

    Raises:
        ConfigError: times outside [0, 1] or equal, tolerances not above 0, or torchdiffeq (extra
            `ode`) is not installed.
        DivergenceError: no step is short enough, or after 30,000 evaluations.

    Reference: Dormand & Prince 1980; Chen et al. 2018 (arXiv:1806.07366).

    >>> sample_adaptive(lambda x, t: x, torch.ones(1))
    tensor([2.7183])
    """
    velocity, x = as_velocity(velocity), check_state(x)
    t0, t1 = check_number("t0", t0, 0, 1), check_number("t1", t1, 0, 1)
    rtol = check_number("rtol", rtol, 0, 1, open_low=True)
    atol = check_number("atol", atol, 0, math.inf, open_low=True)
    if t0 == t1 or not x.numel():
        what = f"t0 and t1 are both {t0:g}" if t0 == t1 else f"x has shape {tuple(x.shape)}"
        raise ConfigError(f"{what}; there is nothing to integrate.")
    low, high = min(t0, t1), max(t0, t1)
    # dopri5 counts time in this dtype: in float32 short steps would be lost
    ends = torch.tensor([t0, t1], dtype=widest(x.device), device=x.device)
    stuck = _Stuck(t0, t1)

    def field(t: Tensor, x: Tensor) -> Tensor:
        stuck.check(float(t))
        # the first guess of a step may overshoot
        return _asked(velocity, x, t.to(x.dtype).clamp(low, high).expand(len(x)))

    # step_t makes a step end at t1; else dopri5 steps beyond it and interpolates back
    options = {"step_t": ends[1:], "dtype": ends.dtype}
    solve = optional("torchdiffeq", "ode").odeint
    try:
        end = solve(field, x, ends, method="dopri5", options=options, rtol=rtol, atol=atol)[-1]
    except AssertionError as error:
        # this is how torchdiffeq says that it is stuck; any other assertion is a bug
        if not str(error).startswith(("underflow in dt", "non-finite values", "max_num_steps")):
            raise
        raise stuck.error() from error
    # a bounded velocity is finite even where the state is not
    if on_host(end) and not end.isfinite().all():
        raise stuck.error()
    return end


CALLS = 30_000  # at most: 15 times what an exact velocity needs at rtol = 1e-13


class _Stuck:
    """Notices that dopri5 will never reach t1. It looks at the times that dopri5 asks for.

    dopri5's own assertions do not run under `python -O`. A step is six calls at as many times. If
    it becomes too short for floating-point numbers, they are one time and its two neighbours. A
    velocity that is not finite gives a step length, and so a time, that is not finite. A velocity
    that changes too fast, or is rounded too coarsely, asks for short steps without end.
    """

    def __init__(self, t0: float, t1: float) -> None:
        self.t0, self.t1 = t0, t1
        self.recent: deque[float] = deque(maxlen=18)
        self.left = CALLS

    def check(self, t: float) -> None:
        self.recent.append(t)
        self.left -= 1
        short = len(self.recent) == 18 and len(set(self.recent)) <= 3
        if not math.isfinite(t) or short or self.left < 0:
            raise self.error()

    def error(self) -> DivergenceError:
        return DivergenceError(
            f"dopri5 found no step between t = {self.t0:g} and t = {self.t1:g} that meets its "
            "tolerance. Look at the velocity: it may not be finite, or change too fast; loosen "
            "rtol and atol, or stop before the time where it is infinite."
        )


Form = Callable[[Path, Tensor, float], Tensor]
DIFFUSIONS: dict[str, Form] = {
    "constant": lambda path, t, norm: norm * torch.ones_like(t),
    # c = g^2 / 2, with g the noise of the diffusion that has the marginals of the path
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
    """The strength c(t) >= 0 of the noise; `DIFFUSIONS` lists the forms.

    "sbdm" is infinite at t = 0 on the linear and cosine paths.

    Raises:
        ConfigError: an unknown form, or a negative norm.

    Reference: SiT, table 2; the forms of its official program.

    >>> diffusion_coefficient(torch.tensor([0.0, 0.25]))
    tensor([1.0000, 0.7500])
    """
    check_choice("diffusion", diffusion, DIFFUSIONS)
    check_path(path)
    check_floating(t=t)
    return DIFFUSIONS[diffusion](path, t, check_number("norm", norm, 0, math.inf))


@torch.no_grad()
def sample_sde(
    velocity: Velocity,
    x: State,
    ts: Times,
    path: Path = LINEAR,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last_step: str | None = "mean",
    last_step_size: float = SDE_END,
    generator: torch.Generator | None = None,
    noise: Tensor | Sequence[Tensor] | None = None,
) -> State:
    """The state at t = 1, from noise `x` at ts[0], by Euler-Maruyama steps with noise.

    Args:
        ts: (n + 1,), rising to 1 - last_step_size. One step without noise follows.
        last_step: "mean" (x + h (v + c s)), "tweedie" (the data that v implies) or "euler" (x + h
            v). None leaves it out, and `ts` may end anywhere up to 1.
        noise: n standard normals (B, *dims), in place of a `generator`.

    Raises:
        ConfigError: a wrong argument, or "sbdm" where it is infinite.
        DivergenceError: as in `trajectory`.

    Reference: SiT, eq. 5 with w = 2 c; Tweedie: Efron 2011.

    >>> ts, noise = torch.linspace(0, 0.96, 25), torch.zeros(24, 1, 2)
    >>> sample_sde(lambda x, t: 0 * x, torch.zeros(1, 2), ts, noise=noise)
    tensor([[0., 0.]])
    """
    velocity, x = as_velocity(velocity), check_state(x)
    grid = _grid(ts, x, ascending=True)
    _check_last_step(ts, last_step, last_step_size)
    rates = _rates(ts, diffusion, path, norm)
    draws = _noises(x, len(grid.lengths), generator, noise)
    for k, (t, dt, c, z) in enumerate(zip(grid.rows(), grid.lengths, rates, draws)):
        v = _asked(grid.restrict(velocity, k), x, t)
        # the noise of a step is sqrt(2 c) dW, and dW has the variance dt
        x = x + dt * (v + c * path.score(x, v, t)) + (2 * c * dt) ** 0.5 * z
        if on_host(x):
            _check_finite([x], k, grid)
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
    v = _asked(velocity, x, t)
    if last_step == "tweedie":
        # E[x1 | x_t], the data that the velocity implies
        return path.endpoints(x, v, t)[1]
    # no noise: there is no step left that would remove it from the sample
    return x + h * (v if last_step == "euler" else v + c * path.score(x, v, t))


def _check_last_step(ts: Tensor, last_step: str | None, size: float) -> None:
    if last_step is None:
        if size != SDE_END:
            raise ConfigError(
                f"last_step_size is {size!r:.60} and last_step is None, so no such step is taken; "
                "leave last_step_size out, or choose a last_step."
            )
        return
    check_choice("last_step", last_step, LAST_STEPS)
    size = check_number("last_step_size", size, 0, 1, open_low=True, open_high=True)
    if on_host(ts) and abs(float(ts[-1]) - (1 - size)) > GAP:
        raise ConfigError(
            f"ts ends at {float(ts[-1]):g} and last_step_size is {size:g}, which leaves a gap: ts "
            f"must end at {1 - size:g}. Use torch.linspace(0, {1 - size:g}, steps + 1), or "
            "last_step=None."
        )


def _rates(ts: Tensor, diffusion: str, path: Path, norm: float) -> list[float] | tuple[Tensor, ...]:
    """c at every time, as numbers if `ts` is on the host; all but the last must be finite."""
    rates = diffusion_coefficient(ts.double() if on_host(ts) else ts, diffusion, path, norm)
    if not on_host(ts):
        return rates.unbind()
    # the last one is not used without a last step
    if not rates[:-1].isfinite().all():
        raise ConfigError(
            f"diffusion {diffusion!r} is infinite at t = {ts[0]:g} on path {path.name!r}; start ts "
            "later, for example at 0.01."
        )
    return rates.tolist()


def _noises(
    x: Tensor, n: int, generator: torch.Generator | None, noise: Tensor | Sequence[Tensor] | None
) -> Iterator[Tensor]:
    """`n` standard normals like x: those given, or fresh ones, drawn one by one."""
    check_generator(generator)
    if noise is not None:
        if generator is not None:
            raise ConfigError(
                "generator was given with noise, so nothing is drawn; leave one of the two out."
            )
        _check_noise(noise, n, x)
        return (z.to(x) for z in noise)
    device = x.device if generator is None else generator.device
    fresh = (
        torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype) for _ in range(n)
    )
    return (moved(z, x.device) for z in fresh)


def _check_tensors(name: str, given: Any) -> None:
    several = isinstance(given, list | tuple)
    check_tensor(**({f"{name} {i}": z for i, z in enumerate(given)} if several else {name: given}))


def _check_noise(noise: Any, n: int, x: Tensor) -> None:
    _check_tensors("noise", noise)
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


EXACT_UP_TO = 16  # dimensions; beyond, the exact trace needs more passes than it is worth
Trace = Callable[[Tensor, Tensor], Tensor]  # (v, x) -> (B,)


def log_prob(
    velocity: Velocity,
    x1: State,
    ts: Times | None = None,
    step: Step = rk4,
    trace: str | None = None,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
    probes: Sequence[Tensor] | None = None,
    grad: bool = False,
) -> Float[Tensor, " batch"]:
    """log p(x1) in nats, for a velocity whose noise is N(0, I).

    Rows must not depend on each other.

    Args:
        ts: the grid between 1 and 0, by default 100 equal steps. A rising one is reversed. For a
            velocity that is infinite at 1 it may stop at 0.99 or later.
        trace: "exact", the default up to 16 dimensions, or "hutchinson", which draws `n_probes`
            fresh sign vectors from `generator` at every velocity call. Nothing else reads
            these two.
        probes: instead of drawn signs, one tensor (B, *dims) or (n_probes, B, *dims) per call.
        grad: whether the result can be differentiated, whatever the grad mode outside.

    Raises:
        ConfigError: a wrong argument, or a velocity that autograd cannot follow.

    >>> log_prob(lambda x, t: 0 * x, torch.zeros(1, 2))  # -log(2 pi)
    tensor([-1.8379])
    """
    velocity, x1 = as_velocity(velocity), check_state(x1, "x1")
    check_flag(grad=grad)
    check_callable(step=step)
    check_generator(generator)
    if x1.dim() < 2:
        raise ConfigError(f"x1 has shape {tuple(x1.shape)}; it must be (B, *dims).")
    ts = torch.linspace(1, 0, 101, dtype=torch.float64, device="cpu") if ts is None else ts
    check_grid(ts)
    ts = ts.flip(0) if on_host(ts) and ts[0] < ts[-1] else ts
    if on_host(ts) and (ts[0] < 0.99 or ts[-1] > GAP):
        raise ConfigError(
            f"ts runs between {float(ts[0]):g} and {float(ts[-1]):g}; it must span 1 (the data) to "
            "0 (the noise), as torch.linspace(1, 0, 101) does. Only a velocity that is infinite at "
            "1 needs less, and then 0.99 to 0 at least."
        )
    # the divergence is a derivative: autograd must work also where the caller turned it off
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        measure = _measure(x1, trace, n_probes, generator, probes, grad)
        # (B, D + 1): the point, and the integral so far
        z = torch.cat([x1.flatten(1), x1.new_zeros(len(x1), 1)], 1)
        field = _augmented(velocity, measure, x1.shape)
        z = deque(trajectory(field, z.clone(), ts, step), maxlen=1).pop()
        # log p(x1) = log N(x0) - int_0^1 div v dt, and the walk from 1 to 0 has turned the sign
        x0, integral = z[:, :-1], z[:, -1]
        return integral - 0.5 * (x0**2).sum(1) - 0.5 * x0.shape[1] * math.log(2 * math.pi)


def _augmented(velocity: Velocity, trace: Trace, shape: torch.Size) -> Velocity:
    """The velocity of (x, integral of div v), on a state (B, D + 1)."""

    def field(z: Tensor, t: Tensor) -> Tensor:
        x = z[:, :-1].reshape(shape)
        with torch.enable_grad():
            # a leaf of this call: without `grad` no graph grows from step to step
            x = x if x.requires_grad else x.detach().requires_grad_()
            # a clone: a time made in inference mode cannot be saved for a backward pass
            v = velocity(x, t.clone())
            check_same_shape(velocity=v, x=x)
            if v.requires_grad:
                divergence = trace(v, x)
            else:
                _check_ignored(velocity, v, x, t)
                divergence = v.new_zeros(len(v))
        return torch.cat([v.flatten(1), divergence[:, None]], 1)

    return field


def _check_ignored(velocity: Velocity, v: Tensor, x: Tensor, t: Tensor) -> None:
    """ConfigError unless `v`, to which autograd knows no way from `x`, is the same elsewhere."""
    if v.is_meta or not torch.equal(v, velocity(1.7 * x.detach() + 0.3, t.clone())):
        raise ConfigError(
            "the velocity is not a function of x that autograd can follow; was it computed under "
            "torch.no_grad()?"
        )


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
    if probes is not None:
        _check_tensors("probes", probes)
    drawing = {"n_probes": n_probes != 1, "generator": generator is not None}
    drawn = next((name for name, given in drawing.items() if given), None)
    if trace == "exact":
        if probes is not None:
            raise ConfigError(
                "probes were given with trace = 'exact', which uses none; leave one of the two out."
            )
        if drawn:
            raise ConfigError(
                f"{drawn} was given with trace = 'exact' (the default up to {EXACT_UP_TO} "
                f"dimensions), which draws nothing; leave {drawn} out, or set trace='hutchinson'."
            )
        # tr J = sum_i e_i . J e_i over the axes e_i, which all rows share
        axes = torch.eye(dims, dtype=x.dtype, device=x.device)
        axes = axes.reshape(dims, 1, *x.shape[1:]).expand(dims, *x.shape)
        return lambda v, x: _forms(v, x, axes, grad)
    if probes is not None and drawn:
        raise ConfigError(
            f"{drawn} was given with probes, so nothing is drawn; leave one of the two out."
        )
    signs = _signs(x, n_probes, generator) if probes is None else _given(x, probes)

    def hutchinson(v: Tensor, x: Tensor) -> Tensor:  # E[e . J e] = tr J for random signs e
        # fresh at every call: errors of different steps then average out
        drawn = next(signs)
        return _forms(v, x, drawn, grad) / len(drawn)

    return hutchinson


def _forms(v: Tensor, x: Tensor, vectors: Tensor, grad: bool) -> Tensor:
    """The sum of e . (dv/dx) e over the `vectors` e (K, B, *dims), per row (B,)."""
    total = v.new_zeros(len(v))
    for e in vectors:
        # materialised, because a velocity that ignores x has the derivative 0, not None
        (pulled,) = torch.autograd.grad(
            v, x, e, retain_graph=True, create_graph=grad, materialize_grads=True
        )
        total = total + (pulled * e).flatten(1).sum(1)
    return total


def _signs(x: Tensor, n: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    device = x.device if generator is None else generator.device
    while True:
        # signs: no other independent probes give the trace with less variance
        bits = torch.randint(0, 2, (n, *x.shape), generator=generator, device=device)
        yield moved((2 * bits - 1).to(x.dtype), x.device)


def _given(x: Tensor, probes: Sequence[Tensor]) -> Iterator[Tensor]:
    for probe in probes:
        if tuple(probe.shape[-x.dim() :]) != tuple(x.shape) or probe.dim() > x.dim() + 1:
            raise ConfigError(
                f"a probe has shape {tuple(probe.shape)}; it must be {tuple(x.shape)}, or "
                f"(n_probes, *{tuple(x.shape)})."
            )
        yield (probe if probe.dim() > x.dim() else probe[None]).to(x)
    raise ConfigError(
        f"only {len(probes)} probes were given, and each call of the velocity uses one; give steps "
        "* evaluations per step."
    )
