"""Figures of the lab: paired differences with their intervals, against a setting, in rows, or against what the features did.

A difference is anything with `method`, `mean`, `low`, `high` and `clear`, such as `experiments.Difference`. Filled marks are clear,
hollow ones are not: nothing can be said of them. The line at zero is plain FM.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes

from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.style import Picture, as_array, method_style, panels, styled

__all__ = ["Panel", "difference_curves", "difference_rows", "difference_scatter"]

FOOT = "Bars: 95 % bootstrap intervals over seeds. Filled: clear; hollow: no clear difference."
BASE = "#9a9a9a"


class Compared(Protocol):
    """What these figures read of a difference."""

    @property
    def method(self) -> str: ...
    @property
    def mean(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def clear(self) -> bool: ...


class Panel(NamedTuple):
    """The words on one panel: its title, the name of the differences, and on which side ("lower" or "higher") a method is better."""

    title: str
    quantity: str
    good: str = "lower"


def _checked(differences: Sequence[Compared], where: str) -> Sequence[Compared]:
    if not differences:
        raise ConfigError(f"{where} has no differences; there is nothing to draw.")
    as_array(f"the means of {where}", [d.mean for d in differences], len(differences))
    return differences


def _fill(d: Compared, color: str) -> dict[str, Any]:
    return {"markerfacecolor": color if d.clear else "white", "markeredgecolor": color, "markeredgewidth": 1.5}


@styled
def difference_rows(blocks: Mapping[Panel, Sequence[tuple[str, Compared]]]) -> Picture:
    """A panel for each block: a row per (label, difference), with its interval. Raises ConfigError without rows and for NaN."""
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): [(label, difference), ...]}.")
    count = max(len(rows) for rows in blocks.values())
    figure, axes = panels(1, len(blocks), width=1.2 + 4.4 * len(blocks), height=1.5 + 0.3 * count)
    for axis, (panel, rows) in zip(axes[0], blocks.items()):
        _checked([d for _, d in rows], panel.title)
        for place, (_, d) in enumerate(rows):
            look = method_style(d.method)
            axis.plot([d.low, d.high], [place, place], color=look.color, linewidth=2.2, solid_capstyle="butt")
            axis.plot(d.mean, place, look.marker or "o", color=look.color, markersize=7.5, zorder=3, **_fill(d, look.color))
        axis.axvline(0, color=BASE, linewidth=1.2, zorder=1.5)
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.set(xlabel=f"{panel.quantity}\n{_sides(panel.good)}", ylim=(len(rows) - 0.5, -0.5))
        axis.set_title(panel.title, loc="left")
        axis.tick_params(axis="y", length=0)
        axis.grid(False, axis="y")
    figure.supxlabel(FOOT, x=0.01, ha="left", fontsize=9)
    return figure


def _sides(good: str) -> str:
    return "$\\leftarrow$ better        worse $\\rightarrow$" if good == "lower" else "$\\leftarrow$ worse        better $\\rightarrow$"


@styled
def difference_curves(blocks: Mapping[Panel, Mapping[str, Mapping[float, Compared]]], *, xlabel: str, log: bool = True) -> Picture:
    """A panel for each block: a line per method, its differences {setting: difference} against the setting, with intervals.

    `log` spaces the settings by their logarithm to base 2. Raises ConfigError without differences and for NaN.
    """
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): {method: {setting: difference}}}.")
    figure, axes = panels(1, len(blocks), width=2.2 + 4.0 * len(blocks), height=4.2)
    handles: dict[str, Any] = {}
    for axis, (panel, curves) in zip(axes[0], blocks.items()):
        settings = sorted({x for curve in curves.values() for x in curve})
        for i, (method, curve) in enumerate(curves.items()):
            _checked(list(curve.values()), f"{panel.title}, {method}")
            shift = (i - (len(curves) - 1) / 2) * 0.05
            x = np.array(sorted(curve), dtype=float)
            handles[method_style(method).label] = _curve(
                axis, method, x * 2**shift if log else x + shift * _gap(settings), [curve[k] for k in sorted(curve)]
            )
        axis.axhline(0, color=BASE, linewidth=1.2, zorder=1.5)
        if log:
            axis.set_xscale("log", base=2)
        axis.set_xticks(settings, [f"{x:g}" for x in settings])
        axis.minorticks_off()
        axis.set(xlabel=xlabel, ylabel=f"{panel.quantity}\n({panel.good} is better)")
        axis.set_title(panel.title, loc="left")
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", handlelength=2.6, labelspacing=0.7)
    figure.supxlabel(FOOT, x=0.01, ha="left", fontsize=9)
    return figure


def _gap(settings: Sequence[float]) -> float:
    return min(np.diff(settings), default=1.0)


def _curve(axis: Axes, method: str, x: np.ndarray, found: Sequence[Compared]) -> Any:
    look = method_style(method)
    axis.plot(x, [d.mean for d in found], color=look.color, linestyle=look.line, linewidth=1.4)
    for place, d in zip(x, found):
        axis.plot([place, place], [d.low, d.high], color=look.color, linewidth=1.6)
        axis.plot(place, d.mean, look.marker or "o", color=look.color, markersize=6.5, zorder=3, **_fill(d, look.color))
    return artists.legend_entry(look.color, look.marker or "o", markersize=7)


@styled
def difference_scatter(blocks: Mapping[Panel, Sequence[tuple[str, float, Compared]]], *, xlabel: str) -> Picture:
    """A panel for each block: (label, x, difference) as a point with its interval and its label beside it, x on a logarithmic axis.

    Raises ConfigError without points, for NaN, and for an x that is not above 0.
    """
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): [(label, x, difference), ...]}.")
    figure, axes = panels(1, len(blocks), width=0.6 + 5.2 * len(blocks), height=4.6)
    for axis, (panel, points) in zip(axes[0], blocks.items()):
        _checked([d for _, _, d in points], panel.title)
        if min(x for _, x, _ in points) <= 0:
            raise ConfigError(f"{panel.title} has an x that is not above 0; its axis is logarithmic.")
        for label, x, d in points:
            look = method_style(d.method)
            axis.plot([x, x], [d.low, d.high], color=look.color, linewidth=1.8)
            axis.plot(x, d.mean, look.marker or "o", color=look.color, markersize=7, zorder=3, **_fill(d, look.color))
            axis.annotate(label, (x, d.mean), xytext=(7, 4), textcoords="offset points", fontsize=9)
        axis.axhline(0, color=BASE, linewidth=1.2, zorder=1.5)
        axis.axvline(1, color=BASE, linewidth=1.2, linestyle=":", zorder=1.5)
        axis.set_xscale("log")
        low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
        axis.set_xlim(min(low, 1.0) / 1.15, max(high, 1.0) * (high / low) ** 0.3 * 1.15)  # room for the labels
        ticks = [x for x in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100) if axis.get_xlim()[0] <= x <= axis.get_xlim()[1]]
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.minorticks_off()
        axis.set(xlabel=xlabel, ylabel=f"{panel.quantity}\n({panel.good} is better)")
        axis.set_title(panel.title, loc="left")
    figure.supxlabel(FOOT, x=0.01, ha="left", fontsize=9)
    return figure
