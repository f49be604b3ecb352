"""One step of an ODE solver, and the loop that takes it:  x <- x + integral of v(x, t) dt over one interval of a grid.

A `Step` is a function (velocity, x (B, *dims), t (B,), dt) -> x at t + dt; a negative dt runs backwards. The state keeps its
dtype: times are rounded to it once, and the step lengths are the exact differences of the rounded times.
Convention: t = 0 is noise, t = 1 is data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from cfm_lite.checks import check_callable, check_floating, check_tensor, expand, on_host, promote
from cfm_lite.errors import ConfigError, DivergenceError
from cfm_lite.guidance import Guided, Velocity, as_velocity
from cfm_lite.networks import as_velocity_of

__all__ = ["Grid", "Step", "check_finite", "check_state", "euler", "fitting", "heun", "make_grid", "midpoint", "rk4", "trajectory"]

Step = Callable[[Velocity, Tensor, Tensor, Any], Tensor]

CHECK_EVERY = 8  # steps; a look at each one would cost as much as the step itself for a toy model
TABLE_UP_TO = 2**22  # times held at once, 16 MiB


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

    It is what torchdiffeq, and so the official SiT, calls rk4. The better known rule, at 0, 1/2, 1/2 and 1, has the same order
    and cost. Reference: Kutta 1901; Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, section II.1.
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
    not as said, and DivergenceError, within eight steps, that names the first step whose state on the host is not finite.
    """
    velocity, x = as_velocity(velocity), check_state(x)
    check_callable(step=step)
    return _walk(velocity, x, make_grid(ts, x), step)


def _walk(velocity: Velocity, x: Tensor, grid: "Grid", step: Step) -> Iterator[Tensor]:
    watched, aware, last = on_host(x), isinstance(velocity, Guided), len(grid.lengths) - 1
    start, first = x, 0  # of the block that is not checked yet; the states between are not kept: fresh memory would cost time
    yield x
    for k, (t, dt) in enumerate(zip(grid.rows(), grid.lengths)):
        x = step(grid.restrict(velocity, k) if aware else velocity, x, t, dt)
        if watched and (k == last or k - first + 1 == CHECK_EVERY):
            if not _is_finite(x):
                check_finite([*_again(velocity, start, grid, step, first, k), x], k, grid)
            start, first = x, k + 1
        yield x


def _again(velocity: Velocity, x: Tensor, grid: "Grid", step: Step, first: int, k: int) -> Iterator[Tensor]:
    """The states after the steps from `first` to the one before `k`, walked once more to find which of them went wrong.

    A velocity is a function of (x, t); of one that does not repeat itself only the last step of the block is named.
    """
    for i in range(first, k):
        x = step(grid.restrict(velocity, i), x, grid.table[i], grid.lengths[i])
        yield x


@dataclass(frozen=True, eq=False)
class Grid:
    """The times of a walk: `table` (n + 1, B); `lengths`, the n steps; `times`, numbers, if ts is on the host."""

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


def make_grid(ts: Any, x: Tensor, *, ascending: bool = False) -> Grid:
    """`ts` (n + 1,) as a grid for the state `x`; ConfigError unless it is strictly monotone, inside [0, 1], n >= 1."""
    if not isinstance(ts, Tensor) or ts.dim() != 1 or len(ts) < 2 or not ts.is_floating_point():
        seen = f"shape {tuple(ts.shape)} and dtype {ts.dtype}" if isinstance(ts, Tensor) else f"type {type(ts).__name__}"
        raise ConfigError(f"ts has {seen}; it must be a floating tensor (n + 1,) of at least 2 times: torch.linspace(0, 1, steps + 1).")
    check_tensor(ts=ts, x=x)
    if not x.dim():
        raise ConfigError("x is one number; it must be a tensor (B, *dims).")
    if on_host(ts):
        _check_times(ts.tolist(), ascending)
    ts = ts.to(x.dtype)
    table = ts.to(x.device, non_blocking=True)[:, None].expand(-1, len(x))
    if table.numel() <= TABLE_UP_TO:
        table = table.contiguous()  # torch.cat([x, t], 1) is faster with it; a longer table shares one number per row
    if not on_host(ts):
        return Grid(table, ts.diff().unbind(), None)
    times = ts.tolist()
    return Grid(table, [end - start for start, end in pairwise(times)], times)


def check_state(x: Any, name: str = "x") -> Tensor:
    """`x` (B, *dims) promoted from half precision; ConfigError unless it is floating and, on the host, finite."""
    if not isinstance(x, Tensor) or x.dim() < 1:
        seen = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ConfigError(f"{name} has {seen}; it must be a tensor (B, *dims).")
    check_floating(**{name: x})
    if on_host(x) and not _is_finite(x):
        raise ConfigError(f"{name} has entries that are not finite; the walk must start from finite numbers.")
    return promote(x)


def check_finite(states: Sequence[Tensor], k: int, grid: Grid) -> None:
    """DivergenceError for the first of `states` that is not finite; the last is the one after step `k`, counted from 0."""
    if _is_finite(states[-1]):  # not finite once is not finite ever after, so the last one answers for all
        return
    k += 1 - sum(not _is_finite(x) for x in states)
    start, end = (grid.table[i].mean().item() for i in (k, k + 1))
    raise DivergenceError(
        f"the state is not finite after step {k + 1} of {len(grid.lengths)}, from t = {start:.4g} to t = {end:.4g}. "
        "Look at the velocity there: it may be infinite at the end of its path, or its model may have diverged."
    )


def _check_times(ts: list[float], ascending: bool) -> None:
    if not all(0 <= t <= 1 for t in ts):  # false for NaN too
        raise ConfigError(f"ts spans [{min(ts):.4g}, {max(ts):.4g}]; times lie in [0, 1], 0 noise and 1 data.")
    rises = ts[0] < ts[-1]
    if not all((a < b) is rises and a != b for a, b in pairwise(ts)):
        raise ConfigError("ts turns or stands still; it must rise, or fall, from each entry to the next.")
    if ascending and not rises:
        raise ConfigError(f"ts falls from {ts[0]:.4g} to {ts[-1]:.4g}; here it must rise, from noise (0) to data (1).")


def _is_finite(x: Tensor) -> bool:
    # the sum is finite unless an entry is not, or it overflows; it costs a fifth of the full answer
    return math.isfinite(x.sum().item()) or bool(x.isfinite().all())


def _rows(t: Any, x: Tensor) -> Tensor:
    """`t` (B,) as it is; one number as (B,)."""
    return t if isinstance(t, Tensor) and t.dim() == 1 else x.new_full((len(x),), float(t))


def fitting(v: Tensor, x: Tensor) -> Tensor:
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
