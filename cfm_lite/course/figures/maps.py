"""Maps of a number over the plane: how much a velocity varies in one place, and by how much the
flow multiplies a small kick.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection

from cfm_lite._internal.checks import check_number
from cfm_lite.errors import ConfigError
from cfm_lite.viz import artists
from cfm_lite.viz.artists import Density, Limits
from cfm_lite.viz.style import (
    DATA,
    DIVERGING,
    TRUTH,
    Picture,
    as_array,
    as_tensor,
    method_title,
    named,
    styled,
)

__all__ = ["plane_maps", "scalar_maps"]


@styled
def scalar_maps(
    maps: Mapping[str, Density],
    limits: Limits,
    *,
    label: str,
    densities: Mapping[str, Density] | None = None,
    states: Any = None,
    n: int = 101,
) -> Picture:
    """Maps of numbers >= 0, `maps[name](x (B, 2)) -> (B,)`, a panel each on one colour scale,
    `label` with its unit beside it.

    `densities[name]`, an exact log density, draws contours and leaves white what holds less than
    0.5 % of the mass. The colours reach to the value below which 99.5 % of the map lies. Paths
    `states` (S, B, 2) are drawn over every panel. Raises ConfigError for NaN, for values below 0,
    for limits that are not a square and for an empty mapping.
    """
    named("maps", maps, "{'t = 0.5': function}")
    if densities is not None and set(densities) != set(maps):
        raise ConfigError(
            f"densities has {sorted(densities)} and maps {sorted(maps)}; every map needs its own "
            "density, or none has one."
        )
    x = artists.grid_points(limits, n)
    values = {
        name: as_array(f"maps[{name!r}]", f(as_tensor(x)), len(x)).reshape(n, n)
        for name, f in maps.items()
    }
    below = min(float(value.min()) for value in values.values())
    if below < -1e-9:
        raise ConfigError(
            f"maps go down to {below:.3g}; this figure is for numbers of at least 0. For signed "
            "ones use viz.field_error."
        )
    logs = {
        name: artists.density_map(density, limits) for name, density in (densities or {}).items()
    }
    for name in logs:
        at_x = as_array("log density", (densities or {})[name](as_tensor(x)), len(x)).reshape(n, n)
        values[name] = np.where(
            at_x >= artists.mass_levels(logs[name], [0.995])[0], values[name], np.nan
        )
    top = float(np.nanquantile(np.stack(list(values.values())), 0.995)) or 1.0
    figure, axes = artists.squares(
        1, len(values), limits, right=1.1, bottom=0.9 if densities else 0.5
    )
    for panel, (name, value) in zip(axes[0], values.items()):
        panel.set_title(name, loc="left", pad=6)
        image = panel.imshow(
            value,
            origin="lower",
            extent=tuple(limits),
            cmap="magma_r",
            vmin=0,
            vmax=top,
            zorder=0.5,
        )
        if states is not None:
            paths = as_array("states", states, None, None, 2)
            lines = LineCollection(
                list(np.moveaxis(paths, 1, 0)), colors=TRUTH, linewidths=0.5, alpha=0.35, zorder=2
            )
            panel.add_collection(lines, autolim=False)
        if name in logs:
            artists.contours(panel, logs[name], limits)
    artists.color_bar(figure, image, axes[0, -1], label, extend="max")
    if densities:
        artists.bottom_legend(figure, artists.CONTOURS, ncols=1)
    return figure


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
    items = named("maps", maps, "{'all': values}").items()
    values = {name: as_array(f"maps[{name!r}]", x, None, None) for name, x in items}
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
        artists.bottom_legend(figure, {"data": artists.legend_entry(DATA)}, ncols=1)
    return figure
