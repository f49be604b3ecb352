"""From noise to data, seen at several times: x_t = alpha(t) x1 + sigma(t) x0, its distribution
p_t, and the velocities that meet in one place.

Convention: t = 0 is noise (grey), t = 1 is data (blue), and a point of x_t takes the colour of its
mixture. What is exact is black.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from torch import Tensor

from cfm_lite._internal.checks import check_count, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.paths import Path
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Limits
from cfm_lite.viz.style import (
    ATTRACT,
    DATA,
    DATA_OTHER,
    NOISE,
    TRUTH,
    Picture,
    as_array,
    as_tensor,
    frame,
    named,
    panels,
    styled,
)

__all__ = ["conditional_velocities", "path_coefficients", "snapshots", "spacetime"]

TimedDensity = Callable[[Tensor, float], Tensor]  # (x (B, D), t) -> log density (B,)
SHADE = LinearSegmentedColormap.from_list("cfm_shade", ["#ffffff", "#cfe3f1", "#8fc1e0", "#4a98c9"])
_SHOWN = 500  # points of a snapshot
_STEEPEST = 5.0  # where derivatives are cut off


def time_color(t: float) -> str:
    """The colour of x_t: noise's grey at t = 0, data's blue at t = 1, their mixture between."""
    start, end = (np.array(to_rgb(color)) for color in (NOISE, DATA))
    return to_hex(tuple(((1 - t) * start + t * end).tolist()))


def _moment(t: float) -> str:
    return f"$t$ = {t:g}" + {0.0: ": noise", 1.0: ": data"}.get(t, "")


@styled
def path_coefficients(paths: Sequence[Path]) -> Picture:
    """A column per path of [0, 1]: above, the shares alpha of data and sigma of noise; below, their
    derivatives with respect to t.

    Derivatives are cut off at plus and minus 5. Raises ConfigError where `paths` holds anything but
    Paths.
    """
    if not paths or not all(isinstance(path, Path) for path in paths):
        raise ConfigError(f"paths is {paths!r}; pass a list of Paths, such as [LINEAR, COSINE].")
    figure, axes = panels(
        2, len(paths), width=0.9 + 2.9 * len(paths), height=4.9, sharex=True, sharey="row"
    )
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    for column, path in zip(axes.T, paths):
        lines = (
            (column[0], path.alpha, DATA, "-", r"$\alpha$: share of data $x_1$"),
            (column[0], path.sigma, NOISE, "--", r"$\sigma$: share of noise $x_0$"),
            (column[1], path.d_alpha, DATA, "-", None),
            (column[1], path.d_sigma, NOISE, "--", None),
        )
        for panel, value, color, line, label in lines:
            panel.plot(
                t,
                value(t).clamp(-10 * _STEEPEST, 10 * _STEEPEST),
                color=color,
                linestyle=line,
                linewidth=2.2,
                label=label,
            )
        column[0].set_title(path.name, loc="left")
        column[1].set(
            xlabel="time $t$  (0 noise, 1 data)", ylim=(-_STEEPEST, _STEEPEST), xlim=(0, 1)
        )
        column[1].axhline(0, color="#4d4d4d", linewidth=0.8)
    axes[0, 0].set_ylabel("share")
    axes[1, 0].set_ylabel(r"derivatives $\dot\alpha$, $\dot\sigma$, per unit of $t$")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


@styled
def snapshots(
    states: Any,
    ts: Any,
    *,
    at: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    density: TimedDensity | None = None,
    followed: int = 8,
) -> Picture:
    """The points `states` (S, B, 2), known at times `ts` (S,), in a panel for each time of `at`,
    with the first `followed` paths traced.

    `density(x, t)`, an exact log density, is drawn as contours. At most 500 points are drawn.
    Raises ConfigError for NaN, for shapes that do not fit, and for a time of `at` at which no state
    is known.
    """
    states, ts = as_array("states", states, None, None, 2), as_array("ts", ts, None)
    if len(ts) != len(states):
        raise ConfigError(
            f"ts has {len(ts)} times for {len(states)} states; each state needs its time."
        )
    moments = as_array("at", at, None).tolist()
    found = [int(np.abs(ts - t).argmin()) for t in moments]
    missing = [t for t, k in zip(moments, found) if abs(ts[k] - t) > 1e-6]
    if missing:
        raise ConfigError(
            f"at holds {missing}, and no state is known there; choose among ts, from {ts[0]:g} to "
            f"{ts[-1]:g}."
        )
    followed = check_count("followed", followed, 0)
    limits = artists.square_limits(states[found][:, :_SHOWN], margin=0.0)
    side = min(2.6, (10.2 - 0.85) / len(moments) - 0.18)
    figure, axes = artists.squares(
        1, len(moments), limits, side=side, gap=0.18, bottom=0.9 if density else 0.55
    )
    for panel, t, k in zip(axes[0], moments, found):
        panel.set_title(_moment(t), loc="left", pad=6)
        artists.points(panel, states[k, :_SHOWN], color=time_color(t), size=6, alpha=0.6)
        if k and followed:
            artists.paths(panel, states[: k + 1, :followed], ts[: k + 1], zorder=3.2)
        if followed:
            artists.points(
                panel,
                states[k, :followed],
                color=time_color(t),
                size=24,
                rim=0.6,
                zorder=4,
            )
        if density:
            artists.contours(
                panel, artists.density_map(lambda x, t=t: density(x, t), limits), limits
            )
    if density:
        artists.bottom_legend(figure, artists.CONTOURS, ncols=1)
    return figure


@styled
def conditional_velocities(
    x0: Any,
    x1: Any,
    u: Any,
    place: Any,
    t: float,
    *,
    exact: Any = None,
    data: Any = None,
    limits: Limits | None = None,
) -> Picture:
    """Draws `x0`, `x1` (B, 2) that pass near `place` (2,) at time `t`, beside their velocities `u`
    (B, 2) and the mean of these.

    The `exact` mean (2,) is marked by a ring; `data` (N, 2) is drawn behind. Raises ConfigError for
    NaN, for shapes that do not fit and for a time outside [0, 1].
    """
    x0 = as_array("x0", x0, None, 2)
    x1, u = as_array("x1", x1, len(x0), 2), as_array("u", u, len(x0), 2)
    place = as_array("place", place, 2)
    check_number("t", t, 0, 1)
    limits = limits or artists.square_limits(x0, x1)
    figure, (row,) = artists.squares(1, 2, limits, side=3.5, gap=0.95, right=2.2, top=0.5)
    _draw_passing(row[0], x0, x1, place, data)
    row[0].set_title(f"{len(x0)} draws that pass here at $t$ = {t:g}", loc="left", pad=6)
    reach = artists.square_limits(u, [[0.0, 0.0]], margin=0.04)
    artists.plane(row[1], reach)
    artists.name_axes(row[1], "velocity along {}, per unit of $t$")
    row[1].set_title("their velocities", loc="left", pad=6)
    row[1].axhline(0, color="#d0d0d0", linewidth=0.8, zorder=0)
    row[1].axvline(0, color="#d0d0d0", linewidth=0.8, zorder=0)
    artists.points(row[1], u, color=DATA, size=11, alpha=0.45)
    mean = u.mean(0)
    for panel, start in ((row[0], place), (row[1], np.zeros(2))):
        artists.arrows(
            panel, start[None], mean[None], color=ATTRACT, scale=1.0, width=0.014, zorder=5
        )
    entries = {
        "noise $x_0$": artists.legend_entry(NOISE),
        "data $x_1$": artists.legend_entry(DATA),
        "the place $x_t$": artists.legend_entry(TRUTH, "s", markersize=7),
        "velocities $u_t$ of\nthe draws": artists.legend_entry(DATA, alpha=0.5),
        "their mean": artists.legend_entry(ATTRACT, ">", markersize=8),
    }
    if exact is not None:
        ring = {
            "markeredgecolor": TRUTH,
            "markerfacecolor": "none",
            "markersize": 13,
            "markeredgewidth": 1.8,
        }
        row[1].plot(*as_array("exact", exact, 2), "o", zorder=6, **ring)
        entries["the exact marginal\nvelocity"] = artists.legend_entry(TRUTH, "o", **ring)
    artists.side_legend(row[1], entries)
    return figure


def _draw_passing(
    panel: Axes, x0: np.ndarray, x1: np.ndarray, place: np.ndarray, data: Any
) -> None:
    if data is not None:
        artists.points(panel, data, color=DATA_OTHER, size=4, alpha=0.5, zorder=1)
    lines = LineCollection(
        list(np.stack([x0, x1], axis=1)), colors="#8a8a8a", linewidths=0.6, alpha=0.35, zorder=1.5
    )
    panel.add_collection(lines, autolim=False)
    artists.points(panel, x0, color=NOISE, size=12, zorder=2)
    artists.points(panel, x1, color=DATA, size=12, zorder=2)
    panel.plot(*place, "s", color=TRUTH, markersize=7, zorder=5.5)


@styled
def spacetime(
    bundles: Mapping[str, Any], ts: Any, *, density: TimedDensity | None = None, shown: int = 40
) -> Picture:
    """Paths on a line against time: `bundles[name]` (S, B) at times `ts` (S,), a panel each, over
    the exact `density` as a shade.

    Where two paths meet, they are in one place at one time. The shade is scaled to its maximum at
    every time. At most `shown` paths are drawn. Raises ConfigError for NaN, for shapes that do not
    fit and for an empty mapping.
    """
    ts = as_array("ts", ts, None)
    shown = check_count("shown", shown)
    states = {
        name: as_array(f"bundles[{name!r}]", x, len(ts), None)[:, :shown]
        for name, x in named("bundles", bundles, "{'exact paths': states}").items()
    }
    everything = np.concatenate([x.ravel() for x in states.values()])
    pad = 0.06 * (everything.max() - everything.min())
    low, high = everything.min() - pad, everything.max() + pad
    figure, axes = panels(1, len(states), width=0.9 + 4.5 * len(states), height=3.7, sharey=True)
    shade = (
        None
        if density is None
        else _timed_shade(density, (float(ts[0]), float(ts[-1])), (low, high))
    )
    for panel, (name, x) in zip(axes[0], states.items()):
        if shade is not None:
            panel.imshow(
                shade,
                extent=(ts[0], ts[-1], low, high),
                origin="lower",
                aspect="auto",
                cmap=SHADE,
                vmin=0,
                vmax=1,
                zorder=0,
            )
        panel.plot(ts, x, color=TRUTH, linewidth=0.9, alpha=0.6, zorder=2)
        dot = {"markersize": 4.5, "clip_on": False, "zorder": 3}
        for k, color in ((0, NOISE), (-1, DATA)):
            panel.plot(np.full(x.shape[1], ts[k]), x[k], "o", color=color, **dot)
        panel.set(xlabel="time $t$  (0 noise, 1 data)", xlim=(ts[0], ts[-1]), ylim=(low, high))
        panel.set_title(name[:1].upper() + name[1:], loc="left")
        frame(panel)
    axes[0, 0].set_ylabel("$x$")
    entries = {"noise": artists.legend_entry(NOISE), "data": artists.legend_entry(DATA)}
    entries |= (
        {"exact density at $t$": artists.legend_entry("#8fc1e0", "s", markersize=8)}
        if density
        else {}
    )
    artists.legend(figure, entries, "outside lower left", ncols=3)
    return figure


@torch.no_grad()
def _timed_shade(
    density: TimedDensity, times: tuple[float, float], limits: tuple[float, float]
) -> np.ndarray:
    """The density (n, n) at n places and n times, rows from the bottom, each column over its
    maximum.
    """
    n = 161
    x = as_tensor(np.linspace(*limits, n)[:, None])
    columns = [as_array("log density", density(x, float(t)), n) for t in np.linspace(*times, n)]
    return np.stack([np.exp(column - column.max()) for column in columns], axis=1)
