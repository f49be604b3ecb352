"""What flow matching regresses on: many targets over one place, and which noise is paired with
which data.

Convention: t = 0 is noise (grey), t = 1 is data (blue). Targets are pale blue, the exact
conditional mean is black.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection

from cfm_lite._internal.checks import check_count, check_number
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Limits, Velocity
from cfm_lite.viz.style import (
    DATA,
    NOISE,
    Picture,
    as_array,
    as_tensor,
    method_color,
    method_title,
    named,
    new_figure,
    styled,
)

__all__ = ["pairings", "regression_slice"]


@styled
def regression_slice(
    x: Any, u: Any, fields: Mapping[str, Velocity], t: float, *, n: int = 201
) -> Picture:
    """Targets `u` (B,) over places `x` (B,) on a line at one time `t`, and the velocities
    `fields[name](x (n, 1), t (n,)) -> (n, 1)`.

    "truth" is black, methods have their colours, other names the model's. Fields are drawn where 99
    % of the places lie. Raises ConfigError for NaN, for shapes that do not fit, for a time outside
    [0, 1] and for an empty mapping.
    """
    named("fields", fields, "{'truth': velocity}")
    x = as_array("x", x, None)
    u = as_array("u", u, len(x))
    t = check_number("t", t, 0, 1)
    figure = new_figure(8.6, 4.0)
    panel = figure.add_subplot()
    panel.scatter(
        x, u, s=7, color=DATA, alpha=0.22, linewidths=0, label="targets $u_t$ of single draws"
    )
    low, high = np.quantile(x, [0.005, 0.995]).tolist()
    grid = np.linspace(low, high, check_count("n", n, 2))[:, None]
    time = as_tensor(np.full(len(grid), t))
    for name, field in fields.items():
        value = as_array(f"fields[{name!r}]", field(as_tensor(grid), time), len(grid), 1)[:, 0]
        label = "exact conditional mean" if name == "truth" else method_title(name)
        line = "-" if name == "truth" else "--"
        look: dict[str, Any] = {"color": method_color(name), "linestyle": line, "label": label}
        panel.plot(grid[:, 0], value, linewidth=2.4, **look)
    panel.set(xlabel=f"place $x_t$ at $t$ = {t:g}", ylabel="velocity, per unit of $t$")
    figure.legend(loc="outside right upper", handlelength=2.2, labelspacing=0.8)
    return figure


@styled
def pairings(
    couplings: Mapping[str, tuple[Any, Any]], *, shown: int = 150, limits: Limits | None = None
) -> Picture:
    """Noise (grey) joined to its data (blue), `couplings[name]` = (x0, x1), both (B, 2): a panel
    per coupling.

    The title gives the mean squared length over all B pairs; the first `shown` are drawn. Raises
    ConfigError for NaN, for shapes that differ and for an empty mapping.
    """
    check_count("shown", shown)
    pairs = {}
    for name, (x0, x1) in named("couplings", couplings, "{'OT': (x0, x1)}").items():
        start = as_array(f"couplings[{name!r}][0]", x0, None, 2)
        pairs[name] = np.stack(
            [start, as_array(f"couplings[{name!r}][1]", x1, len(start), 2)]
        )  # (2, B, 2)
    limits = limits or artists.square_limits(
        *(pair[:, :shown] for pair in pairs.values()), margin=0.02
    )
    figure, axes = artists.squares(1, len(pairs), limits, side=3.1, top=0.72, bottom=0.9)
    for panel, (name, pair) in zip(axes[0], pairs.items()):
        length = float(np.square(pair[1] - pair[0]).sum(1).mean())
        panel.set_title(name, loc="left", weight="bold", pad=21)
        note = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 10}
        panel.annotate(f"mean of $|x_1 - x_0|^2$: {length:.2f}", (0, 1), (0, 6), **note)
        lines = LineCollection(
            list(np.moveaxis(pair[:, :shown], 1, 0)),
            colors="#8a8a8a",
            linewidths=0.7,
            alpha=0.55,
            zorder=1.5,
        )
        panel.add_collection(lines, autolim=False)
        artists.points(panel, pair[0, :shown], color=NOISE, size=13, zorder=2)
        artists.points(panel, pair[1, :shown], color=DATA, size=13, zorder=2)
    entries = {"noise $x_0$": artists.legend_entry(NOISE), "data $x_1$": artists.legend_entry(DATA)}
    artists.bottom_legend(figure, entries, ncols=2)
    return figure
