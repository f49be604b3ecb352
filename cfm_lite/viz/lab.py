"""Figures of the lab: paired differences with their intervals, against a setting, in rows, or
against what the features did.

A difference is anything with `method`, `mean`, `low`, `high` and `clear`, such as
`lab.Difference`. Filled marks are clear, hollow ones are not: nothing can be said of them.
The line at zero is plain FM.
"""

from collections.abc import Collection, Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cfm_lite._internal.checks import check_choice, check_count
from cfm_lite.errors import ConfigError
from cfm_lite.methods import Arm
from cfm_lite.viz import artists
from cfm_lite.viz.style import PAGE, Picture, as_array, method_style, panels, plain, styled

__all__ = ["Panel", "difference_curves", "difference_rows", "difference_scatter"]

FOOT = (
    "Grey line at 0: plain FM. Bars: 95 % bootstrap intervals over seeds. Filled: clear, Student's "
    "98 % interval misses 0, too. Hollow: no clear difference."
)
BASE, BAND = "#9a9a9a", "#f0eef4"
COLUMNS = 3  # panels in a row, unless another number is asked for
LABEL_GAP = 0.062  # of the height of a panel
LARGE = 20  # times the median difference of a panel


class Compared(Protocol):
    """What these figures read of a difference."""

    @property
    def method(self) -> str:
        """The name of the method that is compared."""
        ...

    @property
    def mean(self) -> float:
        """The mean difference."""
        ...

    @property
    def low(self) -> float:
        """The lower end of its interval."""
        ...

    @property
    def high(self) -> float:
        """The upper end of its interval."""
        ...

    @property
    def clear(self) -> bool:
        """Whether the difference is clear: only then its mark is filled."""
        ...


GOOD = ("lower", "higher", "")


class Panel(NamedTuple):
    """The words on one panel: its title, the name of the differences, on which side ("lower" or
    "higher", "" for neither) a method is better, and the name of the settings, where they are not
    those of all panels.

    >>> Panel("Digits", "Fréchet distance").good
    'lower'
    """

    title: str
    quantity: str
    good: str = "lower"
    xlabel: str = ""


def _foot(figure: Picture, text: str) -> None:
    """Words at the foot of `figure`, in as many lines as its width needs."""
    artists.foot(figure, fill(text, int(14.5 * figure.get_figwidth())))


def _checked(differences: Sequence[Compared], where: str) -> Sequence[Compared]:
    if not differences:
        raise ConfigError(f"{where} has no differences; there is nothing to draw.")
    as_array(f"the means of {where}", [d.mean for d in differences], len(differences))
    return differences


def _mark(axis: Axes, x: float, y: float, d: Compared, look: Arm, size: float) -> None:
    """The mark of a difference, filled where it is clear."""
    axis.plot(
        x,
        y,
        look.marker or "o",
        color=look.colour,
        markersize=size,
        zorder=3,
        markerfacecolor=look.colour if d.clear else "white",
        markeredgecolor=look.colour,
        markeredgewidth=1.5,
    )


def _in_a_row(panels: int, most: int = COLUMNS) -> int:
    return min(most, 2 if panels == 4 else panels)  # four stand two by two


@styled
def difference_rows(
    blocks: Mapping[Panel, Sequence[tuple[str, Compared]]], marked: Collection[str] = ()
) -> Picture:
    """A panel for each block: a row per (label, difference), with its interval; rows whose label is
    in `marked` stand on a band.

    Labels that all panels share are written once. Raises ConfigError without rows and for NaN.

    >>> from types import SimpleNamespace
    >>> d = SimpleNamespace(method="vecor", mean=-0.2, low=-0.3, high=-0.1, clear=True)
    >>> figure = difference_rows({Panel("Digits", "Fréchet distance"): [("VeCoR", d)]})
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['VeCoR']
    """
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): [(label, difference), ...]}.")
    for panel, rows in blocks.items():
        _checked([d for _, d in rows], panel.title)
    shared = len({tuple(label for label, _ in rows) for rows in blocks.values()}) == 1
    columns = _in_a_row(len(blocks))
    lengths = [len(rows) for rows in blocks.values()]
    counts = [max(lengths[i : i + columns]) for i in range(0, len(lengths), columns)]
    width = min(PAGE, 2.4 + 3.2 * columns if shared else 1.2 + 4.4 * columns)
    height = 0.6 + sum(1.0 + 0.3 * count for count in counts)
    figure, axes = panels(len(counts), columns, width=width, height=height, height_ratios=counts)
    for axis in axes.flat[len(blocks) :]:
        axis.remove()
    for i, (axis, (panel, rows)) in enumerate(zip(axes.flat, blocks.items())):
        for place, (label, d) in enumerate(rows):
            _row(axis, place, d, label in marked)
        axis.axvline(0, color=BASE, linewidth=1.2, zorder=1.5)
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
        axis.tick_params(axis="y", length=0, labelleft=not shared or axis in axes[:, 0])
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.set(
            xlabel=f"{panel.quantity}\n{_sides(panel.good)}",
            ylim=(counts[i // columns] - 0.5, -0.5),
        )
        axis.set_title(panel.title, loc="left")
        axis.grid(False, axis="y")
    _foot(figure, FOOT)
    return figure


def _row(axis: Axes, place: int, d: Compared, marked: bool) -> None:
    look = method_style(d.method)
    axis.plot(
        [d.low, d.high], [place, place], color=look.colour, linewidth=2.2, solid_capstyle="butt"
    )
    _mark(axis, d.mean, place, d, look, 7.5)
    if marked:
        axis.axhspan(place - 0.5, place + 0.5, color=BAND, zorder=0)


def _sides(good: str) -> str:
    check_choice("good", good, GOOD)
    if not good:
        return ""
    return (
        "$\\leftarrow$ better    worse $\\rightarrow$"
        if good == "lower"
        else "$\\leftarrow$ worse    better $\\rightarrow$"
    )


@styled
def difference_curves(
    blocks: Mapping[Panel, Mapping[str, Mapping[float, Compared]]],
    *,
    xlabel: str,
    log: bool = True,
    columns: int = COLUMNS,
    squeeze: bool = False,
) -> Picture:
    """A panel for each block: a line per method, its differences {setting: difference} against the
    setting, with intervals.

    At most `columns` panels stand in a row; the place of a block without curves stays empty. `log`
    spaces the settings by their logarithm to base 2; `squeeze` makes the other axis logarithmic
    where differences are large beside most others of their panel, and says from where on. Raises
    ConfigError without differences, for NaN, and with `log` for a setting that is not above 0.

    >>> from types import SimpleNamespace
    >>> d = SimpleNamespace(method="vecor", mean=-0.2, low=-0.3, high=-0.1, clear=True)
    >>> blocks = {Panel("Digits", "Fréchet distance"): {"vecor": {0.05: d, 0.1: d}}}
    >>> difference_curves(blocks, xlabel="weight").axes[0].get_xlabel()
    'weight'
    """
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): {method: {setting: difference}}}.")
    columns = _in_a_row(len(blocks), check_count("columns", columns))
    rows = -(-len(blocks) // columns)
    width = min(PAGE, 0.4 + 4.1 * columns)
    figure, axes = panels(rows, columns, width=width, height=0.8 + 3.0 * rows)
    handles: dict[str, Any] = {}
    places = [*blocks.items(), *[(None, {})] * (axes.size - len(blocks))]
    for axis, (panel, curves) in zip(axes.flat, places):
        if panel and curves:
            handles |= _panel_of_curves(axis, panel, curves, log)
            axis.set_xlabel(panel.xlabel or xlabel)
            if squeeze:
                _squeeze(axis, panel, [d.mean for curve in curves.values() for d in curve.values()])
        else:
            axis.remove()
    artists.legend(figure, handles, "outside upper left", ncols=2 if columns == 1 else 4)
    _foot(figure, FOOT)
    return figure


def _panel_of_curves(
    axis: Axes, panel: Panel, curves: Mapping[str, Mapping[float, Compared]], log: bool
) -> dict[str, Any]:
    """All curves of one panel, each moved a little sideways so that no interval hides another;
    {label: legend entry}.
    """
    settings = sorted({x for curve in curves.values() for x in curve})
    if log and settings and settings[0] <= 0:
        raise ConfigError(
            f"{panel.title} has the setting {settings[0]:g}, which has no logarithm; leave it out, "
            "or give log=False."
        )
    step = min(0.09, 0.5 / max(1, len(curves))) * _gap(np.log2(settings) if log else settings)
    handles = {}
    for i, (method, curve) in enumerate(curves.items()):
        _checked(list(curve.values()), f"{panel.title}, {method}")
        shift = (i - (len(curves) - 1) / 2) * step
        x = np.array(sorted(curve), dtype=float)
        moved = x * 2**shift if log else x + shift
        handles[method_style(method).label] = _curve(
            axis, method, moved, [curve[k] for k in sorted(curve)]
        )
    axis.axhline(0, color=BASE, linewidth=1.2, zorder=1.5)
    if log:
        axis.set_xscale("log", base=2)
    axis.set_xticks(settings, [f"{x:g}" for x in settings])
    axis.minorticks_off()
    axis.set_ylabel(_named(panel))
    axis.set_title(panel.title, loc="left")
    return handles


def _named(panel: Panel, more: str = "") -> str:
    """The name of the differences, and on which side a method is better."""
    check_choice("good", panel.good, GOOD)
    words = f"{panel.good} is better{more}" if panel.good else more.lstrip(";\n")
    return f"{panel.quantity}\n({words})" if words else panel.quantity


def _squeeze(axis: Axes, panel: Panel, means: Sequence[float]) -> None:
    """A symmetric logarithmic axis where the largest difference is more than LARGE times the median
    one.
    """
    sizes = np.abs(means)
    small, middle = np.quantile(sizes, (0.25, 0.5))
    if small == 0 or sizes.max() < LARGE * middle:
        return
    linear = 10 ** np.ceil(np.log10(small))
    axis.set_yscale("symlog", linthresh=linear, linscale=1.0)
    axis.margins(y=0.08)
    axis.yaxis.set_major_formatter(plain)
    axis.set_ylabel(_named(panel, f";\nlogarithmic beyond ±{linear:g}"))


def _gap(settings: Sequence[float] | np.ndarray) -> float:
    return float(min(np.diff(settings), default=1.0))


def _curve(axis: Axes, method: str, x: np.ndarray, found: Sequence[Compared]) -> Any:
    look = method_style(method)
    axis.plot(x, [d.mean for d in found], color=look.colour, linestyle=look.line, linewidth=1.4)
    for place, d in zip(x, found):
        axis.plot([place, place], [d.low, d.high], color=look.colour, linewidth=1.6)
        _mark(axis, place, d.mean, d, look, 6.5)
    return artists.legend_entry(look.colour, look.marker or "o", markersize=7)


@styled
def difference_scatter(
    blocks: Mapping[Panel, Sequence[tuple[str, float, Compared]]], *, xlabel: str
) -> Picture:
    """A panel for each block: (label, x, difference) as a point with its interval, x on a
    logarithmic axis. The labels stand in a column beside the panel, each with a line to its point,
    so that none hides another.

    Raises ConfigError without points, for NaN, and for an x that is not above 0.

    >>> from types import SimpleNamespace
    >>> d = SimpleNamespace(method="vecor", mean=-0.2, low=-0.3, high=-0.1, clear=True)
    >>> blocks = {Panel("Digits", "Fréchet distance"): [("VeCoR", 1.1, d), ("FM", 1.2, d)]}
    >>> difference_scatter(blocks, xlabel="length of v").axes[0].get_xlabel()
    'length of v'
    """
    if not blocks:
        raise ConfigError("blocks is empty; pass {Panel(...): [(label, x, difference), ...]}.")
    figure, axes = panels(1, len(blocks), width=min(PAGE, 0.6 + 5.6 * len(blocks)), height=4.2)
    for axis, (panel, points) in zip(axes[0], blocks.items()):
        _checked([d for _, _, d in points], panel.title)
        if min(x for _, x, _ in points) <= 0:
            raise ConfigError(
                f"{panel.title} has an x that is not above 0; its axis is logarithmic."
            )
        for _, x, d in points:
            look = method_style(d.method)
            axis.plot([x, x], [d.low, d.high], color=look.colour, linewidth=1.8)
            _mark(axis, x, d.mean, d, look, 7)
        axis.axhline(0, color=BASE, linewidth=1.2, zorder=1.5)
        axis.axvline(1, color=BASE, linewidth=1.2, linestyle=":", zorder=1.5)
        _ratio_axis(axis, [x for _, x, _ in points])
        axis.set(xlabel=xlabel, ylabel=_named(panel))
        axis.set_title(panel.title, loc="left")
        _label_column(axis, points)
    _foot(figure, f"{FOOT} Dotted: as long as FM's.")
    return figure


def _ratio_axis(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of ratios, with round numbers as ticks."""
    axis.set_xscale("log")
    axis.set_xlim(min(*values, 1.0) / 1.2, max(*values, 1.0) * 1.2)
    low, high = axis.get_xlim()
    ticks = [
        x
        for x in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500)
        if low <= x <= high
    ]
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.minorticks_off()


def _label_column(axis: Axes, points: Sequence[tuple[str, float, Compared]]) -> None:
    """The labels right of the panel, in the order of their points' heights."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    ordered = sorted(points, key=lambda point: (point[2].mean, point[1]))
    wanted = [(d.mean - low) / (high - low) for _, _, d in ordered]
    for (label, x, d), place in zip(ordered, _spread(wanted, LABEL_GAP)):
        line = {"arrowstyle": "-", "color": BASE, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5}
        at = {"xytext": (1.03, place), "textcoords": "axes fraction", "va": "center", "fontsize": 9}
        axis.annotate(label, (x, d.mean), arrowprops=line, **at)


def _spread(wanted: Sequence[float], gap: float) -> np.ndarray:
    """Places in [0, 1] near the `wanted` ones, which ascend, at least `gap` apart as far as there
    is room.
    """
    gap = min(gap, 1 / max(1, len(wanted) - 1))
    steps = gap * np.arange(len(wanted))
    free = np.array(wanted) - steps
    ascending = (np.maximum.accumulate(free) + np.minimum.accumulate(free[::-1])[::-1]) / 2
    return np.clip(ascending, 0, 1 - steps[-1]) + steps
