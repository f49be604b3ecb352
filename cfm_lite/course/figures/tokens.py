"""Figures of a transformer's tokens: an image cut into patches, tables of positions and times, and
maps over the grid of tokens.

Tokens run row by row from the top left: token k stands in row k // side and column k % side.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from cfm_lite._internal.checks import check_count
from cfm_lite.errors import ConfigError
from cfm_lite.viz.style import (
    DIVERGING,
    REPEL,
    TRUTH,
    Picture,
    as_array,
    frame,
    named,
    new_figure,
    panels,
    styled,
)

__all__ = ["patches", "table_map", "token_maps"]


def _grey(name: str, image: Any) -> np.ndarray:
    """An image (1, H, W) or (H, W) as (H, W); ConfigError for another shape or NaN."""
    values = as_array(name, image)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ConfigError(
            f"{name} has shape {as_array(name, image).shape}; it must be a square of one channel, "
            "(1, H, H)."
        )
    return values


def _bare(panel: Axes) -> None:
    panel.set(xticks=[], yticks=[])
    frame(panel)


@styled
def patches(image: Any, patch_size: int) -> Picture:
    """An `image` (1, H, H) in [-1, 1] with the grid along which it is cut, and beside it the
    patches in the order of their tokens.

    Raises ConfigError for NaN, for another shape, and where H is not a multiple of `patch_size`.
    """
    pixels = _grey("image", image)
    side = len(pixels) // check_count("patch_size", patch_size)
    if side * patch_size != len(pixels):
        raise ConfigError(
            f"image has {len(pixels)} pixels a side, which is not a multiple of patch_size "
            f"{patch_size}."
        )
    look = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
    columns = min(side * side, 8)
    rows = math.ceil(side * side / columns)
    figure = new_figure(9.6, 3.1)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 2.2))
    whole, strip = halves
    panel = whole.subplots()
    panel.imshow(pixels, **look)
    for k in range(side * side):
        row, column = divmod(k, side)
        corner = column * patch_size - 0.5, row * patch_size - 0.5
        panel.add_patch(
            Rectangle(corner, patch_size, patch_size, fill=False, edgecolor=REPEL, linewidth=1.1)
        )
        back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        panel.text(
            corner[0] + 0.2,
            corner[1] + 0.2,
            str(k),
            color=REPEL,
            fontsize=9,
            ha="left",
            va="top",
            bbox=back,
        )
    panel.set_title(f"image, {len(pixels)} × {len(pixels)} pixels", loc="left", fontsize=10.5)
    _bare(panel)
    axes = strip.subplots(rows, columns, squeeze=False)
    for k, small in enumerate(axes.flat):
        if k >= side * side:
            small.remove()
            continue
        row, column = divmod(k, side)
        small.imshow(
            pixels[row * patch_size :, column * patch_size :][:patch_size, :patch_size], **look
        )
        small.set_title(
            f"token {k}" if columns < 8 or k == 0 else str(k), fontsize=9, pad=3, color=REPEL
        )
        _bare(small)
    return figure


@styled
def table_map(
    matrix: Any,
    *,
    xlabel: str,
    ylabel: str,
    parts: Sequence[str] = (),
    yticks: Mapping[float, str] | None = None,
) -> Picture:
    """A signed `matrix` (rows, columns) as colours centred at zero; `parts` names equal pieces of
    the columns, `yticks` rows by number.

    Raises ConfigError for NaN, for another shape, and where the columns do not fall into equal
    parts.
    """
    values = as_array("matrix", matrix, None, None)
    rows, columns = values.shape
    if parts and columns % len(parts):
        raise ConfigError(
            f"{columns} columns do not fall into {len(parts)} equal parts {list(parts)}."
        )
    figure, ((panel,),) = panels(1, 1, width=9.6, height=3.2)
    limit = float(np.abs(values).max()) or 1.0
    image = panel.imshow(
        values,
        cmap=DIVERGING,
        norm=Normalize(-limit, limit),
        aspect="auto",
        interpolation="nearest",
    )
    for k, part in enumerate(parts):
        edge = k * columns / len(parts) - 0.5
        if k:
            panel.axvline(edge, color=TRUTH, linewidth=1.4)
        panel.text(
            edge + columns / len(parts) / 2,
            -0.5 - 0.03 * rows,
            part,
            ha="center",
            va="bottom",
            fontsize=10,
        )
    if yticks:
        panel.set_yticks(list(yticks), list(yticks.values()))
    panel.set(xlabel=xlabel, ylabel=ylabel)
    frame(panel)
    figure.colorbar(image, ax=panel, label="value", shrink=0.95)
    return figure


@styled
def token_maps(
    maps: Mapping[str, Any],
    *,
    queries: Sequence[int] | int | None = None,
    image: Any = None,
    label: str = "attention",
    zero: bool = True,
) -> Picture:
    """A square per name, `maps[name]` (side * side,): a number per token on the grid of tokens, on
    one colour scale for all.

    `queries` frames one token in every map, or one per map; `image` (1, H, H) is shown first, with
    the same frame. Colours run from 0 (or with `zero=False` from the lowest value) to the largest.
    Raises ConfigError for NaN and for a length that is not a square.
    """
    items = named("maps", maps, "{'head 1': weights}").items()
    arrays = {name: as_array(f"maps[{name!r}]", values, None) for name, values in items}
    count = len(next(iter(arrays.values())))
    side = math.isqrt(count)
    if side * side != count or any(len(values) != count for values in arrays.values()):
        raise ConfigError(
            f"maps have {[len(v) for v in arrays.values()]} values; each needs the same square "
            "number, one per token."
        )
    marked = (
        [queries] * len(arrays) if queries is None or isinstance(queries, int) else list(queries)
    )
    if len(marked) != len(arrays) or any(q is not None and not 0 <= q < count for q in marked):
        raise ConfigError(
            f"queries is {queries!r}; give one token from 0 to {count - 1}, or one for each of the "
            f"{len(arrays)} maps."
        )
    low = 0.0 if zero else min(float(v.min()) for v in arrays.values())
    high = max(float(v.max()) for v in arrays.values())
    total = len(arrays) + (image is not None)
    figure, axes = panels(1, total, width=min(11.0, 1.1 + 2.05 * total), height=2.5)
    shown = list(axes[0])
    if image is not None:
        _picture(shown.pop(0), _grey("image", image), side, marked[0])
    for panel, (name, values), query in zip(shown, arrays.items(), marked):
        drawn = panel.imshow(
            values.reshape(side, side),
            cmap="Purples",
            vmin=low,
            vmax=high or 1.0,
            interpolation="nearest",
        )
        _mark(panel, query, side, 1.0)
        panel.set_title(name, loc="left", fontsize=10)
        _bare(panel)
    figure.colorbar(drawn, ax=list(axes[0]), label=label, shrink=0.9)
    return figure


def _picture(panel: Axes, pixels: np.ndarray, side: int, query: int | None) -> None:
    panel.imshow(pixels, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    _mark(panel, query, side, len(pixels) / side)
    panel.set_title("image", loc="left", fontsize=10)
    _bare(panel)


def _mark(panel: Axes, query: int | None, side: int, cell: float) -> None:
    """A frame around token `query`, whose cells are `cell` units wide."""
    if query is not None:
        row, column = divmod(query, side)
        corner = column * cell - 0.5, row * cell - 0.5
        panel.add_patch(
            Rectangle(corner, cell, cell, fill=False, edgecolor=REPEL, linewidth=2.2, zorder=3)
        )
