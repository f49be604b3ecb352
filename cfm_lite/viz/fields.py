"""Figures of velocity fields on a plane: where to go, where not to go, and what comes of the two.

On a Gaussian mixture every field here is exact:  v* = (v - weight E[u_neg]) / (1 - weight),  so `fields_figure` needs no training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from cfm_lite import samplers, theory
from cfm_lite.checks import check_count, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.paths import LINEAR, Path
from cfm_lite.viz.plane import (
    Density,
    Limits,
    Velocity,
    arrow_key,
    arrow_scale,
    arrows,
    contours,
    evaluate,
    grid_points,
    paths,
    plane,
    points,
    square_limits,
)
from cfm_lite.viz.style import ATTRACT, DATA, DIVERGING, METHOD_LABELS, MODEL, NOISE, REPEL, TRUTH, as_array, method_style, panels, styled, Picture

__all__ = ["fields_figure"]

OTHER_DATA = "#a9cde3"  # data of the classes that were not asked for: the data blue, paler
_METHODS = ("fm", "delta_fm", "vecor")


@dataclass(frozen=True)
class _Scene:
    """All that fields_figure draws, computed once: arrays of points and velocities."""

    data: np.ndarray  # (N, 2)
    mine: np.ndarray  # (N,) bool: of the class that was asked for
    mean: np.ndarray  # (2,)
    grid: np.ndarray  # (n * n, 2)
    fields: dict[str, np.ndarray]  # attract, repel, result: (n * n, 2)
    states: dict[str, np.ndarray]  # method -> (S, B, 2)
    density: Density
    limits: Limits


def _integrate(mixture, y, x0, ts, *, method, weight, path):
    def velocity(x, t):
        return theory.optimal_velocity(mixture, x, t, y.expand(len(x)), method=method, weight=weight, path=path)
    return torch.stack(list(samplers.trajectory(velocity, x0, ts))).numpy()


@torch.no_grad()
def _solve(mixture, t, weight, label, n, count, steps, seed, path):
    generator = torch.Generator().manual_seed(seed)
    data, labels = mixture.sample(1500, generator=generator)
    x0 = torch.randn(count, 2, generator=generator).to(data.dtype)
    y = torch.tensor([label])
    ts = torch.linspace(0, 1, steps + 1, dtype=data.dtype)
    states = {m: _integrate(mixture, y, x0, ts, method=m, weight=weight, path=path) for m in _METHODS}
    limits = square_limits(data, *[s[[0,-1], :60] for s in states.values()], margin=0.02)
    grid = grid_points(limits, n)
    def at(function, **kw):
        x = torch.as_tensor(grid, dtype=data.dtype)
        return function(mixture, x, torch.full((len(x),), t, dtype=data.dtype), y.expand(len(x)), path=path, **kw).numpy()
    fields = {"attract": at(theory.optimal_velocity, method="fm"), "repel": at(theory.mean_negative, method="delta_fm"),
              "result": at(theory.optimal_velocity, method="delta_fm", weight=weight)}
    density = lambda x: mixture.log_prob(x.to(data.dtype), torch.ones(len(x), dtype=data.dtype), y.expand(len(x)))
    return _Scene(data.numpy(), (labels == label).numpy(), data.mean(0).numpy(), grid, fields, states, density, limits)


@styled
def fields_figure(mixture, *, t=0.55, weight=0.35, label=0, n=17, count=512, shown=60, steps=64, seed=0, path=LINEAR):
    s = _solve(mixture, t, weight, label, n, count, steps, seed, path)
    figure, axes = panels(2, 3, width=12, height=8, sharex=True, sharey=True)
    x = torch.as_tensor(s.grid, dtype=torch.float32)
    lp = mixture.log_prob(x, torch.full((len(x),), t), torch.full((len(x),), label)).numpy()
    from cfm_lite.viz.plane import mass_levels
    keep = lp >= mass_levels(lp, [0.997])[0]
    import dataclasses
    s = dataclasses.replace(s, grid=s.grid[keep], fields={k: v[keep] for k, v in s.fields.items()})
    scale = arrow_scale(s.fields.values(), s.limits, n, 2.2)
    titles = [("attract", ATTRACT, "Where to go: FM's velocity $v$"), ("repel", REPEL, "Where not to go: the mean negative $u_-$"),
              ("result", MODEL, f"Result: ΔFM's  $(v - \\lambda u_-)/(1-\\lambda)$")]
    for ax, (k, c, title) in zip(axes[0], titles):
        plane(ax, s.limits, title, c)
        points(ax, s.data[~s.mine], color=OTHER_DATA, size=5, zorder=1)
        points(ax, s.data[s.mine], color=DATA, size=5, alpha=.5, zorder=1)
        if k == "result":
            arrows(ax, s.grid, s.fields["attract"], color="#8fd3bf", scale=scale)
        q = arrows(ax, s.grid, s.fields[k], color=c, scale=scale)
        contours(ax, s.density, s.limits)
        ax.plot(*s.mean, "X", color=REPEL, markeredgecolor="w", ms=11, zorder=5)
    arrow_key(axes[0,2], q)
    for ax, m in zip(axes[1], _METHODS):
        st = s.states[m]
        look = method_style(m)
        cs_density = None
        plane(ax, s.limits, "", look.color)
        points(ax, s.data[~s.mine], color=OTHER_DATA, size=5, zorder=1)
        points(ax, s.data[s.mine], color=DATA, size=5, alpha=.5, zorder=1)
        lines = paths(ax, st[:, :shown], np.linspace(0,1,len(st)))
        points(ax, st[-1,:shown], color=look.color, size=26, edgecolors="w", linewidths=.6, zorder=4)
        cs = contours(ax, s.density, s.limits)
        inside = (s.density(torch.as_tensor(st[-1])).numpy() >= cs.levels[0]).mean()
        ax.set_title(f"{look.label}: {inside:.0%} land on the data", color=look.color, loc="left", weight="bold")
        ax.plot(*s.mean, "X", color=REPEL, markeredgecolor="w", ms=11, zorder=5)
    for ax in axes.flat: ax.label_outer()
    figure.colorbar(lines, ax=axes[1,:], label="time $t$: 0 noise, 1 data")
    return figure
