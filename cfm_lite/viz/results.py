"""Figures of results: quality against steps, and bars per method.

Rows are those of `metrics.json`: a flat list of dicts with at least method, metric and value, and
where it matters nfe and seed. Means and ranges are computed here, from the rows; several seeds show
as a bar from the lowest to the highest.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from cfm_lite._internal.checks import check_choice
from cfm_lite.errors import ConfigError
from cfm_lite.viz.artists import foot, legend
from cfm_lite.viz.style import (
    METHOD_STYLES,
    PAGE,
    TRUTH,
    Picture,
    as_array,
    method_style,
    panels,
    plain,
    styled,
)

__all__ = ["METRICS", "Metric", "method_bars", "quality_vs_steps"]

Rows = Sequence[Mapping[str, Any]]


class Metric(NamedTuple):
    """How a metric is shown: its name on an axis, a factor on its values, and which direction is
    good.

    >>> Metric("accuracy, %", 100, "higher is better").factor
    100
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
    "field_error": Metric("field error", 1, "lower is better"),
    "trajectory_error": Metric("distance to the exact flow's end", 1, "lower is better"),
    "class_separation": Metric(
        "distance of the class means,\nrelative to the exact one", 1, "1 is ideal"
    ),
    **{
        f"{part}_{prompts}": Metric(f"{right}, {asked}, %", 100, "higher is better")
        for part, right in {
            "right": "everything right",
            "kinds": "things right",
            "colours": "colours right",
            "sizes": "sizes right",
            "relation": "places right",
        }.items()
        for prompts, asked in {"seen": "seen prompts", "held_out": "held-out prompts"}.items()
    },
}


def _metric(name: str) -> Metric:
    return METRICS.get(name, Metric(name.replace("_", " ")))


def _select(rows: Rows, metric: str, *keys: str) -> list[dict[str, Any]]:
    """The methods' rows of one metric, in display units, without those whose value is None (JSON's
    way to say "not finite").
    """
    known = sorted({str(row.get("metric")) for row in rows})
    if not known:
        raise ConfigError("there are no rows, so nothing to draw; give at least one.")
    check_choice("metric", metric, known)
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
        value = float(as_array("value", [row["value"]], 1)[0])
        chosen.append({**row, "value": value * _metric(metric).factor})
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

    def order(row: Mapping[str, Any]) -> tuple:
        method = row["method"]
        return (rank.get(method, len(rank)), str(method), *(row[key] for key in keys))

    table: dict[str, dict[tuple, dict[Any, float]]] = {}
    for row in sorted(rows, key=order):
        cell = table.setdefault(row["method"], {}).setdefault(tuple(row[key] for key in keys), {})
        seed = row.get("seed")
        if seed in cell:
            place = ", ".join(f"{key} {row[key]}" for key in ("method", "metric", *keys))
            raise ConfigError(
                f"two rows claim the same place: {place}, seed {seed}. Filter the rows to one "
                "setting, sampler and dataset first."
            )
        cell[seed] = row["value"]
    return table


def _reference(rows: Rows, metric: str, nfe: int | None = None) -> float | None:
    """What real data reach, for samples of `nfe` if given: the mean of rows `METRIC_real`, or of
    rows whose method is "real".
    """
    values = [
        row["value"]
        for row in rows
        if (row.get("metric") == f"{metric}_real" or _is_real(row, metric))
        and row.get("value") is not None
        and nfe in (None, row.get("nfe"))
    ]
    return float(as_array("value", values).mean()) * _metric(metric).factor if values else None


def _is_real(row: Mapping[str, Any], metric: str) -> bool:
    return (row.get("metric"), row.get("method")) == (metric, "real")


@styled
def quality_vs_steps(rows: Rows, metrics: Sequence[str] = ("frechet", "accuracy")) -> Picture:
    """A panel per metric against the number of sampling steps (`nfe`): a line per method, and what
    real data reach, dashed.

    Several seeds give the mean, and a bar from the lowest to the highest. Distances have a
    logarithmic axis. Rows whose value is None are left out and counted. Raises ConfigError for a
    metric without rows, for NaN, and where two rows have the same method, metric, nfe and seed.

    >>> rows = [{"method": "fm", "metric": "mmd", "nfe": n, "value": 1 / n} for n in (2, 4)]
    >>> quality_vs_steps(rows, ["mmd"]).axes[0].get_ylabel()
    'MMD'
    """
    width = min(PAGE, 2.1 + 4.2 * len(metrics))
    figure, axes = panels(1, len(metrics), width=width, height=4.3)
    handles: dict[str, Any] = {}
    for panel, metric in zip(axes[0], metrics):
        chosen = _select(rows, metric, "nfe")
        table = _by_method(chosen, "nfe")
        for i, (method, cells) in enumerate(table.items()):
            shift = 2 ** (0.04 * (i - (len(table) - 1) / 2))
            handles[method_style(method).label] = _line(panel, method, cells, shift)
        _axes_of_steps(panel, metric, chosen)
        handles |= _real_line(panel, rows, metric, _samples_by_step(chosen))
    beside = len(metrics) == 1
    place, ncols = ("outside right upper", 1) if beside else ("outside upper left", 4)
    legend(figure, handles, place, ncols=ncols, handlelength=2.6)
    shown = [row for row in rows if row.get("metric") in metrics]
    counts = _samples_by_step(shown)
    drawn = "; ".join(
        f"{n:,} with {', '.join(map(str, steps))} evaluations" for n, steps in counts.items()
    )
    more = f"Samples: {drawn}." if len(counts) > 1 else ""
    _remark(figure, shown, "Points: mean of {} seeds; bars: lowest to highest.", more)
    return figure


def _samples_by_step(rows: Rows) -> dict[int, list[int]]:
    """{number of samples: the evaluations with which so many were drawn}, of rows that say so."""
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
    levels: list[Any] = [_reference(rows, metric, nfe) for nfe in steps]
    if not steps or None in levels:
        return {"Real data": panel.axhline(level, **look)}
    low, high = panel.get_xlim()
    x, y = [low, *steps[1:], high], [*levels, levels[-1]]
    (line,) = panel.plot(x, y, drawstyle="steps-mid", **look)
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
    below = mean - [v.min() for v in values], [v.max() for v in values] - mean
    style = {"color": look.colour, "marker": look.marker, "linestyle": look.line, "markersize": 7}
    style |= {"markeredgecolor": "white", "markeredgewidth": 0.6, "label": look.label}
    bars = {"yerr": np.array(below) if several else None, "elinewidth": 1.1, "capsize": 2}
    return panel.errorbar(x, mean, **bars, **style)


def _axes_of_steps(panel: Axes, metric: str, rows: Rows) -> None:
    steps = sorted({row["nfe"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(steps, [f"{step:g}" for step in steps])
    panel.set(xlabel="network evaluations (NFE)", ylabel=_metric(metric).name)
    panel.set_title(_metric(metric).better.capitalize(), loc="left")
    if _metric(metric).better == "lower is better" and min(row["value"] for row in rows) > 0:
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        subs = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5)
        panel.yaxis.set_major_locator(LogLocator(subs=subs))
        panel.yaxis.set_major_formatter(plain)
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
        foot(figure, " ".join(remarks))


@styled
def method_bars(rows: Rows, *metrics: str, nfe: int | None = None) -> Picture:
    """A panel per metric, at one number of steps: a bar per method for the mean, a dot per seed,
    and what real data reach, dashed.

    `nfe` may be left out if the rows have only one. Raises ConfigError otherwise, without a metric,
    and as `quality_vs_steps` does.

    >>> row = {"metric": "mmd", "nfe": 4, "value": 0.1}
    >>> rows = [row | {"method": name} for name in ("fm", "vecor")]
    >>> [text.get_text() for text in method_bars(rows, "mmd").axes[0].get_yticklabels()]
    ['FM', 'VeCoR']
    """
    if not metrics:
        raise ConfigError("metrics is empty; name at least one, such as 'frechet'.")
    shown = {metric: _at_one_nfe(rows, metric, nfe) for metric in metrics}
    most = max(len(_names(chosen)) for chosen in shown.values())
    width = min(PAGE, 2.2 + 5.0 * len(shown))
    figure, axes = panels(1, len(shown), width=width, height=1.3 + 0.42 * most)
    lines, first = [], _names(shown[metrics[0]])
    for panel, (metric, chosen) in zip(axes[0], shown.items()):
        _bars(panel, metric, chosen)
        if len(shown) > 1:  # side by side: short titles, and equal labels are written once
            panel.set_title(_metric(metric).better.capitalize(), loc="left")
            panel.set_ylabel("")
            panel.tick_params(labelleft=panel is axes[0][0] or _names(chosen) != first)
        level = _reference(rows, metric)
        if level is not None:
            lines.append(panel.axvline(level, color=TRUTH, linestyle="--", linewidth=1.3))
    if lines:
        figure.legend(lines[:1], ["Real data"], loc="outside lower right", handlelength=2.6)
    rows = [row for chosen in shown.values() for row in chosen]
    steps = [] if len(shown) == 1 else sorted({row["nfe"] for row in rows if row.get("nfe")})
    more = f"Network evaluations: {', '.join(map(str, steps))}." if steps else ""
    _remark(figure, rows, "Bars: mean of {} seeds; dots: the seeds.", more)
    return figure


def _names(rows: Rows) -> set[str]:
    return {row["method"] for row in rows}


def _at_one_nfe(rows: Rows, metric: str, nfe: int | None) -> list[dict[str, Any]]:
    """The methods' rows of one metric at `nfe`, or at the only number of steps that they have."""
    chosen = _select(rows, metric)
    found = sorted({row.get("nfe") for row in chosen}, key=str)
    if nfe is None and len(found) > 1:
        raise ConfigError(f"rows of {metric!r} have nfe {found}; choose one: nfe={found[-1]}.")
    check_choice("nfe", str(found[0] if nfe is None else nfe), map(str, found))
    return [row for row in chosen if row.get("nfe") == (found[0] if nfe is None else nfe)]


def _bars(panel: Axes, metric: str, rows: Rows) -> None:
    table, nfe = _by_method(rows), rows[0].get("nfe")
    form = ".1f" if _metric(metric).factor == 100 else ".3g"
    number = {"transform": panel.get_yaxis_transform(), "va": "center", "fontsize": 9.5}
    dot = {"markeredgecolor": "white", "markersize": 6.5}
    for place, (method, cells) in enumerate(table.items()):
        color, values = method_style(method).colour, np.array(list(cells[()].values()))
        panel.barh(place, values.mean(), height=0.62, color=color, alpha=0.55)
        panel.plot(values, np.full(len(values), place), "o", color=color, **dot)
        panel.text(1.02, place, format(values.mean(), form), **number)
    panel.set_yticks(range(len(table)), [method_style(method).label for method in table])
    panel.set(xlabel=_metric(metric).name, ylabel="method")
    panel.invert_yaxis()
    panel.grid(False, axis="y")
    where = [] if nfe is None else [f"at {nfe} network evaluations"]
    better = [_metric(metric).better] if _metric(metric).better else []
    title = ", ".join([*better, *where])
    panel.set_title(title[:1].upper() + title[1:], loc="left")
