"""Figures of errors: curves of one quantity over another, and maps of a number over the plane.

They show where an error comes from and what becomes of it: error against steps, drift against time,
and by how much the flow multiplies a small kick. What comes in an order (steps, widths) is drawn
from pale to dark slate; methods keep their colours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter

from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Limits
from cfm_lite.viz.style import (
    DATA,
    DIVERGING,
    METHOD_STYLES,
    TRUTH,
    Picture,
    as_array,
    method_title,
    panels,
    styled,
)

__all__ = ["curves", "plane_maps"]

_RAMP = LinearSegmentedColormap.from_list(
    "cfm_ordered", ["#a9bccb", "#5b7083", "#1c2833"]
)  # slate, which means nothing else
_MARKERS = "osD^vPX*"


@styled
def curves(
    lines: Mapping[str, Sequence[Any]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    level: tuple[float, str] | None = None,
    markers: bool = True,
    width: float = 8.6,
    height: float = 3.9,
) -> Picture:
    """One line per name, `lines[name]` = (x, y) of equal length (n,), with a legend at the right;
    `level` is a black line (y, text).

    Names of methods ("fm", "delta_fm", ...) have their colours, "truth" and "exact" are black, and
    the others run from pale to dark slate in the order given. `xscale` and `yscale` are "linear",
    "log", "log2" or "symlog". Raises ConfigError for NaN, for x and y that differ in length, for an
    empty mapping and for values not above 0 on a logarithmic axis.
    """
    if not isinstance(lines, Mapping) or not lines:
        raise ConfigError(
            f"lines is {type(lines).__name__} without entries; pass a dict such as "
            f"{{'euler': (steps, errors)}}."
        )
    for scale in (xscale, yscale):
        check_choice("scale", scale, ("linear", "log", "log2", "symlog"))
    pairs = {name: _pair(name, line, xscale, yscale) for name, line in lines.items()}
    figure, ((panel,),) = panels(1, 1, width=width, height=height)
    for (name, (x, y)), look in zip(pairs.items(), _looks(list(lines))):
        panel.plot(x, y, label=method_title(name), **(look if markers else look | {"marker": ""}))
    if level is not None:
        where = check_number("level", level[0], -np.inf, np.inf)
        panel.axhline(where, color=TRUTH, linewidth=1.3, linestyle=":", zorder=1.5, label=level[1])
    _scale(panel, "x", xscale, sorted({float(v) for x, _ in pairs.values() for v in x}))
    _scale(panel, "y", yscale, [])
    panel.set(xlabel=xlabel, ylabel=ylabel)
    panel.set_title(title, loc="left")
    figure.legend(loc="outside right upper", handlelength=2.4, labelspacing=0.7)
    return figure


def _pair(name: str, line: Any, xscale: str, yscale: str) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(line, np.ndarray) or not hasattr(line, "__len__") or len(line) != 2:
        raise ConfigError(
            f"lines[{name!r}] is a {type(line).__name__}; it must be a pair (x, y) of two "
            "sequences of equal length."
        )
    x, y = (as_array(f"lines[{name!r}]", part, None) for part in line)
    if len(x) != len(y):
        raise ConfigError(
            f"lines[{name!r}] has {len(x)} values of x and {len(y)} of y; give one y for every x."
        )
    for axis, scale, values in (("x", xscale, x), ("y", yscale, y)):
        if scale.startswith("log") and values.min() <= 0:
            raise ConfigError(
                f"lines[{name!r}] goes down to {values.min():.3g} on the logarithmic {axis} axis; "
                "all must be above 0."
            )
    return x, y


def _looks(names: Sequence[str]) -> list[dict[str, Any]]:
    """Colour, marker and line style of each name."""
    others = [
        name for name in names if name not in METHOD_STYLES and name not in ("truth", "exact")
    ]
    looks = []
    for name in names:
        look: dict[str, Any] = {
            "markersize": 5.5,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }
        if name in METHOD_STYLES:
            style = METHOD_STYLES[name]
            look |= {"color": style.color, "marker": style.marker, "linestyle": style.line}
        elif name in others:
            place = others.index(name)
            share = place / (len(others) - 1) if len(others) > 1 else 0.5
            look |= {"color": _RAMP(share), "marker": _MARKERS[place % len(_MARKERS)]}
        else:
            look |= {"color": TRUTH, "marker": "", "linestyle": "--", "zorder": 3}
        looks.append(look)
    return looks


def _scale(panel: Any, axis: str, scale: str, ticks: Sequence[float]) -> None:
    """A scale whose numbers are plain; a base of 2 has a tick for every value."""
    if scale == "linear":
        return
    base = {"base": 2} if scale == "log2" else {"linthresh": 1.0} if scale == "symlog" else {}
    getattr(panel, f"set_{axis}scale")("log" if scale == "log2" else scale, **base)
    one = panel.xaxis if axis == "x" else panel.yaxis
    if scale == "log2" and ticks and len(ticks) <= 12:
        one.set_ticks(ticks)
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
    panel.minorticks_off()


@styled
def plane_maps(
    maps: Mapping[str, Any],
    limits: Limits,
    label: str,
    *,
    factor: bool = False,
    high: float | None = None,
    data: Any = None,
) -> Picture:
    """A square per name, coloured by `maps[name]` (n, n), rows from the bottom of `limits`: a
    positive number over the plane.

    With `factor` the values are factors: the colours are logarithmic, white at 1, blue below and
    vermilion above, and end at `high` and 1 / `high`; else they run from 0 to `high` (default: the
    largest value). `data` (N, 2) is drawn as points. Raises ConfigError for NaN, negative values,
    factors of 0, other shapes and an empty mapping.
    """
    if not isinstance(maps, Mapping) or not maps:
        raise ConfigError(
            f"maps is {type(maps).__name__} without entries; pass a dict such as {{'all': values}}."
        )
    values = {name: as_array(f"maps[{name!r}]", x, None, None) for name, x in maps.items()}
    lowest, largest = min(x.min() for x in values.values()), max(x.max() for x in values.values())
    if lowest < 0 or (factor and lowest == 0):
        raise ConfigError(
            f"maps go down to {lowest:.3g}; "
            f"{'factors must be above 0' if factor else 'values must be at least 0'}."
        )
    top = max(largest, 1 / lowest) if factor else largest
    top = float(
        top
        if high is None
        else check_number("high", high, 1 if factor else 0, np.inf, open_low=True)
    )
    figure, axes = artists.squares(
        1, len(values), limits, right=1.25, bottom=0.85 if data is not None else 0.5
    )
    span = np.log10(max(top, 1 + 1e-9)) if factor else top or 1.0
    look = (
        {"cmap": DIVERGING, "vmin": -span} if factor else {"cmap": colormaps["magma_r"], "vmin": 0}
    )
    for column, (panel, (name, x)) in enumerate(zip(axes[0], values.items())):
        shown = np.log10(x) if factor else x
        image = panel.imshow(
            shown,
            origin="lower",
            extent=limits,
            vmax=span,
            interpolation="bilinear",
            zorder=0.5,
            **look,
        )
        artists.plane(panel, limits, method_title(name), outer=(column == 0, True))
        if data is not None:
            artists.points(panel, data, color=DATA, size=5, alpha=0.5)
    above, below = bool(largest > top * (1 + 1e-9)), bool(factor and lowest < (1 - 1e-9) / top)
    extend = {
        (True, True): "both",
        (True, False): "max",
        (False, True): "min",
        (False, False): "neither",
    }[above, below]
    bar = artists.color_bar(figure, image, axes[0, -1], label, extend=extend)
    if factor:
        ticks = np.linspace(-span, span, 5).tolist()
        bar.set_ticks(ticks, labels=[f"×{10**tick:.2g}" for tick in ticks])
    if data is not None:
        artists.bottom_legend(
            figure, {"data": artists.legend_entry(DATA)}, axes[0, 0].get_position().x0, ncols=1
        )
    return figure
