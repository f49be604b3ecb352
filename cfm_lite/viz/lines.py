"""Lines: one quantity over another, and what a run logged over its steps.

What comes in an order (steps, widths) is drawn from pale to dark slate; methods keep their colours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.methods import Arm
from cfm_lite.viz import artists
from cfm_lite.viz.style import (
    METHOD_STYLES,
    MODEL,
    TRUTH,
    Picture,
    as_array,
    method_title,
    named,
    panels,
    plain,
    styled,
)

__all__ = ["curves", "pair_of", "running_mean", "training_curves"]

_RAMP = LinearSegmentedColormap.from_list(
    "cfm_ordered", ["#a9bccb", "#5b7083", "#1c2833"]
)  # slate, which means nothing else
_KINDS = ("#33567f", "#c9971c", "#8c2d4f", "#2f8f8f", "#8a8a3c", "#a77bb5")  # no method's colour
_MARKERS = "osD^vPX*"
_SCALES: Mapping[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {}),
    "log": ("log", {}),
    "log2": ("log", {"base": 2}),
    "symlog": ("symlog", {"linthresh": 1.0}),
}


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
    ordered: bool = True,
    width: float = 8.6,
    height: float = 3.9,
) -> Picture:
    """One line per name, `lines[name]` = (x, y) of equal length (n,), with a legend at the right;
    `level` is a black line (y, text).

    Names of methods ("fm", "vecor", ...) have their colours, "truth" and "exact" are black. The
    others run from pale to dark slate in the order given; if they are kinds without an order, such
    as solvers, say `ordered=False`, and each has a colour of its own. `xscale` and `yscale` are
    "linear", "log", "log2" or "symlog". Raises ConfigError for NaN, for x and y that differ in
    length, for an empty mapping and for values not above 0 on a logarithmic axis.

    >>> figure = curves({"euler": ([1, 2], [0.4, 0.1])}, xlabel="steps", ylabel="error")
    >>> figure.axes[0].get_xlabel()
    'steps'
    """
    for scale in (xscale, yscale):
        check_choice("scale", scale, _SCALES)
    pairs = {
        name: pair_of(f"lines[{name!r}]", line, xscale, yscale)
        for name, line in named("lines", lines, "{'euler': (steps, errors)}").items()
    }
    figure, ((panel,),) = panels(1, 1, width=width, height=height)
    for (name, (x, y)), look in zip(pairs.items(), _looks(list(lines), ordered)):
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


def pair_of(
    name: str, line: Any, xscale: str = "linear", yscale: str = "linear"
) -> tuple[np.ndarray, np.ndarray]:
    """`line` as (x, y) of equal length (n,); ConfigError otherwise, and for values not above 0 on a
    logarithmic axis.

    >>> pair_of("line", ([1, 2], [0.4, 0.1]))
    (array([1., 2.]), array([0.4, 0.1]))
    """
    if isinstance(line, np.ndarray) or not hasattr(line, "__len__") or len(line) != 2:
        raise ConfigError(
            f"{name} is a {type(line).__name__}; it must be a pair (x, y) of two sequences of "
            "equal length."
        )
    x, y = (as_array(name, part, None) for part in line)
    if len(x) != len(y):
        raise ConfigError(
            f"{name} has {len(x)} values of x and {len(y)} of y; give one y for every x."
        )
    for axis, scale, values in (("x", xscale, x), ("y", yscale, y)):
        if scale.startswith("log") and values.min() <= 0:
            raise ConfigError(
                f"{name} goes down to {values.min():.3g} on the logarithmic {axis} axis; all must "
                "be above 0."
            )
    return x, y


def _looks(names: Sequence[str], ordered: bool = True) -> list[dict[str, Any]]:
    """Colour, marker and line style of each name."""
    others = [name for name in names if name not in (*METHOD_STYLES, "truth", "exact")]
    looks = []
    for name in names:
        look: dict[str, Any] = {"color": TRUTH, "marker": "", "linestyle": "--", "zorder": 3}
        if name in METHOD_STYLES:
            style = METHOD_STYLES[name]
            look = {"color": style.colour, "marker": style.marker, "linestyle": style.line}
        elif name in others:
            place = others.index(name)
            share = place / (len(others) - 1) if len(others) > 1 else 0.5
            color = _RAMP(share) if ordered else _KINDS[place % len(_KINDS)]
            look = {"color": color, "marker": _MARKERS[place % len(_MARKERS)]}
        looks.append(look | {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.5})
    return looks


def _scale(panel: Any, axis: str, scale: str, ticks: Sequence[float]) -> None:
    """A scale whose numbers are plain; a base of 2 has a tick for every value."""
    if scale == "linear":
        return
    kind, settings = _SCALES[scale]
    getattr(panel, f"set_{axis}scale")(kind, **settings)
    one = panel.xaxis if axis == "x" else panel.yaxis
    if scale == "log2" and ticks and len(ticks) <= 12:
        one.set_ticks(ticks)
    one.set_major_formatter(plain)
    panel.minorticks_off()


Logs = Sequence[Mapping[str, Any]]


@styled
def training_curves(logs: Logs | Mapping[str, Logs], keys: Sequence[str] | None = None) -> Picture:
    """A panel per logged quantity against the training step, a line per run; the pale line is raw,
    the dark one a running mean.

    `logs` is one run's list of dicts as in `log.jsonl`, or a mapping of names (such as methods) to
    such lists; `keys` chooses the panels (default: all numbers but "step"). Raises ConfigError for
    NaN, no lines, or a key that no run has.

    >>> log = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    >>> training_curves(log).axes[0].get_ylabel()
    'loss'
    """
    runs = logs if isinstance(logs, Mapping) else {"run": logs}
    every = (item for lines in runs.values() for line in lines for item in line.items())
    known = list(dict.fromkeys(key for key, x in every if key != "step" and _is_number(x)))
    for key in keys or []:
        check_choice("key", key, known)
    keys = list(keys or known)
    if not keys:
        raise ConfigError(
            f"the logs of {list(runs)} hold no numbers; pass lines such as "
            f"{{'step': 1, 'loss': 0.5}}."
        )
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    figure, axes = panels(rows, columns, width=0.6 + 3.6 * columns, height=0.7 + 2.7 * rows)
    for panel, key in zip(axes.flat, keys):
        for name, run in runs.items():
            _logged(panel, name, key, [line for line in run if key in line])
        panel.set(xlabel="training step", ylabel=key.replace("_", " "))
    for panel in axes.flat[len(keys) :]:
        panel.remove()
    if len(runs) > 1:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(runs), 2 * columns))
    artists.foot(figure, "Pale: logged values; dark: their running mean.")
    return figure


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, bool | str)
        and getattr(value, "ndim", 0) == 0
        and hasattr(value, "__float__")
    )


def _logged(panel: Axes, name: str, key: str, lines: Logs) -> None:
    if not lines:
        return
    step = as_array("step", [float(line["step"]) for line in lines])
    value = as_array(key, [float(line[key]) for line in lines])
    look = METHOD_STYLES.get(name, Arm(name, name, colour=MODEL))
    panel.plot(step, value, color=look.colour, alpha=0.25, linewidth=0.8)
    mean = running_mean(value, max(1, len(value) // 25))
    panel.plot(step, mean, color=look.colour, linestyle=look.line, label=look.label)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of each value and its neighbours, `width` in all; fewer near the ends.

    >>> running_mean(np.array([0.0, 3.0, 6.0]), 3)
    array([1.5, 3. , 4.5])
    """
    window = np.ones(min(width, len(values)))
    weights = np.convolve(np.ones(len(values)), window, mode="same")
    return np.convolve(values, window, mode="same") / weights
