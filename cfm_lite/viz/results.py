"""Figures of numbers: quality against steps, bars per method, training curves and similarity
matrices.

Rows are those of `metrics.json`: a flat list of dicts with at least method, metric and value, and
where it matters nfe and seed. Means and ranges are computed here, from the rows; several seeds show
as a bar from the lowest to the highest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, LogLocator

from cfm_lite._internal.checks import check_choice, check_number
from cfm_lite.errors import ConfigError
from cfm_lite.viz.style import (
    DIVERGING,
    METHOD_STYLES,
    MODEL,
    TRUTH,
    Picture,
    as_array,
    frame,
    method_style,
    panels,
    styled,
)

__all__ = ["METRICS", "Metric", "heatmap", "method_bars", "quality_vs_steps", "training_curves"]

Rows = Sequence[Mapping[str, Any]]


class Metric(NamedTuple):
    """How a metric is shown: its name on an axis, a factor on its values, and which direction is
    good.
    """

    name: str
    factor: float = 1.0
    better: str = ""


METRICS: Mapping[str, Metric] = {
    "frechet": Metric("Fréchet distance", 1, "lower is better"),
    "accuracy": Metric("accuracy, %", 100, "higher is better"),
    "precision": Metric("precision, %", 100, "higher is better"),
    "recall": Metric("recall, %", 100, "higher is better"),
    "inception_score": Metric("inception score", 1, "higher is better"),
    "nearest_ratio": Metric(
        "distance to the nearest training image,\nrelative to real test images", 1, "1 is ideal"
    ),
    "sliced_wasserstein": Metric("sliced Wasserstein distance", 1, "lower is better"),
    "mmd": Metric("MMD", 1, "lower is better"),
    "straightness": Metric("straightness", 1, ""),
    "drift": Metric("drift from the data", 1, "lower is better"),
    "trajectory_error": Metric("distance to the exact flow's end", 1, "lower is better"),
    "class_separation": Metric(
        "distance of the class means,\nrelative to the exact one", 1, "1 is ideal"
    ),
}


def _metric(name: str) -> Metric:
    return METRICS.get(name, Metric(name.replace("_", " ")))


def _title(name: str, where: str = "") -> str:
    """The metric's name with a capital letter, and which direction is good."""
    metric = _metric(name)
    bare = metric.name.partition(",")[0]
    return bare[:1].upper() + bare[1:] + where + (f": {metric.better}" if metric.better else "")


def _select(rows: Rows, metric: str, *keys: str) -> list[dict[str, Any]]:
    """The methods' rows of one metric, in display units, without those whose value is None (JSON's
    way to say "not finite").
    """
    check_choice(
        "metric",
        metric,
        sorted({str(row.get("metric")) for row in rows}) or ["(there are no rows)"],
    )
    chosen = []
    for row in rows:
        if row.get("metric") != metric or row.get("method") == "real" or row.get("value") is None:
            continue
        missing = [key for key in ("method", *keys) if row.get(key) is None]
        if missing:
            raise ConfigError(
                f"a row of metric {metric!r} has no {', '.join(missing)}: {dict(row)}. Every row "
                "needs them."
            )
        chosen.append(
            {
                **row,
                "value": float(as_array("value", [row["value"]], 1)[0]) * _metric(metric).factor,
            }
        )
    if not chosen:
        raise ConfigError(
            f"no method has a value of metric {metric!r}; all are None, so nothing was finite. "
            "Look at the run's log."
        )
    return chosen


def _by_method(rows: Rows, *keys: str) -> dict[str, dict[tuple, dict[Any, float]]]:
    """method -> key values -> seed -> value, methods in the order of METHOD_STYLES; ConfigError
    where two rows claim one place.
    """
    rank = {name: i for i, name in enumerate(METHOD_STYLES)}
    table: dict[str, dict[tuple, dict[Any, float]]] = {}
    for row in sorted(
        rows,
        key=lambda row: (
            rank.get(row["method"], len(rank)),
            str(row["method"]),
            *(row[key] for key in keys),
        ),
    ):
        cell = table.setdefault(row["method"], {}).setdefault(tuple(row[key] for key in keys), {})
        seed = row.get("seed")
        if seed in cell:
            place = (
                ", ".join(f"{key} {row[key]}" for key in ("method", "metric", *keys))
                + f", seed {seed}"
            )
            raise ConfigError(
                f"two rows claim the same place: {place}. Filter the rows to one setting, sampler "
                "and dataset first."
            )
        cell[seed] = row["value"]
    return table


def _reference(rows: Rows, metric: str, nfe: int | None = None) -> float | None:
    """What real data reach, for samples of `nfe` if given: the mean of rows `METRIC_real`, or of
    rows whose method is "real".
    """
    ours = [
        row
        for row in rows
        if row.get("metric") == f"{metric}_real"
        or (row.get("metric"), row.get("method")) == (metric, "real")
    ]
    values = [
        row["value"]
        for row in ours
        if row.get("value") is not None and nfe in (None, row.get("nfe"))
    ]
    return float(as_array("value", values).mean()) * _metric(metric).factor if values else None


@styled
def quality_vs_steps(rows: Rows, metrics: Sequence[str] = ("frechet", "accuracy")) -> Picture:
    """A panel per metric against the number of sampling steps (`nfe`): a line per method, and what
    real data reach, dashed.

    Several seeds give the mean, and a bar from the lowest to the highest. Distances have a
    logarithmic axis. Rows whose value is None are left out and counted. Raises ConfigError for a
    metric without rows, for NaN, and where two rows have the same method, metric, nfe and seed.
    """
    figure, axes = panels(1, len(metrics), width=2.1 + 4.2 * len(metrics), height=4.3)
    handles: dict[str, Any] = {}
    for panel, metric in zip(axes[0], metrics):
        chosen = _select(rows, metric, "nfe")
        table = _by_method(chosen, "nfe")
        for i, (method, cells) in enumerate(table.items()):
            handles[method_style(method).label] = _line(
                panel, method, cells, 2 ** (0.04 * (i - (len(table) - 1) / 2))
            )
        _axes_of_steps(
            panel,
            sorted({row["nfe"] for row in chosen}),
            metric,
            min(row["value"] for row in chosen),
        )
        handles |= _real_line(panel, rows, metric, _samples_by_step(chosen))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside right upper",
        handlelength=2.6,
        labelspacing=0.7,
    )
    shown = [row for row in rows if row.get("metric") in metrics]
    counts = _samples_by_step(shown)
    drawn = "; ".join(
        f"{n:,} with {', '.join(map(str, steps))} evaluations" for n, steps in counts.items()
    )
    _remark(
        figure,
        shown,
        "Points: mean of {} seeds; bars: lowest to highest.",
        f"Samples: {drawn}." if len(counts) > 1 else "",
    )
    return figure


def _samples_by_step(rows: Rows) -> dict[int, list[int]]:
    """{number of samples: the evaluations with which so many were drawn}, of the rows that say so."""
    pairs = sorted(
        {
            (row["nfe"], row["samples"])
            for row in rows
            if row.get("nfe") is not None and row.get("samples") is not None
        }
    )
    return {n: [nfe for nfe, m in pairs if m == n] for n in dict.fromkeys(m for _, m in pairs)}


def _real_line(
    panel: Axes, rows: Rows, metric: str, drawn: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """Dashed, what real data reach; in steps where samples differ in number, since a distance of
    fewer samples is larger.
    """
    look: dict[str, Any] = {"color": TRUTH, "linestyle": "--", "linewidth": 1.3, "zorder": 1.5}
    level = _reference(rows, metric)
    if level is None:
        return {}
    steps = sorted(nfe for some in drawn.values() for nfe in some) if len(drawn) > 1 else []
    levels = [
        known for known in (_reference(rows, metric, nfe) for nfe in steps) if known is not None
    ]
    if not steps or len(levels) < len(steps):
        return {"Real data": panel.axhline(level, **look)}
    low, high = panel.get_xlim()
    (line,) = panel.plot(
        [low, *steps[1:-1], steps[-1], high],
        [levels[0], *levels[1:], levels[-1]],
        drawstyle="steps-mid",
        **look,
    )
    panel.set_xlim(low, high)
    return {"Real data, as many": line}


def _line(
    panel: Axes, method: str, cells: Mapping[tuple, Mapping[Any, float]], shift: float
) -> Any:
    """One method's line; with several seeds, moved sideways by the factor `shift` so that no bar
    hides another.
    """
    look = method_style(method)
    values = [np.array(list(cell.values())) for cell in cells.values()]
    several = any(len(v) > 1 for v in values)
    x = np.array([key[0] for key in cells], dtype=float) * (shift if several else 1.0)
    mean = np.array([v.mean() for v in values])
    bars = (
        np.array([[m - v.min(), v.max() - m] for m, v in zip(mean, values)]).T if several else None
    )
    style = {
        "color": look.color,
        "marker": look.marker,
        "linestyle": look.line,
        "markersize": 7,
        "markeredgecolor": "white",
    }
    return panel.errorbar(
        x,
        mean,
        yerr=bars,
        elinewidth=1.1,
        capsize=2,
        markeredgewidth=0.6,
        label=look.label,
        **style,
    )


def _axes_of_steps(panel: Axes, steps: Sequence[int], metric: str, lowest: float) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(steps, [f"{step:g}" for step in steps])
    panel.set(xlabel="network evaluations per sample (NFE)", ylabel=_metric(metric).name)
    panel.set_title(_title(metric), loc="left")
    if _metric(metric).better == "lower is better" and lowest > 0:
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(
            LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5))
        )
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.minorticks_off()


def _remark(figure: Picture, rows: Rows, several: str, more: str = "") -> None:
    """At the foot of `figure`: what stands for `several` seeds, `more`, and how many values are
    missing.
    """
    seeds = len({row.get("seed") for row in rows if row.get("method") != "real"})
    missing = sum(row.get("value") is None for row in rows)
    remarks = [several.format(seeds)] if seeds > 1 else []
    remarks += [more] if more else []
    remarks += [f"Missing values, not finite: {missing}."] if missing else []
    if remarks:
        figure.supxlabel(" ".join(remarks), x=0.01, ha="left", fontsize=9)


@styled
def method_bars(rows: Rows, metric: str, *, nfe: int | None = None) -> Picture:
    """One metric at one number of steps: a bar per method for the mean, a dot per seed, and what
    real data reach, dashed.

    `nfe` may be left out if the rows have only one. Raises ConfigError otherwise, and as
    `quality_vs_steps` does.
    """
    chosen = _select(rows, metric)
    found = sorted({row.get("nfe") for row in chosen}, key=str)
    if nfe is None and len(found) > 1:
        raise ConfigError(f"rows of {metric!r} have nfe {found}; choose one: nfe={found[-1]}.")
    check_choice("nfe", str(found[0] if nfe is None else nfe), map(str, found))
    table = _by_method([row for row in chosen if nfe is None or row.get("nfe") == nfe])
    figure, ((panel,),) = panels(1, 1, width=7.2, height=1.3 + 0.42 * len(table))
    digits = 1 if _metric(metric).factor == 100 else 3
    for place, (method, cells) in enumerate(table.items()):
        look, values = method_style(method), np.array(list(cells[()].values()))
        panel.barh(place, values.mean(), height=0.62, color=look.color, alpha=0.55)
        panel.plot(
            values,
            np.full(len(values), place),
            "o",
            color=look.color,
            markeredgecolor="white",
            markersize=6.5,
        )
        number = f"{values.mean():.1f}" if digits == 1 else f"{values.mean():.3g}"
        panel.text(
            1.02, place, number, transform=panel.get_yaxis_transform(), va="center", fontsize=9.5
        )
    panel.set_yticks(range(len(table)), [method_style(method).label for method in table])
    panel.set(xlabel=_metric(metric).name, ylabel="method")
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    reference = _reference(rows, metric)
    if reference is not None:
        panel.axvline(reference, color=TRUTH, linestyle="--", linewidth=1.3, label="Real data")
        figure.legend(loc="outside lower right", handlelength=2.6)
    where = found[0] if nfe is None else nfe
    panel.set_title(
        _title(metric, "" if where is None else f" at {where} network evaluations"), loc="left"
    )
    _remark(figure, chosen, "Bars: mean of {} seeds; dots: the seeds.")
    return figure


Logs = Sequence[Mapping[str, Any]]


@styled
def training_curves(logs: Logs | Mapping[str, Logs], keys: Sequence[str] | None = None) -> Picture:
    """A panel per logged quantity against the training step, a line per run; the pale line is raw,
    the dark one a running mean.

    `logs` is one run's list of dicts as in `log.jsonl`, or a mapping of names (such as methods) to
    such lists; `keys` chooses the panels (default: all numbers but "step"). Raises ConfigError for
    NaN, no lines, or a key that no run has.
    """
    runs = logs if isinstance(logs, Mapping) else {"run": logs}
    known = list(
        dict.fromkeys(
            key
            for lines in runs.values()
            for line in lines
            for key in line
            if key != "step" and _is_number(line[key])
        )
    )
    for key in keys or []:
        check_choice("key", key, known)
    keys = list(keys or known)
    if not keys:
        raise ConfigError(
            f"the logs of {list(runs)} hold no numbers; pass lines such as "
            f"{{'step': 1, 'loss': 0.5}}."
        )
    columns = min(len(keys), 3)
    lines = math.ceil(len(keys) / columns)
    figure, axes = panels(lines, columns, width=0.6 + 3.6 * columns, height=0.7 + 2.7 * lines)
    for panel, key in zip(axes.flat, keys):
        for name, run in runs.items():
            _curve(panel, name, key, [line for line in run if key in line])
        panel.set(xlabel="training step", ylabel=key.replace("_", " "))
    for panel in axes.flat[len(keys) :]:
        panel.remove()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(runs) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(len(runs), 2 * columns))
    figure.supxlabel(
        "Pale: logged values; dark: their running mean.", x=0.01, ha="left", fontsize=9
    )
    return figure


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, bool | str)
        and getattr(value, "ndim", 0) == 0
        and hasattr(value, "__float__")
    )


def _curve(panel: Axes, name: str, key: str, lines: Logs) -> None:
    if not lines:
        return
    step = as_array("step", [float(line["step"]) for line in lines])
    value = as_array(key, [float(line[key]) for line in lines])
    known = name in METHOD_STYLES
    color, style, label = (
        (METHOD_STYLES[name].color, METHOD_STYLES[name].line, METHOD_STYLES[name].label)
        if known
        else (MODEL, "-", name)
    )
    width = max(1, len(value) // 25)
    weights = np.convolve(
        np.ones(len(value)), np.ones(width), mode="same"
    )  # fewer neighbours near the ends
    panel.plot(step, value, color=color, alpha=0.25, linewidth=0.8)
    panel.plot(
        step,
        np.convolve(value, np.ones(width), mode="same") / weights,
        color=color,
        linestyle=style,
        label=label,
    )


@styled
def heatmap(
    matrix: Any,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    axis: str = "sample",
    label: str = "cosine similarity",
    limit: float | None = None,
) -> Picture:
    """A signed `matrix` (len(rows), len(columns)) in a diverging map centred at zero, with its
    numbers where there is room.

    `columns` defaults to `rows`, `limit` to the largest magnitude; `axis` names both axes. Raises
    ConfigError for NaN and for labels that do not fit the matrix.
    """
    columns = rows if columns is None else columns
    matrix = as_array("matrix", matrix, len(rows), len(columns))
    limit = (
        float(np.abs(matrix).max()) or 1.0
        if limit is None
        else check_number("limit", limit, 0, math.inf, open_low=True)
    )
    cell = min(0.55, 6.5 / max(matrix.shape))  # inches
    figure, ((panel,),) = panels(
        1, 1, width=2.7 + cell * len(columns), height=1.3 + cell * len(rows)
    )
    image = panel.imshow(matrix, cmap=DIVERGING, norm=Normalize(-limit, limit), aspect="auto")
    slanted = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        if max(map(len, columns)) > 3
        else {}
    )
    every = math.ceil(0.19 / cell)  # a label of 9 points needs that much
    panel.set_xticks(range(0, len(columns), every), columns[::every], **slanted)
    panel.set_yticks(range(0, len(rows), every), rows[::every])
    panel.set(xlabel=axis, ylabel=axis)
    frame(panel)
    if cell > 0.5:
        for (i, j), value in np.ndenumerate(matrix):
            color = "white" if abs(value) > 0.75 * limit else TRUTH
            panel.text(
                j,
                i,
                f"{value:.2f}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=9,
                color=color,
            )
    figure.colorbar(image, ax=panel, label=label, shrink=0.9)
    return figure
