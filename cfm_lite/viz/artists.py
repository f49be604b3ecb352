"""What one draws on a 2D plane: arrows, density contours, points and paths, each a function of an
axes that returns its artist.

The artists persist: a widget keeps them and calls `set_UVC`, `set_offsets` or `set_segments`
instead of drawing again. A plane is square with equal aspect. An arrow is |v| / scale long in data
units, so panels that share `scale` can be compared by eye.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.contour import QuadContourSet
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver
from torch import Tensor

from cfm_lite._internal.checks import check_callable, check_count, check_flag, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.guidance import as_velocity
from cfm_lite.viz.style import (
    MODEL,
    NOISE,
    TIME_MAP,
    TRUTH,
    Picture,
    as_array,
    as_tensor,
    frame,
    new_figure,
)

__all__ = [
    "CONTOURS",
    "DIAGONAL",
    "Density",
    "Limits",
    "Velocity",
    "arrow_key",
    "arrow_scale",
    "arrows",
    "bottom_legend",
    "color_bar",
    "contours",
    "density_map",
    "evaluate",
    "foot",
    "grid_points",
    "legend",
    "legend_entry",
    "likely",
    "mass_levels",
    "name_axes",
    "paths",
    "plane",
    "points",
    "side_legend",
    "square_limits",
    "squares",
]

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (B, 2), t (B,)) -> (B, 2)
Density = Callable[[Tensor], Tensor]  # x (B, 2) -> log density (B,)
Limits = tuple[float, float, float, float]  # left, right, bottom, top


def square_limits(*clouds: Any, margin: float = 0.08, step: float = 0.5) -> Limits:
    """The smallest square (left, right, bottom, top) around all points (..., 2), widened by
    `margin` and rounded out to `step`.

    Raises ConfigError for no points, a negative margin, or a step that is not above 0.

    >>> square_limits([[-1.0, 0.0], [1.0, 0.0]], margin=0)
    (-1.0, 1.0, -1.0, 1.0)
    """
    check_number("margin", margin, 0, math.inf)
    check_number("step", step, 0, math.inf, open_low=True)
    if not clouds:
        raise ConfigError("square_limits got no points; give at least one array (..., 2).")
    flat = np.concatenate([as_array("points", cloud).reshape(-1, 2) for cloud in clouds])
    low, high = flat.min(0), flat.max(0)
    half = max((high - low).max() / 2 * (1 + 2 * margin), step)
    half = math.ceil(2 * half / step) * step / 2
    while True:
        corner = np.round(((low + high) / 2 - half) / step)
        # rounded to whole steps, the square must not slip off its outermost points
        least, most = np.ceil((high - 2 * half) / step - 1e-9), np.floor(low / step + 1e-9)
        if (least <= most).all():
            break
        half += step / 2
    left, bottom = (corner.clip(least, most) * step).tolist()
    return left, left + 2 * half, bottom, bottom + 2 * half


def check_limits(limits: Sequence[float]) -> Limits:
    """`limits` as four floats; ConfigError unless they enclose a square."""
    left, right, bottom, top = as_array("limits", limits, 4).tolist()
    width, height = right - left, top - bottom
    if not (width > 0 and math.isclose(width, height, rel_tol=1e-6)):
        raise ConfigError(
            f"limits are {tuple(limits)}: {width:g} wide and {height:g} high; give left < right "
            "and a square."
        )
    return left, right, bottom, top


def grid_points(limits: Limits, n: int = 17, *, inset: bool = True) -> np.ndarray:
    """(n * n, 2) points of a regular grid, row by row from the bottom; with `inset` they are cell
    centres, else they reach the border.

    Raises ConfigError for limits that are no square, and n below 2.

    >>> grid_points((0, 1, 0, 1), 2)
    array([[0.25, 0.25],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.75, 0.75]])
    """
    left, right, bottom, top = check_limits(limits)
    check_count("n", n, 2)
    check_flag(inset=inset)
    edge = 0.5 / n if inset else 0.0
    unit = np.linspace(edge, 1 - edge, n)
    x, y = np.meshgrid(left + unit * (right - left), bottom + unit * (top - bottom))
    return np.stack([x.ravel(), y.ravel()], axis=1)


@torch.no_grad()
def evaluate(velocity: Velocity, x: np.ndarray, t: float) -> np.ndarray:
    """`velocity` at the points `x` (B, 2) and one time `t` in [0, 1], as an array (B, 2).

    Raises ConfigError for a time outside [0, 1], and a velocity of another shape.

    >>> evaluate(lambda x, t: 2 * x, np.array([[1.0, 3.0]]), t=0.5)
    array([[2., 6.]])
    """
    check_number("t", t, 0, 1)
    velocity = as_velocity(velocity)
    inputs = as_tensor(as_array("x", x, None, 2))
    return as_array(
        "velocity",
        velocity(inputs, torch.full((len(inputs),), float(t), dtype=inputs.dtype)),
        len(inputs),
        2,
    )


def plane(
    axes: Axes,
    limits: Limits,
    title: str = "",
    *,
    outer: tuple[bool, bool] = (True, True),
) -> None:
    """Make `axes` a square plane over `limits` with named coordinates and a title.

    `outer` says whether the panel stands in the first column and in the last row: the others leave
    names and numbers to those.

    Raises ConfigError for limits that are no square.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> plane(axes, (-2.0, 2.0, -2.0, 2.0), "Velocity")
    >>> axes.get_xlabel(), axes.get_title(loc="left")
    ('$a$', 'Velocity')
    """
    left, right, bottom, top = check_limits(limits)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    name_axes(axes, outer=outer)
    axes.tick_params(labelleft=outer[0], labelbottom=outer[1])
    axes.set_aspect("equal", adjustable="box")
    axes.locator_params(nbins=6, integer=True)
    axes.tick_params(labelsize=9, length=3, color="#4d4d4d")
    frame(axes)
    if title:
        axes.set_title(title, color=TRUTH, loc="left", pad=6)


def name_axes(axes: Axes, form: str = "{}", *, outer: tuple[bool, bool] = (True, True)) -> None:
    """Name the coordinates of a plane a and b, because x_1 is the data.

    `form` may say more, such as "velocity along {}"; `outer` is as in `plane`.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> name_axes(axes, "velocity along {}")
    >>> axes.get_ylabel()
    'velocity along $b$'
    """
    axes.set_xlabel(form.format("$a$") if outer[1] else "")
    axes.set_ylabel(form.format("$b$") if outer[0] else "")


def squares(
    rows: int,
    columns: int,
    limits: Limits,
    *,
    side: float = 2.6,
    gap: float = 0.28,
    rise: float = 3.1,
    right: float = 0.2,
    top: float = 0.4,
    bottom: float = 0.5,
) -> tuple[Picture, np.ndarray]:
    """A figure with planes (rows, columns) over `limits`, placed by hand because layout engines let
    squares drift apart; all in inches.

    `rise` is the height from row to row, `right` the room for a legend or colour bar, `top` and
    `bottom` that for titles and names.

    >>> figure, axes = squares(1, 2, (-2.0, 2.0, -2.0, 2.0))
    >>> axes.shape, axes[0, 0].get_aspect()
    ((1, 2), 1.0)
    """
    left = 0.65
    width, height = (
        left + columns * side + (columns - 1) * gap + right,
        bottom + (rows - 1) * rise + side + top,
    )
    figure = new_figure(width, height, layout=None)
    axes = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        corner = left + column * (side + gap), bottom + (rows - 1 - row) * rise
        panel = figure.add_axes(
            (corner[0] / width, corner[1] / height, side / width, side / height)
        )
        plane(panel, limits, outer=(column == 0, row == rows - 1))
        axes[row, column] = panel
    return figure, axes


def color_bar(
    figure: Picture, artist: ScalarMappable, panel: Axes, label: str, **kwargs: Any
) -> Colorbar:
    """A colour bar for `artist`, as high as `panel` and right of it, in a figure whose panels were
    placed by hand.

    >>> figure, ((panel,),) = squares(1, 1, (-2.0, 2.0, -2.0, 2.0), right=1.0)
    >>> lines = paths(panel, np.zeros((2, 3, 2)), [0.0, 1.0])
    >>> color_bar(figure, lines, panel, "time").ax.get_ylabel()
    'time'
    """
    box, inch = panel.get_position(), 1 / figure.get_figwidth()
    return figure.colorbar(
        artist,
        cax=figure.add_axes((box.x1 + 0.2 * inch, box.y0, 0.16 * inch, box.height)),
        label=label,
        **kwargs,
    )


def arrow_scale(vectors: Iterable[Any], limits: Limits, n: int = 17, longest: float = 2.4) -> float:
    """Velocity per unit of length such that the longest of all `vectors` (B, 2) spans `longest`
    cells of an n x n grid over `limits`.

    Raises ConfigError for limits that are no square, n below 1, and a length that is not above 0.

    >>> arrow_scale([[[3.0, 4.0]]], (0, 1, 0, 1), n=10, longest=2)  # |v| = 5 on two cells of 0.1
    25.0
    """
    left, right, _, _ = check_limits(limits)
    check_count("n", n)
    check_number("longest", longest, 0, math.inf, open_low=True)
    every = vectors if isinstance(vectors, list | tuple | Iterator) else [vectors]
    top = max(
        (float(np.linalg.norm(as_array("vectors", v, None, 2), axis=1).max()) for v in every),
        default=0.0,
    )
    return max(top, 1e-12) / (longest * (right - left) / n)


def arrows(
    axes: Axes,
    x: Any,
    v: Any,
    *,
    color: str = MODEL,
    scale: float,
    width: float = 0.0046,
    **kwargs: Any,
) -> Quiver:
    """Arrows `v` at `x`, both (B, 2), |v| / `scale` long in data units; a velocity of zero is a
    dot.

    Raises ConfigError for shapes that differ, and a scale that is not above 0.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> arrows(axes, [[0.0, 0.0]], [[3.0, 4.0]], scale=25).N
    1
    """
    x, v = as_array("x", x, None, 2), as_array("v", v, None, 2)
    if x.shape != v.shape:
        raise ConfigError(
            f"x {x.shape} and v {v.shape} differ; one velocity per point is needed, both (B, 2)."
        )
    check_number("scale", scale, 0, math.inf, open_low=True)
    look: dict[str, Any] = {
        "headwidth": 4.2,
        "headlength": 4.6,
        "headaxislength": 4.0,
        "minlength": 0.6,
        "zorder": 2.5,
    } | kwargs
    look |= {
        "color": color,
        "angles": "xy",
        "scale_units": "xy",
        "scale": scale,
        "units": "width",
        "width": width,
    }
    return axes.quiver(x[:, 0], x[:, 1], v[:, 0], v[:, 1], **look)


def arrow_key(axes: Axes, scale: float, fastest: float) -> Quiver:
    """A grey arrow right of `axes` with its speed and unit, about three quarters as long as the
    `fastest` speed that is shown.

    Raises ConfigError for a negative speed.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> key = arrow_key(axes, scale=10, fastest=4.0)
    >>> axes.texts[0].get_text().splitlines()[0]
    'speed 3'
    """
    left, right, bottom, top = *axes.get_xlim(), *axes.get_ylim()
    speed = _round_number(0.75 * check_number("fastest", fastest, 0, math.inf))
    start, height = right + 0.03 * (right - left), bottom + 0.97 * (top - bottom)
    text = f"speed {speed:g}\n({'unit' if speed == 1 else 'units'} of $x$ per unit of $t$)"
    axes.text(
        start + speed / scale + 0.02 * (right - left),
        height,
        text,
        fontsize=9,
        va="center",
        color="#333333",
    )
    return arrows(
        axes, [[start, height]], [[speed, 0.0]], color="#333333", scale=scale, clip_on=False
    )


def _round_number(x: float) -> float:
    """The largest of 1, 2, 3, 5 times a power of ten that is not above `x`."""
    power = 10.0 ** math.floor(math.log10(max(x, 1e-12)))
    return max(k for k in (1, 2, 3, 5) if k * power <= x * (1 + 1e-9)) * power if x > 0 else power


def legend_entry(color: str | Sequence[str], mark: str = "o", **kwargs: Any) -> Any:
    """A legend handle: a dot, or with `mark` "-" or "--" a line, in `color`; of several colours,
    one dot each.

    >>> legend_entry(TRUTH, "--").get_linestyle()
    '--'
    """
    if not isinstance(color, str):
        return tuple(legend_entry(c, mark, markersize=5.5) for c in color)
    if mark in ("-", "--"):
        return Line2D([], [], color=color, linestyle=mark, linewidth=1.2)
    look: dict[str, Any] = {"marker": mark, "color": color, "linestyle": "none"}
    look |= {"markersize": 4.5, "markeredgecolor": "none"}
    return Line2D([], [], **(look | kwargs))


def legend(owner: Axes | Picture, entries: Mapping[str, Any], loc: Any, **kwargs: Any) -> None:
    """A legend of text -> handle at `loc` of a panel or a figure, such as "outside right upper";
    without entries, none.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> legend(axes, {"data": legend_entry("blue")}, "upper left")
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['data']
    """
    if entries:
        owner.legend(list(entries.values()), list(entries), loc=loc, **kwargs)


_LEGEND: dict[str, Any] = {
    "handler_map": {tuple: HandlerTuple(None, 0.25)},
    "handlelength": 1.7,
    "borderaxespad": 0,
}


DIAGONAL = "$a = b$"  # the line that a swap of the coordinates leaves in place
CONTOURS = {"exact density: 50 % and 95 % lie inside": legend_entry(TRUTH, "-")}


def side_legend(panel: Axes, entries: Mapping[str, Any], top: float = 1.0) -> None:
    """A legend right of `panel`, from the height `top` in axes coordinates downwards.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> side_legend(axes, CONTOURS)
    >>> len(axes.get_legend().get_texts())
    1
    """
    corner = (1.03, top)
    legend(panel, entries, "upper left", bbox_to_anchor=corner, labelspacing=0.9, **_LEGEND)


def bottom_legend(figure: Picture, entries: Mapping[str, Any], ncols: int) -> None:
    """A legend at the foot of `figure`, from the left of its first panel.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> bottom_legend(figure, CONTOURS, ncols=1)
    >>> len(figure.legends)
    1
    """
    corner = (figure.axes[0].get_position().x0, 0.1 / figure.get_figheight())
    legend(figure, entries, "lower left", bbox_to_anchor=corner, ncols=ncols, **_LEGEND)


def foot(figure: Picture, text: str) -> None:
    """A remark at the foot of `figure`.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> foot(figure, "Bars: lowest to highest of 3 seeds.")
    >>> figure.get_supxlabel()
    'Bars: lowest to highest of 3 seeds.'
    """
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9)


def mass_levels(log_density: np.ndarray, masses: Sequence[float]) -> list[float]:
    """The log densities whose super-level sets hold `masses`, each in (0, 1), of the total on a
    regular grid, lowest first.

    Raises ConfigError for masses outside (0, 1).

    >>> log_density = np.log([[0.1, 0.2], [0.3, 0.4]])
    >>> np.exp(mass_levels(log_density, [0.6])).round(1)  # the two fullest points hold 0.7
    array([0.3])
    """
    ordered = np.sort(as_array("log_density", log_density).ravel())[::-1]
    held = np.cumsum(np.exp(ordered - ordered[0]))
    shares = np.atleast_1d(as_array("masses", masses)).tolist()
    wanted = [
        check_number("masses", share, 0, 1, open_low=True, open_high=True) * held[-1]
        for share in shares
    ]
    return sorted(ordered[np.searchsorted(held, wanted)].tolist())


def likely(log_density: np.ndarray) -> np.ndarray:
    """Which points of a regular grid hold 99.5 % of the mass.

    >>> likely(np.log([[1e-6, 0.2], [0.3, 0.5]]))
    array([[False,  True],
           [ True,  True]])
    """
    values = as_array("log_density", log_density)
    return values >= mass_levels(values, [0.995])[0]


@torch.no_grad()
def density_map(density: Density, limits: Limits, n: int = 129) -> np.ndarray:
    """The log `density` on an n x n grid that reaches the border of `limits`, as an array (n, n),
    rows from the bottom.

    Raises ConfigError for limits that are no square, and a density of another shape.

    >>> density_map(lambda x: -x.square().sum(1) / 2, (-2.0, 2.0, -2.0, 2.0), n=3)
    array([[-4., -2., -4.],
           [-2., -0., -2.],
           [-4., -2., -4.]])
    """
    check_callable(density=density)
    x = grid_points(limits, n, inset=False)
    return as_array("log density", density(as_tensor(x)), len(x)).reshape(n, n)


def contours(
    axes: Axes,
    log_density: Any,
    limits: Limits,
    *,
    masses: Sequence[float] = (0.5, 0.95),
    **kwargs: Any,
) -> QuadContourSet:
    """Black contours of a `density_map` (n, n) that enclose `masses` of its probability; their
    `levels` are log densities.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> log_density = density_map(lambda x: -x.square().sum(1) / 2, (-2.0, 2.0, -2.0, 2.0), n=33)
    >>> len(contours(axes, log_density, (-2.0, 2.0, -2.0, 2.0)).levels)
    2
    """
    values = as_array("log density", log_density, None, None)
    x = grid_points(limits, len(values), inset=False).reshape(*values.shape, 2)
    look = {"colors": TRUTH, "linewidths": 1.1, "linestyles": "solid", "zorder": 3} | kwargs
    levels = mass_levels(values, masses)
    if len(set(levels)) < len(levels):
        raise ConfigError(
            f"the masses {tuple(masses)} share a level of the density, so they have no contours of "
            "their own: it is nearly constant, or the grid too coarse. Give masses further apart, "
            "or leave the density out."
        )
    return axes.contour(x[0, :, 0], x[:, 0, 1], values, levels=levels, **look)


def points(
    axes: Axes, x: Any, *, color: str = MODEL, size: float = 12, rim: float = 0, **kwargs: Any
) -> PathCollection:
    """Points `x` (B, 2), with a white rim of `rim` points.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> points(axes, [[0.0, 1.0], [2.0, 3.0]]).get_offsets().shape
    (2, 2)
    """
    look: dict[str, Any] = {"s": size, "color": color, "linewidths": rim, "zorder": 2}
    look |= {"edgecolors": "white"} if rim else {}
    return axes.scatter(*as_array("points", x, None, 2).T, **(look | kwargs))


def paths(
    axes: Axes,
    states: Any,
    values: Any,
    *,
    low: float = 0.0,
    high: float = 1.0,
    cmap: Any = TIME_MAP,
    **kwargs: Any,
) -> LineCollection:
    """Paths through `states` (S, B, 2) from grey points, coloured by `values`: (S,) such as times,
    or (S, B) such as a drift.

    Raises ConfigError for shapes that do not fit, and fewer than two states.

    >>> from cfm_lite.viz.style import panels
    >>> figure, ((axes,),) = panels(1, 1, width=3, height=3)
    >>> lines = paths(axes, np.zeros((5, 3, 2)), np.linspace(0, 1, 5))
    >>> len(lines.get_segments())  # 4 steps of 3 paths
    12
    """
    states = as_array("states", states, None, None, 2)
    values = as_array("values", values)
    if len(states) < 2 or values.shape not in (states.shape[:1], states.shape[:2]):
        raise ConfigError(
            f"states {states.shape} and values {values.shape} do not fit; they must be (S, B, 2) "
            "and (S,) or (S, B), S >= 2."
        )
    values = np.broadcast_to(values[:, None] if values.ndim == 1 else values, states.shape[:2])
    segments = np.stack([states[:-1], states[1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(
        list(segments), cmap=cmap, **({"linewidths": 1.1, "alpha": 0.85, "zorder": 2.2} | kwargs)
    )
    lines.set_array(((values[:-1] + values[1:]) / 2).ravel())
    lines.set_clim(low, high)
    axes.add_collection(lines, autolim=False)
    points(axes, states[0], color=NOISE, size=9, zorder=2.1)
    return lines
