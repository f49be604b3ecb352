"""One step of an ODE solver, and the loop that takes it:  x <- x + integral of v(x, t) dt over one interval of a grid.

A `Step` is a function (velocity, x (B, *dims), t (B,), dt) -> x at t + dt; a negative dt runs backwards. The state keeps its
dtype: times are rounded to it once, and the step lengths are the exact differences of the rounded times.
Convention: t = 0 is noise, t = 1 is data.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cfm_lite.checks import check_floating, expand, on_host, promote
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.guidance import Velocity, as_velocity, restrict

__all__ = ["Grid", "Step", "check_state", "euler", "heun", "make_grid", "midpoint", "rk4", "trajectory"]

Step = Callable[[Velocity, Tensor, Tensor, Any], Tensor]


def euler(velocity: Velocity, x: Tensor, t: Tensor, dt: float | Tensor) -> Tensor:
    """Order 1, one evaluation. `t` is (B,), or one number for all rows; `dt` likewise."""
    return _move(x, velocity(x, _rows(t, x)), dt)


def midpoint(velocity: Velocity, x: Tensor, t: Tensor, dt: float | Tensor) -> Tensor:
    """Order 2, two evaluations: the slope at the middle of an Euler half step."""
    t = _rows(t, x)
    half = _move(x, velocity(x, t), dt / 2)
    return _move(x, velocity(half, t + dt / 2), dt)


def heun(velocity: Velocity, x: Tensor, t: Tensor, dt: float | Tensor) -> Tensor:
    """Order 2, two evaluations: the mean slope of the two ends, the far end reached by an Euler step (torchdiffeq's heun2)."""
    t = _rows(t, x)
    v = velocity(x, t)
    w = velocity(_move(x, v, dt), t + dt)
    return _move(_move(x, v, dt / 2), w, dt / 2)


def rk4(velocity: Velocity, x: Tensor, t: Tensor, dt: float | Tensor) -> Tensor:
    """Order 4, four evaluations: Kutta's 3/8 rule, at 0, 1/3, 2/3 and 1 of the step.

    It is the rk4 of torchdiffeq, and so of the official SiT; the classical rule (0, 1/2, 1/2, 1) has the same order and cost
    and a slightly larger error. Reference: Hairer, Nørsett & Wanner, Solving ODEs I, section II.1, table 1.2.
    """
    t = _rows(t, x)
    k1 = velocity(x, t)
    k2 = velocity(_move(x, k1, dt / 3), t + dt / 3)
    k3 = velocity(_move(x, k2 - k1 / 3, dt), t + 2 * dt / 3)
    k4 = velocity(_move(x, k1 - k2 + k3, dt), t + dt)
    return _move(x, k1 + 3 * (k2 + k3) + k4, dt / 8)


def trajectory(velocity: Velocity, x: Tensor, ts: Tensor, step: Step = heun) -> Iterator[Tensor]:
    """Yields the state at every time of `ts`, `x` (B, *dims) at ts[0] first; gradients flow where grad mode is on.

    `ts` (n + 1,) runs up (noise to data) or down (data to noise) inside [0, 1]; leave it on the host: the steps are then
    numbers, and guidance knows without a device read where its interval ends. Raises ConfigError for a grid or state that is
    not as said, and DivergenceError, naming step and t, as soon as a state on the host is not finite.
    """
    velocity, x = as_velocity(velocity), check_state(x)
    return _walk(velocity, x, make_grid(ts, x), step)


def _walk(velocity: Velocity, x: Tensor, grid: "Grid", step: Step) -> Iterator[Tensor]:
    watched = on_host(x)
    yield x
    for k, (t, dt) in enumerate(zip(grid.rows, grid.lengths)):
        field = restrict(velocity, *grid.bounds[k]) if grid.bounds else velocity
        x = step(field, x, t, dt)
        if watched:
            check_finite(x, k, grid)
        yield x


@dataclass(frozen=True)
class Grid:
    """The times of a walk: `rows`, n + 1 tensors (B,); `lengths`, n steps; `bounds`, (low, high) of each step if ts is on the host."""

    rows: tuple[Tensor, ...]
    lengths: list[float] | tuple[Tensor, ...]
    bounds: list[tuple[float, float]] | None


def make_grid(ts: Any, x: Tensor, *, ascending: bool = False) -> Grid:
    """`ts` (n + 1,) as a grid for the state `x`; ConfigError unless it is strictly monotone, inside [0, 1], n >= 1."""
    if not isinstance(ts, Tensor) or ts.dim() != 1 or len(ts) < 2 or not ts.is_floating_point():
        seen = f"shape {tuple(ts.shape)} and dtype {ts.dtype}" if isinstance(ts, Tensor) else f"type {type(ts).__name__}"
        raise ConfigError(f"ts has {seen}; it must be a floating tensor (n + 1,) of at least 2 times: torch.linspace(0, 1, steps + 1).")
    if on_host(ts):
        _check_times(ts.double(), ascending)
    ts = ts.to(x.dtype)
    rows = ts.to(x.device, non_blocking=True)[:, None].expand(-1, len(x)).unbind()  # one row of memory per time, not per sample
    if not on_host(ts):
        return Grid(rows, ts.diff().unbind(), None)
    times = ts.tolist()
    pairs = list(zip(times[:-1], times[1:]))
    return Grid(rows, [end - start for start, end in pairs], [(min(pair), max(pair)) for pair in pairs])


def check_state(x: Any) -> Tensor:
    """`x` (B, *dims) promoted from half precision; ConfigError unless it is floating and, on the host, finite."""
    if not isinstance(x, Tensor) or x.dim() < 1:
        seen = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ConfigError(f"x has {seen}; it must be a tensor (B, *dims).")
    check_floating(x=x)
    if on_host(x) and not x.isfinite().all():
        raise ConfigError("x has entries that are not finite; the walk must start from finite numbers.")
    return promote(x)


def check_finite(x: Tensor, k: int, grid: Grid) -> None:
    """DivergenceError unless `x`, on the host and after step `k` (from 0), is finite."""
    # the sum is finite unless an entry is not, or it overflows; it costs a fifth of isfinite().all()
    if not math.isfinite(x.sum().item()) and not x.isfinite().all():
        start, end = (f"{grid.rows[i][0].item():.4g}" for i in (k, k + 1))
        raise DivergenceError(
            f"the state is not finite after step {k + 1} of {len(grid.lengths)}, from t = {start} to t = {end}. "
            "Look at the velocity there: it may be infinite at the end of its path, or its model may have diverged."
        )


def _check_times(ts: Tensor, ascending: bool) -> None:
    steps = ts.diff()
    if not (ts.min() >= 0 and ts.max() <= 1):  # false for NaN too
        raise ConfigError(f"ts spans [{ts.min():.4g}, {ts.max():.4g}]; times lie in [0, 1], 0 noise and 1 data.")
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ConfigError("ts turns or stands still; it must rise, or fall, from each entry to the next.")
    if ascending and steps[0] < 0:
        raise ConfigError(f"ts falls from {ts[0]:.4g} to {ts[-1]:.4g}; here it must rise, from noise (0) to data (1).")


def _rows(t: Any, x: Tensor) -> Tensor:
    """`t` (B,) as it is; one number as (B,)."""
    return t if isinstance(t, Tensor) and t.dim() == 1 else x.new_full((len(x),), float(t))


def _move(x: Tensor, v: Tensor, dt: float | Tensor) -> Tensor:
    """x + dt v, in the dtype of x."""
    if v.shape != x.shape:
        raise ConfigError(f"the velocity has shape {tuple(v.shape)} for x {tuple(x.shape)}; both must be (B, *dims).")
    if v.dtype != x.dtype:
        v = v.to(x.dtype)
    if isinstance(dt, Tensor):
        return x + expand(dt.to(x.dtype), x) * v
    return torch.add(x, v, alpha=dt)
