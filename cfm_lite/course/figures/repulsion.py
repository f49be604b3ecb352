"""What a repelling term does, drawn: the loss as a bowl, pairs that attract and repel, classes that
part, channels that stretch.

Green is where to go (u), vermilion what is wrong (u_neg) and the push away from it, purple what
comes of both:

    v* = (u - weight u_neg) / (1 - weight) = u + weight / (1 - weight) (u - u_neg)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, MultipleLocator

from cfm_lite._internal.checks import check_number
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Limits, legend, legend_entry
from cfm_lite.viz.style import (
    ATTRACT,
    DATA,
    DATA_OTHER,
    DIVERGING,
    MODEL,
    REPEL,
    TRUTH,
    Picture,
    as_array,
    method_color,
    method_title,
    named,
    panels,
    plain,
    styled,
)

__all__ = ["attract_repel", "channel_stems", "class_paths", "loss_bowls", "negative_distances"]

_CROSS = {
    "marker": "X",
    "markeredgecolor": "white",
    "markersize": 11,
    "linestyle": "none",
    "zorder": 5,
}
_DOT = {
    "marker": "o",
    "markeredgecolor": "white",
    "markersize": 10,
    "linestyle": "none",
    "zorder": 6,
}
_BROAD = {"headwidth": 2.6, "headlength": 2.6, "headaxislength": 2.6}
_HALO = [Stroke(linewidth=5, foreground="white"), Normal()]
_CLASS_COLORS = ("#7FB9DC", DATA)  # two blues
_SPACES = {
    "velocity": (REPEL, "o"),
    "latent": ("#F2A66E", "s"),
    "image": ("#7F3700", "^"),
}  # shades of what repels


@styled
def loss_bowls(u: Any, u_neg: Any, weights: Sequence[float]) -> Picture:
    """The loss J(f) = mean |f - u|^2 - weight mean |f - u_neg|^2 over the plane of velocities f,
    one panel for each of `weights`.

    `u` and `u_neg` (N, 2) are right and wrong velocities, drawn as their means; the squares are
    means over the 2 coordinates, as in the losses. The purple dot is the minimum; from weight = 1
    on there is none. Raises ConfigError for NaN, for shapes that differ and for negative weights.
    """
    u = as_array("u", u, None, 2)
    u_neg = as_array("u_neg", u_neg, len(u), 2)
    weights = [
        check_number("weight", weight, 0, np.inf)
        for weight in as_array("weights", weights, None).tolist()
    ]
    right, wrong = u.mean(0), u_neg.mean(0)
    best = {weight: (right - weight * wrong) / (1 - weight) for weight in weights if weight < 1}
    limits, n = artists.square_limits(right, wrong, *best.values(), margin=0.35), 161
    f = artists.grid_points(limits, n, inset=False)
    losses = [_bowl(f, u, u_neg, weight).reshape(n, n) for weight in weights]
    top = float(np.quantile(np.abs(losses), 0.9)) or 1.0
    bands = BoundaryNorm(
        np.linspace(-top, top, 22), DIVERGING.N, extend="both"
    )  # 21 bands, the middle one neutral
    figure, axes = artists.squares(
        1,
        len(weights),
        limits,
        side=2.15,
        right=1.05,
        top=0.45,
        bottom=0.9 if len(weights) > 1 else 1.4,
    )
    for panel, weight, values in zip(axes[0], weights, losses):
        image = panel.imshow(
            values,
            origin="lower",
            extent=limits,
            cmap=DIVERGING,
            norm=bands,
            interpolation="bilinear",
        )
        x, y = (f[:, i].reshape(n, n) for i in (0, 1))
        panel.contour(
            x,
            y,
            values,
            levels=bands.boundaries,
            colors="#4d4d4d",
            linewidths=0.5,
            linestyles="solid",
        )
        _mark(panel, right, wrong, best.get(weight))
        note = (
            f"minimum {_bowl(best[weight][None], u, u_neg, weight)[0]:.2f}".replace("-", "−")
            if weight in best
            else "no minimum"
        )
        panel.set_title(f"λ = {weight:g}: {note}", loc="left", fontsize=10)
        artists.name_axes(panel, "velocity $f$ along {}", outer=(panel is axes[0, 0], True))
    artists.color_bar(
        figure, image, axes[0, -1], "loss", ticks=MaxNLocator(7, symmetric=True), format="%g"
    )
    entries = {
        "right velocity $u$": legend_entry(ATTRACT, "o", markersize=8),
        "wrong velocity $u_{-}$": legend_entry(REPEL, "X", markersize=8),
        "lowest loss $v^*$": legend_entry(MODEL, "o", markersize=8),
    }
    artists.bottom_legend(figure, entries, ncols=3 if len(weights) > 1 else 1)
    return figure


def _bowl(f: np.ndarray, u: np.ndarray, u_neg: np.ndarray, weight: float) -> np.ndarray:
    """The loss (M,) at velocities `f` (M, 2)."""
    attract, repel = (((f[:, None] - target[None]) ** 2).mean(2).mean(1) for target in (u, u_neg))
    return attract - weight * repel


def _mark(panel: Axes, right: np.ndarray, wrong: np.ndarray, best: np.ndarray | None) -> None:
    panel.plot(*wrong, color=REPEL, **_CROSS)
    panel.plot(*right, color=ATTRACT, **_DOT)
    if best is None:
        return
    panel.plot(*np.stack([wrong, best]).T, color=TRUTH, linewidth=1, linestyle=":", zorder=3)
    look: dict[str, Any] = _DOT | {"markersize": 7, "zorder": 7}
    panel.plot(*best, color=MODEL, **look)


@styled
def attract_repel(
    panels_by_title: Mapping[str, Any],
    weight: float,
    *,
    limits: Limits,
    data: Any = None,
    others: Any = None,
    mean: Any = None,
    mirror: bool = False,
    scale: float | None = None,
) -> Picture:
    """Where to go, the push away from what is wrong, and their sum: three arrows that close a
    triangle at each place.

    `panels_by_title[title]` is (x, u, u_neg), all (B, 2): from x the green arrow u, from its tip
    the vermilion push weight / (1 - weight) (u - u_neg), and from x to the end the purple v*.
    `data` and `others` (N, 2) are drawn as points, `mean` (2,) as a cross, and with `mirror` the
    line a = b. `scale` is velocity per unit of length. Raises ConfigError for NaN, for shapes
    that differ and unless 0 <= weight < 1.
    """
    weight = check_number("weight", weight, 0, 1, open_high=True)
    triples = {
        title: _triple(title, triple)
        for title, triple in named("panels", panels_by_title, "{'title': (x, u, u_neg)}").items()
    }
    pushes = {
        title: weight / (1 - weight) * (u - u_neg) for title, (_, u, u_neg) in triples.items()
    }
    scale = scale or artists.arrow_scale(
        [u + pushes[title] for title, (_, u, _) in triples.items()], limits, 10, longest=3.0
    )
    figure, axes = artists.squares(
        1, len(triples), limits, right=2.0, top=0.45, bottom=0.55, side=3.0
    )
    for panel, (title, (x, u, _)) in zip(axes[0], triples.items()):
        artists.plane(panel, limits, title, outer=(panel is axes[0, 0], True))
        for cloud, color in ((others, DATA_OTHER), (data, DATA)):
            if cloud is not None:
                artists.points(panel, cloud, color=color, size=5, alpha=0.5, zorder=1)
        if mirror:
            panel.axline((0, 0), slope=1, color=REPEL, linestyle="--", linewidth=1.2, zorder=1.5)
        if mean is not None:
            panel.plot(*as_array("mean", mean, 2), color=REPEL, **_CROSS)
        # the sum is broad and pale: where the push is parallel to u, all three lie on one line
        artists.arrows(
            panel,
            x,
            u + pushes[title],
            color=MODEL,
            scale=scale,
            width=0.016,
            alpha=0.45,
            zorder=2.4,
            **_BROAD,
        )
        artists.arrows(panel, x, u, color=ATTRACT, scale=scale, width=0.0065, zorder=2.6)
        artists.arrows(
            panel, x + u / scale, pushes[title], color=REPEL, scale=scale, width=0.0065, zorder=2.7
        )
        artists.points(panel, x, color=TRUTH, size=14, zorder=3)
    fastest = max(
        float(np.linalg.norm(u + pushes[title], axis=1).max())
        for title, (_, u, _) in triples.items()
    )
    artists.arrow_key(axes[0, -1], scale, 0.6 * fastest)
    entries = {
        "where to go, $u$": legend_entry(ATTRACT, "-"),
        "the push away\nfrom $u_{-}$": legend_entry(REPEL, "-"),
        "both together, $v^*$": Line2D([], [], color=MODEL, alpha=0.45, linewidth=5),
        "the place $x_t$": legend_entry(TRUTH),
    }
    entries |= (
        {"mean of all data": legend_entry(REPEL, "X", markersize=8)} if mean is not None else {}
    )
    entries |= {artists.DIAGONAL: legend_entry(REPEL, "--")} if mirror else {}
    artists.side_legend(axes[0, -1], entries, top=0.85)
    return figure


def _triple(title: str, triple: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(triple, tuple | list) or len(triple) != 3:
        raise ConfigError(
            f"panel {title!r} is a {type(triple).__name__}; it must be (x, u, u_neg), each (B, 2)."
        )
    x = as_array(f"x of {title!r}", triple[0], None, 2)
    u, u_neg = (
        as_array(f"{what} of {title!r}", values, len(x), 2)
        for what, values in zip(("u", "u_neg"), triple[1:])
    )
    return x, u, u_neg


@styled
def class_paths(
    runs: Mapping[str, Any], ts: Any, *, shown: int = 40, label: str = "height $b$"
) -> Picture:
    """One coordinate of two classes' particles against time, a panel per method, with the gap of
    their means at the end.

    `runs[name]` is (2, S, B): class, time, particle; `ts` (S,) are the times. `shown` of the B
    particles are drawn; all enter the mean (thick) and the gap. All panels share their axes. Raises
    ConfigError for NaN and for shapes that do not fit.
    """
    ts = as_array("ts", ts, None)
    runs = {
        name: as_array(f"runs[{name!r}]", run, 2, len(ts), None)
        for name, run in named("runs", runs, "{'fm': heights}").items()
    }
    figure, axes = panels(
        1, len(runs), width=max(5.0, 1.2 + 3.3 * len(runs)), height=4.0, sharey=True
    )
    for panel, (name, run) in zip(axes[0], runs.items()):
        color = method_color(name, TRUTH)
        for heights, shade in zip(run, _CLASS_COLORS):
            panel.plot(ts, heights[:, :shown], color=shade, linewidth=0.7, alpha=0.55)
        for heights, shade in zip(run, _CLASS_COLORS):
            panel.plot(ts, heights.mean(1), color=shade, linewidth=2.8, path_effects=_HALO)
        low, high = sorted(run[:, -1].mean(1))
        x = ts[-1] + 0.05 * np.ptp(ts)
        look = {"arrowstyle": "<->", "color": color, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.6}
        panel.annotate("", (x, low), (x, high), arrowprops=look)
        panel.text(
            x + 0.03 * np.ptp(ts),
            (low + high) / 2,
            f"{high - low:.2f}",
            color=color,
            weight="bold",
            va="center",
            fontsize=11,
        )
        panel.set_title(method_title(name), loc="left", color=color)
        panel.set(
            xlabel="time $t$ (0 noise, 1 data)",
            xlim=(ts[0], ts[-1] + 0.24 * np.ptp(ts)),
            xticks=[0, 0.5, 1],
        )
    axes[0, 0].set_ylabel(label)
    entries = {f"class {c}": legend_entry(shade, "-") for c, shade in enumerate(_CLASS_COLORS)}
    legend(figure, entries, "outside lower left", ncols=2)
    note = "Thin: particles; thick: their mean" + (
        "; double arrow: the gap of the means." if len(runs) > 1 else "."
    )
    figure.supxlabel(note, x=0.99, ha="right", fontsize=9)
    return figure


@styled
def negative_distances(
    table: Mapping[str, Mapping[str, float]], *, reference: Mapping[str, float] | None = None
) -> Picture:
    """How far wrong velocities are from the right one: a row per perturbation, a mark per space, on
    one axis from 0.

    `table[perturbation][space]` is a mean squared distance per coordinate, the spaces "velocity",
    "latent" or "image"; `reference` names up to two values for dashed lines, such as {"another
    image": 2.9}. Raises ConfigError for NaN, negative values and other spaces.
    """
    table = named("table", table, "{'cutmix': {'velocity': 0.5}}")
    figure, ((panel,),) = panels(1, 1, width=8.0, height=1.5 + 0.42 * len(table))
    for row, (name, places) in enumerate(table.items()):
        unknown = set(places) - set(_SPACES)
        if unknown:
            raise ConfigError(
                f"{name!r} has the spaces {sorted(unknown)}; known are {list(_SPACES)}."
            )
        found = {
            space: check_number(f"{name} in {space} space", places[space], 0, np.inf)
            for space in _SPACES
            if space in places
        }
        panel.plot(
            [0, *found.values()], [row] * (1 + len(found)), color="#c9c9c9", linewidth=1.2, zorder=1
        )
        for space, value in found.items():
            color, marker = _SPACES[space]
            panel.plot(
                value,
                row,
                marker=marker,
                color=color,
                markersize=9,
                markeredgecolor="white",
                linestyle="none",
            )
    handles = {
        f"{space} space": legend_entry(color, marker, markersize=8)
        for space, (color, marker) in _SPACES.items()
    }
    for (name, value), style in zip((reference or {}).items(), (("--", MODEL), ("--", TRUTH))):
        handles[name] = panel.axvline(
            check_number(name, value, 0, np.inf),
            linestyle=style[0],
            color=style[1],
            linewidth=1.3,
            zorder=0.5,
        )
    panel.set_yticks(range(len(table)), [name.replace("_", " ") for name in table])
    panel.set(
        xlabel="mean squared distance from the right velocity, per coordinate",
        ylabel="perturbation",
        xlim=(0, None),
    )
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    legend(figure, handles, "outside right upper", labelspacing=0.8)
    return figure


@styled
def channel_stems(values: Mapping[str, Any]) -> Picture:
    """The channels of several vectors `values[name]` (C,), a panel each: stems from the mean over
    the channels to each channel.

    Names of methods choose colours ("fm" is green). The first panel's values stand in the others as
    hollow green marks. All panels share their axes. Raises ConfigError for NaN and for vectors of
    different length.
    """
    names = list(named("values", values, "{'fm': m}"))
    base = as_array(f"values[{names[0]!r}]", values[names[0]], None)
    vectors = {name: as_array(f"values[{name!r}]", values[name], len(base)) for name in names}
    figure, axes = panels(1, len(vectors), width=0.8 + 2.9 * len(vectors), height=3.4, sharey=True)
    place = np.arange(1, len(base) + 1)
    for panel, (name, v) in zip(axes[0], vectors.items()):
        color = method_color(name)
        panel.axhline(v.mean(), color=TRUTH, linestyle="--", linewidth=1.3)
        panel.vlines(place, v.mean(), v, color=color, linewidth=3)
        panel.plot(
            place,
            base,
            "o",
            color="none",
            markeredgecolor=ATTRACT,
            markersize=11,
            markeredgewidth=1.5,
        )
        panel.plot(place, v, "o", color=color, markersize=6.5)
        panel.set_title(method_title(name), loc="left")
        panel.set(xlabel="channel", xlim=(0.4, len(base) + 0.6))
        panel.xaxis.set_major_locator(MultipleLocator(1))
        panel.yaxis.set_major_formatter(plain)
    axes[0, 0].set_ylabel("velocity of the channel")
    entries = {
        "mean over the channels": legend_entry(TRUTH, "--"),
        f"the channels of {method_title(names[0])}": legend_entry(
            ATTRACT, markerfacecolor="none", markeredgecolor=ATTRACT, markersize=8
        ),
    }
    legend(figure, entries, "outside lower left", ncols=2)
    return figure
