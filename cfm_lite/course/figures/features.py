"""Figures of hidden features: who resembles whom, how a batch lies in the plane, how a loss spreads
it, and what training gains.

Features of a batch are (B, d). A class is drawn as its numeral, so that ten classes are told apart
without ten colours.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from cfm_lite._internal.checks import check_choice, check_count, check_number
from cfm_lite._internal.lazy import optional
from cfm_lite.errors import ConfigError
from cfm_lite.methods import Arm
from cfm_lite.viz import artists
from cfm_lite.viz.lines import pair_of, running_mean
from cfm_lite.viz.style import (
    DIVERGING,
    METHOD_STYLES,
    MODEL,
    NOISE,
    TIME_MAP,
    TRUTH,
    Picture,
    as_array,
    frame,
    method_color,
    method_style,
    method_title,
    named,
    panels,
    styled,
)

__all__ = ["feature_maps", "paired_differences", "profiles", "similarity_maps", "spreading"]

_POSITIVE = LinearSegmentedColormap.from_list(
    "cfm_positive", [DIVERGING(0.5), DIVERGING(0.75), DIVERGING(1.0)]
)


class Difference(Protocol):
    """What `paired_differences` reads of an `lab.Difference`."""

    method: str
    mean: float
    low: float
    high: float


def _batches(features: Mapping[str, Any], width: int | None = None) -> dict[str, np.ndarray]:
    """Each `features[name]` as an array (B, d), the same B for all; ConfigError for an empty
    mapping, NaN or another shape.
    """
    items = named("features", features, "{'fm': h}").items()
    arrays = {name: as_array(f"features[{name!r}]", h, None, width) for name, h in items}
    sizes = {name: len(h) for name, h in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(
            f"features hold batches of {sizes} rows; show the same rows in every panel."
        )
    return arrays


def _labels(labels: Any, rows: int) -> np.ndarray:
    return as_array("labels", labels, rows).astype(int)


@styled
def similarity_maps(
    matrices: Mapping[str, Any],
    labels: Any,
    *,
    label: str = "cosine similarity",
    limit: float = 1.0,
) -> Picture:
    """A heat map per network of `matrices[name]` (B, B), entry (i, j) for rows i and j; the rows
    are sorted by `labels` (B,).

    One colour scale for all, from -`limit` to `limit`, or from 0 where no value is negative. Raises
    ConfigError for NaN, for matrices that are not square or differ in size, and without seaborn.
    """
    seaborn: Any = optional("seaborn", "notebooks")
    arrays = _batches(matrices)
    classes = _labels(labels, len(next(iter(arrays.values()))))
    order = np.argsort(classes, kind="stable")
    check_number("limit", limit, 0, math.inf, open_low=True)
    signed = min(float(matrix.min()) for matrix in arrays.values()) < 0
    look = {"cmap": DIVERGING, "vmin": -limit} if signed else {"cmap": _POSITIVE, "vmin": 0.0}
    look |= {
        "vmax": limit,
        "square": True,
        "cbar": False,
        "xticklabels": False,
        "yticklabels": False,
    }
    figure, axes = panels(1, len(arrays), width=1.3 + 3.2 * len(arrays), height=3.75)
    for column, (panel, (name, matrix)) in enumerate(zip(axes[0], arrays.items())):
        matrix = as_array(f"matrices[{name!r}]", matrix, len(classes), len(classes))
        seaborn.heatmap(matrix[np.ix_(order, order)], ax=panel, **look)
        _class_ticks(panel, classes[order])
        panel.set(xlabel="class of row $j$", ylabel="class of row $i$" if column == 0 else "")
        panel.set_title(method_title(name), loc="left", color=method_color(name, TRUTH))
        frame(panel)
    figure.colorbar(
        axes[0, -1].collections[0], ax=list(axes[0]), label=label, shrink=0.85, aspect=24
    )
    return figure


def _class_ticks(panel: Axes, ordered: np.ndarray) -> None:
    """A tick in the middle of each class, and thin lines between the classes."""
    names, first, count = np.unique(ordered, return_index=True, return_counts=True)
    panel.set_xticks(first + count / 2, [str(name) for name in names], rotation=0)
    panel.set_yticks(first + count / 2, [str(name) for name in names], rotation=0)
    panel.tick_params(length=0)
    for edge in first[1:]:
        panel.axhline(edge, color="white", linewidth=0.6)
        panel.axvline(edge, color="white", linewidth=0.6)


@styled
def feature_maps(
    embeddings: Mapping[str, Any],
    labels: Any,
    *,
    axis: str = "component",
    meaning: str = "class",
    ordered: bool = False,
) -> Picture:
    """Points `embeddings[name]` (B, 2) of several networks or methods, each drawn as a numeral, its
    label from 0 to 9 in `labels` (B,).

    Each panel is square and fits its own points, because an embedding has no scale of its own;
    `axis` names the two axes, `meaning` the labels. With `ordered`, such as for times in tenths,
    the colours run through viridis. Raises ConfigError for NaN and other shapes.
    """
    arrays = _batches(embeddings, 2)
    classes = _labels(labels, len(next(iter(arrays.values()))))
    if classes.min() < 0 or classes.max() > 9:
        raise ConfigError(
            f"labels run from {classes.min()} to {classes.max()}; a numeral from 0 to 9 is drawn "
            "for each."
        )
    color = (lambda label: colormaps[TIME_MAP](label / 10)) if ordered else colormaps["tab10"]
    columns = min(len(arrays), 4)
    rows = math.ceil(len(arrays) / columns)
    figure, axes = panels(rows, columns, width=0.3 + 2.65 * columns, height=0.35 + 2.8 * rows)
    for panel, (name, x) in zip(axes.flat, arrays.items()):
        for label in np.unique(classes):
            look = {"marker": f"${label}$", "s": 34, "color": color(int(label)), "linewidths": 0.3}
            panel.scatter(*x[classes == label].T, **look)
        left, right, bottom, top = artists.square_limits(
            x, margin=0.06, step=np.ptp(x, axis=0).max() / 50 or 1.0
        )
        panel.set(
            xlim=(left, right),
            ylim=(bottom, top),
            xticks=[],
            yticks=[],
            xlabel=f"{axis} 1",
            ylabel=f"{axis} 2",
        )
        panel.set_aspect("equal")
        panel.set_title(
            method_title(name), loc="left", color=method_color(name, TRUTH), fontsize=10.5
        )
        frame(panel)
    for panel in axes.flat[len(arrays) :]:
        panel.remove()
    artists.foot(figure, f"Numerals: the sample's {meaning}.")
    return figure


@styled
def spreading(runs: Mapping[str, Any], *, circle: float | None = None) -> Picture:
    """How a loss moves a batch of 2D features: `runs[name]` (S, B, 2) from the start (grey) to the
    end (purple), a plane each.

    `circle` draws a circle of that radius about the origin. Raises ConfigError for NaN and other
    shapes.
    """
    items = named("runs", runs, "{'hinge': states}").items()
    arrays = {name: as_array(f"runs[{name!r}]", states, None, None, 2) for name, states in items}
    limits = artists.square_limits(*arrays.values())
    side = min(2.6, 9.6 / len(arrays) - 0.28)
    figure, axes = artists.squares(1, len(arrays), limits, side=side, top=0.45, bottom=0.85)
    for panel, (name, states) in zip(axes[0], arrays.items()):
        for path in np.moveaxis(states, 1, 0):
            panel.plot(*path.T, color="#b0b0b0", linewidth=0.9, zorder=2)
        if circle is not None:
            turn = np.linspace(0, 2 * np.pi, 181)
            panel.plot(
                circle * np.cos(turn),
                circle * np.sin(turn),
                color=TRUTH,
                linewidth=0.8,
                linestyle=":",
                zorder=1.8,
            )
        artists.points(panel, states[0], color=NOISE, size=13, zorder=2.5)
        artists.points(panel, states[-1], color=MODEL, size=22, rim=0.5, zorder=3)
        panel.set_title(name, loc="left", fontsize=10.5)
        panel.set_xlabel("feature 1")
    axes[0, 0].set_ylabel("feature 2")
    entries = {"start": artists.legend_entry(NOISE), "end": artists.legend_entry(MODEL)}
    artists.bottom_legend(figure, entries, ncols=2)
    return figure


Line = tuple[Sequence[float], Sequence[float]]


@styled
def profiles(
    lines: Mapping[str, Mapping[str, Line]],
    *,
    xlabel: str,
    whole: bool = True,
    zero: bool = True,
    smooth: int = 1,
) -> Picture:
    """A panel per quantity, and in it a line (x, y) per network: `lines[quantity][network]`, such
    as the norm after each block.

    Networks keep one look in all panels; names of methods have their colours. `whole` puts ticks on
    the values of x alone, `zero` lets every vertical axis reach 0. `smooth` above 1 draws a running
    mean over that many values, over the pale values themselves. Raises ConfigError for NaN, x and y
    of different lengths and empty mappings.
    """
    if not isinstance(lines, Mapping) or not lines or not all(lines.values()):
        raise ConfigError(
            "lines has no quantity, or a quantity without a line; pass {'norm': {'fm': (x, y)}}."
        )
    columns = len(lines)
    check_count("smooth", smooth)
    looks = _looks(list(dict.fromkeys(name for group in lines.values() for name in group)))
    figure, axes = panels(
        1, columns, width=min(11.0, 0.9 + (3.2 if columns > 2 else 4.2) * columns), height=3.1
    )
    handles: dict[str, Any] = {}
    for panel, (quantity, group) in zip(axes[0], lines.items()):
        for name, line in group.items():
            xs, ys = pair_of(f"lines[{quantity!r}][{name!r}]", line)
            look = looks[name]
            mark = (
                {"marker": look.marker, "markersize": 6.5, "markeredgecolor": "white"}
                if whole
                else {}
            )
            if smooth > 1:
                panel.plot(xs, ys, color=look.colour, alpha=0.22, linewidth=0.8)
                ys = running_mean(ys, smooth)
            (handles[look.label],) = panel.plot(
                xs, ys, color=look.colour, linestyle=look.line, **mark
            )
        if whole:
            panel.set_xticks(sorted({float(v) for x, _ in group.values() for v in x}))
            panel.xaxis.set_major_formatter("{x:g}")
        if zero:
            panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        panel.set(xlabel=xlabel, ylabel=quantity)
    columns = min(len(handles), 4)
    artists.legend(figure, handles, "outside upper left", ncols=columns, handlelength=2.6)
    return figure


def _looks(names: Sequence[str]) -> dict[str, Arm]:
    """Methods look as everywhere; other names take turns, so that two of them never look alike."""
    others = [name for name in names if name not in METHOD_STYLES]
    turns = itertools.cycle(zip((MODEL, "#3D5A80", "#8E6C5A", "#7A7A2E"), "os^D"))
    return {name: method_style(name) for name in names if name in METHOD_STYLES} | {
        name: Arm(name, name, colour=colour, marker=marker)
        for name, (colour, marker) in zip(others, turns)
    }


@styled
def paired_differences(
    groups: Mapping[str, Iterable[Difference]],
    *,
    xlabel: str,
    good: str = "lower",
) -> Picture:
    """Differences to FM with their intervals: a block of rows per group, a row per
    `lab.Difference` in it.

    A filled dot is a clear difference (the attribute `clear`; without one, an interval that does
    not contain zero). A hollow one is not a clear difference. A vertical line marks FM. `good`
    says on which side ("lower" or "higher") a method is better. Raises ConfigError for NaN and for
    empty groups.
    """
    check_choice("good", good, ("lower", "higher"))
    blocks = (
        {group: list(rows) for group, rows in groups.items()} if isinstance(groups, Mapping) else {}
    )
    if not blocks or not all(blocks.values()):
        raise ConfigError(
            "groups has no rows; pass {'hinge': lab.differences(rows, 'frechet', 16)}."
        )
    count = sum(map(len, blocks.values()))
    figure, ((panel,),) = panels(1, 1, width=9.6, height=1.35 + 0.27 * count + 0.12 * len(blocks))
    place, ticks, seen = 0.0, {}, {}
    for group, rows in blocks.items():
        ticks[place + (len(rows) - 1) / 2] = group
        for row in rows:
            seen.setdefault(row.method, _interval(panel, row, place))
            place += 1
        place += 0.6
        panel.axhline(place - 0.8, color="#e3e3e3", linewidth=0.8)
    panel.axvline(0, color=method_style("fm").colour, linewidth=1.4, zorder=1.5)
    panel.set_yticks(list(ticks), list(ticks.values()))
    panel.set(xlabel=xlabel, ylim=(place - 0.8, -0.8))
    panel.tick_params(axis="y", length=0)
    panel.grid(False, axis="y")
    sides = ("better", "worse") if good == "lower" else ("worse", "better")
    panel.set_title(f"$\\leftarrow$ {sides[0]} than FM", loc="left", fontsize=10)
    panel.set_title(f"{sides[1]} than FM $\\rightarrow$", loc="right", fontsize=10)
    entries = {method_style(name).label: handle for name, handle in seen.items()}
    artists.legend(figure, entries, "outside right upper")
    artists.foot(figure, "Bars: 95 % bootstrap intervals over seeds; hollow: no clear difference.")
    return figure


def _interval(panel: Axes, row: Difference, place: float) -> Any:
    """One row: the mean, and its interval as a bar; returns a handle for the legend."""
    (mean,) = as_array(f"the difference of {row.method!r}", [row.mean], 1)
    low, high = row.low, row.high
    look = method_style(row.method)
    clear = getattr(row, "clear", low > 0 or high < 0)  # False for NaN: one seed has no interval
    panel.plot([low, high], [place, place], color=look.colour, linewidth=2.2, solid_capstyle="butt")
    fill = {
        "markerfacecolor": look.colour if clear else "white",
        "markeredgecolor": look.colour,
        "markeredgewidth": 1.6,
    }
    panel.plot(
        mean,
        place,
        marker=look.marker or "o",
        color=look.colour,
        markersize=7.5,
        linestyle="none",
        zorder=3,
        **fill,
    )
    return artists.legend_entry(look.colour, look.marker or "o", markersize=8)
