"""Figures of one plane per method: velocity fields, paths, samples, and where a field is wrong.

Each takes a mapping name -> what to draw, and puts FM first and the truth last, in squares that
share limits, arrow scale and colour scale, so that two panels can be compared by eye. Names of
methods ("fm", "vecor", "truth", ...) choose the colours.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cfm_lite._internal.checks import check_count
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Density, Limits, Velocity
from cfm_lite.viz.style import (
    DATA,
    DIVERGING,
    NOISE,
    Picture,
    as_array,
    as_tensor,
    method_color,
    method_title,
    named,
    styled,
    text_width,
)

__all__ = ["field_error", "point_samples", "trajectories", "velocity_fields"]


def _ordered(panels_by_name: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The same mapping with FM first and the truth last."""
    rank = {"fm": 0, "real": 2, "truth": 2}
    items = named(what, panels_by_name, "{'fm': ...}").items()
    return dict(sorted(items, key=lambda item: rank.get(item[0], 1)))


def _row(
    names: Sequence[str], limits: Limits, heading: str, right: float, entries: Mapping[str, Any]
) -> tuple[Picture, list[Axes]]:
    """A titled square for each name, up to three to a row, `right` inches of room beside them and a
    legend of `entries` below.
    """
    columns = _columns(len(names))
    rows = math.ceil(len(names) / columns)
    lines = len(entries) if columns == 1 else min(len(entries), 1)
    heading = textwrap.fill(heading, 30) if columns == 1 else heading
    if columns == 1 and entries:  # the legend below must fit
        right = max(right, text_width(entries, 9.5) - 1.9)
    top = 0.4 + 0.35 * bool(heading) + 0.25 * heading.count("\n")
    figure, axes = artists.squares(
        rows, columns, limits, right=right, top=top, bottom=0.6 + 0.25 * lines
    )
    left = axes[0, 0].get_position().x0
    figure.suptitle(heading, x=left, y=1 - 0.12 / figure.get_figheight(), ha="left")
    artists.bottom_legend(figure, entries, ncols=1 if columns == 1 else len(entries))
    for i, panel in enumerate(axes.flat):
        if i < len(names):
            artists.plane(
                panel,
                limits,
                method_title(names[i]),
                outer=(i % columns == 0, i + columns >= len(names)),
            )
        else:
            panel.remove()
    return figure, list(axes.flat)[: len(names)]


def _columns(count: int) -> int:
    return 2 if count == 4 else min(count, 3)


def _corner(axes: Sequence[Axes]) -> Axes:
    """The last panel of the first row: what stands at its right is free."""
    return axes[_columns(len(axes)) - 1]


def _backdrop(axes: Sequence[Axes], limits: Limits, data: Any, density: Density | None) -> None:
    """The data and the exact density, behind and around what the panels are about."""
    log_density = None if density is None else artists.density_map(density, limits)
    for panel in axes:
        if data is not None:
            artists.points(panel, data, color=DATA, size=5, alpha=0.4, zorder=1)
        if log_density is not None:
            artists.contours(panel, log_density, limits)


def _backdrop_entries(data: Any, density: Density | None) -> dict[str, Any]:
    entries = {} if data is None else {"data": artists.legend_entry(DATA)}
    return entries | ({} if density is None else artists.CONTOURS)


@styled
def velocity_fields(
    fields: Mapping[str, Velocity],
    t: float,
    limits: Limits,
    *,
    n: int = 17,
    data: Any = None,
    density: Density | None = None,
) -> Picture:
    """Arrows of several velocities at time `t` in [0, 1], on an n x n grid over `limits` and on one
    scale.

    `data` (N, 2) is drawn as points, the exact log `density` at the same time as contours. Raises
    ConfigError for NaN, for limits that are not a square and for an empty mapping.

    >>> fields = {"fm": lambda x, t: x, "vecor": lambda x, t: 2 * x}
    >>> len(velocity_fields(fields, 0.5, (-2.0, 2.0, -2.0, 2.0), n=5).axes)
    2
    """
    fields = _ordered(fields, "fields")
    x = artists.grid_points(limits, n)
    values = {name: artists.evaluate(velocity, x, t) for name, velocity in fields.items()}
    scale = artists.arrow_scale(list(values.values()), limits, n)
    figure, axes = _row(
        list(fields), limits, f"Velocity at $t$ = {t:g}", 1.9, _backdrop_entries(data, density)
    )
    _backdrop(axes, limits, data, density)
    for panel, (name, v) in zip(axes, values.items()):
        artists.arrows(panel, x, v, color=method_color(name), scale=scale)
    fastest = max(float(np.linalg.norm(v, axis=1).max()) for v in values.values())
    artists.arrow_key(_corner(axes), scale, fastest)
    return figure


@styled
def trajectories(
    runs: Mapping[str, Any],
    ts: Any,
    *,
    values: Mapping[str, Any] | None = None,
    value_label: str = "drift from the data",
    shown: int = 80,
    data: Any = None,
    density: Density | None = None,
    limits: Limits | None = None,
) -> Picture:
    """Paths `runs[name]` (S, B, 2) at times `ts` (S,), coloured by time or, if given, by
    `values[name]` (S, B), such as a drift.

    At most `shown` paths are drawn per panel, the first ones. Raises ConfigError for NaN and for
    shapes that do not fit.

    >>> states = np.linspace(0, 1, 24).reshape(3, 4, 2)
    >>> trajectories({"fm": states}, [0.0, 0.5, 1.0]).axes[0].get_title(loc="left")
    'FM'
    """
    shown = check_count("shown", shown)
    runs = {
        name: as_array(f"runs[{name!r}]", states, None, None, 2)[:, :shown]
        for name, states in _ordered(runs, "runs").items()
    }
    ts = as_array("ts", ts, None)
    limits = limits or artists.square_limits(*runs.values(), *([] if data is None else [data]))
    colors = {name: ts if values is None else _of(values, name)[:, :shown] for name in runs}
    high = float(max(np.abs(c).max() for c in colors.values()))
    entries = {
        "start": artists.legend_entry(NOISE),
        "end": artists.legend_entry([method_color(name) for name in runs]),
    }
    figure, axes = _row(list(runs), limits, "", 1.0, entries | _backdrop_entries(data, density))
    _backdrop(axes, limits, data, density)
    for panel, (name, states) in zip(axes, runs.items()):
        # viridis is for time alone
        look = {} if values is None else {"high": high or 1.0, "cmap": "magma_r"}
        lines = artists.paths(panel, states, colors[name], **look)
        artists.points(panel, states[-1], color=method_color(name), size=20, rim=0.5, zorder=4)
    artists.color_bar(figure, lines, _corner(axes), "time $t$" if values is None else value_label)
    return figure


def _of(values: Mapping[str, Any], name: str) -> np.ndarray:
    if name not in values:
        raise ConfigError(
            f"values has no {name!r}, only {', '.join(map(repr, values)) or 'nothing'}; give one "
            "array (S, B) for each of runs."
        )
    return as_array(f"values[{name!r}]", values[name], None, None)


@styled
def point_samples(
    clouds: Mapping[str, Any],
    *,
    data: Any = None,
    density: Density | None = None,
    limits: Limits | None = None,
) -> Picture:
    """Points `clouds[name]` (n, 2), one panel each, over `data` (N, 2) and the exact log `density`;
    ConfigError for NaN or other shapes.

    >>> clouds = {"real": np.zeros((3, 2)), "fm": np.ones((3, 2))}
    >>> [axes.get_title(loc="left") for axes in point_samples(clouds).axes]
    ['FM', 'Real data']
    """
    clouds = {
        name: as_array(f"clouds[{name!r}]", x, None, 2)
        for name, x in _ordered(clouds, "clouds").items()
    }
    limits = limits or artists.square_limits(*clouds.values(), *([] if data is None else [data]))
    figure, axes = _row(list(clouds), limits, "", 0.2, _backdrop_entries(data, density))
    _backdrop(axes, limits, data, density)
    for panel, (name, x) in zip(axes, clouds.items()):
        artists.points(
            panel, x, color=DATA if name == "real" else method_color(name), size=9, alpha=0.8
        )
    return figure


@styled
def field_error(
    fields: Mapping[str, Velocity],
    truth: Velocity,
    t: float,
    limits: Limits,
    *,
    n: int = 81,
    density: Density | None = None,
) -> Picture:
    """Maps of how much too fast or too slow `fields` are along the exact velocity `truth` v* at
    time `t`: (v - v*) . v* / |v*|.

    The colours are centred at zero and shared, and reach to the largest error where 99.5 % of
    `density`, the exact log density at `t`, lies. Raises ConfigError for NaN, for limits that are
    no square and for an empty mapping.

    >>> fields, limits = {"fm": lambda x, t: 2 * x}, (-2.0, 2.0, -2.0, 2.0)
    >>> figure = field_error(fields, lambda x, t: x, 0.5, limits, n=9)
    >>> figure.axes[0].get_title(loc="left")
    'FM'
    """
    x = artists.grid_points(limits, n)
    exact = artists.evaluate(truth, x, t)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    errors = {
        name: ((artists.evaluate(v, x, t) - exact) * unit).sum(1)
        for name, v in _ordered(fields, "fields").items()
    }
    inside = _likely(density, x)
    top = max(float(np.abs(error[inside]).max()) for error in errors.values()) or 1.0
    heading = f"Speed error along the exact velocity at $t$ = {t:g}"
    figure, axes = _row(list(errors), limits, heading, 1.2, _backdrop_entries(None, density))
    _backdrop(axes, limits, None, density)
    look = {
        "origin": "lower",
        "extent": limits,
        "cmap": DIVERGING,
        "vmin": -top,
        "vmax": top,
        "interpolation": "bilinear",
    }
    for panel, error in zip(axes, errors.values()):
        image = panel.imshow(error.reshape(n, n), **look)
    label = "too slow  $\\leftarrow$  0  $\\rightarrow$  too fast"
    artists.color_bar(
        figure, image, _corner(axes), label, extend="neither" if inside.all() else "both"
    )
    return figure


def _likely(density: Density | None, x: np.ndarray) -> np.ndarray:
    """Which points (B,) hold 99.5 % of the mass; all of them without a density."""
    if density is None:
        return np.ones(len(x), dtype=bool)
    return artists.likely(as_array("log density", density(as_tensor(x)), len(x)))
